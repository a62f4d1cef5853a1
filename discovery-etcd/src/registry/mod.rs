//! Registrations: one worker per entry, one lease and one sentry per handle.

mod decide;
mod doubts;
mod entry;
mod sentry;
mod worker;

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use discovery_core::{
    Backoff, Claim, Error, ErrorKind, Held, Instance, Registration, ServiceName, Status, StatusWriter,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc, oneshot},
    time::timeout,
};

use crate::{
    config::Settings,
    failover::Cluster,
    layout::Layout,
    lease::{Keeper, Lease},
    watch::closed_error,
};
use doubts::Doubts;
use entry::{Command, Entry, Place};
use sentry::{Order, Sentry};
use worker::Worker;

/// The registering half of a handle.
#[derive(Debug)]
pub(crate) struct Registrar {
    runtime: Handle,
    cluster: Arc<Cluster>,
    lease: Arc<Lease>,
    ledger: Arc<Ledger>,
    sentry: mpsc::UnboundedSender<Order>,
    layout: Arc<dyn Layout>,
    prefix: String,
    deadline: Duration,
    backoff: Backoff,
    /// Tells registrations of one entry apart.
    last_number: AtomicU64,
}

/// The workers of a handle, by key.
#[derive(Debug, Default)]
struct Ledger {
    state: Mutex<Workers>,
    /// Woken when the last one goes.
    empty: Notify,
}

#[derive(Debug, Default)]
struct Workers {
    closed: bool,
    by_key: HashMap<String, mpsc::UnboundedSender<Command>>,
    doubts: Doubts,
}

impl Registrar {
    /// Starts the tasks of a handle; they end by themselves once it and its registrations are gone.
    pub(crate) fn start(settings: &Settings, cluster: &Arc<Cluster>, runtime: Handle) -> Self {
        let lease = Lease::new();
        let keeper = Keeper {
            lease: Arc::clone(&lease),
            cluster: Arc::clone(cluster),
            ttl: settings.ttl,
            backoff: settings.backoff,
        };
        let (sentry, orders) = mpsc::unbounded_channel();
        runtime.spawn(keeper.run());
        runtime.spawn(Sentry::new(Arc::clone(cluster), orders).run());
        Self {
            runtime,
            cluster: Arc::clone(cluster),
            lease,
            ledger: Arc::default(),
            sentry,
            layout: Arc::clone(&settings.layout),
            prefix: settings.prefix.clone(),
            deadline: settings.deadline,
            backoff: settings.backoff,
            last_number: AtomicU64::new(0),
        }
    }

    pub(crate) fn granted_ttl(&self) -> Option<Duration> {
        self.lease.granted()
    }

    pub(crate) async fn register(
        self: &Arc<Self>,
        service: &ServiceName,
        instance: Instance,
        claim: Claim,
    ) -> Result<Registration, Error> {
        if Handle::try_current().is_err() {
            return Err(Error::new(ErrorKind::NoRuntime, "no tokio runtime is running here"));
        }
        let key = format!("{}{}{}", self.prefix, self.layout.range(service), self.layout.tail(instance.id()));
        let place = Place { service: service.clone(), id: instance.id().clone(), key: key.clone() };
        let number = self.last_number.fetch_add(1, Ordering::Relaxed) + 1;
        let waiting = Error::new(ErrorKind::DeadlineExceeded, "etcd gave no answer yet");
        let status = StatusWriter::new(Status::lost(waiting));
        let value = self.layout.encode(&instance);
        let (reply, answer) = oneshot::channel();
        let command = Command::Claim { number, value, claim, status: status.clone(), reply };
        let commands = self.send(place, command)?;
        // Dropped half-way, or after an error, this releases what the worker may have written.
        let hold = Hold { registrar: Arc::clone(self), commands, number, key: key.clone(), status: status.clone() };
        let pending = Pending(Some(hold));
        let result = timeout(self.deadline, answer).await;
        match result {
            Ok(Ok(result)) => result.map_err(|error| error.at_key(&key))?,
            Ok(Err(_)) => return Err(runtime_gone().at_key(&key)),
            Err(_) => {
                let message = format!("not registered within {:?}", self.deadline);
                return Err(match status.status() {
                    Status::Lost { error, .. } => Error::new(error.kind(), message).because(error),
                    _ => Error::new(ErrorKind::DeadlineExceeded, message),
                }
                .at_key(&key));
            }
        }
        Ok(Registration::new(service.clone(), Arc::new(instance), &status, pending.keep()))
    }

    /// Gives a command to the worker of an entry, and starts one where there is none.
    fn send(&self, place: Place, command: Command) -> Result<mpsc::UnboundedSender<Command>, Error> {
        let mut workers = self.ledger.lock();
        if workers.closed {
            return Err(closed_error());
        }
        let mut command = Some(command);
        if let Some(commands) = workers.by_key.get(&place.key) {
            match commands.send(command.take().expect("it was just put there")) {
                Ok(()) => return Ok(commands.clone()),
                // It went with its runtime.
                Err(mpsc::error::SendError(back)) => command = Some(back),
            }
        }
        let (own, commands) = mpsc::unbounded_channel();
        own.send(command.expect("a command that was not sent came back")).expect("the receiver is at hand");
        workers.by_key.insert(place.key.clone(), own.clone());
        drop(workers);
        let worker = Worker {
            entry: Entry::new(place, Arc::clone(&self.lease), self.backoff),
            ledger: Arc::clone(&self.ledger),
            cluster: Arc::clone(&self.cluster),
            lease: self.lease.watch(),
            commands,
            own: own.clone(),
            sentry: self.sentry.clone(),
        };
        self.runtime.spawn(worker.run());
        Ok(own)
    }

