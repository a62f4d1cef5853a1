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
    time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until},
};
use tracing::debug;

use crate::{
    client::{Event, Failure, RangeSummary, Reason},
    cluster::{Chosen, Cluster},
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
    /// A watch is not resumed on another member: after a restore or a wipe its revisions may mean another history. The list
    /// costs little, and equal instances stay the same ones for all who watch.
    async fn follow_open(&self, service: &ServiceName, feed: Feed) -> Result<(), Error> {
        let range = Range::of(self, service, feed.limit());
        let mut open = Open::Feed(feed);
        let (mut rounds, mut reached) = (Rounds::default(), 0);
        let mut broken: Option<Error> = None;
        let mut wait = Duration::ZERO;
        loop {
            let Listed { entries, keys, revision, cluster } = match (&open, broken.take()) {
                (Open::Feed(_), _) => self.list(&range).await?,
                (_, None) => self.list_within(&range, self.pace.patience()).await?,
                (_, Some(broken)) => match self.list_within(&range, self.pace.relist).await {
                    Ok(listed) => listed,
                    Err(error) if error.is_retryable() => return Err(broken),
                    // More to the point, and nothing that passes.
                    Err(error) => return Err(error),
                },
            };
            let mut pulse = Pulse::new(keys, revision);
            let went_back = revision < reached;
            let mut live = open.put(entries, went_back);
            let mut cursor = Cursor::new(revision, cluster);
            sleep(wait).await;
            let begun = Instant::now();
            let ended = self.watch(&range, &mut live, &mut cursor, &mut pulse).await;
            reached = cursor.reached();
            let is_audit = matches!(ended, Ended::Audit);
            let error = match ended {
                Ended::Audit | Ended::Compacted => None,
                Ended::Broken(error) => Some(error),
            };
            let Some(next) = rounds.ended(begun.elapsed()) else {
                return Err(error.unwrap_or_else(|| {
                    Error::new(ErrorKind::Unavailable, "the history is compacted too fast to follow")
                }));
            };
            let report = error.as_ref().map(|error| error.report().to_string());
            debug!(%service, revision, error = report, "listing anew");
            broken = error;
            open = if is_audit { Open::Audit(live) } else { Open::Live(live) };
            wait = next;
        }
    }

    /// Passes on changes until the watch ends or cannot be trusted.
    async fn watch(&self, range: &Range<'_>, live: &mut Live, cursor: &mut Cursor, pulse: &mut Pulse) -> Ended {
        let chosen = self.cluster.choose(&[]);
        let (from, to) = (range.from.clone(), range.to.clone());
        // From what is known already, whose events are dropped: where history is compacted up to the first change that is not, some
        // releases take a watch from there and leave a removal out, and only one from before it is told.
        let opened = chosen.member.watch(from, to, cursor.reached(), WATCH, self.pace.patience()).await;
        let mut stream = match opened {
            Ok(stream) => stream,
            Err(failure) => return self.broken(&chosen, failure),
        };
        let audit = sleep_until(Instant::now() + AUDIT.mul_f64(0.8 + 0.4 * fastrand::f64()));
        tokio::pin!(audit);
        let mut ticks = interval_at(Instant::now() + self.pace.interval, self.pace.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut beat: Option<Beat<'_>> = None;
        loop {
            let message = tokio::select! {
                // What the watch has said already counts when it is judged.
                biased;
                () = &mut audit => return Ended::Audit,
                message = stream.next() => message,
                seen = answer(&mut beat), if beat.is_some() => {
                    beat = None;
                    match self.judge(&chosen, seen, cursor, pulse).await {
                        Some(ended) => return ended,
                        None => continue,
                    }
                }
                _ = ticks.tick(), if beat.is_none() => {
                    let newest = pulse.beat(cursor.reached());
                    let (from, to) = (range.from.clone(), range.to.clone());
                    beat = Some(Box::pin(chosen.member.glance(from, to, newest, self.pace.deadline)));
                    continue;
                }
            };
            let is_part = message.as_ref().is_ok_and(|message| message.fragment);
            match message.map(|message| cursor.advance(message)) {
                Ok(Ok(steps)) => {
                    if is_part {
                        pulse.hear();
                    }
                    for step in steps {
                        pulse.step(step.first().map_or(0, Event::revision), range.growth(&step));
                        range.apply(step, live);
                    }
                }
                Ok(Err(cursor::Stop::Canceled(failure))) | Err(failure) => return self.broken(&chosen, failure),
                Ok(Err(cursor::Stop::Compacted)) => return Ended::Compacted,
                Ok(Err(cursor::Stop::Strange(error))) => {
                    self.cluster.failed(&chosen);
                    return Ended::Broken(error);
                }
            }
        }
    }

    /// Whether a beat's answer, or the lack of one, ends the watch.
    async fn judge(
        &self,
        chosen: &Chosen,
        seen: Result<RangeSummary, Failure>,
        cursor: &Cursor,
        pulse: &mut Pulse,
    ) -> Option<Ended> {
        let wrong = match seen {
            Ok(seen) if seen.cluster != cursor.cluster() => "the member belongs to another cluster by now",
            Ok(seen) => pulse.answered(&seen, cursor.reached()).err()?,
            // etcd goes on telling changes to those whose credentials or permission it has withdrawn; who watches is told.
            Err(failure)
                if failure.is_member()
                    || failure.error.kind() == ErrorKind::PermissionDenied
                    || (failure.reason == Reason::Token && pulse.lock_out()) =>
            {
                return Some(self.broken(chosen, failure));
            }
            // The member answers, if only that it is too busy. What lasts is found by the audit.
            Err(failure) => {
                debug!(error = %failure.error.report(), "the watch could not be checked");
                return None;
            }
        };
        self.cluster.failed(chosen);
        Some(Ended::Broken(Error::new(ErrorKind::Unavailable, wrong).during("watch")))
    }

    fn broken(&self, chosen: &Chosen, failure: Failure) -> Ended {
        if !matches!(failure.reason, Reason::Refused | Reason::Token) {
            self.cluster.failed(chosen);
        }
        Ended::Broken(failure.error)
    }
}

/// A small read that is on its way.
type Beat<'a> = Pin<Box<dyn Future<Output = Result<RangeSummary, Failure>> + Send + 'a>>;

/// The answer to a beat. Cancel safe.
async fn answer(beat: &mut Option<Beat<'_>>) -> Result<RangeSummary, Failure> {
    match beat {
        Some(beat) => beat.await,
        None => std::future::pending().await,
    }
}

/// Where the next set goes.
enum Open {
    /// To one where nothing should have been missed, so that only differences are news.
    Audit(Live),
    Feed(Feed),
    /// To one where changes may have been missed.
    Live(Live),
}

impl Open {
    fn put(self, entries: Vec<Entry>, went_back: bool) -> Live {
        match self {
            Self::Feed(feed) => feed.reset(entries),
            Self::Audit(mut live) if !went_back => {
                live.replace(entries);
                live
            }
            Self::Audit(mut live) | Self::Live(mut live) => {
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

/// How long a watch is trusted without a fresh list, give or take a fifth: it finds lost events and withdrawn permissions.
const AUDIT: Duration = Duration::from_secs(600);
