//! What a server has in the registry: an entry under each of its services.

use std::{mem, sync::Arc};

use discovery_core::{Claim, Error, ErrorKind, Instance, Registration, Registry, RegistryExt, ServiceName, Status};
use futures::future::{BoxFuture, join_all};
use tokio::{sync::watch, time::Instant};
use tracing::warn;

use super::{
    config::ServerConfig,
    readiness::Presence,
    standing::{History, Standing, is_missing},
};

/// The entries of a server, which are all of the same instance.
pub(super) struct Entries {
    phase: Phase,
    /// What the user wants, without regard to readiness.
    wanted: Instance,
    presence: Presence,
    slots: Vec<Slot>,
    backend: Backend,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// Nothing is registered before the server is ready.
    Planned,
    Kept,
    /// The server has left the registry for good.
    Left,
}

/// What all entries share.
struct Backend {
    registry: Arc<dyn Registry>,
    if_supported: bool,
    standings: watch::Sender<Vec<Standing>>,
}

/// The entry under one service.
struct Slot {
    number: usize,
    service: ServiceName,
    state: State,
    /// The claim of the next registration. Whatever was written once is not taken over again from
    /// the owner who has it since.
    claim: Claim,
    history: Arc<History>,
    /// When the last entry was removed; `None` while there may be one.
    removed: Option<Instant>,
}

enum State {
    Absent,
    /// Held here rather than in the future that awaits it, so that a server that stops meanwhile
    /// awaits the same removal.
    Leaving(BoxFuture<'static, Result<(), Error>>),
    /// The backend refused the registration without asking the registry.
    Refused(Error),
    Registered(Registration),
}

/// What a server's departure means for its clients.
#[derive(Clone, Copy, Debug)]
pub(super) enum Departure {
    /// It has been out of the registry since then.
    Confirmed(Instant),
    /// No client learned of it from the registry.
    NeverListed,
    /// Clients may not notice that it left.
    Unconfirmed,
}

/// The entry of a slot, compared with the wanted one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Held {
    Absent,
    Current,
    Leaving,
    /// The registration gave way to an entry that an earlier one left behind.
    Leftover,
    Outdated,
    Superseded,
    Unsupported,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    AwaitRemoval,
    Done,
    Leave,
    Register,
    Update,
}

/// Decides the next step towards an entry that is wanted, or towards none.
fn step(is_wanted: bool, held: Held) -> Step {
    match (is_wanted, held) {
        (_, Held::Leaving) => Step::AwaitRemoval,
        (_, Held::Unsupported) => Step::Done,
        (true, Held::Absent | Held::Leftover) => Step::Register,
        (true, Held::Current) => Step::Done,
        // The update of a superseded registration fails, which is the answer to it.
        (true, Held::Outdated | Held::Superseded) => Step::Update,
        (false, Held::Current | Held::Outdated) => Step::Leave,
        (false, Held::Absent | Held::Leftover | Held::Superseded) => Step::Done,
    }
}

impl Entries {
    pub(super) fn new(config: &ServerConfig, instance: Instance) -> Self {
        let slot = |(number, service): (usize, &ServiceName)| Slot {
            number,
            service: service.clone(),
            state: State::Absent,
            claim: config.claim,
            history: Arc::default(),
            removed: None,
        };
        let slots: Vec<Slot> = config.services.iter().enumerate().map(slot).collect();
        let standing = Standing::Absent(Status::lost(not_registered()));
        let backend = Backend {
            registry: Arc::clone(&config.registry),
            if_supported: config.if_supported,
            standings: watch::Sender::new(vec![standing; slots.len()]),
        };
        Self { phase: Phase::Planned, wanted: instance, presence: Presence::Present, slots, backend }
    }

    /// Returns where the registrations stand, from now on, in the order of the services.
    pub(super) fn standings(&self) -> watch::Receiver<Vec<Standing>> {
        self.backend.standings.subscribe()
    }

    /// Brings all entries to what is wanted at this readiness. Returns the errors of those that
    /// failed.
    pub(super) async fn follow(&mut self, presence: Presence) -> Vec<Error> {
        self.phase = Phase::Kept;
        self.presence = presence;
        self.reconcile(false).await
    }