    /// Ends all registrations and takes no new ones.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        {
            let mut workers = self.ledger.lock();
            workers.closed = true;
            for commands in workers.by_key.values() {
                // One that went with its runtime has nothing to release.
                let _ = commands.send(Command::Release { number: None, reply: None });
            }
        }
        self.lease.orphan();
        let mut lease = self.lease.watch();
        let done = async {
            self.ledger.emptied().await;
            // The keeper has revoked the lease then.
            while !self.lease.is_over() {
                if lease.changed().await.is_err() {
                    break;
                }
            }
        };
        timeout(self.deadline, done).await.map_err(|_| self.too_late("not all registrations were removed"))
    }

    /// The error of who cannot wait any longer for a removal.
    fn too_late(&self, what: &'static str) -> Error {
        let (remaining, is_shared) = self.lease.remaining();
        let end = if is_shared {
            "the backend goes on removing it; its lease is renewed for other registrations".to_owned()
        } else {
            format!("the lease is renewed no more and ends in at most {}", humantime::format_duration(whole(remaining)))
        };
        let message = format!("{what} within {:?}: {end}", self.deadline);
        Error::new(ErrorKind::DeadlineExceeded, message)
    }
}

impl Drop for Registrar {
    fn drop(&mut self) {
        self.lease.orphan();
    }
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Workers> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a worker go, unless it was told something in the meantime.
    fn retire(&self, key: &str, commands: &mut mpsc::UnboundedReceiver<Command>) -> bool {
        let mut workers = self.lock();
        // Only what changes the owner counts, and that is sent under this lock or after a claim.
        if !commands.is_empty() {
            return false;
        }
        commands.close();
        workers.by_key.remove(key);
        workers.doubts.leave(key);
        if workers.by_key.is_empty() {
            self.empty.notify_waiters();
        }
        true
    }

    /// Takes whether an entry is there for its doubt alone; the oldest of too many is told to go.
    fn doubt(&self, key: &str, is_in_doubt: bool) {
        let mut workers = self.lock();
        if !is_in_doubt {
            return workers.doubts.leave(key);
        }
        if let Some(commands) = workers.doubts.enter(key).and_then(|oldest| workers.by_key.get(&oldest)) {
            // One that went with its runtime has gone.
            let _ = commands.send(Command::Undoubt);
        }
    }

    async fn emptied(&self) {
        loop {
            let notified = self.empty.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            {
                let mut workers = self.lock();
                // Those that went with their runtime will not come to retire.
                workers.by_key.retain(|_, commands| !commands.is_closed());
                if workers.by_key.is_empty() {
                    return;
                }
            }
            notified.await;
        }
    }
}

/// A registration that is not in its owner's hands yet.
struct Pending(Option<Hold>);

impl Pending {
    fn keep(mut self) -> Hold {
        self.0.take().expect("it is taken once, here")
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(hold) = &self.0 {
            hold.release();
        }
    }
}

/// A registration's hand on the worker of its entry; keeps the handle's tasks going.
struct Hold {
    registrar: Arc<Registrar>,
    commands: mpsc::UnboundedSender<Command>,
    number: u64,
    key: String,
    status: StatusWriter,
}

impl Hold {
    /// What it means that the worker is gone.
    fn worker_gone(&self) -> Result<(), Error> {
        match self.status.status() {
            Status::Deregistered { .. } | Status::Superseded { .. } => Ok(()),
            _ => Err(runtime_gone().at_key(&self.key)),
        }
    }
}

#[async_trait]
impl Held for Hold {
    async fn update(&self, instance: Arc<Instance>) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let value = self.registrar.layout.encode(&instance);
        let gone = || match self.status.status() {
            Status::Superseded { .. } => entry::superseded(),
            Status::Deregistered { .. } => closed_error(),
            _ => runtime_gone(),
        };
        let told = self.commands.send(Command::Update { number: self.number, value, reply });
        let result = match told {
            Ok(()) => timeout(self.registrar.deadline, answer).await,
            Err(_) => return Err(gone().during("update").at_key(&self.key)),
        };
        let error = match result {
            Ok(Ok(Ok(()))) => return Ok(()),
            Ok(Ok(Err(error))) => error,
            Ok(Err(_)) => gone(),
            Err(_) => {
                let message = format!("not written within {:?}; the backend goes on trying", self.registrar.deadline);
                Error::new(ErrorKind::DeadlineExceeded, message)
            }
        };
        Err(error.during("update").at_key(&self.key))
    }

    async fn deregister(&self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let told = self.commands.send(Command::Release { number: Some(self.number), reply: Some(reply) });
        if told.is_err() {
            return self.worker_gone();
        }
        match timeout(self.registrar.deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => self.worker_gone(),
            Err(_) => Err(self.registrar.too_late("not removed")),
        }
        .map_err(|error| error.during("deregister").at_key(&self.key))
    }

    fn release(&self) {
        // Nothing to release where the worker is gone.
        let _ = self.commands.send(Command::Release { number: Some(self.number), reply: None });
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("key", &self.key).field("number", &self.number).finish_non_exhaustive()
    }
}

fn runtime_gone() -> Error {
    Error::new(ErrorKind::Internal, "the runtime that kept the registration was shut down")
}

fn whole(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}
