//! Registrations whose entry holds its lease, so that each has a lease and a task of its own.
//!
//! The task writes the instance under its lease, through the worker of that entry. When the lease
//! is lost, the entry goes with it, and the task writes another one under the next lease.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use discovery_core::{
    Claim, Error, ErrorKind, Instance, Registration, ServiceName, Status, StatusReceiver,
    backend::{RegistrationBackend, StatusWriter},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};
use tracing::info;

use super::{
    Registrar,
    entry::{Command, Place, Reply},
    runtime_gone,
};
use crate::{
    layout::Written,
    lease::{Lease, LeaseKeeper, LeaseState, LeaseUser},
    watch::closed_error,
};

/// Registers an instance under a lease of its own.
pub(super) async fn register(
    registrar: &Arc<Registrar>,
    service: &ServiceName,
    instance: Instance,
) -> Result<Registration, Error> {
    // Refused before anything is granted. Which lease it is makes no difference.
    registrar.written(service, &instance, 1)?;
    let closing = registrar.closing.subscribe();
    if *closing.borrow() {
        return Err(closed_error());
    }
    let instance = Arc::new(instance);
    let lease = Lease::new();
    let status = StatusWriter::new(Status::lost(unanswered()));
    let (orders, ordered) = mpsc::unbounded_channel();
    let (reply, answer) = oneshot::channel();
    let keeper = LeaseKeeper {
        lease: Arc::clone(&lease),
        cluster: Arc::clone(&registrar.cluster),
        ttl: registrar.ttl,
        backoff: registrar.backoff,
    };
    let task = Task {
        registrar: Arc::clone(registrar),
        service: service.clone(),
        instance: Arc::clone(&instance),
        user: Some(lease.enter()),
        states: lease.watch(),
        lease: Arc::clone(&lease),
        closing,
        orders: ordered,
        status: status.clone(),
        waiting: vec![reply],
        update: None,
        leaving: None,
        was_registered: false,
        resumes: None,
    };
    registrar.runtime.spawn(keeper.run());
    registrar.runtime.spawn(task.run());
    // If this future is dropped before completion, or returns an error, the task ends with it.
    let handle = Handle { orders, registrar: Arc::clone(registrar), lease, status: status.clone() };
    match timeout(registrar.deadline, answer).await {
        Ok(Ok(result)) => result?,
        Ok(Err(_)) => return Err(runtime_gone()),
        Err(_) => {
            let message = format!("not registered within {:?}", registrar.deadline);
            return Err(match status.current() {
                Status::Lost { error, .. } => Error::new(error.kind(), message).with_source(error),
                _ => Error::new(ErrorKind::DeadlineExceeded, message),
            });
        }
    }
    Ok(Registration::new(service.clone(), instance, &status, handle))
}

/// What the caller keeps. The task ends when it is dropped.
struct Handle {
    orders: mpsc::UnboundedSender<Order>,
    registrar: Arc<Registrar>,
    lease: Arc<Lease>,
    status: StatusWriter,
}

/// What the caller asks of the task.
enum Order {
    Deregister(Reply),
    Update(Arc<Instance>, Reply),
}

/// The task of one registration.
struct Task {
    registrar: Arc<Registrar>,
    service: ServiceName,
    /// What is registered, and what is written under the next lease.
    instance: Arc<Instance>,
    lease: Arc<Lease>,
    /// Keeps the lease.
    user: Option<LeaseUser>,
    states: watch::Receiver<LeaseState>,
    /// Held until the lease is revoked: the handle is closed only then.
    closing: watch::Receiver<bool>,
    orders: mpsc::UnboundedReceiver<Order>,
    status: StatusWriter,
    /// Callers that wait until the instance is written.
    waiting: Vec<Reply>,
    update: Option<PendingUpdate>,
    /// The removal of the entry under a lease that was lost.
    leaving: Option<oneshot::Receiver<Result<(), Error>>>,
    was_registered: bool,
    /// When to try again after a refusal.
    resumes: Option<Instant>,
}

/// An update that the worker has not answered yet.
struct PendingUpdate {
    instance: Arc<Instance>,
    answer: Answer,
    reply: Reply,
}

type Answer = oneshot::Receiver<Result<(), Error>>;

/// The registration under one lease, and the link to the worker of its entry.
struct Term {
    lease: i64,
    number: u64,
    commands: mpsc::UnboundedSender<Command>,
    statuses: StatusReceiver,
    /// The worker's answer to the claim, until it is there.
    claimed: Option<Answer>,
}

/// How a term ended.
enum Ended {
    /// The registration continues under the next lease, or is tried again.
    ForNow,
    ForGood,
}