    /// Changes the wanted instance, and with it all entries. Returns the first error.
    ///
    /// Dropped before completion, the change stays wanted.
    pub(super) async fn update(&mut self, change: impl FnOnce(Instance) -> Instance) -> Result<(), Error> {
        if self.phase == Phase::Left {
            return Err(left());
        }
        let unsupported: Vec<Error> = self.slots.iter().filter_map(|slot| slot.unsupported(&self.backend)).collect();
        if unsupported.len() == self.slots.len() {
            let message = "the server is not registered, so there is nothing to update";
            return Err(Error::new(ErrorKind::Unsupported, message).with_source(unsupported[0].clone()));
        }
        let after = change(self.wanted.clone());
        if (after.id(), after.address()) != (self.wanted.id(), self.wanted.address()) {
            let message = "an update may change only weight and metadata";
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let before = mem::replace(&mut self.wanted, after);
        if self.phase == Phase::Planned {
            return Ok(());
        }
        let errors = self.reconcile(true).await;
        // Some service has the former values for good, so a repeated update starts from them. A
        // superseded registration has no values to agree with.
        if errors.iter().any(|error| !error.is_retryable() && error.kind() != ErrorKind::Conflict) {
            self.wanted = before;
        }
        errors.into_iter().next().map_or(Ok(()), Err)
    }

    /// Leaves the registry for good: removes all entries at the same time.
    ///
    /// Dropped before completion, the removals continue while `self` lives; after that, the backend
    /// continues them.
    pub(super) async fn leave(&mut self) -> Departure {
        self.phase = Phase::Left;
        for slot in &mut self.slots {
            slot.begin_to_leave(&self.backend);
        }
        join_all(self.slots.iter_mut().map(Slot::removed)).await;
        let listed = self.slots.iter().filter(|slot| slot.history.was_registered());
        listed.fold(Departure::NeverListed, |departure, slot| match (departure, slot.removed) {
            (Departure::Unconfirmed, _) | (_, None) => Departure::Unconfirmed,
            (Departure::NeverListed, Some(since)) => Departure::Confirmed(since),
            (Departure::Confirmed(one), Some(other)) => Departure::Confirmed(one.max(other)),
        })
    }

    /// Leaves the registry for good without waiting for it.
    pub(super) fn abandon(&mut self) {
        self.phase = Phase::Left;
        for slot in &mut self.slots {
            slot.state = State::Absent;
        }
    }

    /// Brings all entries to what is wanted; `rewrite` also writes those that should have it
    /// already, since the answer confirms it.
    async fn reconcile(&mut self, rewrite: bool) -> Vec<Error> {
        let wanted = self.presence.of(&self.wanted);
        let brought = self.slots.iter_mut().map(|slot| slot.bring(wanted.as_ref(), rewrite, &self.backend));
        let results = join_all(brought).await;
        results.into_iter().filter_map(Result::err).collect()
    }
}

impl Slot {
    async fn bring(&mut self, wanted: Option<&Instance>, rewrite: bool, backend: &Backend) -> Result<(), Error> {
        loop {
            let step = step(wanted.is_some(), self.held(wanted, rewrite, backend));
            match (step, wanted, &self.state) {
                (Step::Register, Some(instance), _) => return self.register(instance, backend),
                (Step::Update, Some(instance), State::Registered(registration)) => {
                    let updated = registration.update(|_| instance.clone()).await;
                    return updated.map_err(|error| error.with_service(&self.service));
                }
                (Step::Leave, ..) => self.begin_to_leave(backend),
                (Step::AwaitRemoval, ..) => self.removed().await,
                _ => return Ok(()),
            }
        }
    }

