//! Collects the pages of a list.

use std::time::Duration;

use discovery_core::{Error, ErrorKind};
use tokio::task::yield_now;

use super::{
    Listed,
    page_size::{PageSize, Volume},
    subtrees::Subtrees,
};
use crate::{client::Page, watch::range::Range, watcher::Start};

/// A list in progress: what was read, and what to request next.
pub(super) struct Reading<'a> {
    pub(super) range: &'a Range<'a>,
    pub(super) listed: Listed,
    /// Where the next page begins.
    pub(super) from: Vec<u8>,
    pub(super) size: PageSize,
    subtrees: Subtrees,
    /// How many keys are entries.
    entry_keys: usize,
    /// Whether a page has arrived.
    pub(super) has_begun: bool,
}

impl<'a> Reading<'a> {
    pub(super) fn new(range: &'a Range<'a>, size: PageSize) -> Self {
        Self {
            range,
            listed: Listed::default(),
            from: range.from.clone(),
            size,
            subtrees: Subtrees::default(),
            entry_keys: 0,
            has_begun: false,
        }
    }

    /// How many rows to request. While all rows so far are entries, no more than needed to show
    /// that there are too many.
    ///
    /// The number of keys alone does not show that: the following keys may be of deeper paths.
    pub(super) fn rows(&self) -> usize {
        if self.listed.deeper > 0 {
            return self.size.rows();
        }
        let wanted = self.range.limit.saturating_sub(self.listed.entries.len()).saturating_add(1);
        self.size.rows().min(wanted)
    }

    /// Takes a page that was allowed this much time. Returns whether it was the last one.
    ///
    /// Decoding a large page takes a tenth of a second, so this yields to other tasks in between.
    pub(super) async fn take(&mut self, page: Page, allowed: Duration) -> Result<bool, Error> {
        self.is_of(page.cluster)?;
        if self.has_begun {
            self.listed.start = Start::Behind;
        } else {
            self.has_begun = true;
            self.listed.keys = page.count;
            self.listed.revision = page.revision;
        }
        self.size.came(Volume::of(&page.rows), page.took, allowed);
        self.subtrees.page(page.count);
        let behind = page.count - page.rows.len();
        let last = page.rows.last().map(|row| row.key.clone()).filter(|_| page.more);
        for (place, row) in page.rows.into_iter().enumerate() {
            if place % ROWS_A_TURN == ROWS_A_TURN - 1 {
                yield_now().await;
            }
            let entries = self.range.read(&row).entries;
            if entries.is_empty() {
                self.listed.deeper += 1;
            } else {
                self.entry_keys += 1;
            }
            self.listed.entries.extend(entries);
        }
        if self.listed.entries.len() > self.range.limit {
            return Ok(true);
        }
        let is_over = match last {
            Some(last) => self.go_behind(last, behind),
            None => true,
        };
        if is_over {
            self.listed.deeper = self.listed.keys.saturating_sub(self.entry_keys);
        }
        Ok(is_over)
    }

    /// Continues after a page's last key, which `behind` keys follow. Returns whether the range
    /// ends there.
    fn go_behind(&mut self, mut last: Vec<u8>, behind: usize) -> bool {
        if let Some(end) = self.range.behind_subtree(&last) {
            if self.subtrees.skip(behind) {
                self.size.restart();
            }
            self.from = end;
        } else {
            // The least key after `last`.
            last.push(0);
            self.from = last;
        }
        self.from >= self.range.to
    }

    /// Checks that all pages are from one cluster, as far as the members report it.
    fn is_of(&mut self, cluster: u64) -> Result<(), Error> {
        let known = self.listed.cluster;
        if known != 0 && cluster != 0 && known != cluster {
            return Err(Error::new(ErrorKind::Unavailable, "the members belong to different clusters"));
        }
        self.listed.cluster = known.max(cluster);
        Ok(())
    }
}

