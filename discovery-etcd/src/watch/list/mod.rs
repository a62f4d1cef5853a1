use std::time::Duration;

use discovery_core::{Entry, Error, ErrorKind};
use tokio::time::timeout;

use super::{cursor::is_same_cluster, range::Range, source::EtcdSource};
use crate::{
    client::{Failure, KeyValue, Page, Reason},
    watcher::Start,
};

/// What a range held at one revision.
pub(super) struct Listed {
    pub(super) entries: Vec<Entry>,
    /// All of the range, those of deeper paths included.
    pub(super) keys: usize,
    pub(super) revision: i64,
    pub(super) cluster: u64,
    /// How a watch from there begins.
    pub(super) start: Start,
}

impl EtcdSource {
    /// As [`list_at`](Self::list_at), in less time than the members may take together.
    pub(super) async fn list_within(&self, range: &Range<'_>, bound: Duration, at: i64) -> Result<Listed, Error> {
        let listed = timeout(bound, self.list_at(range, at)).await;
        listed.unwrap_or_else(|_| {
            let message = format!("no etcd member gave a list within {bound:?}");
            Err(Error::new(ErrorKind::DeadlineExceeded, message).during("list"))
        })
    }

    /// The whole range, as it was at one revision. Rows are read page by page, so that no more than one page of raw values is
    /// held.
    pub(super) async fn list(&self, range: &Range<'_>) -> Result<Listed, Error> {
        self.list_at(range, 0).await
    }

    /// As [`list`](Self::list), as the range was at this revision; at 0, as it is now.
    pub(super) async fn list_at(&self, range: &Range<'_>, at: i64) -> Result<Listed, Error> {
        let mut limit = FIRST_PAGE;
        let mut restarts = 0;
        'anew: loop {
            let mut entries = Vec::new();
            let mut keys = 0;
            let mut revision = at;
            let mut cluster = 0;
            let mut from = range.from.clone();
            loop {
                let page = self.cluster.run_when_reachable(|member| {
                    let (from, to) = (from.clone(), range.to.clone());
                    async move { member.page(from, to, limit, revision).await }
                });
                let page: Page = match page.await {
                    Ok(page) => page,
                    Err(failure) if failure.reason == Reason::TooLarge && limit > 1 => {
                        limit = (limit / 8).max(1);
                        continue;
                    }
                    // One that large may take etcd longer than a request may.
                    Err(failure) if failure.reason == Reason::TimedOut && limit > FIRST_PAGE => {
                        limit = FIRST_PAGE;
                        continue;
                    }
                    // Compacted in between, or gone back on another member.
                    Err(failure) if at == 0 && revision != 0 && restarts < MAX_RESTARTS && is_of_history(&failure) => {
                        restarts += 1;
                        continue 'anew;
                    }
                    Err(failure) => return Err(failure.error),
                };
                if !is_same_cluster(page.cluster, cluster) {
                    return Err(Error::new(ErrorKind::Unavailable, "the members belong to different clusters"));
                }
                if cluster == 0 {
                    cluster = page.cluster;
                }
                let is_first = from == range.from;
                if revision == 0 {
                    revision = page.revision;
                }
                let last = page.rows.last().map(|row| row.key.clone());
                keys += page.rows.len();
                limit = next_page(&page.rows, limit);
                entries.extend(page.rows.into_iter().filter_map(|row| range.entry(row)));
                match last {
                    Some(mut last) if page.more && entries.len() <= range.limit => {
                        // The least key after the last one.
                        last.push(0);
                        from = last;
                    }
                    _ => {
                        // What happened while page after page came may be much.
                        let start = if is_first { Start::Level } else { Start::Behind };
                        return Ok(Listed { entries, keys, revision, cluster, start });
                    }
                }
            }
        }
    }
}

/// How many rows to ask for next, as far as the last ones tell how large they are.
fn next_page(rows: &[KeyValue], limit: i64) -> i64 {
    let bytes: usize = rows.iter().map(|row| row.key.len() + row.value.len()).sum();
    let fitting = rows.len() * PAGE_BYTES / bytes.max(1);
    i64::try_from(fitting).unwrap_or(i64::MAX).clamp(1, limit.saturating_mul(8).min(PAGE))
}

fn is_of_history(failure: &Failure) -> bool {
    matches!(failure.reason, Reason::Compacted | Reason::Member)
}

/// Small enough to fit the decoder, whatever the values: etcd takes 1.5 MiB in one request.
const FIRST_PAGE: i64 = 16;
/// Large enough for few round trips.
const PAGE: i64 = 500;
/// What later pages are made to fit, roughly.
const PAGE_BYTES: usize = 8 << 20;
/// How often one list starts anew because its revision was compacted in between.
const MAX_RESTARTS: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_grow_with_small_rows_and_shrink_with_large_ones() {
        let rows =
            |count, bytes| vec![KeyValue { key: vec![], value: vec![b'x'; bytes], lease: 0, revision: 1 }; count];
        for (count, bytes, limit, next) in [
            (16, 1_000, 16, 128),
            (128, 1_000, 128, 500),
            (500, 1_000, 500, 500),
            (500, 60_000, 500, 139),
            (16, 1_500_000, 16, 5),
            (1, 50_000_000, 1, 1),
            (5, 10, 5, 40),
            (0, 0, 16, 1),
        ] {
            assert_eq!(next_page(&rows(count, bytes), limit), next, "{count} rows of {bytes} bytes");
        }
    }
}
