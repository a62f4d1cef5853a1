use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use super::wait_queue::WaitQueue;

/// What is under way at one candidate, and how much may be.
///
/// One word counts the requests in flight, among them those not answered yet, and those that are just being handed over; it also
/// says whether the candidate is closed, so that entering is one atomic step against all of it. On cache lines of its own, because
/// every request writes it.
#[derive(Debug)]
#[repr(align(128))]
pub struct Load {
    /// Bits 0 to 30: in flight. Bit 31: closed. Bits 32 to 53: not answered yet. Bits 54 to 63: being handed over.
    word: AtomicU64,
    /// What the peer allows at once.
    limit: AtomicU32,
    /// How many may wait for an answer at a peer that has not answered anything yet, or nothing since it was put on trial.
    trial: AtomicU32,
    /// The peer has answered something.
    proven: AtomicBool,
    /// The requests so far whose callers gave them up.
    abandoned: AtomicU32,
    /// What is in flight was ended on this side.
    cut: AtomicBool,
    /// The calls that wait for a place at any candidate.
    waiters: Option<Arc<WaitQueue>>,
}

/// What one request stands for in the word: it is in flight, and perhaps still being handed over, or without an answer.
#[derive(Debug)]
pub(crate) struct Share(u64);

/// Why a [`Load`] takes no further request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Full {
    /// It takes none any more.
    Closed,
    /// As many as the peer allows are in flight.
    Limit,
    /// The peer has not answered anything yet and has enough on trial.
    Trial,
}

impl Load {
    /// Nothing in flight, at most `limit` at once, and at most `trial` before the first answer.
    pub fn new(limit: u32, trial: u32) -> Self {
        Self {
            word: AtomicU64::new(0),
            limit: AtomicU32::new(limit),
            trial: AtomicU32::new(trial),
            proven: AtomicBool::new(trial == FREE),
            abandoned: AtomicU32::new(0),
            cut: AtomicBool::new(false),
            waiters: None,
        }
    }

    /// The same, and calls those who wait when a place becomes free.
    pub(crate) fn with_waiters(limit: u32, trial: u32, waiters: Arc<WaitQueue>) -> Self {
        Self { waiters: Some(waiters), ..Self::new(limit, trial) }
    }

    /// The number of requests in flight, until their responses have ended.
    #[inline]
    pub fn in_flight(&self) -> u32 {
        in_flight(self.word.load(Ordering::Relaxed))
    }

    /// The number of requests in flight that are not answered yet.
    pub fn unanswered(&self) -> u32 {
        unanswered(self.word.load(Ordering::Relaxed))
    }

    /// Whether a request is just being handed over.
    pub(crate) fn is_sending(&self) -> bool {
        self.word.load(Ordering::SeqCst) >> 54 != 0
    }

