//! The limit of calls in flight on a whole channel (gRFC A32).

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Counts the calls in flight on a channel up to a limit.
#[derive(Debug)]
pub(crate) struct RequestLimit {
    most: usize,
    in_flight: AtomicUsize,
}

/// The place of one call, until this is dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<RequestLimit>);

impl RequestLimit {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, in_flight: AtomicUsize::new(0) }
    }

    /// How many calls may be in flight.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Takes a place, unless all are taken.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Place> {
        let enter = |in_flight: usize| (in_flight < self.most).then_some(in_flight + 1);
        let entered = self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter);
        entered.ok().map(|_| Place(Arc::clone(self)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_and_return() {
        let limit = Arc::new(RequestLimit::new(2));
        let one = limit.enter().unwrap();
        let two = limit.enter().unwrap();
        assert!(limit.enter().is_none());
        drop(one);
        let three = limit.enter().unwrap();
        assert!(limit.enter().is_none());
        drop((two, three));
        assert_eq!(limit.in_flight.load(Ordering::Relaxed), 0);
        assert!(Arc::new(RequestLimit::new(0)).enter().is_none());
    }

    #[test]
    fn threads_never_exceed_the_limit() {
        let limit = Arc::new(RequestLimit::new(3));
        let most = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let place = limit.enter();
                        most.fetch_max(limit.in_flight.load(Ordering::Relaxed), Ordering::Relaxed);
                        drop(place);
                    }
                });
            }
        });
        assert_eq!(limit.in_flight.load(Ordering::Relaxed), 0);
        assert!((1..=3).contains(&most.into_inner()));
    }
}