impl Task {
    async fn run(mut self) {
        while let Some(lease) = self.next_lease().await {
            if let Ended::ForGood = self.keep(lease).await {
                break;
            }
        }
        self.status.set(Status::deregistered());
        self.answer_waiting(&Err(closed_error()));
        self.lease.close();
        self.user = None;
        while !self.lease.is_over() {
            if self.states.changed().await.is_err() {
                break;
            }
        }
    }

    /// Waits for a lease; `None` if the registration ends before there is one.
    async fn next_lease(&mut self) -> Option<i64> {
        loop {
            let state = self.states.borrow_and_update().clone();
            let resumes = self.resumes.filter(|resumes| *resumes > Instant::now());
            match state {
                LeaseState::Held { id } if resumes.is_none() => return Some(id),
                LeaseState::Held { .. } | LeaseState::Idle => {}
                LeaseState::Lost { error } => {
                    self.status.set(Status::lost(error.clone()));
                    if !self.was_registered && !error.is_retryable() {
                        self.answer_waiting(&Err(error));
                        return None;
                    }
                }
            }
            tokio::select! {
                biased;
                order = self.orders.recv() => match order {
                    Some(Order::Update(instance, reply)) => {
                        self.instance = instance;
                        self.waiting.push(reply);
                    }
                    Some(Order::Deregister(reply)) => {
                        self.leave(reply).await;
                        return None;
                    }
                    None => return None,
                },
                () = closes(&mut self.closing) => return None,
                Ok(()) = self.states.changed() => {}
                () = sleep_until(resumes.unwrap_or_else(Instant::now)), if resumes.is_some() => {}
            }
        }
    }

    /// Keeps the instance registered under a lease, until that is lost or the registration ends.
    async fn keep(&mut self, lease: i64) -> Ended {
        let Ok(mut term) = self.begin(lease) else { return Ended::ForGood };
        loop {
            tokio::select! {
                biased;
                order = self.orders.recv() => match order {
                    Some(Order::Update(instance, reply)) => self.update(&term, instance, reply),
                    Some(Order::Deregister(reply)) => {
                        term.release(Some(reply));
                        return Ended::ForGood;
                    }
                    None => {
                        term.release(None);
                        return Ended::ForGood;
                    }
                },
                result = of_claim(&mut term.claimed) => {
                    term.claimed = None;
                    match result {
                        Ok(()) => self.registered(),
                        Err(error) if self.was_registered => {
                            self.status.set(Status::lost(error));
                            self.resumes = Some(Instant::now() + self.registrar.backoff.max());
                            return Ended::ForNow;
                        }
                        Err(error) => {
                            self.answer_waiting(&Err(error));
                            return Ended::ForGood;
                        }
                    }
                }
                result = of_update(&mut self.update) => self.updated(result),
                status = term.statuses.changed() => match status {
                    Some(status) => {
                        let is_final = status.is_final();
                        self.status.set(status);
                        if is_final {
                            return Ended::ForGood;
                        }
                    }
                    None => return Ended::ForGood,
                },
                Ok(()) = self.states.changed() => {
                    if !matches!(*self.states.borrow(), LeaseState::Held { id } if id == term.lease) {
                        self.leaving = Some(self.abandon(&term));
                        return Ended::ForNow;
                    }
                }
            }
        }
    }

    /// Writes the instance under a lease.
    fn begin(&mut self, lease: i64) -> Result<Term, Error> {
        let Written { tail, value } = self.registrar.written(&self.service, &self.instance, lease)?;
        let range = self.registrar.layout.range(&self.service);
        let key = format!("{}{range}{tail}", self.registrar.prefix);
        let place = Place { service: self.service.clone(), id: self.instance.id().clone(), key, lease: Some(lease) };
        let number = self.registrar.number();
        let status = StatusWriter::new(Status::lost(unanswered()));
        let statuses = status.statuses();
        let (reply, claimed) = oneshot::channel();
        let command = Command::Claim { number, value, claim: Claim::TakeOver, status, reply };
        let commands = self.registrar.send(place, &self.lease, command)?;
        Ok(Term { lease, number, commands, statuses, claimed: Some(claimed) })
    }

    fn registered(&mut self) {
        if self.was_registered {
            info!(service = %self.service, id = %self.instance.id(), "registered again");
        }
        self.was_registered = true;
        self.resumes = None;
        self.answer_waiting(&Ok(()));
    }

