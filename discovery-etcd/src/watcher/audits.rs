//! When watches are compared with what etcd holds, and how many at once.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::{carrier::Carried, keys::Keys};
use crate::client::Asked;

/// How often what a watch reported is compared with what etcd holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AuditPace {
    /// The interval for a service, plus or minus a fifth.
    pub(crate) services: Duration,
    /// The longest interval for one of the handle's own entries.
    pub(crate) entries: Duration,
}

/// Decides when each watch is audited, without the I/O.
///
/// Audits are read in transactions: one read for each of a thousand services would be a load.
#[derive(Debug)]
pub(super) struct Audits {
    pace: AuditPace,
    due: BTreeMap<u64, Instant>,
    /// Those to read alone, because a transaction with them was refused.
    alone: Vec<u64>,
}

impl Audits {
    pub(super) fn new(pace: AuditPace) -> Self {
        Self { pace, due: BTreeMap::new(), alone: Vec::new() }
    }

    /// Schedules the next audit of a watch.
    pub(super) fn schedule(&mut self, number: u64, keys: &Keys, now: Instant) {
        let wait = match keys {
            Keys::Range { .. } => self.pace.services.mul_f64(0.8 + 0.4 * fastrand::f64()),
            // It takes up to a sixth of the ttl more until they are read.
            Keys::One(_) => self.pace.entries.mul_f64(0.6 + 0.15 * fastrand::f64()),
        };
        self.due.insert(number, now + wait);
    }

    /// Makes the audit of a watch due at `now`.
    pub(super) fn hurry(&mut self, number: u64, now: Instant) {
        if let Some(due) = self.due.get_mut(&number) {
            *due = now;
        }
    }

    pub(super) fn forget(&mut self, number: u64) {
        self.due.remove(&number);
        self.alone.retain(|one| *one != number);
    }

    /// Records that a transaction was refused: its watches are read one by one.
    pub(super) fn separate(&mut self, numbers: impl IntoIterator<Item = u64>) {
        let known = numbers.into_iter().filter(|number| self.due.contains_key(number));
        self.alone.extend(known);
    }

    /// The watches to read next, in one transaction. The caller schedules them again.
    pub(super) fn next(&mut self, watches: &BTreeMap<u64, Carried>, now: Instant) -> Vec<u64> {
        if let Some(number) = self.alone.pop() {
            return vec![number];
        }
        let mut size = 0;
        let is_due = |(_, due): &(&u64, &Instant)| **due <= now;
        let due = self.due.iter().filter(is_due).map(|(number, _)| *number);
        due.take(MOST)
            .take_while(|number| {
                // At least one watch, whatever its size.
                let fits = size < MOST_KEYS;
                size += watches.get(number).map_or(0, |carried| carried.shared.size());
                fits
            })
            .collect()
    }
}

/// What to read of a watch's keys.
pub(super) fn question(keys: &Keys) -> Asked {
    match keys {
        Keys::One(key) => Asked::Key(key.clone()),
        Keys::Range { from, to } => Asked::Range { from: from.clone(), to: to.clone() },
    }
}

/// etcd's own limit on the operations of a transaction.
const MOST: usize = 128;
/// etcd reads a whole range to find its newest key. It reads this many keys in about 50 ms.
const MOST_KEYS: usize = 50_000;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::channel::mpsc;

    use super::{super::subscription::Shared, *};

    fn watches(count: u64, size: usize) -> BTreeMap<u64, Carried> {
        let carried = |number| {
            let keys = Keys::Range { from: b"a/".to_vec(), to: b"a0".to_vec() };
            let shared = Shared::new(keys, 1);
            shared.set_size(size);
            Carried { number, shared: Arc::new(shared), notices: mpsc::unbounded().0 }
        };
        (0..count).map(|number| (number, carried(number))).collect()
    }

    fn audits(watches: &BTreeMap<u64, Carried>) -> Audits {
        let pace = AuditPace { services: Duration::from_secs(60), entries: Duration::from_secs(15) };
        let mut audits = Audits::new(pace);
        let now = Instant::now();
        watches.iter().for_each(|(number, carried)| audits.schedule(*number, carried.keys(), now));
        audits
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_services_are_read_once_a_minute_in_few_transactions() {
        let watches = watches(1_000, 3);
        let mut audits = audits(&watches);
        let mut reads = BTreeMap::<u64, u32>::new();
        let mut transactions = 0;
        for _ in 0..600 {
            tokio::time::advance(Duration::from_secs(1)).await;
            let now = Instant::now();
            let next = audits.next(&watches, now);
            transactions += u32::from(!next.is_empty());
            for number in next {
                *reads.entry(number).or_default() += 1;
                audits.schedule(number, watches[&number].keys(), now);
            }
        }
        assert_eq!(reads.len(), 1_000);
        assert!(reads.values().all(|count| (8..=12).contains(count)), "{reads:?}");
        assert!(transactions <= 600);
    }

    #[tokio::test(start_paused = true)]
    async fn a_transaction_is_bounded_in_operations_and_in_keys() {
        for (count, size, expected) in [(1_000, 0, 128), (1_000, 10_000, 5), (2, 1_000_000, 1), (3, 10, 3)] {
            let watches = watches(count, size);
            let mut audits = audits(&watches);
            tokio::time::advance(Duration::from_secs(80)).await;
            assert_eq!(audits.next(&watches, Instant::now()).len(), expected, "{count} of {size}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn watches_refused_together_are_read_one_by_one() {
        let watches = watches(4, 1);
        let mut audits = audits(&watches);
        let now = Instant::now();
        assert!(audits.next(&watches, now).is_empty());
        audits.separate([1, 2, 9]);
        audits.forget(2);
        assert_eq!(audits.next(&watches, now), [1]);
        assert!(audits.next(&watches, now).is_empty());
        audits.hurry(3, now);
        assert_eq!(audits.next(&watches, now), [3]);
    }
}
