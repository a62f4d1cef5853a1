//! How many reads and writes of entries are in flight.

use tokio::sync::{Semaphore, SemaphorePermit};

/// Limits how many reads and writes of entries a handle has in flight at once.
///
/// A handle that loses all its entries at once, for example with its lease, would otherwise send
/// etcd more requests than it can answer in time. Those that time out are sent again, and etcd
/// stays busy with requests that nobody waits for any more. More than 128 at once make etcd no
/// faster. Renewals of leases are not limited.
#[derive(Debug)]
pub(super) struct InFlight {
    all: Semaphore,
    /// Taken before `all` by repairs only, so that they leave room for requests that a caller waits
    /// for, and do not queue in front of them.
    repairs: Semaphore,
}

/// Why an entry is read or written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Urgency {
    /// It is repaired or checked.
    Repair,
    /// It is registered for the first time, updated or removed: a caller waits for it.
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
    /// Waits for a permit. Cancel safe, except that the place in the queue is lost.
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
/// Three quarters of all permits, so that a quarter is always left for requests that a caller waits
/// for. Repairs above it wait in their own queue.
const MOST_REPAIRS: usize = 96;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// Takes up to `asked` permits, as many as are available without waiting.
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
    async fn repairs_leave_room_for_requests_of_callers() {
        let in_flight = InFlight::default();
        let repairs = entered(&in_flight, Urgency::Repair, 1000).await;
        assert_eq!(repairs.len(), MOST_REPAIRS);
        let mut waiting = Box::pin(in_flight.enter(Urgency::Repair));
        assert!(timeout(Duration::from_secs(1), &mut waiting).await.is_err());
        let wanted = entered(&in_flight, Urgency::Wanted, 1000).await;
        assert_eq!(repairs.len() + wanted.len(), MOST, "the limit of all");
        // A permit that becomes free goes to the caller's request, although a repair has waited
        // longer.
        let mut next = Box::pin(in_flight.enter(Urgency::Wanted));
        assert!(timeout(Duration::from_millis(1), &mut next).await.is_err());
        drop(wanted.into_iter().next());
        assert!(timeout(Duration::from_millis(1), &mut next).await.is_ok());
        drop(repairs);
        assert!(timeout(Duration::from_millis(1), &mut waiting).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_waiter_takes_no_permit() {
        let in_flight = InFlight::default();
        for _ in 0..1000 {
            let held = entered(&in_flight, Urgency::Wanted, MOST).await;
            drop(timeout(Duration::from_millis(1), in_flight.enter(Urgency::Repair)).await);
            drop(held);
        }
        assert_eq!(entered(&in_flight, Urgency::Repair, 1000).await.len(), MOST_REPAIRS);
    }
}
