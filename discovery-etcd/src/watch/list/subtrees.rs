//! Which subtrees of deeper paths a list skips, without the I/O.
//!
//! If the last row of a page is in a subtree without entries, the next page starts after that
//! subtree. Skipping is free. However, a large page may already have read many of the subtree's
//! keys, so after a skip the next page is a small one, in case another subtree follows. A small
//! page makes etcd walk the rest of the range, and there may be as many subtrees as keys, so small
//! pages are used only while they pay off.

/// The skips of one list, and whether they paid off.
#[derive(Debug, Default)]
pub(super) struct Subtrees {
    /// The number of small pages so far.
    small: u32,
    /// How many of the small pages' skips saved almost nothing.
    vain: u32,
    /// The number of keys after the last page, if a small page follows it.
    behind: Option<usize>,
}

impl Subtrees {
    /// Records a page that starts with `left` keys of the range to go, its own included.
    pub(super) fn page(&mut self, left: usize) {
        if let Some(behind) = self.behind.take()
            && behind.saturating_sub(left) < WORTHWHILE
        {
            self.vain += 1;
        }
    }

    /// Skips the subtree that a page ends in, with `behind` keys after the page. Returns whether
    /// the next page must be a small one.
    pub(super) fn skip(&mut self, behind: usize) -> bool {
        let is_small = behind >= WORTHWHILE && self.small < MAX_SMALL && self.vain < MAX_VAIN;
        if is_small {
            self.small += 1;
            self.behind = Some(behind);
        }
        is_small
    }
}

/// Skipping this many keys is worth a page.
const WORTHWHILE: usize = 1000;
/// How many small pages a list uses for skips.
const MAX_SMALL: u32 = 32;
/// How many of them may save nothing.
const MAX_VAIN: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists `subtrees` subtrees of `keys` keys each. Returns how many small pages of 16 rows it
    /// takes until pages are large.
    fn small_pages(subtrees: usize, keys: usize) -> u32 {
        let mut skips = Subtrees::default();
        let mut left = subtrees * keys;
        let mut pages = 0;
        while left > 0 {
            skips.page(left);
            pages += 1;
            let page = left.min(16);
            if !skips.skip(left - page) {
                break;
            }
            // The page, and the rest of the subtree that it ends in.
            left -= page.next_multiple_of(keys).min(left);
        }
        pages
    }

    #[test]
    fn small_pages_are_bounded() {
        for (name, subtrees, keys, pages) in [
            ("one large subtree", 1, 300_000, 2),
            ("some large ones", 10, 300_000, 11),
            ("too many large ones", 1000, 300_000, 33),
            ("many of one key", 300_000, 1, 3),
            ("some of a few keys", 50, 10, 1),
        ] {
            let small = small_pages(subtrees, keys);
            assert!(small <= pages, "{name}: {small}");
        }
    }

    #[test]
    fn a_skip_that_saves_nothing_is_counted_once_and_a_page_without_a_skip_is_not() {
        let mut skips = Subtrees::default();
        skips.page(100_000);
        assert!(skips.skip(99_984));
        skips.page(99_984);
        skips.page(50_000);
        skips.page(49_000);
        assert!(skips.skip(48_000), "one skip saved nothing");
        skips.page(20_000);
        assert!(skips.skip(19_000), "a skip that paid off does not count");
        skips.page(18_999);
        assert!(!skips.skip(18_000), "two skips saved nothing");
        let few = WORTHWHILE - 1;
        assert!(!Subtrees::default().skip(few), "there is little left to skip");
    }
}
