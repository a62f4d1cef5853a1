use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;

use crate::{Error, ErrorKind, Instance, InstanceId, ServiceName, Status, StatusReceiver, backend::StatusWriter};

/// One instance's place in the registry, held for as long as this lives.
///
/// The backend keeps it alive and heals it by itself; [`status`](Self::status) tells how it stands. Ending it in order is
/// [`deregister`](Self::deregister). Dropping it asks the backend for the same without waiting: it neither blocks nor needs a
/// runtime, and where the request is lost (the process ends at once) the lease ends the entry.
#[must_use = "dropping a registration deregisters the instance"]
pub struct Registration {
    service: ServiceName,
    instance: Mutex<Arc<Instance>>,
    status: StatusReceiver,
    /// Held by an update from what it reads to what it writes, so that none undoes another.
    updating: tokio::sync::Mutex<()>,
    /// `None` once deregistered, so that the drop does not ask again.
    held: Option<Box<dyn RegistrationBackend>>,
}

/// What a backend keeps behind a [`Registration`]; for authors of backends.
#[async_trait]
pub trait RegistrationBackend: fmt::Debug + Send + Sync {
    /// Writes the instance's new weight and metadata in place; id and address are the same as before.
    async fn update(&self, instance: Arc<Instance>) -> Result<(), Error>;

    /// Removes the entry, if it is still this registration's, and returns once it is gone.
    async fn deregister(&self) -> Result<(), Error>;

    /// Asks for the same without waiting, when the registration is dropped; must neither block nor spawn.
    fn release(&self);
}

impl Registration {
    /// Makes a registration of what a backend holds.
    pub fn new(
        service: ServiceName,
        instance: Arc<Instance>,
        status: &StatusWriter,
        held: impl RegistrationBackend + 'static,
    ) -> Self {
        Self {
            service,
            instance: Mutex::new(instance),
            status: status.statuses(),
            updating: tokio::sync::Mutex::default(),
            held: Some(Box::new(held)),
        }
    }

    /// The service.
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// The instance's id.
    pub fn id(&self) -> InstanceId {
        self.instance().id().clone()
    }

    /// The instance as it is registered, or is going to be: during an update, and after one whose
    /// error was retryable.
    pub fn instance(&self) -> Arc<Instance> {
        Arc::clone(&self.instance.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How the registration stands now.
    pub fn status(&self) -> Status {
        self.status.current()
    }

    /// Waits for the next status and returns it; `None` after a final one, and once the backend is
    /// gone.
    ///
    /// Other tasks follow the status through [`statuses`](Self::statuses).
    ///
    /// # Cancel safety
    ///
    /// Dropped before completion, it has consumed no status.
    pub async fn changed(&mut self) -> Option<Status> {
        self.status.changed().await
    }

    /// The statuses from now on, for other tasks to follow.
    pub fn statuses(&self) -> StatusReceiver {
        self.status.resubscribe()
    }

    /// Changes weight and metadata in place, without a moment of absence; of several at once each sees what the former wrote.
    ///
    /// ```no_run
    /// # async fn example(registration: discovery_core::Registration) -> Result<(), discovery_core::Error> {
    /// use discovery_core::Weight;
    ///
    /// let less = Weight::new(10)?;
    /// registration.update(|instance| instance.with_weight(less)).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for another id or address;
    /// [`Conflict`](ErrorKind::Conflict) once superseded; else what the registry answers. After a
    /// retryable error the backend goes on trying to write the new values. After any other error
    /// the former values stand, and the new ones are not written later.
    ///
    /// # Cancel safety
    ///
    /// Dropped before completion, the update goes on: [`instance`](Self::instance) shows the new
    /// values, which the backend writes if it can, and a later update starts from them.
    pub async fn update(&self, change: impl FnOnce(Instance) -> Instance + Send) -> Result<(), Error> {
        let _updating = self.updating.lock().await;
        let before = self.instance();
        let after = change((*before).clone());
        if (after.id(), after.address()) != (before.id(), before.address()) {
            let message = "an update may change weight and metadata; another id or address is another registration";
            return Err(Error::new(ErrorKind::InvalidInput, message)
                .with_operation("update")
                .with_service(&self.service));
        }
        let after = Arc::new(after);
        let held = self.held.as_ref().expect("only `deregister`, which consumes the registration, takes it");
        // Before it is written: an update that is dropped or late is what the backend goes on to
        // write, and where the next one starts from.
        self.show(Arc::clone(&after));
        let result = held.update(after).await;
        if result.as_ref().is_err_and(|error| !error.is_retryable()) {
            self.show(before);
        }
        result
    }

    fn show(&self, instance: Arc<Instance>) {
        *self.instance.lock().unwrap_or_else(PoisonError::into_inner) = instance;
    }

    /// Ends the registration and returns once the entry is gone; of a superseded one, at once.
    ///
    /// # Errors
    ///
    /// What the registry answers, or [`DeadlineExceeded`](ErrorKind::DeadlineExceeded) where it does not confirm in time: with the time
    /// by which the lease will end the entry, or, where the lease is kept for other registrations of the handle, while the backend
    /// goes on to remove it.
    ///
    /// # Cancel safety
    ///
    /// Dropped half-way, the backend is asked to go on with it alone.
    pub async fn deregister(mut self) -> Result<(), Error> {
        let held = self.held.as_ref().expect("only this method, which consumes the registration, takes it");
        held.deregister().await?;
        self.held = None;
        Ok(())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(held) = &self.held {
            held.release();
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("service", &self.service)
            .field("instance", &self.instance())
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Nothing;

    #[async_trait]
    impl RegistrationBackend for Nothing {
        async fn update(&self, _: Arc<Instance>) -> Result<(), Error> {
            Ok(())
        }

        async fn deregister(&self) -> Result<(), Error> {
            Ok(())
        }

        fn release(&self) {}
    }

    #[tokio::test]
    async fn statuses_are_followed_without_the_registration_until_the_last() {
        let writer = StatusWriter::new(Status::registered());
        let instance = Arc::new(Instance::new("10.0.0.1:80".parse().unwrap()));
        let registration = Registration::new("payments".parse().unwrap(), instance, &writer, Nothing);
        let mut statuses = registration.statuses();
        let mut other = statuses.clone();
        assert!(statuses.current().is_registered());
        writer.set(Status::lost(Error::new(ErrorKind::Unavailable, "gone")));
        assert!(matches!(statuses.changed().await, Some(Status::Lost { .. })));
        writer.set(Status::registered());
        assert!(statuses.changed().await.unwrap().is_registered());
        drop(registration);
        writer.set(Status::deregistered());
        for statuses in [&mut statuses, &mut other] {
            assert!(matches!(statuses.changed().await, Some(Status::Deregistered { .. })));
            assert!(statuses.changed().await.is_none(), "although the writer lives");
        }
        assert!(matches!(statuses.current(), Status::Deregistered { .. }));

        let writer = StatusWriter::new(Status::registered());
        let mut statuses = writer.statuses();
        writer.set(Status::superseded());
        drop(writer);
        assert!(statuses.changed().await.unwrap().is_final(), "also where nobody can write any more");
        assert!(statuses.changed().await.is_none());
    }
}