/// About a millisecond of decoding.
const ROWS_A_TURN: usize = 500;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use tokio::runtime;

    use super::*;
    use crate::{client::KeyValue, layout::EtcdNaming};

    /// Lists keys below `s/` as an etcd with these keys would. The pages carry the given cluster
    /// ids, the last of them repeated. Also returns the number of rows of each page.
    fn list(keys: &BTreeSet<String>, limit: usize, clusters: &[u64]) -> Result<(Listed, Vec<usize>), Error> {
        let layout = EtcdNaming::default();
        let range = Range::new(&layout, "", &"s".parse().unwrap(), limit);
        let runtime = runtime::Builder::new_current_thread().build().unwrap();
        let mut reading = Reading::new(&range, PageSize::new());
        let mut pages = Vec::new();
        loop {
            let rest: Vec<&String> = keys.iter().filter(|key| key.as_bytes() >= &*reading.from).collect();
            let row = |key: &&String| KeyValue { key: key.as_bytes().to_vec(), value: vec![], lease: 0, revision: 5 };
            let rows: Vec<_> = rest.iter().take(reading.rows()).map(row).collect();
            pages.push(rows.len());
            let page = Page {
                more: rest.len() > rows.len(),
                count: rest.len(),
                rows,
                revision: 9,
                cluster: *clusters.get(pages.len() - 1).or_else(|| clusters.last()).unwrap_or(&7),
                took: Duration::from_millis(1),
                timeout: Duration::from_secs(5),
            };
            let allowed = page.timeout;
            if runtime.block_on(reading.take(page, allowed))? {
                return Ok((reading.listed, pages));
            }
        }
    }

    fn keys(parts: &[(&str, usize)]) -> BTreeSet<String> {
        let numbered = |(name, count): &(&str, usize)| {
            let name = (*name).to_owned();
            (0..*count).map(move |number| format!("s/{name}{number:06}"))
        };
        parts.iter().flat_map(numbered).collect()
    }

    #[test]
    fn deeper_paths_are_left_out_wherever_they_are() {
        for (name, parts, entries, most) in [
            ("none", &[("e", 10_000)][..], 10_000, 3),
            ("first", &[("a/", 50_000), ("e", 10)], 10, 2),
            ("last", &[("e", 10), ("z/", 50_000)], 10, 2),
            ("last, behind many", &[("e", 5000), ("z/", 50_000)], 5000, 4),
            ("in between", &[("e", 10), ("f/", 50_000), ("g", 10), ("h/", 50_000), ("i", 10)], 30, 4),
            ("alone", &[("a/", 50_000)], 0, 2),
            ("alone and in depth", &[("a/b/c/", 50_000), ("a/d/", 50_000)], 0, 2),
        ] {
            let keys = keys(parts);
            let (listed, pages) = list(&keys, 20_000, &[]).unwrap();
            assert_eq!((listed.entries.len(), listed.keys), (entries, keys.len()), "{name}");
            assert_eq!(listed.deeper, keys.len() - entries, "{name}");
            assert!(pages.len() <= most, "{name}: {pages:?}");
        }
    }

    #[test]
    fn many_subtrees_of_one_key_take_few_pages() {
        let subtrees = (0..50_000).map(|number| format!("s/d{number:06}/x"));
        let keys: BTreeSet<String> = keys(&[("a", 10), ("z", 10)]).into_iter().chain(subtrees).collect();
        let (listed, pages) = list(&keys, 20_000, &[]).unwrap();
        assert_eq!((listed.entries.len(), listed.deeper), (20, 50_000));
        assert!(pages.len() <= 6, "{pages:?}");
    }

    #[test]
    fn reading_stops_once_there_are_too_many_entries() {
        for (name, parts, entries, most) in [
            ("as many as allowed", &[("e", 2000)][..], 2000, 2000),
            ("one more", &[("e", 2001)], 2001, 2001),
            ("many more", &[("e", 50_000)], 2001, 2001),
            ("many keys, and few entries", &[("e", 1500), ("z/", 50_000)], 1500, 2001 + 16),
        ] {
            let keys = keys(parts);
            let (listed, pages) = list(&keys, 2000, &[]).unwrap();
            assert_eq!((listed.entries.len(), listed.keys), (entries, keys.len()), "{name}");
            assert!(pages.iter().sum::<usize>() <= most, "{name}: {pages:?}");
        }
    }

    #[test]
    fn a_page_without_a_cluster_id_is_not_of_another_cluster() {
        let keys = keys(&[("e", 2000)]);
        for (clusters, known) in [
            (&[7, 7][..], Some(7)),
            (&[7, 0, 7], Some(7)),
            (&[0, 7], Some(7)),
            (&[0], Some(0)),
            (&[7, 8], None),
            (&[7, 0, 8], None),
        ] {
            let listed = list(&keys, 20_000, clusters);
            assert_eq!(listed.ok().map(|(listed, _)| listed.cluster), known, "{clusters:?}");
        }
    }

    proptest! {
        #[test]
        fn all_entries_are_listed_and_nothing_else(
            tails in proptest::collection::btree_set("[ab/]{1,6}", 0..200),
            limit in 1usize..300,
        ) {
            let keys: BTreeSet<String> = tails.iter().map(|tail| format!("s/{tail}")).collect();
            let (listed, pages) = list(&keys, limit, &[]).unwrap();
            let expected = tails.iter().filter(|tail| !tail.contains('/')).count();
            prop_assert_eq!(listed.keys, keys.len());
            if listed.entries.len() <= limit {
                prop_assert_eq!(listed.entries.len(), expected);
                prop_assert_eq!(listed.deeper, keys.len() - expected);
            } else {
                prop_assert!(expected > limit);
            }
            prop_assert!(pages.len() <= 40, "{:?}", pages);
        }
    }
}