    fn update(&mut self, term: &Term, instance: Arc<Instance>, reply: Reply) {
        let written = match self.registrar.written(&self.service, &instance, term.lease) {
            Ok(written) => written,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let (own, answer) = oneshot::channel();
        // A worker that has ended drops the command, and with it the answer.
        let _ = term.commands.send(Command::Update { number: term.number, value: written.value, reply: own });
        // The caller of a former update has stopped waiting: updates follow one another.
        self.update = Some(PendingUpdate { instance, answer, reply });
    }

    /// Handles the worker's answer to an update; an error if it will give none.
    fn updated(&mut self, result: Result<Result<(), Error>, oneshot::error::RecvError>) {
        let Some(PendingUpdate { instance, reply, .. }) = self.update.take() else { return };
        match result {
            Ok(Ok(())) => self.instance = instance,
            Ok(Err(error)) => return drop(reply.send(Err(error))),
            Err(_) => {
                // It is written under the next lease.
                self.instance = instance;
                return self.waiting.push(reply);
            }
        }
        // The caller may have stopped waiting.
        let _ = reply.send(Ok(()));
    }

    /// Leaves an entry whose lease was lost, and returns where the worker reports that it is gone.
    fn abandon(&mut self, term: &Term) -> Answer {
        if let Some(PendingUpdate { instance, reply, .. }) = self.update.take() {
            self.instance = instance;
            self.waiting.push(reply);
        }
        if let LeaseState::Lost { error } = &*self.states.borrow() {
            self.status.set(Status::lost(error.clone()));
        }
        let (reply, gone) = oneshot::channel();
        term.release(Some(reply));
        gone
    }

    /// Deregisters while no entry is written. One under a lease that was lost may still be there.
    async fn leave(&mut self, reply: Reply) {
        let result = match self.leaving.take() {
            Some(gone) => gone.await.unwrap_or(Ok(())),
            None => Ok(()),
        };
        // The caller may have stopped waiting.
        let _ = reply.send(result);
    }

    fn answer_waiting(&mut self, result: &Result<(), Error>) {
        for reply in self.waiting.drain(..) {
            // The caller may have stopped waiting.
            let _ = reply.send(result.clone());
        }
    }
}

impl Term {
    fn release(&self, reply: Option<Reply>) {
        // A worker that has ended has nothing to release.
        let _ = self.commands.send(Command::Release { number: Some(self.number), reply });
    }
}

/// Waits for the answer to a claim; never, if there is none to come. Cancel safe.
async fn of_claim(claimed: &mut Option<Answer>) -> Result<(), Error> {
    match claimed {
        Some(answer) => answer.await.unwrap_or_else(|_| Err(runtime_gone())),
        None => std::future::pending().await,
    }
}

/// Waits for the answer to an update; never, if there is none. Cancel safe.
async fn of_update(update: &mut Option<PendingUpdate>) -> Result<Result<(), Error>, oneshot::error::RecvError> {
    match update {
        Some(update) => (&mut update.answer).await,
        None => std::future::pending().await,
    }
}

/// Waits until the handle closes. Cancel safe.
async fn closes(closing: &mut watch::Receiver<bool>) {
    // The task keeps the sender alive.
    let _ = closing.wait_for(|closing| *closing).await;
}

fn unanswered() -> Error {
    Error::new(ErrorKind::DeadlineExceeded, "etcd has not answered yet")
}

impl Handle {
    fn gone(&self) -> Error {
        match self.status.current() {
            Status::Superseded { .. } => super::entry::superseded(),
            Status::Deregistered { .. } => closed_error(),
            _ => runtime_gone(),
        }
    }
}

#[async_trait]
impl RegistrationBackend for Handle {
    async fn update(&self, instance: Arc<Instance>) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let sent = self.orders.send(Order::Update(instance, reply));
        let result = match sent {
            Ok(()) => timeout(self.registrar.deadline, answer).await,
            Err(_) => return Err(self.gone().with_operation("update")),
        };
        match result {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(self.gone()),
            Err(_) => {
                let message = format!("not written within {:?}; the backend keeps trying", self.registrar.deadline);
                Err(Error::new(ErrorKind::DeadlineExceeded, message))
            }
        }
        .map_err(|error| error.with_operation("update"))
    }

    async fn deregister(&self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let ended = || match self.status.current() {
            Status::Deregistered { .. } | Status::Superseded { .. } => Ok(()),
            _ => Err(runtime_gone()),
        };
        if self.orders.send(Order::Deregister(reply)).is_err() {
            return ended();
        }
        match timeout(self.registrar.deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => ended(),
            Err(_) => Err(self.registrar.too_late_under(&self.lease, "not removed")),
        }
        .map_err(|error| error.with_operation("deregister"))
    }

    fn release(&self) {
        // The sender is dropped next, and that is the request.
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistrationHandle").field("status", &self.status).finish_non_exhaustive()
    }
}
