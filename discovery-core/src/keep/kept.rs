//! The owner's side of a kept registration, before and after it is written.

use std::{
    mem,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use tokio::{
    sync::{Notify, watch},
    task::{AbortHandle, JoinHandle},
};

use crate::{
    Error, ErrorKind, Instance, Registration, Status,
    backend::{RegistrationBackend, StatusWriter},
};

/// The owner's side of a kept registration.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) wanted: watch::Sender<Wanted>,
    pub(super) place: Arc<Place>,
    pub(super) status: StatusWriter,
    pub(super) abort: AbortHandle,
    /// Taken by the caller that waits for its end.
    pub(super) task: Mutex<Option<JoinHandle<Result<(), Error>>>>,
}

/// What the owner wants before the first write.
#[derive(Debug)]
pub(super) enum Wanted {
    Gone,
    Registered(Arc<Instance>),
}

/// What the first successful attempt leaves. It is kept outside the task, so that it ends at once
/// when its owner drops it.
#[derive(Debug, Default)]
pub(super) enum Slot {
    #[default]
    Empty,
    /// The task has ended and left nothing.
    Ended,
    Registered(Arc<Registration>),
    /// The registration is being handed over.
    Taken,
}

/// A slot, and a notification of its changes.
#[derive(Debug, Default)]
pub(super) struct Place {
    slot: Mutex<Slot>,
    changed: Notify,
}

#[async_trait]
impl RegistrationBackend for Kept {
    async fn update(&self, instance: Arc<Instance>) -> Result<(), Error> {
        let registration = loop {
            let mut changed = pin!(self.place.changed.notified());
            changed.as_mut().enable();
            match (&*self.place.lock(), self.status.current()) {
                (Slot::Registered(registration), _) => break Arc::clone(registration),
                (Slot::Taken, _) => {}
                (_, Status::Superseded { .. }) => {
                    return Err(Error::new(ErrorKind::Conflict, "another owner holds the id").with_operation("update"));
                }
                (_, Status::Deregistered { .. }) => {
                    return Err(Error::new(ErrorKind::Closed, "the registration has ended").with_operation("update"));
                }
                (Slot::Ended, _) => return Err(runtime_gone().with_operation("update")),
                (Slot::Empty, _) => {
                    self.wanted.send_replace(Wanted::Registered(instance));
                    return Ok(());
                }
            }
            changed.await;
        };
        registration.update(move |_| (*instance).clone()).await
    }

    async fn deregister(&self) -> Result<(), Error> {
        let registration = {
            let mut slot = self.place.lock();
            self.wanted.send_replace(Wanted::Gone);
            match mem::take(&mut *slot) {
                // The only reference: an update would borrow the registration that is being ended.
                Slot::Registered(registration) => Arc::into_inner(registration),
                Slot::Empty | Slot::Ended | Slot::Taken => None,
            }
        };
        let result = match registration {
            Some(registration) => registration.deregister().await,
            None => self.ended().await,
        };
        if result.is_ok() {
            self.status.set(Status::deregistered());
        }
        result
    }

    fn release(&self) {
        self.status.set(Status::deregistered());
        self.abort.abort();
        // Dropped before this returns, so that nothing is left to happen later.
        drop(mem::take(&mut *self.place.lock()));
    }
}

impl Place {
    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the slot and wakes those who wait for a change.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Slot) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_waiters();
        result
    }
}

impl Wanted {
    pub(super) fn instance(&self) -> Option<Arc<Instance>> {
        match self {
            Self::Gone => None,
            Self::Registered(instance) => Some(Arc::clone(instance)),
        }
    }
}

impl Kept {
    /// Waits for the end of the task, which removes whatever an attempt has written.
    async fn ended(&self) -> Result<(), Error> {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        match task {
            Some(task) => task.await.unwrap_or_else(|_| Err(runtime_gone().with_operation("deregister"))),
            None => Ok(()),
        }
    }
}

pub(super) fn runtime_gone() -> Error {
    Error::new(ErrorKind::Internal, "the runtime that kept the registration was shut down")
}
