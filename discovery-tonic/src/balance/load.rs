use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use super::wait_queue::WaitQueue;

/// The requests in flight at one candidate, and how many are allowed.
///
/// One word counts the requests in flight, those of them that are not answered yet, and those that
/// are being handed over to the connection. It also has the closed flag, so that entering is one
/// atomic step against all of these. The type has cache lines of its own, because every request
/// writes it.
#[derive(Debug)]
#[repr(align(128))]
pub struct Load {
    /// Bits 0 to 30: in flight. Bit 31: closed. Bits 32 to 53: not answered yet. Bits 54 to 63:
    /// being handed over.
    word: AtomicU64,
    /// How many requests the peer allows at a time.
    limit: AtomicU32,
    /// How many more requests may enter before the peer answers one; [`OPEN`] once it has answered.
    tickets: AtomicU32,
    /// Recent failures, which count as load.
    penalty: AtomicU32,
    /// The part of the penalty that has faded, in fiftieths of a request.
    faded: AtomicU32,
    /// How many requests were given up by their callers so far.
    abandoned: AtomicU32,
    /// This side has aborted the requests in flight.
    cut: AtomicBool,
    /// The calls that wait for a place at any candidate.
    waiters: Option<Arc<WaitQueue>>,
}

/// What one request contributes to the word: it is in flight, and possibly still being handed over
/// or not answered yet.
#[derive(Debug)]
pub(crate) struct Share(u64);

/// Why a [`Load`] takes no more requests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Full {
    /// It is closed.
    Closed,
    /// The peer's limit is reached.
    Limit,
    /// The peer must answer something first.
    Tickets,
}

impl Load {
    /// Creates a load that takes at most `limit` requests at a time, and at most `tickets` before
    /// the first answer.
    pub fn new(limit: u32, tickets: u32) -> Self {
        Self {
            word: AtomicU64::new(0),
            limit: AtomicU32::new(limit),
            tickets: AtomicU32::new(tickets),
            penalty: AtomicU32::new(0),
            faded: AtomicU32::new(0),
            abandoned: AtomicU32::new(0),
            cut: AtomicBool::new(false),
            waiters: None,
        }
    }

    /// Like [`new`](Self::new), and calls the waiters when a place becomes free.
    pub(crate) fn with_waiters(limit: u32, tickets: u32, waiters: Arc<WaitQueue>) -> Self {
        Self { waiters: Some(waiters), ..Self::new(limit, tickets) }
    }

    /// Returns the number of requests in flight. A request is in flight until its response has
    /// ended.
    #[inline]
    pub fn in_flight(&self) -> u32 {
        in_flight(self.word.load(Ordering::Relaxed))
    }

    /// What a policy compares: the requests in flight, and those that recently failed.
    #[inline]
    pub(crate) fn cost(&self) -> u32 {
        self.in_flight() + self.penalty()
    }

    /// Returns the number of requests in flight that are not answered yet.
    pub fn unanswered(&self) -> u32 {
        unanswered(self.word.load(Ordering::Relaxed))
    }

    /// Whether a request is being handed over to the connection.
    pub(crate) fn is_sending(&self) -> bool {
        self.word.load(Ordering::SeqCst) >> 54 != 0
    }

    /// Whether it takes no more requests.
    pub(crate) fn is_closed(&self) -> bool {
        self.word.load(Ordering::Acquire) & CLOSED != 0
    }

    /// Counts a request as in flight, if there is room. A `patient` caller needs a ticket if the
    /// peer must answer first.
    ///
    /// # Errors
    ///
    /// Why there is no room.
    #[inline]
    pub(crate) fn enter(&self, patient: bool) -> Result<Share, Full> {
        let before = self.word.fetch_add(WHOLE, Ordering::SeqCst);
        // A closed word exceeds any limit, so that one comparison covers both.
        if (before as u32) < self.limit.load(Ordering::Relaxed).min(MOST)
            && (self.tickets.load(Ordering::Relaxed) >= UNLIMITED || !patient || self.take_ticket())
        {
            return Ok(Share(WHOLE));
        }
        Err(self.refuse(before))
    }

