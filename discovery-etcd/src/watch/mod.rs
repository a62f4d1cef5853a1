//! One attempt at following a service: a list in pages at one revision, then a watch from there.
//!
//! A watch that is cut off says nothing, as one does where nothing happens. So while it runs, small reads on the member that
//! serves it show whether that answers, and whether the watch tells what it should (see [`Pace`]).

mod cursor;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod list;
mod pulse;
mod range;
mod rounds;

use std::{pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use discovery_core::{Entry, Error, ErrorKind, Feed, Live, ServiceName, Source};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout},
};
use tracing::debug;

use crate::{
    audit_interval::AuditInterval,
    client::{Event, Failure, Member, Message, RangeSummary, Reason, WatchStream},
    cluster::{Asking, Cluster},
    layout::Layout,
};
use cursor::{Cursor, Ended, WATCH};
#[cfg(fuzzing)]
pub use fuzz::fuzz_watch;
use list::Listed;
pub(crate) use pulse::Pace;
use pulse::Pulse;
use range::Range;
use rounds::Rounds;

/// Reads services from etcd.
#[derive(Debug)]
pub(crate) struct EtcdSource {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) layout: Arc<dyn Layout>,
    pub(crate) prefix: String,
    pub(crate) pace: Pace,
    /// How long a watch is trusted without a fresh list.
    pub(crate) audit: AuditInterval,
    /// Whether the backend was closed.
    pub(crate) closed: watch::Receiver<bool>,
}

#[async_trait]
impl Source for EtcdSource {
    async fn follow(&self, service: &ServiceName, feed: Feed) -> Result<(), Error> {
        let mut closed = self.closed.clone();
        tokio::select! {
            biased;
            // An error means that the handle is gone, which streams outlive.
            Ok(_) = closed.wait_for(|closed| *closed) => Err(closed_error()),
            result = self.follow_open(service, feed) => result,
        }
    }
}

impl EtcdSource {
    /// Lists and watches; where the watch breaks but some member answers at once, lists anew and goes on. Otherwise the attempt
    /// ends, so that watchers know of the outage while it lasts: what they see after it may be its doing.
    ///
    /// A watch that broke is not resumed on another member: after a restore or a wipe its revisions
    /// may mean another history. The list costs little, and equal instances stay the same ones for
    /// all who watch.
    async fn follow_open(&self, service: &ServiceName, feed: Feed) -> Result<(), Error> {
        let range = Range::of(self, service, feed.limit());
        let mut rounds = Rounds::default();
        let mut listed = self.list(&range).await?;
        let mut open = Open::Feed(feed);
        let mut wait = Duration::ZERO;
        loop {
            let Listed { entries, keys, revision, cluster, .. } = listed;
            let live = open.reset(entries);
            let mut state = State { live, cursor: Cursor::new(revision, cluster), pulse: Pulse::new(keys, revision) };
            sleep(wait).await;
            let begun = Instant::now();
            let ended = self.watch(&range, &mut state).await;
            let error = match ended {
                Ended::Compacted => None,
                Ended::Broken(error) => Some(error),
            };
            let Some(next) = rounds.ended(begun.elapsed()) else {
                return Err(error.unwrap_or_else(|| {
                    Error::new(ErrorKind::Unavailable, "the history is compacted too fast to follow")
                }));
            };
            let report = error.as_ref().map(|error| error.report().to_string());
            debug!(%service, revision, error = report, "listing anew");
            listed = match error {
                None => self.list_within(&range, self.pace.patience(), 0).await?,
                Some(broken) => match self.list_within(&range, self.pace.relist, 0).await {
                    Ok(listed) => listed,
                    Err(error) if error.is_retryable() => return Err(broken),
                    // More to the point, and nothing that passes.
                    Err(error) => return Err(error),
                },
            };
            open = Open::Live(state.live);
            wait = next;
        }
    }

