//! Registrations: one worker per entry, one lease per handle.
//!
//! A [`Registrar`] sends each registration to the [`worker`] of its entry, and [`workers`] holds
//! them by key. A worker does what its [`entry`] decides, which is free of I/O; [`decide`] holds
//! the rules for when one owner may write over another. A [`handle`] is what the caller keeps of
//! it. Registrations whose entry holds the lease have one of their own ([`own_lease`]).

mod decide;
mod entry;
mod handle;
mod in_flight;
mod own_lease;
mod unconfirmed;
mod worker;
mod workers;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use discovery_core::{
    Backoff, Claim, Error, ErrorKind, Instance, Registration, ServiceName, Status, backend::StatusWriter,
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use crate::{
    cluster::Cluster,
    config::Settings,
    layout::{Layout, Written},
    lease::{Lease, LeaseKeeper},
    watch::closed_error,
    watcher::Watcher,
};
use entry::{Command, Entry, Place};
use handle::{RegistrationHandle, UnclaimedRegistration};
use worker::Worker;
use workers::Workers;

/// The registering half of a handle.
#[derive(Debug)]
pub(crate) struct Registrar {
    runtime: Handle,
    cluster: Arc<Cluster>,
    lease: Arc<Lease>,
    workers: Arc<Workers>,
    watcher: Watcher,
    layout: Arc<dyn Layout>,
    prefix: String,
    deadline: Duration,
    backoff: Backoff,
    /// Whether the handle is closing. Registrations with leases of their own subscribe.
    closing: watch::Sender<bool>,
    ttl: Duration,
    /// The number of the latest registration. Numbers distinguish registrations of one entry.
    last_number: AtomicU64,
}

impl Registrar {
    /// Starts the tasks of a handle. They end by themselves after the handle and its registrations
    /// have ended.
    pub(crate) fn start(settings: &Settings, cluster: &Arc<Cluster>, watcher: Watcher, runtime: Handle) -> Self {
        let lease = Lease::new();
        let keeper = LeaseKeeper {
            lease: Arc::clone(&lease),
            cluster: Arc::clone(cluster),
            ttl: settings.ttl,
            backoff: settings.backoff,
        };
        runtime.spawn(keeper.run());
        Self {
            runtime,
            cluster: Arc::clone(cluster),
            lease,
            workers: Arc::default(),
            watcher,
            layout: Arc::clone(&settings.layout),
            prefix: settings.prefix.clone(),
            deadline: settings.operation_timeout,
            backoff: settings.backoff,
            closing: watch::Sender::new(false),
            ttl: settings.ttl,
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
        if self.layout.capabilities().has_leases_in_entries() {
            return own_lease::register(self, service, instance).await;
        }
        let Written { tail, value } = self.written(service, &instance, NO_LEASE)?;
        let key = format!("{}{}{tail}", self.prefix, self.layout.range(service));
        let place = Place { service: service.clone(), id: instance.id().clone(), key: key.clone(), lease: None };
        let number = self.number();
        let waiting = Error::new(ErrorKind::DeadlineExceeded, "etcd has not answered yet");
        let status = StatusWriter::new(Status::lost(waiting));
        let (reply, answer) = oneshot::channel();
        let command = Command::Claim { number, value, claim, status: status.clone(), reply };
        let commands = self.send(place, &self.lease, command)?;
        // If this future is dropped before completion, or returns an error, `pending` releases what
        // the worker may have written.
        let handle = RegistrationHandle {
            registrar: Arc::clone(self),
            service: service.clone(),
            commands,
            number,
            key: key.clone(),
            status: status.clone(),
        };
        let pending = UnclaimedRegistration(Some(handle));
        let result = timeout(self.deadline, answer).await;
        match result {
            Ok(Ok(result)) => result.map_err(|error| error.with_key(&key))?,
            Ok(Err(_)) => return Err(runtime_gone().with_key(&key)),
            Err(_) => {
                let message = format!("not registered within {:?}", self.deadline);
                return Err(match status.current() {
                    Status::Lost { error, .. } => Error::new(error.kind(), message).with_source(error),
                    _ => Error::new(ErrorKind::DeadlineExceeded, message),
                }
                .with_key(&key));
            }
        }
        Ok(Registration::new(service.clone(), Arc::new(instance), &status, pending.keep()))
    }

    /// Returns what to write for an instance.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the layout cannot express it.
    fn written(&self, service: &ServiceName, instance: &Instance, lease: i64) -> Result<Written, Error> {
        let capabilities = self.layout.capabilities();
        capabilities.check(instance)?;
        let written = self.layout.write(service, instance, lease);
        let ids = self.layout.classify(&written.tail).into_ids();
        // With the lease in the key, readers know the instance by another id.
        let known_as = match &ids[..] {
            [id] if capabilities.has_leases_in_entries() => id.clone(),
            _ => instance.id().clone(),
        };
        if ids != [known_as.clone()] {
            let problem = format!("invalid instance: the layout has no key for the id {}", instance.id());
            return Err(Error::new(ErrorKind::InvalidInput, problem));
        }
        let read = self.layout.read(&written.tail, &written.value);
        let read = read.map_err(|error| {
            let problem = "invalid instance: no client could read what the layout writes for it";
            Error::new(ErrorKind::InvalidInput, problem).with_source(error)
        })?;
        let instance = instance.clone().with_id(known_as);
        if !read.iter().any(|one| one.instance().is_ok_and(|read| *read == instance)) {
            return Err(Error::new(ErrorKind::InvalidInput, "invalid instance: the layout cannot express all of it"));
        }
        Ok(written)
    }

    fn number(&self) -> u64 {
        self.last_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Sends a command to the worker of an entry, and starts a worker if there is none.
    fn send(
        &self,
        place: Place,
        lease: &Arc<Lease>,
        command: Command,
    ) -> Result<mpsc::UnboundedSender<Command>, Error> {
        let mut workers = self.workers.lock();
        if workers.closed {
            return Err(closed_error());
        }
        let mut command = Some(command);
        if let Some(commands) = workers.by_key.get(&place.key) {
            match commands.send(command.take().expect("the command is sent once")) {
                Ok(()) => return Ok(commands.clone()),
                // The worker ended with its runtime; start another one below.
                Err(mpsc::error::SendError(back)) => command = Some(back),
            }
        }
        let (own, commands) = mpsc::unbounded_channel();
        own.send(command.expect("a command that was not sent came back")).expect("the receiver is at hand");
        workers.by_key.insert(place.key.clone(), own.clone());
        drop(workers);
        let worker = Worker {
            entry: Entry::new(place, Arc::clone(lease), self.backoff),
            workers: Arc::clone(&self.workers),
            cluster: Arc::clone(&self.cluster),
            lease: lease.watch(),
            commands,
            watcher: self.watcher.clone(),
            watch: None,
        };
        self.runtime.spawn(worker.run());
        Ok(own)
    }

    /// Ends all registrations and refuses new ones.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        {
            let mut workers = self.workers.lock();
            workers.closed = true;
            for commands in workers.by_key.values() {
                // A worker that ended with its runtime has nothing to release.
                let _ = commands.send(Command::Release { number: None, reply: None });
            }
        }
        self.lease.close();
        let mut lease = self.lease.watch();
        self.closing.send_replace(true);
        let done = async {
            self.workers.emptied().await;
            // Each holds a receiver until its lease is revoked.
            self.closing.closed().await;
            // The keeper ends after it has revoked the lease.
            while !self.lease.is_over() {
                if lease.changed().await.is_err() {
                    break;
                }
            }
        };
        timeout(self.deadline, done).await.map_err(|_| self.too_late("not all registrations were removed"))
    }

    /// The error of a removal that was not confirmed in time.
    fn too_late(&self, what: &'static str) -> Error {
        self.too_late_under(&self.lease, what)
    }

    fn too_late_under(&self, lease: &Lease, what: &'static str) -> Error {
        let message = format!("{what} within {:?}: {}", self.deadline, lease.end());
        Error::new(ErrorKind::DeadlineExceeded, message)
    }
}

impl Drop for Registrar {
    fn drop(&mut self) {
        self.lease.close();
    }
}

/// What layouts get whose entries do not hold the lease.
const NO_LEASE: i64 = 0;

fn runtime_gone() -> Error {
    Error::new(ErrorKind::Internal, "the runtime that kept the registration was shut down")
}
