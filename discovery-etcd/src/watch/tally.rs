//! Whether a watch reports everything, judged by audits.

use std::collections::VecDeque;

use crate::client::RangeSummary;

/// Decides from audits of a range whether its watch has reported everything, without the I/O.
///
/// A silent stream looks the same whether nothing happens or it is stuck. It is stuck if etcd has
/// more or fewer keys than the watch reported, or a newer one, and the watch makes no progress
/// towards them until the next audit. A watch that leaves out a change but continues is detected
/// once it has passed the revision of the audit.
#[derive(Debug)]
pub(super) struct Tally {
    /// The number of keys in the range, by the list and the steps since.
    count: i64,
    /// The last steps: their revisions, and by how many keys each grew the range.
    steps: VecDeque<(i64, i64)>,
    /// Whether the watch made progress since the last audit.
    moved: bool,
    /// What etcd has and the watch has not reported yet.
    owed: Option<Owed>,
}

/// An audit that differs from what the watch reported.
#[derive(Debug)]
struct Owed {
    revision: i64,
    count: i64,
    /// The number of keys at that revision, by what the watch has reported so far.
    told: i64,
    newest: i64,
}

/// The result of an audit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// Everything up to the audit was reported.
    Level,
    /// A change is on its way or was left out; the next audit decides.
    Open,
    Wrong(&'static str),
}

impl Tally {
    /// Starts after a list of `count` keys.
    pub(super) fn new(count: usize) -> Self {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        Self { count, steps: VecDeque::new(), moved: false, owed: None }
    }

    /// The number of keys in the range, by what the watch reported.
    pub(super) fn count(&self) -> usize {
        usize::try_from(self.count).unwrap_or(0)
    }

    /// Records a fragment of a change that is not complete yet.
    pub(super) fn hear(&mut self) {
        self.moved = true;
    }

    /// Records a step of the watch that grew the range by `growth` keys.
    pub(super) fn step(&mut self, revision: i64, growth: i64) {
        self.moved = true;
        self.count = self.count.saturating_add(growth);
        if self.steps.len() >= MOST_STEPS {
            self.steps.pop_front();
        }
        self.steps.push_back((revision, growth));
        if let Some(owed) = &mut self.owed
            && revision <= owed.revision
        {
            owed.told = owed.told.saturating_add(growth);
        }
    }

    /// Judges an audit. `reached` is the revision that the watch has reached by now.
    pub(super) fn judge(&mut self, seen: &RangeSummary, reached: i64) -> Verdict {
        let moved = std::mem::take(&mut self.moved);
        if let Some(owed) = &self.owed {
            let is_told = owed.told == owed.count && owed.newest <= reached;
            if !is_told && reached >= owed.revision {
                return Verdict::Wrong("the watch left out a change that etcd has");
            }
            if !is_told && !moved {
                return Verdict::Wrong("the watch is stuck: it does not report changes that etcd has");
            }
            if !is_told {
                // The next audit does not reset what is owed.
                return Verdict::Open;
            }
            self.owed = None;
        }
        // Steps may have overtaken the answer, perhaps more than are remembered.
        let later = self.steps.iter().filter(|(revision, _)| *revision > seen.revision);
        if later.clone().count() >= MOST_STEPS {
            return Verdict::Open;
        }
        let told = self.count - later.map(|(_, growth)| growth).sum::<i64>();
        if told == seen.count && seen.newest <= reached {
            return Verdict::Level;
        }
        self.owed = Some(Owed { revision: seen.revision, count: seen.count, told, newest: seen.newest });
        Verdict::Open
    }
}

