//! What registrations and the watch mean for the entry.

use discovery_core::{Claim, Error, ErrorKind, Status, backend::StatusWriter};
use tokio::sync::oneshot;

use super::{
    Entry, answer, conflict,
    owner::{Former, Owner},
    ownership::Ownership,
    superseded,
};
use crate::{client::KeyValue, registry::decide::Intent};

/// Where a caller waits for the outcome of its command.
pub(in crate::registry) type Reply = oneshot::Sender<Result<(), Error>>;

/// A command to the worker of an entry.
#[derive(Debug)]
pub(in crate::registry) enum Command {
    /// Register: make this registration the owner.
    Claim { number: u64, value: Vec<u8>, claim: Claim, status: StatusWriter, reply: Reply },
    /// End the registration of this number, or with `None` every registration of the entry.
    Release { number: Option<u64>, reply: Option<Reply> },
    /// Stop watching for an unanswered write, unless the entry has an owner.
    Forget,
    /// Write another value for a registration.
    Update { number: u64, value: Vec<u8>, reply: Reply },
}

/// Commands, and changes that the watch reports.
impl Entry {
    /// Handles a command.
    pub(in crate::registry) fn take(&mut self, command: Command) {
        match command {
            Command::Claim { number, value, claim, status, reply } => self.claim(number, value, claim, status, reply),
            Command::Update { number, value, reply } => self.update(number, value, reply),
            Command::Release { number, reply } => {
                let is_meant = |owner: &Owner| number.is_none_or(|number| owner.number == number);
                let former = self.ownership.take_former_if(is_meant);
                let waits_for_former = former.is_some();
                if let Some(former) = former {
                    former.release();
                }
                if self.ownership.owner().is_some_and(is_meant) {
                    self.release();
                }
                match (&mut self.ownership, reply) {
                    // The former owner's entry is replaced by the owner's first write, or removed
                    // with the owner. The caller is answered then.
                    (Ownership::Owned(owned), Some(reply)) if waits_for_former => owned.leaving.push(reply),
                    (Ownership::Leaving { waiting, .. }, Some(reply)) => waiting.push(reply),
                    (_, reply) => answer(reply, &Ok(())),
                }
            }
            Command::Forget => {
                if self.ownership.owner().is_none() {
                    self.late_write.forget();
                }
            }
        }
    }

    /// Handles a change that the watch reports.
    pub(in crate::registry) fn changed(&mut self, revision: i64, row: Option<KeyValue>) {
        // This may also be a write of our own whose answer was lost.
        if revision > self.known.revision() {
            self.known.hear(revision);
            self.seen(row);
        }
    }

    /// Records that the watch ended, so that the entry must be read.
    pub(in crate::registry) fn unwatched(&mut self) {
        self.watched.lose();
    }

    fn claim(&mut self, number: u64, value: Vec<u8>, claim: Claim, status: StatusWriter, reply: Reply) {
        if reply.is_closed() {
            return;
        }
        let intent = Intent::from(claim);
        if intent == Intent::IfAbsent && self.ownership.owner().is_some() {
            return answer([reply], &Err(conflict()));
        }
        // Enter before the former owner leaves, or the lease would be without users and be revoked.
        let user = self.lease.enter();
        let owner =
            Owner { number, value, intent, status, waiting: vec![reply], held: None, before: None, _user: user };
        self.ownership.claim(owner);
        self.known.forget();
        self.pacing.restart();
        self.late_write.move_on();
    }

    fn update(&mut self, number: u64, value: Vec<u8>, reply: Reply) {
        let Ownership::Owned(owned) = &mut self.ownership else {
            return answer([reply], &Err(superseded()));
        };
        if let Some(former) = owned.former.as_mut().filter(|former| former.number == number) {
            former.before = Some(Former { value: std::mem::replace(&mut former.value, value), stands: None });
            former.waiting.push(reply);
            return;
        }
        let owner = &mut owned.owner;
        if owner.number != number {
            return answer([reply], &Err(superseded()));
        }
        owner.waiting.push(reply);
        let stands = owner.held.take().map(|lease| (lease, self.known.written()));
        owner.before = Some(Former { value: std::mem::replace(&mut owner.value, value), stands });
        // The entry with the former value is our own, so it may be overwritten. Any value will do
        // here that differs from the wanted one.
        if let Some((lease, revision)) = stands {
            let key = self.place.key.clone().into_bytes();
            self.known.see(Some(KeyValue { key, value: Vec::new(), lease, revision }));
        }
        self.pacing.resume();
    }

    /// Ends the owner. If it was never written, the former owner owns the entry again.
    pub(super) fn release(&mut self) {
        if self.ownership.owner().is_none() {
            return;
        }
        self.ownership.release();
        self.known.forget();
        self.pacing.restart();
        self.late_write.move_on();
    }

    /// Handles the current state of the entry, seen after a change from outside or a late write.
    pub(super) fn seen(&mut self, row: Option<KeyValue>) {
        let Some(owner) = self.ownership.owner_mut() else {
            // A write of a registration that has ended was applied late.
            if let Some(row) = row.filter(|row| self.lease.is_own(row.lease)) {
                self.ownership.may_stand(row.lease);
                self.known.write_late(row.revision);
            }
            return;
        };
        let Some(lease) = owner.held else {
            if row.as_ref().is_none_or(|row| row.lease == 0) {
                self.missed();
            }
            self.known.see(row);
            return;
        };
        if row.as_ref().is_some_and(|row| row.lease == lease && row.value == owner.value) {
            return;
        }
        owner.held = None;
        if row.as_ref().is_none_or(|row| row.lease == 0 || row.lease == lease) {
            self.missed();
        }
        self.known.see(row);
        self.watched.reset_delays();
    }

    /// Handles the loss of an entry that was registered. That is the entry of the owner, also if an
    /// update was about to replace its value, or of the former owner that a claim was about to
    /// replace.
    pub(super) fn missed(&mut self) {
        let Ownership::Owned(owned) = &self.ownership else { return };
        let owner = Some(&owned.owner).filter(|owner| owner.intent == Intent::Heal);
        let written = owner.into_iter().chain(&owned.former);
        let lost: Vec<&Owner> = written.filter(|owner| owner.status.current().is_registered()).collect();
        if lost.is_empty() {
            return;
        }
        let error = Error::new(ErrorKind::Unavailable, "the entry was removed or overwritten from outside");
        for owner in lost {
            owner.status.set(Status::lost(error.clone()));
        }
        self.losses.lost(&self.place, &error);
        self.pacing.miss();
    }
}
