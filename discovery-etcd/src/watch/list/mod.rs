//! Reads a whole range as it was at one revision, page by page.
//!
//! [`reading`] collects the pages, [`page_size`] decides how large the next one is, and
//! [`subtrees`] which keys to skip. [`deeper_log`] logs keys that belong to no instance.

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

/// The contents of a range at one revision.
///
/// A range with more entries than the limit is read only until that is certain.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub(super) entries: Vec<Entry>,
    /// The number of keys in the range, those of deeper paths included.
    pub(super) keys: usize,
    /// How many of them belong to no instance, as far as the range was read.
    pub(super) deeper: usize,
    pub(super) revision: i64,
    /// 0 if no member sent it.
    pub(super) cluster: u64,
    /// How a watch from there begins: while several pages were read, much may have happened.
    pub(super) start: Start,
}

impl EtcdSource {
    /// Reads the whole range as it was at one revision. It is read in pages, so that at most one
    /// page of raw values is held in memory.
    pub(super) async fn list(&self, range: &Range<'_>) -> Result<Listed, Error> {
        self.read(range, None, Instant::now()).await
    }

    /// Like [`list`](Self::list), with at most `bound` from `begun` to the first page and from one
    /// page to the next. So it ends within that time if the members are silent, and continues while
    /// pages arrive, however long the whole list takes.
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
                // Compacted in the meantime, or not known to the member asked now.
                Reason::Compacted | Reason::Member if reading.has_begun && restarts < MAX_RESTARTS => {
                    restarts += 1;
                    heard = Instant::now();
                    reading = Reading::new(range, reading.size);
                }
                _ => return Err(failure.error),
            }
        }
    }

    /// Reads the next page, within `patience` if it is set; the members together may otherwise take
    /// longer.
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
            let message = format!("no etcd member returned a page of the list within {patience:?}");
            Err(Failure::new(Reason::TimedOut, Error::new(ErrorKind::DeadlineExceeded, message).with_operation("list")))
        })
    }
}

/// How often one list starts again because its revision was compacted in the meantime.
const MAX_RESTARTS: u32 = 3;
