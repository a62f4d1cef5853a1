use tokio::sync::{Semaphore, SemaphorePermit};

/// How many reads and writes of entries a handle has on their way at once.
///
/// Without a limit a handle that loses all its entries at once, as with its lease, asks etcd for
/// more than that can do in time: what then times out is asked again, and etcd is kept busy with
/// what nobody waits for any more. 128 at once are as fast as etcd gets; leases are never held up
/// by them.
#[derive(Debug)]
pub(super) struct InFlight {
    all: Semaphore,
    /// Repairs leave room for what somebody waits for, and do not queue before it.
    repairs: Semaphore,
}

/// Why an entry is read or written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Urgency {
    /// It is repaired, or looked after.
    Repair,
    /// It is registered for the first time, updated, or given up.
    Wanted,
}

/// The right to one read or write.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    _repair: Option<SemaphorePermit<'a>>,
    _any: SemaphorePermit<'a>,
}

impl Default for InFlight {
    fn default() -> Self {
        Self { all: Semaphore::new(MOST), repairs: Semaphore::new(MOST_REPAIRS) }
    }
}

impl InFlight {
    /// Waits until there is room. Cancel safe, but for the place in the line.
    pub(super) async fn enter(&self, urgency: Urgency) -> Permit<'_> {
        const OPEN: &str = "the semaphores are never closed";
        let repair = match urgency {
            Urgency::Repair => Some(self.repairs.acquire().await.expect(OPEN)),
            Urgency::Wanted => None,
        };
        Permit { _repair: repair, _any: self.all.acquire().await.expect(OPEN) }
    }
}

const MOST: usize = 128;
/// Three quarters: a repair that is under way delays nobody, one that waits stands in a line of its
/// own.
const MOST_REPAIRS: usize = 96;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// What can enter at once.
    async fn entered(in_flight: &InFlight, urgency: Urgency, asked: usize) -> Vec<Permit<'_>> {
        let mut permits = Vec::new();
        while permits.len() < asked {
            match timeout(Duration::from_millis(1), in_flight.enter(urgency)).await {
                Ok(permit) => permits.push(permit),
                Err(_) => break,
            }
        }
        permits
    }

    #[tokio::test(start_paused = true)]
    async fn repairs_leave_room_for_what_is_wanted() {
        let in_flight = InFlight::default();
        let repairs = entered(&in_flight, Urgency::Repair, 1000).await;
        assert_eq!(repairs.len(), MOST_REPAIRS);
        let mut waiting = Box::pin(in_flight.enter(Urgency::Repair));
        assert!(timeout(Duration::from_secs(1), &mut waiting).await.is_err());
        let wanted = entered(&in_flight, Urgency::Wanted, 1000).await;
        assert_eq!(repairs.len() + wanted.len(), MOST, "no more than that at once");
        // A place that gets free goes to what is wanted, though a repair waits for longer.
        let mut next = Box::pin(in_flight.enter(Urgency::Wanted));
        assert!(timeout(Duration::from_millis(1), &mut next).await.is_err());
        drop(wanted.into_iter().next());
        assert!(timeout(Duration::from_millis(1), &mut next).await.is_ok());
        drop(repairs);
        assert!(timeout(Duration::from_millis(1), &mut waiting).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_is_dropped_leaves_nothing_behind() {
        let in_flight = InFlight::default();
        for _ in 0..1000 {
            let held = entered(&in_flight, Urgency::Wanted, MOST).await;
            drop(timeout(Duration::from_millis(1), in_flight.enter(Urgency::Repair)).await);
            drop(held);
        }
        assert_eq!(entered(&in_flight, Urgency::Repair, 1000).await.len(), MOST_REPAIRS);
    }
}
