//! Which subtrees of deeper paths a list leaves out: the decision without the I/O.
//!
//! Where the last row of a page belongs to a subtree that has nobody's entries, the next page
//! begins behind it. That costs nothing. A large page may have read many keys of it by then,
//! though, so after a skip the next page is a small one again, in case that another subtree
//! follows. A small page costs etcd a walk of the rest of the range, and there may be as many
//! subtrees as keys: so that is done only where it pays.

/// What became of the skips of one list.
#[derive(Debug, Default)]
pub(super) struct Subtrees {
    /// The small pages so far.
    small: u32,
    /// The skips of them that left out next to nothing.
    vain: u32,
    /// The keys behind the last page, where a small page follows it.
    behind: Option<usize>,
}

impl Subtrees {
    /// Records a page that begins with so many keys of the range left, itself included.
    pub(super) fn page(&mut self, left: usize) {
        if let Some(behind) = self.behind.take()
            && behind.saturating_sub(left) < WORTHWHILE
        {
            self.vain += 1;
        }
    }

    /// Skips the subtree that a page ends in, with so many keys behind the page. Returns whether
    /// the next page is to be a small one.
    pub(super) fn skip(&mut self, behind: usize) -> bool {
        let is_small = behind >= WORTHWHILE && self.small < MAX_SMALL && self.vain < MAX_VAIN;
        if is_small {
            self.small += 1;
            self.behind = Some(behind);
        }
        is_small
    }
}

/// To leave out so many keys is worth a page.
const WORTHWHILE: usize = 1000;
/// How many small pages a list makes for skips.
const MAX_SMALL: u32 = 32;
/// How many of them may be in vain.
const MAX_VAIN: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists `subtrees` of so many keys each, and returns how many small pages of 16 rows that
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
    fn a_skip_in_vain_is_counted_once_and_a_page_without_skip_is_not() {
        let mut skips = Subtrees::default();
        skips.page(100_000);
        assert!(skips.skip(99_984));
        skips.page(99_984);
        skips.page(50_000);
        skips.page(49_000);
        assert!(skips.skip(48_000), "one was in vain");
        skips.page(20_000);
        assert!(skips.skip(19_000), "one that paid counts for nothing");
        skips.page(18_999);
        assert!(!skips.skip(18_000), "two were");
        let few = WORTHWHILE - 1;
        assert!(!Subtrees::default().skip(few), "there is not much left to leave out");
    }
}
