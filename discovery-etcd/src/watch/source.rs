//! One attempt at following a service: list, watch, and list again if the watch breaks.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use discovery_core::{
    Error, ErrorKind, ServiceName,
    backend::{Entry, Feed, Live, Source},
};
use tokio::{
    sync::{Semaphore, watch},
    task::yield_now,
    time::{Instant, sleep, timeout},
};
use tracing::debug;

use super::{
    cursor::{self, Cursor, is_same_cluster},
    list::{DeeperLog, Listed},
    range::Range,
    rounds::Rounds,
    tally::{Tally, Verdict},
};
use crate::{
    client::{Event, Failure, Message, Reading, Reason},
    cluster::Cluster,
    layout::Layout,
    pace::Pace,
    watcher::{Audited, Ended, News, Start, Watch, Watcher},
};

/// Reads services from etcd.
#[derive(Debug)]
pub(crate) struct EtcdSource {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) watcher: Watcher,
    pub(crate) layout: Arc<dyn Layout>,
    pub(crate) prefix: String,
    pub(crate) pace: Pace,
    /// How many services are listed at once, for the first time and after a broken watch: few
    /// enough for each list to be quick, and enough to keep etcd busy.
    pub(crate) first_lists: Semaphore,
    pub(crate) relists: Semaphore,
    pub(crate) deeper: DeeperLog,
    /// Whether the backend is closed.
    pub(crate) closed: watch::Receiver<bool>,
}

#[async_trait]
impl Source for EtcdSource {
    async fn follow(&self, service: &ServiceName, feed: Feed) -> Result<(), Error> {
        let mut closed = self.closed.clone();
        tokio::select! {
            biased;
            // An error means that the handle is gone. Streams outlive it.
            Ok(_) = closed.wait_for(|closed| *closed) => Err(closed_error()),
            result = self.follow_open(service, feed) => result,
        }
    }
}

impl EtcdSource {
    /// Lists and watches. If the watch breaks but some member answers at once, lists again and
    /// continues. Otherwise the attempt ends, so that watchers know of the outage while it lasts:
    /// what they see afterwards may be its consequence.
    ///
    /// A broken watch is not resumed on another member: after a restore or a wipe its revisions may
    /// belong to another history. The list costs little, and unchanged instances keep their
    /// identity for all watchers.
    async fn follow_open(&self, service: &ServiceName, feed: Feed) -> Result<(), Error> {
        let range = Range::of(self, service, feed.limit());
        let mut rounds = Rounds::default();
        let mut listed = self.first_list(&range).await?;
        let mut open = Open::Feed(feed);
        let mut wait = Duration::ZERO;
        loop {
            self.deeper.note(service, &listed);
            let Listed { entries, keys, revision, cluster, start, .. } = listed;
            let live = open.reset(entries);
            let mut state = State { live, cursor: Cursor::new(revision, cluster), tally: Tally::new(keys), steps: 0 };
            sleep(wait).await;
            let begun = Instant::now();
            let ended = self.watch(&range, &mut state, start).await;
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
            debug!(%service, revision, error = report, "listing again");
            listed = match (self.relist(&range).await, error) {
                (Ok(listed), _) => listed,
                (Err(error), Some(broken)) if error.is_retryable() => return Err(broken),
                // This error is more specific than that of the watch, and it is not transient.
                (Err(error), _) => return Err(error),
            };
            open = Open::Live(state.live);
            wait = next;
        }
    }

    async fn first_list(&self, range: &Range<'_>) -> Result<Listed, Error> {
        let _permit = self.first_lists.acquire().await.expect("the semaphore is never closed");
        // Boxed, because the future is large and needed only for a moment.
        Box::pin(self.list(range)).await
    }

    /// Lists again after a watch broke. Waiting for a permit counts against the time limit, so that
    /// all watchers learn of an outage in time, however many watches broke.
    async fn relist(&self, range: &Range<'_>) -> Result<Listed, Error> {
        let begun = Instant::now();
        let Ok(permit) = timeout(self.pace.relist, self.relists.acquire()).await else {
            let error = Error::new(ErrorKind::DeadlineExceeded, "other services are still being listed");
            return Err(error.with_operation("list"));
        };
        let _permit = permit.expect("the semaphore is never closed");
        Box::pin(self.list_within(range, self.pace.relist, begun)).await
    }

    /// Passes on changes until the watch ends or cannot be trusted any more.
    async fn watch(&self, range: &Range<'_>, state: &mut State, start: Start) -> Ended {
        let mut watch = self.watcher.watch(range.keys(), state.cursor.reached(), start);
        loop {
            watch.count(state.tally.count());
            let done = match watch.next().await {
                // Boxed, because few of perhaps thousands of watches get a message at a time.
                News::Message(message) => Box::pin(state.take(range, message)).await,
                News::Moved { cluster } => state.moved(cluster),
                News::Audited(audited) => state.audited(&audited, &watch),
                News::Ended(ended) => return ended,
            };
            match done {
                Ok(()) => watch.know(state.cursor.reached()),
                Err(cursor::Stop::Compacted) => return Ended::Compacted,
                Err(cursor::Stop::Canceled(failure)) => return Ended::Broken(failure.error),
                Err(cursor::Stop::Strange(error)) => {
                    watch.distrust(Failure::new(Reason::Strange, error.clone()));
                    return Ended::Broken(error);
                }
            }
        }
    }
}

/// The state of an open watch.
struct State {
    live: Live,
    cursor: Cursor,
    tally: Tally,
    /// How many steps were passed on.
    steps: u32,
}

impl State {
    /// Passes a message on. Yields between steps, so that consumers get to run and do not fall
    /// behind.
    async fn take(&mut self, range: &Range<'_>, message: Message) -> Result<(), cursor::Stop> {
        if message.fragment {
            self.tally.hear();
        }
        for step in self.cursor.advance(message)? {
            self.steps = self.steps.wrapping_add(1);
            if self.steps.is_multiple_of(STEPS_A_TURN) {
                yield_now().await;
            }
            self.tally.step(step.first().map_or(0, Event::revision), range.growth(&step));
            range.apply(step, &mut self.live);
        }
        Ok(())
    }

    fn moved(&mut self, cluster: u64) -> Result<(), cursor::Stop> {
        self.cursor.resume();
        if is_same_cluster(cluster, self.cursor.cluster()) {
            Ok(())
        } else {
            Err(cursor::strange("the watch was answered by another cluster"))
        }
    }

    /// Compares what the watch reported with what an audit read.
    fn audited(&mut self, audited: &Audited, watch: &Watch) -> Result<(), cursor::Stop> {
        let Reading::Range(seen) = &audited.reading else { return Ok(()) };
        if !is_same_cluster(seen.cluster, self.cursor.cluster()) {
            return Err(cursor::strange("the member now belongs to another cluster"));
        }
        if seen.revision < audited.known {
            return Err(cursor::strange("the registry's history went back"));
        }
        match self.tally.judge(seen, self.cursor.reached()) {
            // Everything up to here is known. A later stream need not start at an older revision,
            // which may be compacted by then.
            Verdict::Level => self.cursor.reach(seen.revision),
            Verdict::Open => watch.audit_soon(),
            Verdict::Wrong(what) => return Err(cursor::strange(what)),
        }
        Ok(())
    }
}

/// Where the next set is sent.
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

/// Well below the number of updates that a consumer may fall behind.
const STEPS_A_TURN: u32 = 8;

/// The error of every call on a backend that was closed.
pub(crate) fn closed_error() -> Error {
    Error::new(ErrorKind::Closed, "the backend was closed")
}
