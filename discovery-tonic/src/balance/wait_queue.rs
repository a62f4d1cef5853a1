use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering, fence},
    },
    task::{Context, Poll, Waker},
};

/// The calls that wait for capacity, served in order of arrival.
///
/// A place that becomes free belongs to the first waiter that has not been called yet. A waiter
/// looks for a place when it is called. New calls join the queue instead of looking, so that none
/// is overtaken. A called waiter that is dropped passes the call on, and so does one that does not
/// look for a few sweeps because its caller polls nothing. A waiter that cannot use the free place
/// steps aside: it keeps its turn and delays no other.
///
/// No wake-up is lost: the first in line joins before it looks for a place, and whoever frees a
/// place does so before it reads the length. The first in line calls the next one when it has left
/// the queue and there is another place.
#[derive(Debug, Default)]
pub(crate) struct WaitQueue {
    waiters: Mutex<Waiters>,
    /// The number of waiters. Read when a place becomes free, so that no lock is taken while none
    /// waits.
    len: AtomicUsize,
    /// The number of waiters that have not stepped aside. While it is not 0, new calls must join.
    in_line: AtomicUsize,
}

/// A call in the queue. It leaves on drop.
#[derive(Debug)]
pub(crate) struct Waiter<'a> {
    queue: &'a WaitQueue,
    ticket: u64,
}

#[derive(Debug, Default)]
struct Waiters {
    next_ticket: u64,
    by_ticket: BTreeMap<u64, Turn>,
    /// The tickets of waiters that have not been called.
    uncalled: BTreeSet<u64>,
}

#[derive(Debug)]
enum Turn {
    /// Called this many sweeps ago: there may be a place for it.
    Called(u8),
    /// Called long ago, but it has not looked. It counts as aside.
    Overdue,
    InLine(Option<Waker>),
    /// It could not use the places that were free when it last looked.
    Aside(Option<Waker>),
}

