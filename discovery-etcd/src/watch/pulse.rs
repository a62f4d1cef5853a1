use std::time::Duration;

use crate::client::Glance;

/// Whether a watch can be trusted: what small reads of its range, made beside it, tell of it, without any I/O.
///
/// A stream that says nothing looks the same whether nothing happens, the member is frozen, or the stream is stuck. The first
/// two are told apart by whether a read is answered. The third shows when the range changed, and the watch stays silent for a
/// whole beat more.
#[derive(Debug)]
pub(super) struct Pulse {
    /// The entries of the range and the store's revision, as last read.
    count: i64,
    revision: i64,
    /// Up to here it is known what the range's newest entry is.
    checked: i64,
    /// The newest entry's revision, as last read.
    newest: i64,
    /// Beats until the newest entry may be asked for again.
    rest: u32,
    /// Messages with events so far, and how many there were when the last beat and the one before it were sent.
    heard: u64,
    at_last: u64,
    at_former: u64,
    /// Where the watch stood when the last beat was sent.
    reached: i64,
    /// The range has changed, and the watch did not say so yet.
    is_overdue: bool,
    /// The last beat was refused for its token.
    is_locked_out: bool,
}

impl Pulse {
    /// Begins with a list of `count` entries at `revision`.
    pub(super) fn new(count: usize, revision: i64) -> Self {
        Self {
            count: i64::try_from(count).unwrap_or(i64::MAX),
            revision,
            checked: revision,
            newest: 0,
            rest: CHECK,
            heard: 0,
            at_last: 0,
            at_former: 0,
            reached: revision,
            is_overdue: false,
            is_locked_out: false,
        }
    }

    /// Takes note of events.
    pub(super) fn hear(&mut self) {
        self.heard += 1;
    }

    /// Begins a beat, the watch having reached a revision. Returns whether to ask for the newest entry.
    ///
    /// The count shows what came or went, and costs etcd a walk of its index. What was replaced or changed in place shows in
    /// the newest entry alone, for which etcd reads the whole range: so only now and then, and only if anything was written.
    pub(super) fn beat(&mut self, reached: i64) -> bool {
        (self.at_former, self.at_last, self.reached) = (self.at_last, self.heard, reached);
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
    pub(super) fn answered(&mut self, seen: &Glance, reached: i64) -> Result<(), &'static str> {
        if seen.revision < self.reached {
            return Err("the registry's history went back");
        }
        // Counted from when the former beat was sent: what came while it was answered may be what this one shows.
        let is_silent = self.heard == self.at_former;
        if self.is_overdue && is_silent {
            return Err("the watch is stuck: it is silent about changes that etcd has");
        }
        if let Some(newest) = seen.newest {
            (self.newest, self.checked) = (newest, seen.revision);
        }
        self.is_locked_out = false;
        self.is_overdue = self.newest > reached || (seen.count != self.count && is_silent);
        (self.count, self.revision) = (seen.count, seen.revision);
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
    /// How long a beat may stay unanswered.
    pub(super) deadline: Duration,
    /// How long a list may take for a broken watch to go unsaid.
    pub(super) relist: Duration,
}

impl Pace {
    pub(crate) fn of(ttl: Duration) -> Self {
        let interval = (ttl / 3).clamp(Duration::from_millis(500), Duration::from_secs(5));
        Self { interval, deadline: interval / 2, relist: (ttl / 6).min(Duration::from_millis(500)) }
    }

    /// By when a frozen member is noticed.
    pub(super) fn patience(&self) -> Duration {
        self.interval + self.deadline
    }
}

/// The newest entry is asked for once in so many beats at most.
const CHECK: u32 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    /// What happens between two beats, with what the next one sees.
    struct Beat {
        events: u64,
        reached: i64,
        /// Events between sending and answer.
        meanwhile: u64,
        revision: i64,
        count: i64,
    }

    fn run(pulse: &mut Pulse, beat: &Beat, newest: Option<i64>) -> Result<(), &'static str> {
        (0..beat.events).for_each(|_| pulse.hear());
        let asks = pulse.beat(beat.reached);
        (0..beat.meanwhile).for_each(|_| pulse.hear());
        let newest = newest.filter(|_| asks);
        pulse.answered(&Glance { cluster: 7, revision: beat.revision, count: beat.count, newest }, beat.reached)
    }

    #[test]
    fn a_silent_watch_of_a_changed_range_is_stuck_one_beat_later() {
        // Events before, the revision reached, events meanwhile, then the store's revision and the count that is read.
        for (name, beats, stuck_at) in [
            ("nothing happens", &[(0, 10, 0, 10, 3), (0, 10, 0, 10, 3), (0, 10, 0, 10, 3)][..], None),
            ("others write elsewhere", &[(0, 10, 0, 50, 3), (0, 10, 0, 90, 3)], None),
            ("events come", &[(1, 11, 0, 11, 4), (1, 12, 0, 12, 3), (0, 12, 0, 12, 3)], None),
            ("an event is late", &[(0, 10, 0, 11, 4), (1, 11, 0, 11, 4), (0, 11, 0, 11, 4)], None),
            ("an event overtakes the answer", &[(0, 10, 1, 10, 3), (0, 11, 0, 11, 4), (0, 11, 0, 11, 4)], None),
            ("an entry came", &[(0, 10, 0, 11, 4), (0, 10, 0, 11, 4)], Some(1)),
            ("an entry went", &[(0, 10, 0, 11, 2), (0, 10, 0, 11, 2)], Some(1)),
            (
                "stuck after a while",
                &[(1, 11, 0, 11, 4), (0, 11, 0, 11, 4), (0, 11, 0, 12, 5), (0, 11, 0, 12, 5)],
                Some(3),
            ),
            ("history went back", &[(0, 10, 0, 10, 3), (0, 10, 0, 4, 3)], Some(1)),
            ("but not by an answer that is older than an event", &[(1, 11, 1, 11, 4), (0, 12, 0, 12, 5)], None),
        ] {
            let mut pulse = Pulse::new(3, 10);
            let failed = beats.iter().position(|&(events, reached, meanwhile, revision, count)| {
                run(&mut pulse, &Beat { events, reached, meanwhile, revision, count }, None).is_err()
            });
            assert_eq!(failed, stuck_at, "{name}");
        }
    }

    #[test]
    fn what_changed_in_place_is_found_by_the_newest_entry() {
        // Whether anything was written, what the newest entry is, whether the event comes, and whether that is found.
        for (revision, newest, comes, is_stuck) in
            [(10, 9, false, false), (20, 9, false, false), (20, 11, false, true), (20, 11, true, false)]
        {
            let mut pulse = Pulse::new(3, 10);
            let mut asked = 0;
            let mut found = false;
            for number in 0..3 * CHECK {
                let late = comes && number == CHECK;
                let reached = if comes && number >= CHECK { 11 } else { 10 };
                (0..u64::from(late)).for_each(|_| pulse.hear());
                let newest = pulse.beat(reached).then_some(newest);
                asked += u32::from(newest.is_some());
                if pulse.answered(&Glance { cluster: 7, revision, count: 3, newest }, reached).is_err() {
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
            assert!(pace.deadline < pace.interval, "one beat at a time");
        }
        let pace = Pace::of(Duration::from_secs(1));
        assert!(pace.patience() + pace.relist < Duration::from_secs(1), "{pace:?}");
    }
}