    /// Whether it takes no requests any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.word.load(Ordering::Acquire) & CLOSED != 0
    }

    /// Counts a request in, if there is room; `patient` callers leave room to peers that are on trial.
    ///
    /// # Errors
    ///
    /// Why there is none.
    #[inline]
    pub(crate) fn enter(&self, patient: bool) -> Result<Share, Full> {
        let before = self.word.fetch_add(WHOLE, Ordering::SeqCst);
        if self.admits(before, patient) { Ok(Share(WHOLE)) } else { Err(self.refuse(before)) }
    }

    /// Whether [`enter`](Self::enter) would find room now.
    pub(crate) fn has_room(&self, patient: bool) -> bool {
        self.admits(self.word.load(Ordering::SeqCst), patient)
    }

    #[inline]
    fn admits(&self, word: u64, patient: bool) -> bool {
        // A closed word is above any limit, so that one comparison asks for both.
        if (word as u32) < self.limit.load(Ordering::Relaxed).min(MOST) {
            let trial = self.trial.load(Ordering::Relaxed);
            return trial == FREE || !patient || unanswered(word) < trial;
        }
        false
    }

    #[cold]
    fn refuse(&self, before: u64) -> Full {
        let now = self.word.fetch_sub(WHOLE, Ordering::SeqCst) - IN_FLIGHT;
        let limit = self.limit.load(Ordering::Relaxed);
        if before & CLOSED != 0 {
            return Full::Closed;
        }
        if in_flight(before) < limit {
            return Full::Trial;
        }
        // Others in passing stood in the word, or left meanwhile: somebody was turned away for nothing.
        if in_flight(now) < limit {
            self.free(1);
        }
        Full::Limit
    }

    /// Counts a request as handed over, once.
    #[inline]
    pub(crate) fn sent(&self, share: &mut Share) {
        self.word.fetch_sub(share.take(SENDING), Ordering::SeqCst);
    }

    /// Counts a request as answered, once: the peer is alive, which ends its trial.
    #[inline]
    pub(crate) fn answer(&self, share: &mut Share) {
        self.word.fetch_sub(share.take(UNANSWERED), Ordering::SeqCst);
        if self.trial.load(Ordering::Relaxed) != FREE {
            self.prove();
        }
    }

    #[cold]
    fn prove(&self) {
        self.proven.store(true, Ordering::Relaxed);
        self.trial.store(FREE, Ordering::SeqCst);
        self.free(self.places());
    }

    /// Counts a request out.
    #[inline]
    pub(crate) fn leave(&self, share: &Share) {
        if !share.is_answered() {
            self.abandon();
        }
        self.word.fetch_sub(share.0, Ordering::SeqCst);
        self.free(1);
    }

    /// Counts a request whose caller gave it up, before the answer or in the middle of it.
    #[cold]
    pub(crate) fn abandon(&self) {
        self.abandoned.fetch_add(1, Ordering::Relaxed);
    }

    /// How many requests have been given up.
    pub(crate) fn abandoned(&self) -> u32 {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// Takes note that this side ends what is in flight.
    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::Release);
    }

    /// Whether this side has ended what was in flight.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// How many more requests the peer allows, on trial or not.
    pub(crate) fn places(&self) -> u32 {
        let word = self.word.load(Ordering::SeqCst);
        if word & CLOSED == 0 { self.limit().saturating_sub(in_flight(word)) } else { 0 }
    }

    /// Calls waiters for this many places.
    #[inline]
    fn free(&self, places: u32) {
        if let Some(waiters) = &self.waiters {
            waiters.free(places as usize);
        }
    }

    /// Takes no requests any more; those in flight go on.
    pub(crate) fn close(&self) {
        self.word.fetch_or(CLOSED, Ordering::SeqCst);
    }

    /// Closes if nothing is in flight, in one step with the look. Returns whether it is closed with nothing in flight.
    pub(crate) fn close_if_idle(&self) -> bool {
        match self.word.compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(word) => word == CLOSED,
        }
    }

    /// Takes over what the peer allows at once.
    pub(crate) fn set_limit(&self, limit: u32) {
        let before = self.limit.swap(limit, Ordering::SeqCst);
        self.free(limit.saturating_sub(before));
    }

    /// How many requests it takes at once.
    pub(crate) fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Puts the peer on trial again: at most `trial` requests more until it answers one.
    pub(crate) fn set_trial(&self, trial: u32) {
        self.trial.store(self.unanswered().saturating_add(trial), Ordering::Relaxed);
    }

    /// A request, which still counts here, was not answered in time: until the peer answers one, those that wait are not replaced,
    /// except for the last.
    pub(crate) fn doubt(&self) {
        self.trial.fetch_min(self.unanswered().saturating_sub(1).max(1), Ordering::Relaxed);
    }

    /// A request ends of those that waited when the peer was put on trial: it makes no place for another.
    pub(crate) fn shrink_trial(&self) {
        let shrunk = |trial: u32| (trial != FREE).then(|| trial.saturating_sub(1).max(1));
        // Where the peer is not on trial there is nothing to shrink.
        let _ = self.trial.fetch_update(Ordering::Relaxed, Ordering::Relaxed, shrunk);
    }

    /// Whether the peer has answered anything.
    pub(crate) fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }
}

impl Share {
    pub(crate) fn is_answered(&self) -> bool {
        self.0 & UNANSWERED == 0
    }

    #[inline]
    fn take(&mut self, part: u64) -> u64 {
        let taken = self.0 & part;
        self.0 -= taken;
        taken
    }
}

impl Default for Load {
    /// Without limits.
    fn default() -> Self {
        Self::new(u32::MAX, FREE)
    }
}

#[inline]
fn in_flight(word: u64) -> u32 {
    (word & (CLOSED - 1)) as u32
}

#[inline]
fn unanswered(word: u64) -> u32 {
    (word >> 32) as u32 & 0x3f_ffff
}

