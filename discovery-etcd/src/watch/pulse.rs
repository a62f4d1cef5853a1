use std::time::Duration;

use crate::client::RangeSummary;

/// Whether a watch can be trusted: what small reads of its range, made beside it, tell of it, without any I/O.
///
/// A stream that says nothing looks the same whether nothing happens, the member is frozen, or the stream is stuck. The first
/// two are told apart by whether a read is answered. The third shows when etcd has more or fewer entries, or a newer one, than
/// the watch told of, and the watch makes no progress towards them for a whole beat more. A watch that left out some change but
/// goes on shows as soon as it has passed the revision of the read.
#[derive(Debug)]
pub(super) struct Pulse {
    /// The entries of the range, by the list and the steps since.
    count: i64,
    /// The store's revision, as last read.
    revision: i64,
    /// Up to here it is known what the range's newest entry is.
    checked: i64,
    /// Beats until the newest entry may be asked for again.
    rest: u32,
    /// Whether the watch made progress since the last answer.
    moved: bool,
    /// Where the watch stood when the last beat was sent, and how many entries there were.
    reached: i64,
    counted: i64,
    /// The steps since then: their revisions, and the entries after each.
    since: Vec<(i64, i64)>,
    /// What etcd has, and the watch did not tell yet.
    owed: Option<Owed>,
    /// The last beat was refused for its token.
    is_locked_out: bool,
}

/// A read that differs from what the watch told.
#[derive(Debug)]
struct Owed {
    revision: i64,
    count: i64,
    /// The entries at that revision, by what the watch told so far.
    told: i64,
    /// The newest entry's revision, 0 where that was not asked for.
    newest: i64,
}

impl Pulse {
    /// Begins with a list of `count` entries at `revision`.
    pub(super) fn new(count: usize, revision: i64) -> Self {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        Self {
            count,
            revision,
            checked: revision,
            rest: CHECK,
            moved: false,
            reached: revision,
            counted: count,
            since: Vec::new(),
            owed: None,
            is_locked_out: false,
        }
    }

    /// The entries of the range, by what the watch told.
    pub(super) fn count(&self) -> i64 {
        self.count
    }

    /// Takes note of a part of what is still to come.
    pub(super) fn hear(&mut self) {
        self.moved = true;
    }

    /// Takes a step of the watch, after which there are so many more entries.
    pub(super) fn step(&mut self, revision: i64, growth: i64) {
        self.moved = true;
        self.count = self.count.saturating_add(growth);
        self.since.push((revision, self.count));
        if let Some(owed) = &mut self.owed
            && revision <= owed.revision
        {
            owed.told = owed.told.saturating_add(growth);
        }
    }

    /// Begins a beat, the watch having reached a revision. Returns whether to ask for the newest entry.
    ///
    /// The count shows what came or went, and costs etcd a walk of its index. What was replaced or changed in place shows in
    /// the newest entry alone, for which etcd reads the whole range: so only now and then, and only if anything was written.
    pub(super) fn beat(&mut self, reached: i64) -> bool {
        self.reached = reached;
        self.counted = self.count;
        self.since.clear();
        self.rest = self.rest.saturating_sub(1);
        let asks = self.rest == 0 && self.revision > self.checked.max(reached);
        if asks {
            self.rest = CHECK;
        }
        asks
    }

    /// Takes note of a beat that was refused for its token. The first time the token may just have ended, and the next beat has
    /// another one; returns whether that was refused too.
    pub(super) fn lock_out(&mut self) -> bool {
        std::mem::replace(&mut self.is_locked_out, true)
    }

