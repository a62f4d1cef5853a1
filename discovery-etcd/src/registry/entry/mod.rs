mod answer;
mod command;
mod known;
mod late_write;
mod loss_log;
mod owner;
mod ownership;
mod pacing;
mod watched;

use std::{sync::Arc, time::Duration};

use discovery_core::{Backoff, Error, ErrorKind, InstanceId, ServiceName, Status};
use tokio::time::Instant;

pub(super) use command::{Command, Reply};
use known::Known;
use late_write::LateWrite;
use loss_log::LossLog;
use ownership::Ownership;
use pacing::Pacing;
use watched::{Attend, Watched};

use super::{
    decide::{Act, Intent, Seen, decide},
    in_flight::Urgency,
};
use crate::lease::{Lease, LeaseState};

/// What a handle knows and wants of one entry: every decision about it, without the I/O.
///
/// Several registrations of one id follow one another here, each the owner from its claim on, and the former one superseded from
/// its first write on; between handles the entry's lease decides.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) place: Place,
    lease: Arc<Lease>,
    ownership: Ownership,
    known: Known,
    pacing: Pacing,
    watched: Watched,
    /// A lease that etcd did not know; another one is to come.
    dead: Option<i64>,
    late_write: LateWrite,
    losses: LossLog,
}

/// Which entry it is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) service: ServiceName,
    pub(super) id: InstanceId,
    pub(super) key: String,
}

/// What to do next about an entry.
#[derive(Debug)]
pub(super) enum Next {
    /// Nothing is left to do, now or later.
    Exit,
    /// Read the entry.
    Read,
    /// Delete it, if it still is under this lease and of this revision.
    Remove { lease: i64, revision: i64 },
    /// Wait for news, at most until then.
    Wait(Option<Instant>),
    /// Watch it from this revision on, which is known, in place of any former watch. From the next one on, some releases leave out
    /// a removal up to which history is compacted.
    Watch(i64),
    /// Put this value under this lease, if the entry still is of this revision.
    Write { value: Vec<u8>, lease: i64, revision: i64 },
}

impl Entry {
    pub(super) fn new(place: Place, lease: Arc<Lease>, backoff: Backoff) -> Self {
        Self {
            place,
            lease,
            ownership: Ownership::Vacant { since: None },
            known: Known::new(),
            pacing: Pacing::new(backoff),
            watched: Watched::new(),
            dead: None,
            late_write: LateWrite::default(),
            losses: LossLog::default(),
        }
    }

    /// What to do now, by all that is known.
    pub(super) fn next(&mut self, lease: &LeaseState) -> Next {
        loop {
            match self.step(lease) {
                Ok(next) => return next,
                Err(act) => self.settle(act),
            }
        }
    }

    /// What to do now, or what is certain now.
    fn step(&mut self, lease: &LeaseState) -> Result<Next, Act> {
        let pause = self.pacing.pause();
        let owner = match &mut self.ownership {
            Ownership::Owned(owned) => &mut owned.owner,
            Ownership::Leaving { lease, .. } => {
                let remove = Next::Remove { lease: *lease, revision: self.known.written() };
                return Ok(pause.map_or(remove, |until| Next::Wait(Some(until))));
            }
            Ownership::Vacant { .. } => return Ok(self.watch_for_late_write(lease)),
        };
        let id = match lease {
            LeaseState::RegistrationBackend { id } if self.dead != Some(*id) => *id,
            LeaseState::RegistrationBackend { .. } | LeaseState::Idle => return Ok(Next::Wait(None)),
            LeaseState::Lost { error } => {
                self.lost(error.clone());
                // Given up where it cannot become one.
                return if self.ownership.owner().is_some() { Ok(Next::Wait(None)) } else { self.step(lease) };
            }
        };
        if owner.held == Some(id) {
            return Ok(self.attend(id));
        }
        if owner.held.take().is_some() {
            // Another lease came without a moment in which there was none to see.
            self.known.forget();
        }
        if let Some(until) = pause {
            return Ok(Next::Wait(Some(until)));
        }
        let seen = self.known.seen();
        match decide(owner.intent, seen, &owner.value, id, |lease| self.lease.is_own(lease)) {
            Act::Write(revision) => {
                // After a write that was not answered the next one is for the same state of the
                // entry: if it is late too, it is not done to what came since.
                let same = self.late_write.repeated(id).filter(|_| seen == Seen::Nothing);
                let revision = same.unwrap_or(revision);
                self.late_write.begin(id, revision);
                Ok(Next::Write { value: owner.value.clone(), lease: id, revision })
            }
            act => Err(act),
        }
    }