/// The trial of a peer that is not on trial.
const FREE: u32 = u32::MAX;
const CLOSED: u64 = 1 << 31;
const MOST: u32 = CLOSED as u32;
const IN_FLIGHT: u64 = 1;
const UNANSWERED: u64 = 1 << 32;
const SENDING: u64 = 1 << 54;
const WHOLE: u64 = IN_FLIGHT + UNANSWERED + SENDING;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::balance::wait_queue::Waiter;

    #[test]
    fn requests_are_counted_until_they_leave() {
        let load = Load::default();
        let (mut one, other) = (load.enter(true).unwrap(), load.enter(true).unwrap());
        assert!(load.is_sending());
        load.sent(&mut one);
        load.answer(&mut one);
        load.answer(&mut one);
        assert!(one.is_answered() && !other.is_answered());
        assert_eq!((load.in_flight(), load.unanswered()), (2, 1));
        load.leave(&one);
        load.leave(&other);
        assert_eq!((load.in_flight(), load.unanswered(), load.is_sending()), (0, 0, false));
    }

    #[test]
    fn limit_trial_and_close_refuse() {
        let load = Load::new(3, 1);
        let mut one = load.enter(true).unwrap();
        assert_eq!(load.enter(true).unwrap_err(), Full::Trial);
        let two = load.enter(false).unwrap();
        load.answer(&mut one);
        assert!(load.is_proven(), "the first answer ends the trial");
        let three = load.enter(true).unwrap();
        assert_eq!(load.enter(true).unwrap_err(), Full::Limit);
        load.leave(&one);
        load.leave(&two);
        assert!(!load.close_if_idle());
        load.leave(&three);
        assert!(load.close_if_idle() && load.is_closed());
        assert_eq!(load.enter(false).unwrap_err(), Full::Closed);
        assert_eq!(load.in_flight(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_place_stays_empty_while_somebody_waits() {
        let waiters = Arc::new(WaitQueue::default());
        let load = Arc::new(Load::with_waiters(3, u32::MAX, Arc::clone(&waiters)));
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..32 {
            let (waiters, load) = (Arc::clone(&waiters), Arc::clone(&load));
            callers.spawn(async move {
                for _ in 0..200 {
                    let mut waiter = waiters.join();
                    let share = loop {
                        poll_fn(|context| waiter.poll_called(context)).await;
                        if let Some(share) = waiter.take_call().then(|| load.enter(true).ok()).flatten() {
                            break share;
                        }
                    };
                    drop(waiter);
                    tokio::task::yield_now().await;
                    load.leave(&share);
                }
            });
        }
        let all = tokio::time::timeout(std::time::Duration::from_secs(20), callers.join_all());
        all.await.expect("all callers get their turns");
        assert_eq!(load.in_flight(), 0);
    }

    #[test]
    fn a_greater_limit_calls_as_many_as_it_lets_in() {
        let waiters = Arc::new(WaitQueue::default());
        let load = Load::with_waiters(0, u32::MAX, Arc::clone(&waiters));
        let mut waiting: Vec<_> = (0..3).map(|_| waiters.join()).collect();
        assert!(waiting[0].take_call());
        load.set_limit(2);
        assert_eq!(waiting.iter_mut().map(Waiter::take_call).collect::<Vec<_>>(), [true, true, false]);
    }

    #[test]
    fn a_trial_counts_what_waits_for_an_answer() {
        let load = Load::new(u32::MAX, u32::MAX);
        let mut stream = load.enter(true).unwrap();
        load.answer(&mut stream);
        let _hanging = load.enter(true).unwrap();
        load.set_trial(1);
        let _probe = load.enter(true).expect("one more than the one that hangs, whatever streams there are");
        assert_eq!(load.enter(true).unwrap_err(), Full::Trial);
    }

    #[test]
    fn a_peer_in_doubt_gets_no_more_until_it_answers() {
        let load = Load::default();
        let mut waiting: Vec<_> = (0..3).map(|_| load.enter(true).unwrap()).collect();
        let expire = |share: Share| {
            load.doubt();
            load.leave(&share);
        };
        expire(waiting.remove(0));
        assert_eq!(load.enter(true).unwrap_err(), Full::Trial, "two wait");
        expire(waiting.remove(0));
        expire(waiting.remove(0));
        let mut last = load.enter(true).expect("one may try");
        assert_eq!(load.enter(true).unwrap_err(), Full::Trial);
        load.answer(&mut last);
        assert_eq!((0..10).filter(|_| load.enter(true).is_ok()).count(), 10);
    }

    #[test]
    fn what_hung_before_a_trial_leaves_no_place_in_it() {
        let load = Load::default();
        let hanging: Vec<_> = (0..3).map(|_| load.enter(true).unwrap()).collect();
        load.set_trial(1);
        let _probe = load.enter(true).unwrap();
        for one in &hanging {
            load.shrink_trial();
            load.leave(one);
            assert_eq!(load.enter(true).unwrap_err(), Full::Trial);
        }
    }
}