    /// Whether [`enter`](Self::enter) would find room now.
    pub(crate) fn has_room(&self, patient: bool) -> bool {
        let word = self.word.load(Ordering::SeqCst);
        (word as u32) < self.limit().min(MOST) && (!patient || self.tickets.load(Ordering::SeqCst) > 0)
    }

    #[cold]
    fn take_ticket(&self) -> bool {
        let take = |tickets: u32| if tickets >= UNLIMITED { Some(tickets) } else { tickets.checked_sub(1) };
        self.tickets.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok()
    }

    #[cold]
    fn refuse(&self, before: u64) -> Full {
        let now = self.word.fetch_sub(WHOLE, Ordering::SeqCst) - IN_FLIGHT;
        let limit = self.limit();
        if before & CLOSED != 0 {
            return Full::Closed;
        }
        if in_flight(before) < limit {
            return Full::Tickets;
        }
        // A rejected caller was counted for a moment, or another left meanwhile: this caller may
        // have been turned away although there was a place, so call a waiter.
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

    /// Counts a request as answered, once. The peer is alive, so tickets are no longer needed.
    #[inline]
    pub(crate) fn answer(&self, share: &mut Share) {
        self.take_answer(share);
        if self.tickets.load(Ordering::Relaxed) != OPEN {
            self.open(OPEN);
        }
    }

    /// Counts a request as answered, once, without taking that as a sign of life of the peer.
    #[inline]
    pub(crate) fn take_answer(&self, share: &mut Share) {
        self.word.fetch_sub(share.take(UNANSWERED), Ordering::SeqCst);
    }

    #[cold]
    fn open(&self, tickets: u32) {
        self.tickets.store(tickets, Ordering::SeqCst);
        self.free(self.places());
    }

    /// Lifts the limit of tickets, and begins to watch for an answer.
    pub(crate) fn watch(&self) {
        self.open(UNLIMITED);
    }

    /// Sets how many requests may enter until the peer answers one.
    pub(crate) fn set_tickets(&self, tickets: u32) {
        self.tickets.store(tickets.min(UNLIMITED - 1), Ordering::SeqCst);
        self.free(tickets);
    }

    /// Whether the peer has answered since this was created, watched or given tickets.
    pub(crate) fn has_answered(&self) -> bool {
        self.tickets.load(Ordering::SeqCst) == OPEN
    }

    /// Whether the number of requests before an answer is limited.
    pub(crate) fn is_limited(&self) -> bool {
        self.tickets.load(Ordering::SeqCst) < UNLIMITED
    }

    /// Whether all tickets are used up.
    pub(crate) fn is_out_of_tickets(&self) -> bool {
        self.tickets.load(Ordering::SeqCst) == 0
    }

    /// Counts a request as ended.
    #[inline]
    pub(crate) fn leave(&self, share: &Share) {
        if !share.is_answered() {
            self.abandon();
        }
        self.word.fetch_sub(share.0, Ordering::SeqCst);
        self.free(1);
    }

    /// Counts a failure as load for some seconds, so that a candidate that fails at once does not
    /// seem to be the fastest.
    #[cold]
    pub(crate) fn penalize(&self) {
        self.penalty.fetch_add(1, Ordering::Relaxed);
    }

    /// Sets how many failures count as load.
    pub(crate) fn set_penalty(&self, penalty: u32) {
        self.penalty.store(penalty, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn penalty(&self) -> u32 {
        self.penalty.load(Ordering::Relaxed)
    }

    /// Reduces the penalty by a fiftieth; returns whether any is left.
    pub(crate) fn fade(&self) -> bool {
        let penalty = self.penalty();
        if penalty == 0 {
            return false;
        }
        let faded = self.faded.load(Ordering::Relaxed).saturating_add(penalty);
        self.faded.store(faded % FADE, Ordering::Relaxed);
        let ended = (faded / FADE).min(penalty);
        self.penalty.fetch_sub(ended, Ordering::Relaxed) > ended
    }

    /// Counts a request that its caller gave up, before the answer or in the middle of it.
    #[cold]
    pub(crate) fn abandon(&self) {
        self.abandoned.fetch_add(1, Ordering::Relaxed);
    }

    /// How many requests have been given up.
    pub(crate) fn abandoned(&self) -> u32 {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// Records that this side aborts the requests in flight.
    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::Release);
    }

    /// Whether this side has aborted the requests in flight.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// How many more requests the peer allows, regardless of tickets.
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

    /// Closes it to new requests. Those in flight go on.
    pub(crate) fn close(&self) {
        self.word.fetch_or(CLOSED, Ordering::SeqCst);
    }

    /// Closes it if no request is in flight, in one atomic step. Returns whether it is closed with
    /// none in flight.
    pub(crate) fn close_if_idle(&self) -> bool {
        match self.word.compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(word) => word == CLOSED,
        }
    }

    /// Sets how many requests the peer allows at a time.
    pub(crate) fn set_limit(&self, limit: u32) {
        let before = self.limit.swap(limit, Ordering::SeqCst);
        self.free(limit.saturating_sub(before));
    }

    /// How many requests it takes at a time.
    pub(crate) fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
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
    /// Creates a load without limits.
    fn default() -> Self {
        Self::new(u32::MAX, UNLIMITED)
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

/// The tickets of a peer that has answered.
const OPEN: u32 = u32::MAX;
/// The tickets of a peer that has not answered, and needs none.
pub(crate) const UNLIMITED: u32 = u32::MAX - 1;
/// How many sweeps a failure counts as load, on average: 5 s. An endpoint that fails at once then
/// gets at most 1.2 % of the calls if the others take 60 ms.
const FADE: u32 = 50;
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
        let mut one = load.enter(true).unwrap();
        let other = load.enter(true).unwrap();
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
    fn limit_tickets_and_close_refuse() {
        let load = Load::new(3, 1);
        let mut one = load.enter(true).unwrap();
        assert_eq!(load.enter(true).unwrap_err(), Full::Tickets);
        let two = load.enter(false).unwrap();
        load.answer(&mut one);
        assert!(load.has_answered(), "the first answer opens it");
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
    async fn no_place_stays_free_while_a_call_waits() {
        let waiters = Arc::new(WaitQueue::default());
        let load = Arc::new(Load::with_waiters(3, u32::MAX, Arc::clone(&waiters)));
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..32 {
            let waiters = Arc::clone(&waiters);
            let load = Arc::clone(&load);
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
        all.await.expect("every caller gets its turn");
        assert_eq!(load.in_flight(), 0);
    }

    #[test]
    fn a_greater_limit_calls_one_waiter_per_new_place() {
        let waiters = Arc::new(WaitQueue::default());
        let load = Load::with_waiters(0, u32::MAX, Arc::clone(&waiters));
        let mut waiting: Vec<_> = (0..3).map(|_| waiters.join()).collect();
        assert!(waiting[0].take_call());
        load.set_limit(2);
        assert_eq!(waiting.iter_mut().map(Waiter::take_call).collect::<Vec<_>>(), [true, true, false]);
    }

    #[test]
    fn tickets_count_new_requests_only() {
        let load = Load::default();
        let mut hanging: Vec<_> = (0..3).map(|_| load.enter(true).unwrap()).collect();
        load.set_tickets(1);
        let mut probe = load.enter(true).expect("one request besides those that hang");
        for share in hanging.drain(1..) {
            load.leave(&share);
            assert_eq!(load.enter(true).unwrap_err(), Full::Tickets, "a request that ends frees no ticket");
        }
        load.take_answer(&mut probe);
        assert!(load.is_out_of_tickets() && !load.has_answered(), "such an answer is no sign of life");
        load.answer(&mut hanging[0]);
        assert_eq!((0..10).filter(|_| load.enter(true).is_ok()).count(), 10);
    }

    #[test]
    fn failures_count_as_load_for_a_while() {
        let load = Load::default();
        let _request = load.enter(true).unwrap();
        for penalty in [1, 5, 1000] {
            (0..penalty).for_each(|_| load.penalize());
            assert_eq!((load.cost(), load.in_flight()), (1 + penalty, 1));
            let sweeps = (1..).find(|_| !load.fade()).unwrap();
            println!("{penalty} failures: {sweeps} sweeps");
            assert!((50..=50 * 8).contains(&sweeps), "{sweeps}");
            assert_eq!(load.cost(), 1);
        }
        load.set_penalty(1);
        assert_eq!((load.cost(), load.penalty()), (2, 1));
        load.set_penalty(0);
        assert!(!load.fade() && load.cost() == 1);
    }
}
