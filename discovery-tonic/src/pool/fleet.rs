use crate::endpoint::tally::Totals;

/// What all endpoints of a channel do, with which each of them is compared.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    counts: Counts,
    /// The longest wait for an answer, in sweeps, of this period and of the last one.
    gaps: [u32; 2],
    /// The sweeps of this period so far.
    sweeps: u32,
    census: Census,
}

/// How many calls were answered, ended and failed since the channel was built.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Counts {
    pub(crate) answers: u64,
    pub(crate) ended: u64,
    pub(crate) failed: u64,
}

/// The calls that ended recently, and those of them that failed or were given up. Older calls count
/// less.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Recent {
    ended: f32,
    failed: f32,
}

/// The endpoints that were connected and due to get requests in the last sweep.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Census {
    pub(crate) endpoints: usize,
    pub(crate) ejected: usize,
    /// Those whose requests wait for an answer longer than usual.
    pub(crate) silent: usize,
    /// Those that are ejected, or whose calls mostly fail.
    pub(crate) failing: usize,
    /// Calls that ended recently, on all of them.
    ended: f32,
}

impl Fleet {
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Adds the news of one endpoint.
    pub(crate) fn add(&mut self, news: &Totals) {
        self.counts.add(news);
    }

    /// Records an answer for which requests waited this many sweeps.
    pub(crate) fn note_gap(&mut self, sweeps: u32) {
        self.gaps[0] = self.gaps[0].max(sweeps);
    }

    /// How many sweeps requests recently waited for an answer, at most.
    pub(crate) fn longest_gap(&self) -> u32 {
        self.gaps[0].max(self.gaps[1])
    }

    /// Counts a sweep, and records its census.
    pub(crate) fn take(&mut self, census: Census) {
        self.census = census;
        self.sweeps += 1;
        if self.sweeps >= PERIOD {
            self.sweeps = 0;
            self.gaps = [0, self.gaps[0]];
        }
    }

    /// Records an ejection.
    pub(crate) fn eject(&mut self) {
        self.census.ejected += 1;
    }

    /// Whether one more endpoint may be ejected: at most half of them.
    pub(crate) fn may_eject(&self) -> bool {
        (self.census.ejected + 1) * 2 <= self.census.endpoints
    }

    /// Whether all endpoints are ejected.
    pub(crate) fn all_ejected(&self) -> bool {
        self.census.endpoints > 0 && self.census.ejected >= self.census.endpoints
    }

    /// Whether most endpoints are silent.
    pub(crate) fn mostly_silent(&self) -> bool {
        self.census.silent * 2 > self.census.endpoints
    }

    /// The mean number of recent calls of an endpoint, if most endpoints fail.
    pub(crate) fn mean_where_most_fail(&self) -> Option<f32> {
        let Census { endpoints, failing, ended, .. } = self.census;
        (failing * 2 > endpoints).then(|| ended / endpoints as f32)
    }
}

impl Census {
    /// Counts one more endpoint.
    pub(crate) fn add(&mut self, is_ejected: bool, is_silent: bool, recent: Recent) {
        self.endpoints += 1;
        self.ejected += usize::from(is_ejected);
        self.silent += usize::from(is_silent);
        self.failing += usize::from(is_ejected || recent.mostly_fails());
        self.ended += recent.ended;
    }
}

impl Counts {
    pub(crate) fn add(&mut self, news: &Totals) {
        self.answers += u64::from(news.answers);
        self.ended += u64::from(news.answers) + u64::from(news.lost);
        self.failed += u64::from(news.failed);
    }

    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            answers: self.answers.saturating_sub(before.answers),
            ended: self.ended.saturating_sub(before.ended),
            failed: self.failed.saturating_sub(before.failed),
        }
    }

    /// Whether at least this percentage of the calls failed.
    pub(crate) fn fails(&self, percentage: u32) -> bool {
        u128::from(self.failed) * 100 >= u128::from(self.ended) * u128::from(percentage)
    }

    /// Whether calls ended, and at most half of them failed.
    pub(crate) fn mostly_succeed(&self) -> bool {
        self.ended > 0 && self.failed * 2 <= self.ended
    }

    /// Whether the share of failed calls is at least twice that of the others.
    pub(crate) fn stands_out(&self, others: &Self) -> bool {
        let [own, rest] =
            [(self, others), (others, self)].map(|(one, other)| u128::from(one.failed) * u128::from(other.ended));
        others.ended > 0 && own >= 2 * rest
    }
}

impl Recent {
    /// Adds the news; each sweep lets what was there before decay.
    pub(crate) fn add(&mut self, news: &Totals, is_sweep: bool) {
        let decay = if is_sweep { DECAY } else { 1.0 };
        let given_up = news.given_up as f32;
        self.ended = self.ended * decay + news.answers as f32 + news.lost as f32 + given_up;
        self.failed = self.failed * decay + news.failed as f32 + given_up;
    }

    pub(crate) fn ended(self) -> f32 {
        self.ended
    }

    /// Whether calls ended, and most of them failed.
    pub(crate) fn mostly_fails(self) -> bool {
        self.ended > TRACE && self.failed * 2.0 > self.ended
    }
}

/// The length of a period in sweeps: 30 s, so that a gap is remembered for 30 s to a minute.
const PERIOD: u32 = 300;
/// The share that is left after a sweep: half of it after 1.4 s.
const DECAY: f32 = 0.95;
/// Less than this counts as no calls.
const TRACE: f32 = 0.01;
