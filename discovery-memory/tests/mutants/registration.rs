//! Registrations of the memory backend that are broken in one way.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use discovery_core::{
    Claim, Error, ErrorKind, Instance, InstanceId, Registration, Registry, ServiceName, Status,
    backend::{RegistrationBackend, StatusWriter},
};
use discovery_memory::MemoryBackend;
use tokio::time::sleep;

use crate::mutant::{Marks, Mutant, Mutation};

#[derive(Debug)]
struct Broken {
    memory: MemoryBackend,
    mutation: Mutation,
    marks: Arc<Marks>,
    service: ServiceName,
    id: InstanceId,
    /// The memory backend's registration; `None` while it is in use or gone.
    inner: Mutex<Option<Registration>>,
    status: StatusWriter,
    /// The instance of an update that was refused for good.
    refused: Mutex<Option<Instance>>,
}

#[derive(Debug)]
struct Handle(Arc<Broken>);

pub(crate) async fn wrap(
    mutant: &Mutant,
    service: &ServiceName,
    instance: Instance,
    claim: Claim,
) -> Result<Registration, Error> {
    let inner = mutant.memory.register_with(service, instance.clone(), claim).await?;
    let status = StatusWriter::new(inner.status());
    let broken = Arc::new(Broken {
        memory: mutant.memory.clone(),
        mutation: mutant.mutation,
        marks: Arc::clone(&mutant.marks),
        service: service.clone(),
        id: inner.id(),
        inner: Mutex::new(Some(inner)),
        status: status.clone(),
        refused: Mutex::default(),
    });
    let watched = Arc::downgrade(&broken);
    tokio::spawn(async move {
        loop {
            sleep(Duration::from_millis(5)).await;
            let Some(broken) = watched.upgrade() else { return };
            broken.attend().await;
        }
    });
    Ok(Registration::new(service.clone(), Arc::new(instance), &status, Handle(broken)))
}

impl Broken {
    fn inner(&self) -> MutexGuard<'_, Option<Registration>> {
        self.inner.lock().unwrap()
    }

    /// Passes the status on, and does what the mutation does in the background.
    async fn attend(&self) {
        let Some((now, instance)) = self.inner().as_ref().map(|inner| (inner.status(), inner.instance())) else {
            return;
        };
        if self.mutation == Mutation::NeverHeals && self.marks.removed.lock().unwrap().contains(&self.id) {
            // Removes the entry without the status noticing.
            drop(self.inner().take());
            return;
        }
        let superseded = matches!(now, Status::Superseded { .. });
        if self.mutation == Mutation::HealingTakesOver
            && superseded
            && self.marks.expired.lock().unwrap().remove(&self.id)
        {
            let again = self.memory.register(&self.service, (*instance).clone()).await;
            *self.inner() = again.ok();
            return;
        }
        if self.mutation == Mutation::FormerOwnerReturns && superseded {
            let again = self.memory.register_with(&self.service, (*instance).clone(), Claim::IfAbsent).await;
            if again.is_ok() {
                *self.inner() = again.ok();
                return;
            }
        }
        let refused = self.refused.lock().unwrap().clone();
        if let Some(refused) = refused.filter(|_| now.is_registered()) {
            let Some(inner) = self.inner().take() else { return };
            if inner.update(|_| refused).await.is_ok() {
                *self.refused.lock().unwrap() = None;
            }
            *self.inner() = Some(inner);
            return;
        }
        let lies = self.mutation == Mutation::StatusLies && !superseded;
        if !lies && std::mem::discriminant(&now) != std::mem::discriminant(&self.status.current()) {
            self.status.set(now);
        }
    }
}

#[async_trait]
impl RegistrationBackend for Handle {
    async fn update(&self, instance: Arc<Instance>) -> Result<(), Error> {
        let broken = &self.0;
        let Some(inner) = broken.inner().take() else { return Ok(()) };
        let superseded = matches!(inner.status(), Status::Superseded { .. });
        let next = (*instance).clone();
        if broken.mutation == Mutation::SupersededOverwrites && superseded {
            broken.memory.put(&broken.service, next);
            return Ok(());
        }
        if broken.mutation == Mutation::UpdateRemovesFirst && !superseded {
            inner.deregister().await?;
            *broken.inner() = Some(broken.memory.register(&broken.service, next).await?);
            return Ok(());
        }
        let former = inner.instance();
        let forgets = broken.mutation == Mutation::UpdateForgetsMetadata;
        let next = if forgets { next.with_metadata(former.metadata().clone()) } else { next };
        let result = inner.update(|_| next.clone()).await;
        if broken.mutation == Mutation::RefusedUpdateIsWrittenLater
            && result.as_ref().is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
        {
            *broken.refused.lock().unwrap() = Some(next);
        }
        *broken.inner() = Some(inner);
        result
    }

    async fn deregister(&self) -> Result<(), Error> {
        let broken = &self.0;
        let Some(inner) = broken.inner().take() else { return Ok(()) };
        let superseded = matches!(inner.status(), Status::Superseded { .. });
        if broken.mutation == Mutation::SupersededDeletes && superseded {
            // Removed for good, so that the new owner does not heal it.
            broken.memory.put_unreadable(&format!("{}/{}", broken.service, broken.id));
            broken.memory.remove(&broken.service, broken.id.as_str());
        }
        if broken.mutation == Mutation::DeregistersLater {
            tokio::spawn(async move {
                sleep(Duration::from_millis(50)).await;
                drop(inner);
            });
            return Ok(());
        }
        let result = inner.deregister().await;
        if broken.mutation == Mutation::DeregisterLies { Ok(()) } else { result }
    }

    fn release(&self) {
        if let Some(inner) = self.0.inner().take()
            && self.0.mutation == Mutation::DropLeaves
        {
            std::mem::forget(inner);
        }
    }
}
