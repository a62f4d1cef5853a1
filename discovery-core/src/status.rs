use std::time::Instant;

use tokio::sync::watch;

use crate::Error;

/// How a registration stands.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Status {
    /// It was ended by its owner, or with its backend.
    Deregistered {
        /// When that was.
        since: Instant,
    },
    /// It is not known to be in the registry now; the backend keeps trying.
    Lost {
        /// When it was lost.
        since: Instant,
        /// Why, as of the last attempt.
        error: Error,
    },
    /// It is in the registry.
    Registered {
        /// When it was written, the last time that it had to be.
        since: Instant,
    },
    /// Another owner took the id over. Final.
    Superseded {
        /// When that was noticed.
        since: Instant,
    },
}

/// The statuses of a [`Registration`](crate::Registration), for tasks that do not hold it: a health endpoint, a metric, a log.
///
/// Made by [`Registration::statuses`](crate::Registration::statuses) or by the [writer](StatusWriter::statuses), cloned cheaply, and of no influence: the registration ends
/// with its own handle.
///
/// ```
/// # async fn example(registration: discovery_core::Registration) {
/// let mut statuses = registration.statuses();
/// tokio::spawn(async move {
///     while let Some(status) = statuses.changed().await {
///         println!("registered: {}", status.is_registered());
///     }
/// });
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct StatusReceiver(pub(crate) watch::Receiver<Status>);

/// The backend's hand on the status of a [`Registration`](crate::Registration); for authors of backends.
#[derive(Clone, Debug)]
pub struct StatusWriter(pub(crate) watch::Sender<Status>);

impl StatusReceiver {
    /// How the registration stands now, or how it ended.
    pub fn current(&self) -> Status {
        self.0.borrow().clone()
    }

    /// Waits until the status differs from the one that this returned last, or from the one when this was made, and returns it;
    /// `None` once it cannot change any more. Of several changes in the meantime it returns the last. A loss is one change, and one
    /// more where its error becomes one of another kind.
    ///
    /// # Cancel safety
    ///
    /// Dropped half-way, it has not consumed a status.
    pub async fn changed(&mut self) -> Option<Status> {
        if self.0.has_changed().is_ok_and(|changed| !changed) && self.0.borrow().is_final() {
            return None;
        }
        self.0.changed().await.ok()?;
        Some(self.0.borrow_and_update().clone())
    }

    /// A receiver of the statuses from now on.
    pub(crate) fn resubscribe(&self) -> Self {
        let mut receiver = self.0.clone();
        receiver.mark_unchanged();
        Self(receiver)
    }
}

impl Status {
    /// Registered as of now.
    pub fn registered() -> Self {
        Self::Registered { since: now() }
    }

    /// Lost as of now.
    pub fn lost(error: Error) -> Self {
        Self::Lost { since: now(), error }
    }

    /// Superseded as of now.
    pub fn superseded() -> Self {
        Self::Superseded { since: now() }
    }

    /// Deregistered as of now.
    pub fn deregistered() -> Self {
        Self::Deregistered { since: now() }
    }

    /// Whether the instance is in the registry, as far as the backend knows.
    pub fn is_registered(&self) -> bool {
        matches!(self, Self::Registered { .. })
    }

    /// Whether this status never changes any more.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Deregistered { .. } | Self::Superseded { .. })
    }
}

impl StatusWriter {
    /// A new registration's status.
    pub fn new(status: Status) -> Self {
        Self(watch::Sender::new(status))
    }

    /// The statuses from now on, for those who follow them.
    pub fn statuses(&self) -> StatusReceiver {
        StatusReceiver(self.0.subscribe())
    }

    /// Reports a status, unless the one before it was final.
    ///
    /// A further `Lost` keeps the time of the first, and counts as a change only if its error is of another kind: who waits for a
    /// change hears of a loss once, not of each attempt.
    pub fn set(&self, next: Status) {
        self.0.send_if_modified(|status| {
            let (next, is_change) = match (&*status, next) {
                (status, _) if status.is_final() => return false,
                (Status::Lost { since, error: former }, Status::Lost { error, .. }) => {
                    let is_other = error.kind() != former.kind();
                    (Status::Lost { since: *since, error }, is_other)
                }
                (_, next) => (next, true),
            };
            *status = next;
            is_change
        });
    }

    /// The status last reported.
    pub fn current(&self) -> Status {
        self.0.borrow().clone()
    }
}

/// The moment on tokio's clock, so that a paused clock rules statuses too.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_final_status_stays_and_a_loss_keeps_its_start() {
        let writer = StatusWriter::new(Status::registered());
        let error = Error::new(ErrorKind::Unavailable, "gone");
        writer.set(Status::lost(error.clone()));
        let Status::Lost { since: first, .. } = writer.current() else { panic!("not lost") };
        let mut statuses = writer.statuses();
        writer.set(Status::lost(Error::new(ErrorKind::Unavailable, "still gone")));
        assert!(
            matches!(writer.current(), Status::Lost { since, error } if since == first && error.to_string() == "still gone")
        );
        assert!(!statuses.0.has_changed().unwrap(), "the same loss");
        writer.set(Status::lost(Error::new(ErrorKind::PermissionDenied, "and not allowed")));
        assert!(matches!(statuses.0.borrow_and_update().clone(), Status::Lost { since, .. } if since == first));
        writer.set(Status::superseded());
        writer.set(Status::registered());
        assert!(matches!(writer.current(), Status::Superseded { .. }));
    }
}
