//! Every decision about one entry, without the I/O. It is a state machine: the worker asks
//! [`Entry::next`] what to do, does it, and hands the result back.
//!
//! [`command`] handles what registrations ask for and what the watch reports, [`mod@answer`] the
//! answers of etcd. The state consists of the registration that owns the entry ([`ownership`],
//! [`owner`]), what is known of the entry in etcd ([`known`]), writes that may still be applied
//! ([`late_write`]), the watch ([`watched`]) and the backoff ([`pacing`]). [`loss_log`] logs
//! losses.

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

/// What a handle knows about one entry, and what it wants the entry to be.
///
/// Within a handle, several registrations of one id may follow one another. Each is the owner from
/// its claim on, and the former owner is superseded once the new one is written. Between handles,
/// the lease of the entry decides who owns it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) place: Place,
    lease: Arc<Lease>,
    ownership: Ownership,
    known: Known,
    pacing: Pacing,
    watched: Watched,
    /// A lease that etcd did not know; the keeper will grant another one.
    dead: Option<i64>,
    late_write: LateWrite,
    losses: LossLog,
}

/// Identifies an entry.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) service: ServiceName,
    pub(super) id: InstanceId,
    pub(super) key: String,
    /// The only lease under which the entry may be written, if the key holds it.
    pub(super) lease: Option<i64>,
}

/// What to do next about an entry.
#[derive(Debug)]
pub(super) enum Next {
    /// Nothing is left to do, now or later; the worker may end.
    Exit,
    /// Read the entry.
    Read,
    /// Delete the entry if it still has this lease and this revision.
    Remove { lease: i64, revision: i64 },
    /// Wait for news, until this time at the latest.
    Wait(Option<Instant>),
    /// Watch the entry from this revision, replacing any former watch. The revision itself is
    /// already known, but some releases of etcd lose a removal if history is compacted right before
    /// the revision at which a watch begins.
    Watch(i64),
    /// Put this value under this lease if the entry still has this revision; 0 means no entry.
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

    /// Returns what to do now, and first settles what is already certain.
    pub(super) fn next(&mut self, lease: &LeaseState) -> Next {
        loop {
            match self.step(lease) {
                Ok(next) => return next,
                Err(act) => self.settle(act),
            }
        }
    }

    /// Returns what to do now, or as an error an outcome that is certain and must be settled first.
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
            LeaseState::Held { id } if self.place.lease.is_some_and(|own| own != *id) => return Ok(Next::Wait(None)),
            LeaseState::Held { id } if self.dead != Some(*id) => *id,
            LeaseState::Held { .. } | LeaseState::Idle => return Ok(Next::Wait(None)),
            LeaseState::Lost { error } => {
                self.lost(error.clone());
                // `lost` may have given up the owner, if it was never written. Then step again.
                return if self.ownership.owner().is_some() { Ok(Next::Wait(None)) } else { self.step(lease) };
            }
        };
        if owner.held == Some(id) {
            return Ok(self.attend(id));
        }
        if owner.held.take().is_some() {
            // The lease was replaced without a visible time in between, so the entry may be gone.
            self.known.forget();
        }
        if let Some(until) = pause {
            return Ok(Next::Wait(Some(until)));
        }
        let seen = self.known.seen();
        match decide(owner.intent, seen, &owner.value, id, |lease| self.lease.is_own(lease)) {
            Act::Write(revision) => {
                // After an unanswered write, the next one keeps the same guard unless the entry was
                // seen meanwhile. If it is late too, it cannot overwrite what was written since.
                let same = self.late_write.repeated(id).filter(|_| seen == Seen::Nothing);
                let revision = same.unwrap_or(revision);
                self.late_write.begin(id, revision);
                Ok(Next::Write { value: owner.value.clone(), lease: id, revision })
            }
            act => Err(act),
        }
    }

    /// Returns what to do about an entry without an owner: watch it while an unanswered write may
    /// still be applied, which is as long as its lease lives.
    fn watch_for_late_write(&mut self, lease: &LeaseState) -> Next {
        match (self.late_write.lease(), lease) {
            (Some(doubt), LeaseState::Held { id }) if *id == doubt => self.attend(doubt),
            _ => Next::Exit,
        }
    }

    /// Whether the entry matters only because an unanswered write may still be applied.
    pub(super) fn is_in_doubt(&self) -> bool {
        matches!(self.ownership, Ownership::Vacant { .. }) && self.late_write.lease().is_some()
    }

    /// Watches the entry, which is under this lease or may be written under it late.
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

    /// The revision up to which all changes of the entry are known.
    pub(super) fn known(&self) -> i64 {
        self.known.revision()
    }

    /// Whether a caller waits for the next request.
    pub(super) fn urgency(&self) -> Urgency {
        match &self.ownership {
            Ownership::Owned(owned) if owned.owner.intent == Intent::Heal && owned.owner.waiting.is_empty() => {
                Urgency::Repair
            }
            Ownership::Owned(_) | Ownership::Leaving { .. } => Urgency::Wanted,
            Ownership::Vacant { .. } => Urgency::Repair,
        }
    }

    /// Returns when to give up a removal that etcd does not confirm, because the lease ends the
    /// entry anyway; `None` while the lease is renewed for other registrations.
    pub(super) fn gives_up(&self, lease: &LeaseState) -> Option<Instant> {
        let Ownership::Leaving { lease: left, since, .. } = &self.ownership else { return None };
        if matches!(lease, LeaseState::Held { id } if id == left) {
            return None;
        }
        // The lease has expired by then, with a margin.
        let patience = self.lease.granted().unwrap_or_default() * 2 + Duration::from_secs(10);
        Some(since.map_or_else(Instant::now, |since| since + patience))
    }

    /// Leaves the entry to its lease, and fails the callers that wait for the removal.
    pub(super) fn give_removal_up(&mut self) {
        let error =
            Error::new(ErrorKind::DeadlineExceeded, "etcd did not confirm the removal; the lease ends the entry");
        self.ownership.end_removal(&Err(error));
    }

    /// Ends a pause early, because the lease changed.
    pub(super) fn resume(&mut self) {
        self.pacing.resume();
    }

    /// Handles the loss of the lease, and of the entry with it.
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

    /// Fails and ends a registration that was never written and cannot be.
    fn give_up(&mut self, error: Error) {
        if let Some(owner) = self.ownership.owner_mut() {
            answer(owner.waiting.drain(..), &Err(error));
        }
        self.release();
    }

    /// Records that the watch of the entry was dropped.
    pub(super) fn leave(&mut self) {
        self.watched.leave();
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // A worker that ends by itself leaves no owner. Otherwise the runtime was shut down, and
        // nobody keeps the entry.
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
        // The caller may have stopped waiting.
        let _ = reply.send(result.clone());
    }
}

fn conflict() -> Error {
    Error::new(ErrorKind::Conflict, "another owner's entry exists")
}

pub(super) fn superseded() -> Error {
    Error::new(ErrorKind::Conflict, "another owner took the id over")
}

/// Whether the same request will fail again until somebody intervenes.
fn is_final(error: &Error) -> bool {
    !error.is_retryable()
}

/// A watch that lasts this long, or an entry that nobody removes for this long, resets its backoff.
pub(super) const STEADY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
