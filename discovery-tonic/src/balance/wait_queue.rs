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
/// looks for a place when it is called, and new calls join the queue instead of looking, so that
/// nobody is overtaken. A called waiter that goes away passes the call on, and so does one that
/// does not look for a few sweeps, because its caller polls nothing. One that cannot use what is
/// free steps aside: it keeps its turn, and holds nobody up.
///
/// No place is lost: the first in line joins before it looks, and whoever frees a place does so
/// before it reads the length. Those behind it are called by it, when it has left the queue and
/// there is another place.
#[derive(Debug, Default)]
pub(crate) struct WaitQueue {
    waiters: Mutex<Waiters>,
    /// All waiters; read by those who free a place, so that they lock nothing while nobody waits.
    len: AtomicUsize,
    /// The waiters that have not stepped aside; while there are any, new calls have to join.
    in_line: AtomicUsize,
}

/// A call in the queue; it leaves on drop.
#[derive(Debug)]
pub(crate) struct Waiter<'a> {
    queue: &'a WaitQueue,
    ticket: u64,
}

#[derive(Debug, Default)]
struct Waiters {
    next_ticket: u64,
    by_ticket: BTreeMap<u64, Turn>,
    /// Those of them that are not called.
    uncalled: BTreeSet<u64>,
}

#[derive(Debug)]
enum Turn {
    /// Called this many sweeps ago: there may be a place for it.
    Called(u8),
    /// It was called long ago, and has not looked. It counts as aside.
    Overdue,
    InLine(Option<Waker>),
    /// It could not use the places that were free when it last looked.
    Aside(Option<Waker>),
}

impl WaitQueue {
    /// Joins at the end. The first in line is called at once: a place may be free.
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
        // What the look reads is not read before the others can see that somebody waits.
        fence(Ordering::SeqCst);
        Waiter { queue: self, ticket }
    }

    /// Calls the first waiters, one for each of at most this many freed places.
    #[inline]
    pub(crate) fn free(&self, places: usize) {
        if self.is_waiting() {
            self.call_from(0, places);
        }
    }

    /// Whether anybody waits.
    #[inline]
    pub(crate) fn is_waiting(&self) -> bool {
        self.len.load(Ordering::SeqCst) > 0
    }

    /// Whether new calls have to join.
    #[inline]
    pub(crate) fn has_line(&self) -> bool {
        self.in_line.load(Ordering::Relaxed) > 0
    }

    /// Calls those with this ticket or a later one that are not called yet, one for each place.
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
                Turn::Called(_) | Turn::Overdue => unreachable!("it was not called yet"),
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
    /// Whether it is called; it has to look for a place then.
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

    /// It found a place that it cannot use: whoever is behind may take it.
    pub(crate) fn step_aside(&mut self) {
        {
            let mut waiters = self.queue.lock();
            let turn = waiters.turn(self.ticket);
            // Unless it is called again by now, which is for another place.
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
        self.by_ticket.get_mut(&ticket).expect("a waiter is in the queue until its drop")
    }
}

impl Turn {
    fn is_called(&self) -> bool {
        matches!(self, Self::Called(_) | Self::Overdue)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        // Whoever joins next sees either this one, or that it is gone.
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

/// After so many sweeps the call of a waiter that does not look is passed on.
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

    /// Capacity that waiters take: as many places as are free, some for anybody and some that only
    /// a part can use.
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

    /// A call as `wait_for_endpoint` makes it; `special` ones can use only special places, the
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
        /// Polls one that was woken.
        Poll(usize),
        /// Drops one, woken or not, polled or not.
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

        /// Whatever is dropped at whatever moment: nobody waits while there is a place for it, and
        /// nobody who can use the same places is overtaken, unless a call in front of both has been
        /// called and is polled later.
        #[test]
        fn no_place_is_lost_and_nobody_is_overtaken(steps in steps()) {
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
                prop_assert_eq!(free, 0, "{} waits for nothing", caller.number);
            }
            prop_assert_eq!(queue.is_waiting(), !callers.is_empty());
            callers.clear();
            prop_assert!(!queue.has_line() && !queue.is_waiting());
        }
    }

    /// Polls the n-th of those who were woken, if there is any; fails where it overtakes another.
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
    fn a_new_call_joins_behind_those_in_line_and_passes_those_aside() {
        let queue = WaitQueue::default();
        let mut first = queue.join();
        assert!(first.take_call() && queue.has_line());
        let mut second = queue.join();
        assert!(!second.take_call());
        first.step_aside();
        assert!(second.take_call(), "what the first cannot use is for the second");
        second.step_aside();
        assert!(!queue.has_line() && queue.is_waiting());
        assert!(queue.join().take_call());
        queue.free(1);
        assert!(first.take_call() && !second.take_call(), "the first keeps its turn");
    }

    #[test]
    fn a_called_waiter_that_goes_away_passes_the_call_on() {
        let queue = WaitQueue::default();
        let first = queue.join();
        let mut second = queue.join();
        drop(first);
        assert!(second.take_call());
    }

    #[test]
    fn a_waiter_that_does_not_look_holds_nobody_up_for_long() {
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
        assert!(!queue.has_line() && queue.join().take_call(), "nor do new calls wait for it");
        assert!(first.take_call() && queue.has_line(), "it looks when it is polled again");
    }

    #[test]
    fn as_many_are_called_as_places_are_free() {
        let queue = WaitQueue::default();
        let mut waiters: Vec<_> = (0..4).map(|_| queue.join()).collect();
        assert!(waiters[0].take_call());
        queue.free(3);
        assert_eq!(waiters.iter_mut().map(Waiter::take_call).collect::<Vec<_>>(), [true, true, true, false]);
        queue.free(usize::MAX);
        let called = waiters.iter_mut().filter_map(|one| one.take_call().then_some(())).count();
        assert_eq!(called, 4, "and no more than wait");
    }
}
