use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// The bytes of requests that all calls of a channel keep together, to be able to send them again.
#[derive(Debug, Default)]
pub(crate) struct ReplayBudget(AtomicUsize);

/// The bytes that one call keeps; returned on drop.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: Arc<ReplayBudget>,
    bytes: usize,
}

impl ReplayBudget {
    /// Creates an empty reservation.
    pub(crate) fn reserve(self: &Arc<Self>) -> Reservation {
        Reservation { budget: Arc::clone(self), bytes: 0 }
    }
}

impl Reservation {
    /// Reserves this many more bytes, unless that exceeds the limit of the call or of the channel.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        if bytes > PER_CALL - self.bytes {
            return false;
        }
        if self.budget.0.fetch_add(bytes, Ordering::Relaxed) > PER_CHANNEL - bytes {
            self.budget.0.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        self.bytes += bytes;
        true
    }

    /// Returns all bytes to the budget.
    pub(crate) fn clear(&mut self) {
        self.budget.0.fetch_sub(mem::take(&mut self.bytes), Ordering::Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.clear();
    }
}

/// How many bytes of its request a call keeps at most.
pub(crate) const PER_CALL: usize = 256 << 10;
const PER_CHANNEL: usize = 32 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_and_a_channel_are_limited() {
        let budget = Arc::new(ReplayBudget::default());
        let mut one = budget.reserve();
        assert!(one.grow(PER_CALL - 1) && one.grow(1) && !one.grow(1));
        let mut all: Vec<_> = (0..PER_CHANNEL / PER_CALL).map(|_| budget.reserve()).collect();
        let grown = all.iter_mut().filter_map(|one| one.grow(PER_CALL).then_some(())).count();
        assert_eq!(grown, all.len() - 1);
        drop(one);
        assert!(all.last_mut().unwrap().grow(PER_CALL));
        all.clear();
        assert_eq!(budget.0.load(Ordering::Relaxed), 0);
    }
}