impl WaitQueue {
    /// Joins at the end. The first in line is called at once, since a place may be free.
    pub(crate) fn join(&self) -> Waiter<'_> {
        let mut waiters = self.lock();
        let ticket = waiters.next_ticket;
        waiters.next_ticket += 1;
        let is_first = self.in_line.fetch_add(1, Ordering::SeqCst) == 0;
        let turn = if is_first { Turn::Called(0) } else { Turn::InLine(None) };
        if !is_first {
            waiters.uncalled.insert(ticket);
        }
        waiters.by_ticket.insert(ticket, turn);
        self.len.fetch_add(1, Ordering::SeqCst);
        // The waiter must be visible to those who free places before it looks for one.
        fence(Ordering::SeqCst);
        Waiter { queue: self, ticket }
    }

    /// Calls the first waiters, one for each freed place.
    #[inline]
    pub(crate) fn free(&self, places: usize) {
        if self.is_waiting() {
            self.call_from(0, places);
        }
    }

    /// Whether any call waits.
    #[inline]
    pub(crate) fn is_waiting(&self) -> bool {
        self.len.load(Ordering::SeqCst) > 0
    }

    /// Whether new calls must join the queue.
    #[inline]
    pub(crate) fn has_line(&self) -> bool {
        self.in_line.load(Ordering::Relaxed) > 0
    }

    /// Calls the waiters with this ticket or a later one that have not been called yet, one for
    /// each place.
    #[cold]
    fn call_from(&self, ticket: u64, places: usize) {
        let mut wakers = Vec::new();
        let mut waiters = self.lock();
        let called: Vec<u64> = waiters.uncalled.range(ticket..).take(places).copied().collect();
        for ticket in called {
            waiters.uncalled.remove(&ticket);
            match mem::replace(waiters.turn(ticket), Turn::Called(0)) {
                Turn::Aside(waker) => {
                    self.in_line.fetch_add(1, Ordering::SeqCst);
                    wakers.extend(waker);
                }
                Turn::InLine(waker) => wakers.extend(waker),
                Turn::Called(_) | Turn::Overdue => unreachable!("it has not been called yet"),
            }
        }
        drop(waiters);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Passes on the calls of waiters that have not looked for more than [`PATIENCE`] sweeps.
    pub(crate) fn sweep(&self) {
        if !self.is_waiting() {
            return;
        }
        let mut places = 0;
        for turn in self.lock().by_ticket.values_mut() {
            match turn {
                Turn::Called(sweeps @ 0..PATIENCE) => *sweeps += 1,
                Turn::Called(_) => {
                    *turn = Turn::Overdue;
                    self.in_line.fetch_sub(1, Ordering::SeqCst);
                    places += 1;
                }
                Turn::Aside(_) | Turn::InLine(_) | Turn::Overdue => {}
            }
        }
        self.free(places);
    }

    fn lock(&self) -> MutexGuard<'_, Waiters> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter<'_> {
    /// Whether it is called. It must look for a place then.
    pub(crate) fn take_call(&mut self) -> bool {
        let mut waiters = self.queue.lock();
        let turn = waiters.turn(self.ticket);
        if !turn.is_called() {
            return false;
        }
        if matches!(mem::replace(turn, Turn::InLine(None)), Turn::Overdue) {
            self.queue.in_line.fetch_add(1, Ordering::SeqCst);
        }
        waiters.uncalled.insert(self.ticket);
        true
    }

    /// Waits until it is called.
    pub(crate) fn poll_called(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self.queue.lock().turn(self.ticket) {
            Turn::Called(_) | Turn::Overdue => Poll::Ready(()),
            Turn::InLine(waker) | Turn::Aside(waker) => {
                waker.get_or_insert_with(|| context.waker().clone()).clone_from(context.waker());
                Poll::Pending
            }
        }
    }

    /// Steps aside, because it found a place that it cannot use: the next waiter may take it.
    pub(crate) fn step_aside(&mut self) {
        {
            let mut waiters = self.queue.lock();
            let turn = waiters.turn(self.ticket);
            // Unless it has been called again by now, which is for another place.
            if let Turn::InLine(waker) = turn {
                *turn = Turn::Aside(waker.take());
                self.queue.in_line.fetch_sub(1, Ordering::SeqCst);
            }
        }
        self.queue.call_from(self.ticket + 1, 1);
    }
}

impl Waiters {
    fn turn(&mut self, ticket: u64) -> &mut Turn {
        self.by_ticket.get_mut(&ticket).expect("a waiter is in the queue until it is dropped")
    }
}

impl Turn {
    fn is_called(&self) -> bool {
        matches!(self, Self::Called(_) | Self::Overdue)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        // Under the lock, so that the next waiter to join sees either this one or none.
        let mut waiters = self.queue.lock();
        let turn = waiters.by_ticket.remove(&self.ticket);
        waiters.uncalled.remove(&self.ticket);
        self.queue.len.fetch_sub(1, Ordering::SeqCst);
        if matches!(turn, Some(Turn::Called(_) | Turn::InLine(_))) {
            self.queue.in_line.fetch_sub(1, Ordering::SeqCst);
        }
        drop(waiters);
        if matches!(turn, Some(Turn::Called(_))) {
            self.queue.free(1);
        }
    }
}

/// How many sweeps a called waiter may take to look before its call is passed on.
const PATIENCE: u8 = 2;

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    };

    use futures::task::{ArcWake, waker};
    use proptest::prelude::*;

    use super::*;

    /// The capacity that waiters take: free places, some for any call and some that only special
    /// calls can use.
    #[derive(Debug, Default)]
    struct Places {
        any: usize,
        special: usize,
    }

    #[derive(Debug, Default)]
    struct Woken(AtomicBool);

    impl ArcWake for Woken {
        fn wake_by_ref(this: &Arc<Self>) {
            this.0.store(true, SeqCst);
        }
    }

    /// A call as `wait_for_endpoint` makes it. `special` calls can use only special places, the
    /// others only the rest.
    struct Caller<'a> {
        number: usize,
        special: bool,
        waiter: Waiter<'a>,
        woken: Arc<Woken>,
    }

    enum Polled {
        Served,
        Waits,
    }

    impl Caller<'_> {
        fn poll(&mut self, places: &mut Places) -> Polled {
            let waker = waker(Arc::clone(&self.woken));
            let mut context = Context::from_waker(&waker);
            loop {
                if self.waiter.take_call() {
                    let (mine, other) = match self.special {
                        true => (&mut places.special, places.any),
                        false => (&mut places.any, places.special),
                    };
                    if *mine > 0 {
                        *mine -= 1;
                        return Polled::Served;
                    }
                    if other > 0 {
                        self.waiter.step_aside();
                    }
                }
                if self.waiter.poll_called(&mut context).is_pending() {
                    return Polled::Waits;
                }
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Join {
            special: bool,
        },
        Free {
            any: usize,
            special: usize,
        },
        /// Polls a call that was woken.
        Poll(usize),
        /// Drops a call, woken or not, polled or not.
        Drop(usize),
        Sweep,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => prop_oneof![4 => Just(false), 1 => Just(true)].prop_map(|special| Step::Join { special }),
            3 => (0usize..3, 0usize..2).prop_map(|(any, special)| Step::Free { any, special }),
            6 => any::<usize>().prop_map(Step::Poll),
            2 => any::<usize>().prop_map(Step::Drop),
            1 => Just(Step::Sweep),
        ];
        proptest::collection::vec(step, 1..120)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Whatever is dropped at any moment, no call waits while there is a place for it. None is
        /// overtaken by another that can use the same places, unless a call in front of both has
        /// been called and is polled later.
        #[test]
        fn no_place_is_lost_and_no_call_is_overtaken(steps in steps()) {
            let queue = WaitQueue::default();
            let mut places = Places::default();
            let mut callers: Vec<Caller<'_>> = Vec::new();
            let mut joined = 0;
            for step in steps {
                match step {
                    Step::Join { special } => {
                        let woken = Arc::new(Woken(AtomicBool::new(true)));
                        callers.push(Caller { number: joined, special, waiter: queue.join(), woken });
                        joined += 1;
                    }
                    Step::Free { any, special } => {
                        places.any += any;
                        places.special += special;
                        queue.free(any + special);
                    }
                    Step::Poll(n) => drop(poll_one_woken(&mut callers, &mut places, n)?),
                    Step::Sweep => queue.sweep(),
                    Step::Drop(_) if callers.is_empty() => {}
                    Step::Drop(n) => drop(callers.remove(n % callers.len())),
                }
            }
            while poll_one_woken(&mut callers, &mut places, 0)?.is_some() {}
            for caller in &callers {
                let free = if caller.special { places.special } else { places.any };
                prop_assert_eq!(free, 0, "{} waits although a place is free", caller.number);
            }
            prop_assert_eq!(queue.is_waiting(), !callers.is_empty());
            callers.clear();
            prop_assert!(!queue.has_line() && !queue.is_waiting());
        }
    }

    /// Polls the n-th of the woken calls, if there is any; fails if it overtakes another.
    fn poll_one_woken(
        callers: &mut Vec<Caller<'_>>,
        places: &mut Places,
        n: usize,
    ) -> Result<Option<()>, TestCaseError> {
        let is_woken = |caller: &Caller<'_>| caller.woken.0.load(SeqCst);
        let woken: Vec<usize> = (0..callers.len()).filter(|n| is_woken(&callers[*n])).collect();
        let Some(chosen) = woken.get(n % woken.len().max(1)) else { return Ok(None) };
        let caller = &mut callers[*chosen];
        caller.woken.0.store(false, SeqCst);
        if matches!(caller.poll(places), Polled::Served) {
            let served = callers.remove(*chosen);
            let queue = served.waiter.queue;
            let number = served.number;
            let special = served.special;
            drop(served);
            if places.any + places.special > 0 {
                queue.free(1);
            }
            let mut earlier = callers.iter().filter(|one| one.number < number);
            let is_passed = earlier.clone().any(|one| one.special == special);
            prop_assert!(!is_passed || earlier.any(is_woken), "{} overtakes", number);
        }
        Ok(Some(()))
    }

    #[test]
    fn a_new_call_joins_behind_calls_in_line_and_passes_those_aside() {
        let queue = WaitQueue::default();
        let mut first = queue.join();
        assert!(first.take_call() && queue.has_line());
        let mut second = queue.join();
        assert!(!second.take_call());
        first.step_aside();
        assert!(second.take_call(), "a place that the first cannot use is for the second");
        second.step_aside();
        assert!(!queue.has_line() && queue.is_waiting());
        assert!(queue.join().take_call());
        queue.free(1);
        assert!(first.take_call() && !second.take_call(), "the first keeps its turn");
    }

    #[test]
    fn a_dropped_waiter_passes_its_call_on() {
        let queue = WaitQueue::default();
        let first = queue.join();
        let mut second = queue.join();
        drop(first);
        assert!(second.take_call());
    }

    #[test]
    fn a_waiter_that_does_not_look_delays_others_only_briefly() {
        let queue = WaitQueue::default();
        let mut first = queue.join();
        let mut second = queue.join();
        for _ in 0..PATIENCE {
            queue.sweep();
            assert!(!second.take_call());
        }
        queue.sweep();
        assert!(second.take_call(), "its call is passed on");
        drop(second);
        assert!(!queue.has_line() && queue.join().take_call(), "new calls do not wait for it either");
        assert!(first.take_call() && queue.has_line(), "it looks when it is polled again");
    }

    #[test]
    fn one_waiter_is_called_for_each_free_place() {
        let queue = WaitQueue::default();
        let mut waiters: Vec<_> = (0..4).map(|_| queue.join()).collect();
        assert!(waiters[0].take_call());
        queue.free(3);
        assert_eq!(waiters.iter_mut().map(Waiter::take_call).collect::<Vec<_>>(), [true, true, true, false]);
        queue.free(usize::MAX);
        let called = waiters.iter_mut().filter_map(|one| one.take_call().then_some(())).count();
        assert_eq!(called, 4, "all waiters, and no more");
    }
}
