use std::collections::VecDeque;

use crate::client::RangeSummary;

/// Whether a watch has told what it should, by what an audit reads of its range: the decision
/// without the I/O.
///
/// A stream that says nothing looks the same whether nothing happens or it is stuck. The latter
/// shows when etcd has more or fewer keys, or a newer one, than the watch told of, and the watch
/// makes no progress towards them until the next audit. A watch that left out some change but goes
/// on shows as soon as it has passed the revision of the audit.
#[derive(Debug)]
pub(super) struct Tally {
    /// The keys of the range, by the list and the steps since.
    count: i64,
    /// The last steps: their revisions, and how many more keys there were after each.
    steps: VecDeque<(i64, i64)>,
    /// Whether the watch made progress since the last audit.
    moved: bool,
    /// What etcd has, and the watch did not tell yet.
    owed: Option<Owed>,
}

/// An audit that differs from what the watch told.
#[derive(Debug)]
struct Owed {
    revision: i64,
    count: i64,
    /// The keys at that revision, by what the watch told so far.
    told: i64,
    newest: i64,
}

/// What an audit shows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// All that happened up to the audit was told.
    Level,
    /// Something is on its way, or left out: the next audit tells.
    Open,
    Wrong(&'static str),
}

impl Tally {
    /// Begins with a list of so many keys.
    pub(super) fn new(count: usize) -> Self {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        Self { count, steps: VecDeque::new(), moved: false, owed: None }
    }

    /// The keys of the range, by what the watch told.
    pub(super) fn count(&self) -> usize {
        usize::try_from(self.count).unwrap_or(0)
    }

    /// Takes note of a part of what is still to come.
    pub(super) fn hear(&mut self) {
        self.moved = true;
    }

    /// Takes a step of the watch, after which there are so many more keys.
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

    /// Takes an audit, the watch having reached a revision by now.
    pub(super) fn judge(&mut self, seen: &RangeSummary, reached: i64) -> Verdict {
        let moved = std::mem::take(&mut self.moved);
        if let Some(owed) = &self.owed {
            let is_told = owed.told == owed.count && owed.newest <= reached;
            if !is_told && reached >= owed.revision {
                return Verdict::Wrong("the watch left out a change that etcd has");
            }
            if !is_told && !moved {
                return Verdict::Wrong("the watch is stuck: it is silent about changes that etcd has");
            }
            if !is_told {
                // It is not put off by the next one.
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

/// How many steps are remembered: more do not come while an audit is on its way, as a rule.
const MOST_STEPS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps before an audit's answer, as revision and growth, then the store's revision, the
    /// count, and the newest key's revision that are read.
    type Audit<'a> = (&'a [(i64, i64)], i64, i64, i64);

    /// Which audit finds that the watch cannot be trusted.
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
    fn a_watch_that_is_silent_about_a_change_is_found_one_audit_later() {
        const QUIET: &[(i64, i64)] = &[];
        for (name, audits, found) in [
            ("nothing happens", &[(QUIET, 10, 3, 9), (QUIET, 10, 3, 9)][..], None),
            ("others write elsewhere", &[(QUIET, 50, 3, 9), (QUIET, 90, 3, 9)], None),
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
                "a change left out shows at once when passed",
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
    fn parts_of_what_is_to_come_are_progress() {
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
    fn more_steps_than_are_remembered_are_no_fault() {
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