    /// Takes the answer to the last beat, the watch having reached a revision by now; an error says why not to trust it.
    pub(super) fn answered(&mut self, seen: &RangeSummary, reached: i64) -> Result<(), &'static str> {
        if seen.revision < self.reached {
            return Err("the registry's history went back");
        }
        let moved = std::mem::take(&mut self.moved);
        if let Some(owed) = &self.owed {
            let is_told = owed.told == owed.count && owed.newest <= reached;
            if !is_told && reached >= owed.revision {
                return Err("the watch left out a change that etcd has");
            }
            if !is_told && !moved {
                return Err("the watch is stuck: it is silent about changes that etcd has");
            }
            if is_told {
                self.owed = None;
            }
        }
        self.revision = seen.revision;
        if seen.newest.is_some() {
            self.checked = seen.revision;
        }
        // One that is on its way already is not put off by the next.
        if self.owed.is_none() {
            let newest = seen.newest.unwrap_or(0);
            // Steps may have overtaken the answer.
            let before = |(revision, _): &&(i64, i64)| *revision <= seen.revision;
            let told = self.since.iter().rev().find(before).map_or(self.counted, |(_, count)| *count);
            if told != seen.count || newest > reached {
                self.owed = Some(Owed { revision: seen.revision, count: seen.count, told, newest });
            }
        }
        self.is_locked_out = false;
        Ok(())
    }
}

/// How fast a watch notices that it is cut off.
///
/// From a freeze of etcd to the end of the attempt takes at most the sum of the three. For a ttl of 2 s and more that is no
/// more than two thirds of it: a lease that is renewed every third has at least so much left. So watchers know of an outage
/// before etcd can come back from it with leases ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// From one beat to the next.
    pub(super) interval: Duration,
    /// How long a beat may stay unanswered; no longer than the interval, so that there is one at a time.
    pub(super) deadline: Duration,
    /// How long a list may take for a broken watch to go unsaid.
    pub(super) relist: Duration,
}

impl Pace {
    /// Of the time that there is, most is the answers': a slow network is no outage.
    pub(crate) fn of(ttl: Duration) -> Self {
        let interval = (ttl / 4).min(SLOWEST);
        Self { interval, deadline: interval, relist: (ttl / 6).min(Duration::from_millis(500)) }
    }

    /// By when a frozen member is noticed.
    pub(super) fn patience(&self) -> Duration {
        self.interval + self.deadline
    }
}

