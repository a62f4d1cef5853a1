use std::time::Instant;

use tokio::sync::watch;

use crate::Error;

/// The status of a registration.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Status {
    /// It was ended by its owner, or together with its backend. Final.
    Deregistered {
        /// When it ended.
        since: Instant,
    },
    /// It is not known to be in the registry; the backend keeps trying.
    Lost {
        /// When it was lost.
        since: Instant,
        /// The error of the last attempt.
        error: Error,
    },
    /// It is in the registry.
    Registered {
        /// When it was registered, or last registered again.
        since: Instant,
    },
    /// Another owner took over the id. Final.
    Superseded {
        /// When the takeover was noticed.
        since: Instant,
    },
}

/// The statuses of a [`Registration`](crate::Registration), for tasks that do not hold it, such as
/// a health endpoint, a metric or a log.
///
/// A receiver is returned by [`Registration::statuses`](crate::Registration::statuses) or by the
/// [writer](StatusWriter::statuses). Cloning is cheap. A receiver does not keep the registration
/// alive.
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

/// Reports the status of a [`Registration`](crate::Registration); for authors of backends.
#[derive(Clone, Debug)]
pub struct StatusWriter(pub(crate) watch::Sender<Status>);

impl StatusReceiver {
    /// Returns the current status, or the final one.
    pub fn current(&self) -> Status {
        self.0.borrow().clone()
    }

    /// Waits for a status after the one that this returned last, or after the one at which this
    /// receiver was created, and returns it; `None` once no further status can follow.
    ///
    /// Of several changes in the meantime it returns the last. A loss is one change, and another
    /// one when its error's kind changes.
    ///
    /// # Cancel safety
    ///
    /// Dropped before completion, it has consumed no status.
    pub async fn changed(&mut self) -> Option<Status> {
        if self.0.has_changed().is_ok_and(|changed| !changed) && self.0.borrow().is_final() {
            return None;
        }
        self.0.changed().await.ok()?;
        Some(self.0.borrow_and_update().clone())
    }

    /// Returns a receiver of the statuses from now on.
    pub(crate) fn resubscribe(&self) -> Self {
        let mut receiver = self.0.clone();
        receiver.mark_unchanged();
        Self(receiver)
    }
}

impl Status {
    /// Creates the status of a registration that is registered from now on.
    pub fn registered() -> Self {
        Self::Registered { since: now() }
    }

    /// Creates the status of a registration that is lost from now on.
    pub fn lost(error: Error) -> Self {
        Self::Lost { since: now(), error }
    }

    /// Creates the status of a registration that is superseded from now on.
    pub fn superseded() -> Self {
        Self::Superseded { since: now() }
    }

    /// Creates the status of a registration that is deregistered from now on.
    pub fn deregistered() -> Self {
        Self::Deregistered { since: now() }
    }

    /// Returns whether the instance is in the registry, as far as the backend knows.
    pub fn is_registered(&self) -> bool {
        matches!(self, Self::Registered { .. })
    }

    /// Returns whether this status can never change again.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Deregistered { .. } | Self::Superseded { .. })
    }
}

impl StatusWriter {
    /// Creates a writer with the first status of a registration.
    pub fn new(status: Status) -> Self {
        Self(watch::Sender::new(status))
    }

    /// Returns a receiver of the statuses from now on.
    pub fn statuses(&self) -> StatusReceiver {
        StatusReceiver(self.0.subscribe())
    }

    /// Reports a status, unless the one before it was final.
    ///
    /// A further `Lost` keeps the time of the first. It counts as a change only if its error is of
    /// another kind, so a task that waits for changes learns of a loss once, not of every attempt.
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

    /// Returns the status that was reported last.
    pub fn current(&self) -> Status {
        self.0.borrow().clone()
    }
}

/// The current time of tokio's clock, so that statuses follow a paused clock too.
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
