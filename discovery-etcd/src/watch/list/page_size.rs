//! How many rows of a range to request at once, without the I/O.
//!
//! For each page etcd walks the whole rest of the range, so pages are as large as possible. The
//! limits are the decoder, the memory of both sides, and the time that an answer may take.

use std::time::Duration;

use crate::client::KeyValue;

/// The size of a list's next page, derived from the sizes and times of the pages so far.
#[derive(Debug)]
pub(super) struct PageSize {
    rows: usize,
    last: Volume,
    total: Volume,
    /// The shortest time that any page took. This much of each page's time does not depend on its
    /// size.
    least: Option<Duration>,
    /// The most time that a page may take.
    allowed: Duration,
    /// The next page has at most this many times the rows of the last one.
    growth: usize,
    /// The page before did not arrive in time.
    is_retry: bool,
}

/// The size of what arrived.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Volume {
    pub(super) rows: usize,
    pub(super) bytes: usize,
}

impl PageSize {
    pub(super) fn new() -> Self {
        Self {
            rows: FIRST_PAGE,
            last: Volume::default(),
            total: Volume::default(),
            least: None,
            allowed: Duration::ZERO,
            growth: GROWTH,
            is_retry: false,
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// How long to wait for the next page before requesting a smaller one; `None` if it is the last
    /// attempt.
    pub(super) fn patience(&self) -> Option<Duration> {
        let is_last_try = self.is_retry || self.least.is_none();
        (!is_last_try).then(|| self.allowed / 2)
    }

    /// Records a page that took `took` of the `allowed` time.
    pub(super) fn came(&mut self, page: Volume, took: Duration, allowed: Duration) {
        self.last = page;
        self.total.rows += page.rows;
        self.total.bytes += page.bytes;
        self.allowed = allowed;
        self.is_retry = false;
        let least = self.least.map_or(took, |least| least.min(took));
        self.least = Some(least);
        let bytes = self.bytes_in_time(took.saturating_sub(least), least).min(PAGE_BYTES);
        let fitting = bytes / self.row_bytes();
        let grown = page.rows.saturating_mul(self.growth_in_time(took));
        self.rows = fitting.min(grown).max(1);
    }

    /// Records that a page was too large to decode. Returns whether a smaller one may succeed.
    pub(super) fn too_large(&mut self) -> bool {
        let may_do = self.rows > 1;
        self.rows = (self.rows / SHRINK).max(1);
        // The rows here are larger than those before, and those that follow may be too.
        self.growth = CAREFUL_GROWTH;
        may_do
    }

    /// Records that a page did not arrive in time. Returns whether to request a smaller one. That
    /// is done once: a member that does not answer the smaller request either is silent.
    pub(super) fn timed_out(&mut self) -> bool {
        if self.patience().is_none() {
            return false;
        }
        self.rows = (self.rows / SHRINK).min(self.last.rows).max(1);
        self.is_retry = true;
        true
    }

    /// Makes the next page a small one again.
    pub(super) fn restart(&mut self) {
        self.rows = self.rows.min(FIRST_PAGE);
    }

    /// The mean size of a row: that of the last page or that of all pages, whichever is larger.
    fn row_bytes(&self) -> usize {
        let mean = |volume: Volume| volume.bytes / volume.rows.max(1);
        mean(self.last).max(mean(self.total)).max(1)
    }

    /// How many bytes arrive in a third of the allowed time, at the rate of the last page.
    fn bytes_in_time(&self, transfer: Duration, least: Duration) -> usize {
        if transfer.is_zero() {
            return usize::MAX;
        }
        // If a round trip alone takes that third, pages of a few rows would only make it worse.
        let spare = (self.allowed / 3).saturating_sub(least).max(self.allowed / 8);
        // The cast saturates.
        (self.last.bytes as f64 * (spare.as_secs_f64() / transfer.as_secs_f64())) as usize
    }

    /// By what factor the rows may grow and still arrive in time, even if all of `took` was due to
    /// the size.
    fn growth_in_time(&self, took: Duration) -> usize {
        let times = self.allowed.as_nanos() / 2 / took.as_nanos().max(1);
        usize::try_from(times).unwrap_or(usize::MAX).clamp(LEAST_GROWTH, self.growth)
    }
}

impl Volume {
    pub(super) fn of(rows: &[KeyValue]) -> Self {
        let bytes = rows.iter().map(|row| row.key.len() + row.value.len() + ROW_OVERHEAD).sum();
        Self { rows: rows.len(), bytes }
    }
}

/// Small enough for the decoder, whatever the values: etcd accepts 1.5 MiB in one request.
const FIRST_PAGE: usize = 16;
/// The approximate target size of later pages.
const PAGE_BYTES: usize = 8 << 20;
/// What a row takes in the answer besides its key and value: revisions, a lease, lengths.
const ROW_OVERHEAD: usize = 24;
/// Large enough to reach a full page within a few pages.
const GROWTH: usize = 64;
/// The growth after a page that was too large.
const CAREFUL_GROWTH: usize = 4;
const LEAST_GROWTH: usize = 2;
const SHRINK: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALLOWED: Duration = Duration::from_secs(5);

    /// Reads rows of `bytes` each over a network, and returns the sizes of the pages.
    fn pages(mut rows: usize, bytes: usize, round_trip: Duration, rate: usize, allowed: Duration) -> Vec<usize> {
        let mut size = PageSize::new();
        let mut pages = Vec::new();
        while rows > 0 {
            let page = size.rows().min(rows);
            pages.push(page);
            rows -= page;
            size.came(Volume { rows: page, bytes: page * bytes }, took(page * bytes, round_trip, rate), allowed);
        }
        pages
    }

    fn took(bytes: usize, round_trip: Duration, rate: usize) -> Duration {
        round_trip + Duration::from_secs_f64(bytes as f64 / rate as f64)
    }

    #[test]
    fn pages_grow_to_what_fits() {
        let round_trip = Duration::from_millis(2);
        for (rows, bytes, expected) in [
            (10, 150, &[10][..]),
            (10_000, 150, &[16, 1024, 8960]),
            (100_000, 150 + ROW_OVERHEAD, &[16, 1024, 48_210, 48_210, 2540]),
            (1000, 60_000, &[16, 139, 139, 139, 139, 139, 139, 139, 11]),
            (40, 1_500_000, &[16, 5, 5, 5, 5, 4]),
            (3, 1_500_000, &[3]),
        ] {
            let sizes = pages(rows, bytes, round_trip, 100 << 20, ALLOWED);
            assert_eq!(sizes, expected, "{rows} rows of {bytes} bytes");
        }
    }

    #[test]
    fn a_slow_network_gets_pages_that_arrive_in_time() {
        let second = Duration::from_secs(1);
        for (name, round_trip, rate, allowed, most) in [
            ("slow", second / 100, 64_000, ALLOWED, 10),
            ("slow and far", second * 6 / 10, 64_000, ALLOWED, 14),
            ("far", second * 6 / 10, 100 << 20, ALLOWED, 5),
            ("little time", second / 1000, 10 << 20, second / 2, 6),
            ("a round trip takes most of the time", second, 1 << 20, second * 5 / 2, 10),
        ] {
            let sizes = pages(5000, 90, round_trip, rate, allowed);
            let longest = sizes.iter().map(|rows| took(rows * 90, round_trip, rate)).max();
            assert!(longest <= Some(allowed / 2), "{name}: {longest:?} {sizes:?}");
            assert!(sizes.len() <= most, "{name}: {sizes:?}");
        }
    }

    #[test]
    fn a_page_that_times_out_is_retried_once_with_fewer_rows() {
        let volume = |rows| Volume { rows, bytes: rows * 100 };
        let mut size = PageSize::new();
        assert_eq!(size.patience(), None);
        assert!(!size.timed_out(), "no page ever arrived");
        size.came(volume(16), Duration::from_millis(1), ALLOWED);
        assert_eq!((size.rows(), size.patience()), (1024, Some(ALLOWED / 2)));
        assert!(size.timed_out());
        assert_eq!((size.rows(), size.patience()), (16, None));
        assert!(!size.timed_out(), "that was the last attempt");
        size.came(volume(16), Duration::from_secs(1), ALLOWED);
        assert_eq!((size.rows(), size.patience()), (26, Some(ALLOWED / 2)), "it grows as time allows");
    }

    #[test]
    fn a_page_that_is_too_large_shrinks_to_one_row_and_grows_slowly() {
        let mut size = PageSize::new();
        let mut rows = Vec::new();
        while size.too_large() {
            rows.push(size.rows());
        }
        assert_eq!(rows, [2, 1]);
        size.came(Volume { rows: 1, bytes: 100 }, Duration::from_millis(1), ALLOWED);
        assert_eq!(size.rows(), 4);
    }

    proptest! {
        #[test]
        fn every_page_has_a_row_and_fits(
            pages in proptest::collection::vec((0usize..2_000_000, 0u64..10_000, 0u8..8), 1..20),
            allowed in 1u64..10_000,
        ) {
            let mut size = PageSize::new();
            for (bytes, took, event) in pages {
                let rows = size.rows();
                match event {
                    0 => drop(size.timed_out()),
                    1 => drop(size.too_large()),
                    2 => size.restart(),
                    _ => {
                        let page = Volume { rows, bytes: rows * bytes };
                        size.came(page, Duration::from_millis(took), Duration::from_millis(allowed));
                        prop_assert!(size.rows() <= rows * GROWTH);
                        prop_assert!(size.rows() == 1 || size.rows() * bytes <= PAGE_BYTES);
                    }
                }
                prop_assert!(size.rows() >= 1);
            }
        }
    }
}
