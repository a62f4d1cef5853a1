//! What a caller keeps of a registration.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use discovery_core::{
    Error, ErrorKind, Instance, ServiceName, Status,
    backend::{RegistrationBackend, StatusWriter},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    NO_LEASE, Registrar,
    entry::{self, Command},
    runtime_gone,
};
use crate::watch::closed_error;

/// A registration that has not been returned to the caller yet. Dropping it releases the entry.
pub(super) struct UnclaimedRegistration(pub(super) Option<RegistrationHandle>);

impl UnclaimedRegistration {
    pub(super) fn keep(mut self) -> RegistrationHandle {
        self.0.take().expect("only this consumes it")
    }
}

impl Drop for UnclaimedRegistration {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.release();
        }
    }
}

/// A registration's link to the worker of its entry. It keeps the tasks of the handle alive.
pub(super) struct RegistrationHandle {
    pub(super) registrar: Arc<Registrar>,
    pub(super) service: ServiceName,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) number: u64,
    pub(super) key: String,
    pub(super) status: StatusWriter,
}

impl RegistrationHandle {
    /// Returns the result of a removal whose worker has ended.
    fn worker_gone(&self) -> Result<(), Error> {
        match self.status.current() {
            Status::Deregistered { .. } | Status::Superseded { .. } => Ok(()),
            _ => Err(runtime_gone().with_key(&self.key)),
        }
    }
}

#[async_trait]
impl RegistrationBackend for RegistrationHandle {
    async fn update(&self, instance: Arc<Instance>) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let written = self.registrar.written(&self.service, &instance, NO_LEASE);
        let value = written.map_err(|error| error.with_operation("update").with_key(&self.key))?.value;
        let gone = || match self.status.current() {
            Status::Superseded { .. } => entry::superseded(),
            Status::Deregistered { .. } => closed_error(),
            _ => runtime_gone(),
        };
        let sent = self.commands.send(Command::Update { number: self.number, value, reply });
        let result = match sent {
            Ok(()) => timeout(self.registrar.deadline, answer).await,
            Err(_) => return Err(gone().with_operation("update").with_key(&self.key)),
        };
        let error = match result {
            Ok(Ok(Ok(()))) => return Ok(()),
            Ok(Ok(Err(error))) => error,
            Ok(Err(_)) => gone(),
            Err(_) => {
                let message = format!("not written within {:?}; the backend keeps trying", self.registrar.deadline);
                Error::new(ErrorKind::DeadlineExceeded, message)
            }
        };
        Err(error.with_operation("update").with_key(&self.key))
    }

    async fn deregister(&self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(Command::Release { number: Some(self.number), reply: Some(reply) });
        if sent.is_err() {
            return self.worker_gone();
        }
        match timeout(self.registrar.deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => self.worker_gone(),
            Err(_) => Err(self.registrar.too_late("not removed")),
        }
        .map_err(|error| error.with_operation("deregister").with_key(&self.key))
    }

    fn release(&self) {
        // If the worker has ended there is nothing to release.
        let _ = self.commands.send(Command::Release { number: Some(self.number), reply: None });
    }
}

impl fmt::Debug for RegistrationHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistrationHandle")
            .field("key", &self.key)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}