/// How many steps are remembered. Usually no more arrive while an audit is in flight.
const MOST_STEPS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps before an audit's answer (revision and growth), then what the audit reads: the
    /// store's revision, the number of keys, and the revision of the newest one.
    type Audit<'a> = (&'a [(i64, i64)], i64, i64, i64);

    /// The first audit that finds that the watch cannot be trusted.
    fn found_at(audits: &[Audit<'_>]) -> Option<usize> {
        let mut tally = Tally::new(3);
        let mut reached = 10;
        audits.iter().position(|&(steps, revision, count, newest)| {
            for &(revision, growth) in steps {
                tally.step(revision, growth);
                reached = revision;
            }
            let seen = RangeSummary { cluster: 7, revision, count, newest };
            matches!(tally.judge(&seen, reached), Verdict::Wrong(_))
        })
    }

    #[test]
    fn a_watch_that_hides_a_change_is_found_one_audit_later() {
        const QUIET: &[(i64, i64)] = &[];
        for (name, audits, found) in [
            ("nothing happens", &[(QUIET, 10, 3, 9), (QUIET, 10, 3, 9)][..], None),
            ("others write to other ranges", &[(QUIET, 50, 3, 9), (QUIET, 90, 3, 9)], None),
            ("steps come", &[(&[(11, 1)], 11, 4, 11), (&[(12, -1)], 12, 3, 11), (QUIET, 12, 3, 11)], None),
            ("a step is late", &[(QUIET, 11, 4, 11), (&[(11, 1)], 11, 4, 11), (QUIET, 11, 4, 11)], None),
            ("steps overtake the answer", &[(&[(11, 1), (12, 1)], 11, 4, 11), (QUIET, 12, 5, 12)], None),
            ("a key came", &[(QUIET, 11, 4, 11), (QUIET, 11, 4, 11)], Some(1)),
            ("a key went", &[(QUIET, 11, 2, 9), (QUIET, 11, 2, 9)], Some(1)),
            ("a value was replaced", &[(QUIET, 11, 3, 11), (QUIET, 11, 3, 11)], Some(1)),
            ("stuck after a while", &[(&[(11, 1)], 11, 4, 11), (QUIET, 12, 5, 12), (QUIET, 12, 5, 12)], Some(2)),
            ("stuck right after a step", &[(&[(11, 1)], 12, 3, 11), (QUIET, 12, 3, 11)], Some(1)),
            ("two losses that cancel out in the end", &[(QUIET, 11, 2, 9), (QUIET, 12, 3, 12)], Some(1)),
            (
                "a change left out shows once the watch has passed it",
                &[(&[(13, 0)], 13, 4, 13), (&[(14, 0)], 14, 4, 14)],
                Some(1),
            ),
            (
                "slow, but moving",
                &[
                    (QUIET, 14, 6, 14),
                    (&[(11, 1)], 14, 6, 14),
                    (&[(12, 1)], 14, 6, 14),
                    (&[(14, 1)], 14, 6, 14),
                    (QUIET, 14, 6, 14),
                ],
                None,
            ),
            (
                "slow, and the last one is left out",
                &[(QUIET, 14, 6, 14), (&[(11, 1)], 14, 6, 14), (&[(12, 1)], 15, 6, 14), (&[(15, 0)], 15, 6, 15)],
                Some(3),
            ),
        ] {
            assert_eq!(found_at(audits), found, "{name}");
        }
    }

    #[test]
    fn fragments_count_as_progress() {
        let mut tally = Tally::new(3);
        let seen = RangeSummary { cluster: 7, revision: 11, count: 9, newest: 11 };
        assert_eq!(tally.judge(&seen, 10), Verdict::Open);
        for _ in 0..5 {
            tally.hear();
            assert_eq!(tally.judge(&seen, 10), Verdict::Open);
        }
        assert!(matches!(tally.judge(&seen, 10), Verdict::Wrong(_)));
    }

    #[test]
    fn more_steps_than_are_remembered_are_not_an_error() {
        let mut tally = Tally::new(3);
        for revision in 0..1_000 {
            tally.step(20 + revision, 1);
        }
        let seen = RangeSummary { cluster: 7, revision: 19, count: 3, newest: 9 };
        assert_eq!(tally.judge(&seen, 1_019), Verdict::Open);
        let seen = RangeSummary { cluster: 7, revision: 1_019, count: 1_003, newest: 1_019 };
        assert_eq!(tally.judge(&seen, 1_019), Verdict::Level);
    }
}
