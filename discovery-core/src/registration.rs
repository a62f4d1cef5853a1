use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;

use crate::{Error, ErrorKind, Instance, InstanceId, ServiceName, Status, StatusReceiver, backend::StatusWriter};

/// An instance's registration, held for as long as this handle lives.
///
/// The backend renews it and restores it after a loss; [`status`](Self::status) reports its current
/// state. [`deregister`](Self::deregister) ends it gracefully. Dropping it requests the same
/// without waiting: the drop neither blocks nor needs a runtime. If the request is lost, because
/// the process ends at once, the lease ends the entry.
#[must_use = "dropping a registration deregisters the instance"]
pub struct Registration {
    service: ServiceName,
    instance: Mutex<Arc<Instance>>,
    status: StatusReceiver,
    /// Held by an update from reading the former values to writing the new ones, so that no update
    /// undoes another.
    updating: tokio::sync::Mutex<()>,
    /// `None` once deregistered, so that the drop does not request it again.
    held: Option<Box<dyn RegistrationBackend>>,
}

/// The backend's side of a [`Registration`]; for authors of backends.
#[async_trait]
pub trait RegistrationBackend: fmt::Debug + Send + Sync {
    /// Writes the instance's new weight and metadata in place; id and address are unchanged.
    async fn update(&self, instance: Arc<Instance>) -> Result<(), Error>;

    /// Removes the entry if it still belongs to this registration, and returns once it is gone.
    async fn deregister(&self) -> Result<(), Error>;

    /// Requests the removal without waiting, when the registration is dropped. Must neither block
    /// nor spawn.
    fn release(&self);
}

impl Registration {
    /// Creates a registration from the backend's side of it.
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

    /// Returns the service.
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// Returns the instance's id.
    pub fn id(&self) -> InstanceId {
        self.instance().id().clone()
    }

    /// Returns the instance as it is registered. During an update, and after one that failed with a
    /// retryable error, it is the instance as it will be registered.
    pub fn instance(&self) -> Arc<Instance> {
        Arc::clone(&self.instance.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the current status.
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

    /// Returns a receiver of the statuses from now on, for other tasks.
    pub fn statuses(&self) -> StatusReceiver {
        self.status.resubscribe()
    }

    /// Changes weight and metadata in place, without a moment of absence. Of several concurrent
    /// updates, each starts from what the one before it wrote.
    ///
    /// ```no_run
    /// # async fn example(
    /// #     registration: discovery_core::Registration,
    /// # ) -> Result<(), discovery_core::Error> {
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
    /// [`InvalidInput`](ErrorKind::InvalidInput) if the id or the address is changed;
    /// [`Conflict`](ErrorKind::Conflict) once superseded; otherwise the registry's error. After a
    /// retryable error the backend keeps trying to write the new values. After any other error the
    /// former values stay, and the new ones are not written later.
    ///
    /// # Cancel safety
    ///
    /// Dropped before completion, the update continues: [`instance`](Self::instance) returns the
    /// new values, which the backend writes if it can, and a later update starts from them.
    pub async fn update(&self, change: impl FnOnce(Instance) -> Instance + Send) -> Result<(), Error> {
        let _updating = self.updating.lock().await;
        let before = self.instance();
        let after = change((*before).clone());
        if (after.id(), after.address()) != (before.id(), before.address()) {
            let message = "an update may change weight and metadata, but not the id or the address";
            return Err(Error::new(ErrorKind::InvalidInput, message)
                .with_operation("update")
                .with_service(&self.service));
        }
        let after = Arc::new(after);
        let held = self.held.as_ref().expect("only `deregister`, which consumes the registration, takes it");
        // Set before the write, because the backend keeps trying to write an update that was
        // dropped or is late, and the next update starts from it.
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

    /// Ends the registration and returns once the entry is gone; at once if it was superseded.
    ///
    /// # Errors
    ///
    /// The registry's error, or [`DeadlineExceeded`](ErrorKind::DeadlineExceeded) if the registry
    /// does not confirm in time. The message then states by when the lease will end the entry or,
    /// if the handle's other registrations keep the lease alive, that the backend keeps trying to
    /// remove it.
    ///
    /// # Cancel safety
    ///
    /// Dropped before completion, the backend continues the removal on its own.
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
    async fn statuses_outlive_the_registration_until_the_final_one() {
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
            assert!(statuses.changed().await.is_none(), "even while the writer lives");
        }
        assert!(matches!(statuses.current(), Status::Deregistered { .. }));

        let writer = StatusWriter::new(Status::registered());
        let mut statuses = writer.statuses();
        writer.set(Status::superseded());
        drop(writer);
        assert!(statuses.changed().await.unwrap().is_final(), "even when no writer is left");
        assert!(statuses.changed().await.is_none());
    }
}