    /// Passes on changes until the watch ends or cannot be trusted.
    async fn watch(&self, range: &Range<'_>, state: &mut State) -> Ended {
        let asking = self.cluster.choose();
        // From what is known already, whose events are dropped: where history is compacted up to the first change that is not, some
        // releases take a watch from there and leave a removal out, and only one from before it is told.
        let opened = self.open(range, asking.member(), state.cursor.reached()).await;
        let mut member = asking.ended(&opened);
        let mut stream = match opened {
            Ok(stream) => stream,
            Err(failure) => return Ended::Broken(self.cluster.of_all(&[member], failure).error),
        };
        let mut audit = Box::pin(sleep_until(self.audit.next()));
        let mut ticks = interval_at(Instant::now() + self.pace.interval, self.pace.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut beat: Option<Pending<'_, Result<RangeSummary, Failure>>> = None;
        let mut moving: Option<Pending<'_, Option<Moved>>> = None;
        loop {
            let message = tokio::select! {
                // What the watch has told already counts when it is judged.
                biased;
                () = &mut audit => {
                    audit = Box::pin(sleep_until(self.audit.next()));
                    if let Err(ended) = self.audit(range, state).await {
                        return ended;
                    }
                    // What it asks for is older than what is known now.
                    beat = None;
                    continue;
                }
                message = stream.next() => message,
                seen = answer(&mut beat), if beat.is_some() => {
                    beat = None;
                    match self.judge(&member, seen, state).await {
                        Some(ended) => return ended,
                        None => continue,
                    }
                }
                moved = answer(&mut moving), if moving.is_some() => {
                    moving = None;
                    // What the new one does not tell, the present one must have told. Otherwise the
                    // next tick tries again.
                    let Some(moved) = moved else { continue };
                    if state.is_level_with(&moved.listed) {
                        state.compare(moved.listed);
                        audit = Box::pin(sleep_until(self.audit.next()));
                    } else if moved.listed.revision > state.cursor.reached() {
                        continue;
                    }
                    // The one before is closed only now, and what both tell is taken once.
                    member = moved.member;
                    stream = moved.stream;
                    state.cursor.resume();
                    beat = None;
                    match moved.early {
                        Some(message) => Ok(message),
                        None => continue,
                    }
                }
                _ = ticks.tick(), if beat.is_none() => {
                    if moving.is_none() && let Some(another) = self.cluster.another(&member) {
                        moving = Some(Box::pin(self.moved(range, another, state.cursor.cluster())));
                    }
                    let newest = state.pulse.beat(state.cursor.reached());
                    let (asked, from, to) = (Arc::clone(&member), range.from.clone(), range.to.clone());
                    beat = Some(Box::pin(async move { asked.glance(from, to, newest, self.pace.deadline).await }));
                    continue;
                }
            };
            let is_part = message.as_ref().is_ok_and(|message| message.fragment);
            match message.map(|message| state.cursor.advance(message)) {
                Ok(Ok(steps)) => {
                    if is_part {
                        state.pulse.hear();
                    }
                    for step in steps {
                        state.pulse.step(step.first().map_or(0, Event::revision), range.growth(&step));
                        range.apply(step, &mut state.live);
                    }
                }
                Ok(Err(cursor::Stop::Canceled(failure))) | Err(failure) => return self.broken(&member, failure),
                Ok(Err(cursor::Stop::Compacted)) => return Ended::Compacted,
                Ok(Err(cursor::Stop::Strange(error))) => {
                    return self.broken(&member, Failure::new(Reason::Strange, error));
                }
            }
        }
    }

    async fn open(&self, range: &Range<'_>, member: &Arc<Member>, revision: i64) -> Result<WatchStream, Failure> {
        member.watch(range.from.clone(), range.to.clone(), revision, WATCH, self.pace.patience()).await
    }

    /// The watch on another member, once that has begun it. It begins with a fresh list, since the
    /// last change may be so old that its history is compacted.
    async fn moved(&self, range: &Range<'_>, asking: Asking<'_>, cluster: u64) -> Option<Moved> {
        let listed = self.list_within(range, self.pace.patience(), 0).await;
        let listed = listed.inspect_err(|error| debug!(error = %error.report(), "watch not moved")).ok()?;
        let begun = async {
            let mut stream = self.open(range, asking.member(), listed.revision).await?;
            let first = stream.next().await?;
            let is_well = first.created && first.canceled.is_none() && first.watch == WATCH;
            let is_one_cluster = first.cluster == cluster && listed.cluster == cluster;
            // One that lags would take the watch back.
            if is_well && is_one_cluster && first.revision >= listed.revision && first.events.is_empty() {
                Ok(stream)
            } else {
                let error = Error::new(ErrorKind::Unavailable, "the member did not take the watch over");
                Err(Failure::new(Reason::Strange, error.during("watch")))
            }
        };
        let begun = timeout(self.pace.patience(), begun).await.unwrap_or_else(|_| {
            let error = Error::new(ErrorKind::DeadlineExceeded, "the member did not begin the watch in time");
            Err(Failure::new(Reason::TimedOut, error.during("watch")))
        });
        let member = asking.ended(&begun);
        let begun = begun.inspect_err(|failure| debug!(error = %failure.error.report(), "watch not moved"));
        let mut stream = begun.ok()?;
        // A beat more: the present watch delivers what is in flight, and a new one whose history
        // was compacted before it caught up is canceled.
        let early = match timeout(self.pace.interval, stream.next()).await {
            Ok(Ok(message)) if message.canceled.is_none() => Some(message),
            Ok(_) => return None,
            Err(_) => None,
        };
        Some(Moved { member, stream, listed, early })
    }

    /// Compares the set with a fresh list, which finds changes that the watch left out and
    /// permissions that were withdrawn. Where it differs, watchers see a `Reset`.
    ///
    /// A change that is on its way is none that was left out: where there may be one, the set is
    /// compared with the list as it was where the watch stands.
    async fn audit(&self, range: &Range<'_>, state: &mut State) -> Result<(), Ended> {
        let at = state.cursor.reached();
        match self.list_within(range, self.pace.patience(), 0).await {
            Ok(listed) if listed.cluster != state.cursor.cluster() || listed.revision < at => {
                let error = Error::new(ErrorKind::Unavailable, "the registry's history is another one");
                Err(Ended::Broken(error.during("watch")))
            }
            Ok(listed) if state.is_level_with(&listed) => {
                state.compare(listed);
                Ok(())
            }
            Ok(_) => {
                match self.list_within(range, self.pace.patience(), at).await {
                    Ok(listed) if listed.cluster == state.cursor.cluster() => {
                        if !state.live.compare(listed.entries) {
                            state.pulse = Pulse::new(listed.keys, at);
                        }
                    }
                    Ok(_) => debug!("the watch was not compared with another cluster's list"),
                    // Compacted, as a rule.
                    Err(error) => debug!(error = %error.report(), "the watch was not compared with a list"),
                }
                Ok(())
            }
            // The watch is judged by its beats.
            Err(error) if error.is_retryable() => {
                debug!(error = %error.report(), "the watch could not be compared with a list");
                Ok(())
            }
            Err(error) => Err(Ended::Broken(error)),
        }
    }

    /// Whether a beat's answer, or the lack of one, ends the watch.
    async fn judge(
        &self,
        member: &Arc<Member>,
        seen: Result<RangeSummary, Failure>,
        state: &mut State,
    ) -> Option<Ended> {
        let wrong = match seen {
            Ok(seen) if seen.cluster != state.cursor.cluster() => "the member belongs to another cluster by now",
            Ok(seen) => state.pulse.answered(&seen, state.cursor.reached()).err()?,
            // etcd goes on telling changes to those whose credentials or permission it has withdrawn; who watches is told.
            Err(failure) if failure.error.kind() == ErrorKind::PermissionDenied => {
                return Some(self.broken(member, failure));
            }
            // Another token may do.
            Err(failure) if failure.reason == Reason::Token && !state.pulse.lock_out() => return None,
            // The member answers, if only that it is too busy. What lasts is found by the audit.
            Err(failure) if failure.reason == Reason::Overloaded || !failure.is_member() => {
                debug!(error = %failure.error.report(), "the watch could not be checked");
                return None;
            }
            Err(failure) => return Some(self.broken(member, failure)),
        };
        let error = Error::new(ErrorKind::Unavailable, wrong).during("watch");
        Some(self.broken(member, Failure::new(Reason::Strange, error)))
    }

    fn broken(&self, member: &Arc<Member>, failure: Failure) -> Ended {
        Ended::Broken(self.cluster.blame(member, failure).error)
    }
}

/// What an open watch knows.
struct State {
    live: Live,
    cursor: Cursor,
    pulse: Pulse,
}

impl State {
    /// Whether a list of the same history has nothing that the watch did not tell, nor the watch
    /// anything that came later. What came and went in between shows in neither, so a watch goes on
    /// from where it stands.
    fn is_level_with(&self, listed: &Listed) -> bool {
        let reached = self.cursor.reached();
        listed.cluster == self.cursor.cluster()
            && listed.revision >= reached
            && listed.newest <= reached
            && i64::try_from(listed.keys) == Ok(self.pulse.count())
    }

    /// Compares the set with a list that it is level with.
    fn compare(&mut self, listed: Listed) {
        if !self.live.compare(listed.entries) {
            self.cursor = Cursor::new(listed.revision, listed.cluster);
            self.pulse = Pulse::new(listed.keys, listed.revision);
        }
    }
}

/// A watch on another member, and the list that it begins with.
struct Moved {
    member: Arc<Member>,
    stream: WatchStream,
    listed: Listed,
    /// What it told first.
    early: Option<Message>,
}

/// An operation that runs beside the watch.
type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The outcome of a pending operation. Cancel safe.
async fn answer<T>(pending: &mut Option<Pending<'_, T>>) -> T {
    match pending {
        Some(pending) => pending.await,
        None => std::future::pending().await,
    }
}

/// Where the next set goes.
enum Open {
    Feed(Feed),
    Live(Live),
}

impl Open {
    fn reset(self, entries: Vec<Entry>) -> Live {
        match self {
            Self::Feed(feed) => feed.reset(entries),
            Self::Live(mut live) => {
                live.reset(entries);
                live
            }
        }
    }
}

/// The error of every call on a backend that was closed.
pub(crate) fn closed_error() -> Error {
    Error::new(ErrorKind::Closed, "the backend was closed")
}