    fn held(&self, wanted: Option<&Instance>, rewrite: bool, backend: &Backend) -> Held {
        if self.unsupported(backend).is_some() {
            return Held::Unsupported;
        }
        let registration = match &self.state {
            State::Absent | State::Refused(_) => return Held::Absent,
            State::Leaving(_) => return Held::Leaving,
            State::Registered(registration) => registration,
        };
        match registration.status() {
            Status::Superseded { .. } if self.history.has_leftover() => Held::Leftover,
            Status::Superseded { .. } => Held::Superseded,
            _ if rewrite || wanted.is_some_and(|wanted| *wanted != *registration.instance()) => Held::Outdated,
            _ => Held::Current,
        }
    }

    /// Returns the refusal of a backend that supports no registrations, if the server goes without.
    fn unsupported(&self, backend: &Backend) -> Option<Error> {
        let refusal = match &self.state {
            State::Absent | State::Leaving(_) => None,
            State::Refused(error) => Some(error.clone()),
            State::Registered(registration) => match registration.status() {
                Status::Lost { error, .. } if !self.history.was_registered() => Some(error),
                _ => None,
            },
        };
        refusal.filter(|error| is_missing(error, backend.if_supported))
    }

    /// Starts a registration that is written as soon as the registry can be reached.
    fn register(&mut self, instance: &Instance, backend: &Backend) -> Result<(), Error> {
        let registration = backend.registry.keep_registered(&self.service, instance.clone(), self.claim);
        match registration {
            Ok(registration) => {
                self.removed = None;
                let standing =
                    Standing::Registration { statuses: registration.statuses(), history: Arc::clone(&self.history) };
                self.state = State::Registered(registration);
                self.publish(standing, backend);
                Ok(())
            }
            Err(error) => {
                self.state = State::Refused(error.clone());
                self.publish(Standing::Absent(Status::lost(error.clone())), backend);
                if is_missing(&error, backend.if_supported) { Ok(()) } else { Err(error.with_service(&self.service)) }
            }
        }
    }

    fn begin_to_leave(&mut self, backend: &Backend) {
        match mem::replace(&mut self.state, State::Absent) {
            State::Registered(registration) => {
                let is_written = match registration.status() {
                    Status::Registered { .. } => true,
                    // Only what was written can be superseded, except by a claim that gives way.
                    Status::Superseded { .. } => self.claim == Claim::TakeOver,
                    _ => false,
                };
                if is_written {
                    self.history.registered();
                }
                if self.history.was_registered() {
                    self.claim = Claim::IfAbsent;
                }
                self.publish(Standing::Absent(Status::lost(not_serving())), backend);
                self.state = State::Leaving(Box::pin(registration.deregister()));
            }
            other => self.state = other,
        }
    }

    /// Waits for the removal that is under way.
    async fn removed(&mut self) {
        let State::Leaving(removal) = &mut self.state else { return };
        let result = removal.await;
        self.state = State::Absent;
        match result {
            Ok(()) => self.removed = Some(Instant::now()),
            Err(error) => {
                self.history.left_behind();
                warn!(service = %self.service, error = %error.report(), "deregistering not confirmed");
            }
        }
    }

    fn publish(&self, standing: Standing, backend: &Backend) {
        backend.standings.send_modify(|standings| standings[self.number] = standing);
    }
}

pub(super) fn not_registered() -> Error {
    Error::new(ErrorKind::Unavailable, "the server has not registered yet")
}

fn not_serving() -> Error {
    Error::new(ErrorKind::Unavailable, "the server has left the registry, since it reports that it is not serving")
}

pub(super) fn left() -> Error {
    Error::new(ErrorKind::Closed, "the server has left the registry")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_entry_is_brought_to_what_is_wanted_step_by_step() {
        for (held, wanted, unwanted) in [
            (Held::Absent, Step::Register, Step::Done),
            (Held::Current, Step::Done, Step::Leave),
            (Held::Leaving, Step::AwaitRemoval, Step::AwaitRemoval),
            (Held::Leftover, Step::Register, Step::Done),
            (Held::Outdated, Step::Update, Step::Leave),
            (Held::Superseded, Step::Update, Step::Done),
            (Held::Unsupported, Step::Done, Step::Done),
        ] {
            assert_eq!((step(true, held), step(false, held)), (wanted, unwanted), "{held:?}");
        }
    }
}