    /// What to do about an entry that is gone: watch for a write that comes back from the dead.
    fn watch_for_late_write(&mut self, lease: &LeaseState) -> Next {
        match (self.late_write.lease(), lease) {
            (Some(doubt), LeaseState::RegistrationBackend { id }) if *id == doubt => self.attend(doubt),
            _ => Next::Exit,
        }
    }

    /// Whether a write that may still be done is all that is left of it.
    pub(super) fn is_in_doubt(&self) -> bool {
        matches!(self.ownership, Ownership::Vacant { .. }) && self.late_write.lease().is_some()
    }

    /// Keeps an eye on the entry, which is under this lease or may come to be.
    fn attend(&mut self, lease: i64) -> Next {
        match self.watched.attend(lease) {
            Attend::Watch => {
                self.watched.begin(lease);
                Next::Watch(self.known.revision().max(1))
            }
            Attend::Read(at) if at <= Instant::now() => Next::Read,
            Attend::Read(at) => Next::Wait(Some(at)),
            Attend::Listen => Next::Wait(None),
        }
    }

    /// The revision up to which it is known what became of the entry.
    pub(super) fn known(&self) -> i64 {
        self.known.revision()
    }

    /// Whether what is to be done is waited for by somebody.
    pub(super) fn urgency(&self) -> Urgency {
        match &self.ownership {
            Ownership::Owned(owned) if owned.owner.intent == Intent::Heal && owned.owner.waiting.is_empty() => {
                Urgency::Repair
            }
            Ownership::Owned(_) | Ownership::Leaving { .. } => Urgency::Wanted,
            Ownership::Vacant { .. } => Urgency::Repair,
        }
    }

    /// When a removal is given up that nobody confirms, since the lease ends the entry; `None`
    /// while that is renewed for others.
    pub(super) fn gives_up(&self, lease: &LeaseState) -> Option<Instant> {
        let Ownership::Leaving { lease: left, since, .. } = &self.ownership else { return None };
        if matches!(lease, LeaseState::RegistrationBackend { id } if id == left) {
            return None;
        }
        // By then the lease has ended.
        let patience = self.lease.granted().unwrap_or_default() * 2 + Duration::from_secs(10);
        Some(since.map_or_else(Instant::now, |since| since + patience))
    }

    /// Leaves the entry to its lease, and says so to those who wait for its end.
    pub(super) fn give_removal_up(&mut self) {
        let error =
            Error::new(ErrorKind::DeadlineExceeded, "etcd did not confirm the removal; the lease ends the entry");
        self.ownership.end_removal(&Err(error));
    }

    /// Forgets a pause, because the lease changed.
    pub(super) fn resume(&mut self) {
        self.pacing.resume();
    }

    /// The lease is lost, and the entry with it.
    fn lost(&mut self, error: Error) {
        let Ownership::Owned(owned) = &mut self.ownership else { return };
        let owner = &mut owned.owner;
        if owner.held.take().is_some() {
            self.losses.lost(&self.place, &error);
        }
        self.known.forget();
        self.late_write.move_on();
        self.dead = None;
        let is_final = is_final(&error);
        for owner in owned.former.iter().chain([&*owner]) {
            owner.status.set(Status::lost(error.clone()));
        }
        if owner.intent != Intent::Heal && is_final {
            self.give_up(error);
        }
    }

    /// A registration that never was cannot become one.
    fn give_up(&mut self, error: Error) {
        if let Some(owner) = self.ownership.owner_mut() {
            answer(owner.waiting.drain(..), &Err(error));
        }
        self.release();
    }

    /// Forgets that the entry has a watch.
    pub(super) fn leave(&mut self) {
        self.watched.leave();
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // In order, there is no owner any more. Else the runtime went, and nobody keeps the entry.
        let Ownership::Owned(owned) = &self.ownership else { return };
        for owner in owned.former.iter().chain([&owned.owner]) {
            owner.status.set(Status::lost(Error::new(
                ErrorKind::Internal,
                "the runtime that kept the registration was shut down",
            )));
        }
    }
}

fn answer(replies: impl IntoIterator<Item = Reply>, result: &Result<(), Error>) {
    for reply in replies {
        // Who asked may have given up.
        let _ = reply.send(result.clone());
    }
}

fn conflict() -> Error {
    Error::new(ErrorKind::Conflict, "another owner's entry lives")
}

pub(super) fn superseded() -> Error {
    Error::new(ErrorKind::Conflict, "another owner took the id over")
}

/// Whether trying again cannot help before somebody changes something.
fn is_final(error: &Error) -> bool {
    !error.is_retryable()
}

/// How long a watch, or the stream that carries it, lasts that is not one of many that end at once.
pub(super) const STEADY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
