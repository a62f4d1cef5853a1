//! A whole range, as it was at one revision, read page by page.

mod deeper_log;
mod page_size;
mod reading;
mod subtrees;

use std::time::Duration;

use discovery_core::{Error, ErrorKind, backend::Entry};
use tokio::time::{Instant, timeout};

use super::{range::Range, source::EtcdSource};
use crate::{
    client::{Failure, Page, Reason},
    watcher::Start,
};
pub(crate) use deeper_log::DeeperLog;
use page_size::PageSize;
use reading::Reading;

/// What a range held at one revision.
///
/// Where it has more entries than are followed, it is read no further than shows that.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub(super) entries: Vec<Entry>,
    /// All of the range, those of deeper paths included.
    pub(super) keys: usize,
    /// How many of them are nobody's entries, as far as the range was read.
    pub(super) deeper: usize,
    pub(super) revision: i64,
    /// 0 where no member said.
    pub(super) cluster: u64,
    /// How a watch from there begins: while page after page came, much may have happened.
    pub(super) start: Start,
}

impl EtcdSource {
    /// The whole range, as it was at one revision. Rows are read page by page, so that no more than
    /// one page of raw values is held.
    pub(super) async fn list(&self, range: &Range<'_>) -> Result<Listed, Error> {
        self.read(range, None, Instant::now()).await
    }

    /// As [`list`](Self::list), with no more than `bound` from `begun` to the first page and from
    /// one page to the next. So it ends within that time where the members are silent; while pages
    /// come it goes on, however long the whole list takes.
    pub(super) async fn list_within(
        &self,
        range: &Range<'_>,
        bound: Duration,
        begun: Instant,
    ) -> Result<Listed, Error> {
        self.read(range, Some(bound), begun).await
    }

    async fn read(&self, range: &Range<'_>, bound: Option<Duration>, begun: Instant) -> Result<Listed, Error> {
        let mut reading = Reading::new(range, PageSize::new());
        let mut restarts = 0;
        let mut heard = begun;
        loop {
            let left = bound.map(|bound| bound.saturating_sub(heard.elapsed()));
            let failure = match self.page(&reading, reading.size.patience().or(left)).await {
                Ok(page) => {
                    let allowed = bound.map_or(page.timeout, |bound| bound.min(page.timeout));
                    if reading.take(page, allowed).await? {
                        return Ok(reading.listed);
                    }
                    heard = Instant::now();
                    continue;
                }
                Err(failure) => failure,
            };
            match failure.reason {
                Reason::TooLarge if reading.size.too_large() => heard = Instant::now(),
                Reason::TimedOut if reading.size.timed_out() => {}
                // Compacted in between, or gone back on another member.
                Reason::Compacted | Reason::Member if reading.has_begun && restarts < MAX_RESTARTS => {
                    restarts += 1;
                    heard = Instant::now();
                    reading = Reading::new(range, reading.size);
                }
                _ => return Err(failure.error),
            }
        }
    }

    /// The next page, in less time than the members may take together if so wanted.
    async fn page(&self, reading: &Reading<'_>, patience: Option<Duration>) -> Result<Page, Failure> {
        let limit = i64::try_from(reading.rows()).unwrap_or(i64::MAX);
        let page = self.cluster.run_when_reachable(|member| {
            let from = reading.from.clone();
            let to = reading.range.to.clone();
            let revision = reading.listed.revision;
            async move { member.page(from, to, limit, revision).await }
        });
        let Some(patience) = patience else { return page.await };
        timeout(patience, page).await.unwrap_or_else(|_| {
            let message = format!("no etcd member gave a page of a list within {patience:?}");
            Err(Failure::new(Reason::TimedOut, Error::new(ErrorKind::DeadlineExceeded, message).with_operation("list")))
        })
    }
}

/// How often one list starts anew because its revision was compacted in between.
const MAX_RESTARTS: u32 = 3;