/// What the default ttl makes of it; with a longer one, there is no reason to look less often.
const SLOWEST: Duration = Duration::from_millis(3750);
/// The newest entry is asked for once in so many beats at most.
const CHECK: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps before a beat is sent and those before it is answered, as revision and growth, then the store's revision and
    /// the count that are read.
    type Beat<'a> = (&'a [(i64, i64)], &'a [(i64, i64)], i64, i64);

    /// Which beat finds that the watch cannot be trusted.
    fn found_at(beats: &[Beat<'_>]) -> Option<usize> {
        let (mut pulse, mut reached) = (Pulse::new(3, 10), 10);
        beats.iter().position(|&(before, meanwhile, revision, count)| {
            let mut take = |pulse: &mut Pulse, steps: &[(i64, i64)]| {
                for &(revision, growth) in steps {
                    pulse.step(revision, growth);
                    reached = revision;
                }
                reached
            };
            let sent = take(&mut pulse, before);
            pulse.beat(sent);
            let reached = take(&mut pulse, meanwhile);
            pulse.answered(&RangeSummary { cluster: 7, revision, count, newest: None }, reached).is_err()
        })
    }

    #[test]
    fn a_watch_that_is_silent_about_a_change_is_found_one_beat_later() {
        const QUIET: &[(i64, i64)] = &[];
        for (name, beats, found) in [
            ("nothing happens", &[(QUIET, QUIET, 10, 3), (QUIET, QUIET, 10, 3)][..], None),
            ("others write elsewhere", &[(QUIET, QUIET, 50, 3), (QUIET, QUIET, 90, 3)], None),
            ("steps come", &[(&[(11, 1)], QUIET, 11, 4), (&[(12, -1)], QUIET, 12, 3), (QUIET, QUIET, 12, 3)], None),
            ("a step is late", &[(QUIET, QUIET, 11, 4), (&[(11, 1)], QUIET, 11, 4), (QUIET, QUIET, 11, 4)], None),
            ("a step overtakes the answer", &[(QUIET, &[(11, 1)], 10, 3), (QUIET, QUIET, 11, 4)], None),
            (
                "one comes in time, the next overtakes",
                &[(QUIET, &[(11, 1), (12, 1)], 11, 4), (QUIET, QUIET, 12, 5)],
                None,
            ),
            ("an entry came", &[(QUIET, QUIET, 11, 4), (QUIET, QUIET, 11, 4)], Some(1)),
            ("an entry went", &[(QUIET, QUIET, 11, 2), (QUIET, QUIET, 11, 2)], Some(1)),
            (
                "stuck after a while",
                &[(&[(11, 1)], QUIET, 11, 4), (QUIET, QUIET, 12, 5), (QUIET, QUIET, 12, 5)],
                Some(2),
            ),
            ("stuck right after a step", &[(&[(11, 1)], QUIET, 12, 3), (QUIET, QUIET, 12, 3)], Some(1)),
            ("and right after one that overtook", &[(QUIET, &[(11, 1)], 12, 3), (QUIET, QUIET, 12, 3)], Some(1)),
            ("two losses that cancel out in the end", &[(QUIET, QUIET, 11, 2), (QUIET, QUIET, 12, 3)], Some(1)),
            (
                "a change left out shows at once when passed",
                &[(&[(13, 0)], QUIET, 13, 4), (&[(14, 0)], QUIET, 14, 4)],
                Some(1),
            ),
            (
                "slow, but moving",
                &[
                    (QUIET, QUIET, 14, 6),
                    (&[(11, 1)], QUIET, 14, 6),
                    (&[(12, 1)], QUIET, 14, 6),
                    (&[(14, 1)], QUIET, 14, 6),
                    (QUIET, QUIET, 14, 6),
                ],
                None,
            ),
            (
                "slow, and the last one is left out",
                &[
                    (QUIET, QUIET, 14, 6),
                    (&[(11, 1)], QUIET, 14, 6),
                    (&[(12, 1)], QUIET, 15, 6),
                    (&[(15, 0)], QUIET, 15, 6),
                ],
                Some(3),
            ),
            ("history went back", &[(QUIET, QUIET, 10, 3), (QUIET, QUIET, 4, 3)], Some(1)),
        ] {
            assert_eq!(found_at(beats), found, "{name}");
        }
    }

    #[test]
    fn parts_of_what_is_to_come_are_progress() {
        let mut pulse = Pulse::new(3, 10);
        let mut answer = |hears: bool| {
            pulse.beat(10);
            if hears {
                pulse.hear();
            }
            pulse.answered(&RangeSummary { cluster: 7, revision: 11, count: 9, newest: None }, 10)
        };
        assert!(answer(false).is_ok());
        assert!((0..5).all(|_| answer(true).is_ok()));
        assert!(answer(false).is_err());
    }

    #[test]
    fn what_changed_in_place_is_found_by_the_newest_entry() {
        // Whether anything was written, what the newest entry is, whether the event comes, and whether that is found.
        for (revision, newest, comes, is_stuck) in
            [(10, 9, false, false), (20, 9, false, false), (20, 11, false, true), (20, 11, true, false)]
        {
            let mut pulse = Pulse::new(3, 10);
            let (mut asked, mut found, mut reached) = (0, false, 10);
            for number in 0..3 * CHECK {
                if comes && number == CHECK {
                    reached = 11;
                    pulse.step(11, 0);
                }
                let newest = pulse.beat(reached).then_some(newest);
                asked += u32::from(newest.is_some());
                if pulse.answered(&RangeSummary { cluster: 7, revision, count: 3, newest }, reached).is_err() {
                    assert_eq!(number, CHECK, "the beat after the one that asked");
                    found = true;
                    break;
                }
            }
            assert_eq!(found, is_stuck, "{revision} {newest} {comes}");
            assert_eq!(asked, u32::from(revision > 10), "asked again only where more was written");
        }
    }

    #[test]
    fn an_outage_is_known_before_a_lease_that_was_renewed_in_time_can_end() {
        for seconds in 2..=24 * 3600 {
            let ttl = Duration::from_secs(seconds);
            let pace = Pace::of(ttl);
            assert!(pace.patience() + pace.relist <= ttl * 2 / 3, "{ttl:?} {pace:?}");
            assert!(pace.deadline <= pace.interval, "one beat at a time");
            assert!(pace.deadline >= (ttl / 4).min(SLOWEST), "round trips of so much are no outage");
        }
        let pace = Pace::of(Duration::from_secs(1));
        assert!(pace.patience() + pace.relist < Duration::from_secs(1), "{pace:?}");
    }
}
