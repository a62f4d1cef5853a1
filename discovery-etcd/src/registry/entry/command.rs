use discovery_core::{Claim, Error, ErrorKind, Status, backend::StatusWriter};
use tokio::sync::oneshot;

use super::{
    Entry, answer, conflict,
    owner::{Former, Owner},
    ownership::Ownership,
    superseded,
};
use crate::{client::KeyValue, registry::decide::Intent};

/// Whoever asked for something waits here for its end.
pub(in crate::registry) type Reply = oneshot::Sender<Result<(), Error>>;

/// What the worker of one entry is told.
#[derive(Debug)]
pub(in crate::registry) enum Command {
    /// A registration wants the entry.
    Claim { number: u64, value: Vec<u8>, claim: Claim, status: StatusWriter, reply: Reply },
    /// End a registration, or whichever there is.
    Release { number: Option<u64>, reply: Option<Reply> },
    /// Mind no longer that a write may still be done, if nobody owns the entry.
    Forget,
    /// A registration has another value.
    Update { number: u64, value: Vec<u8>, reply: Reply },
}

/// What registrations, and the watch of the entry, tell.
impl Entry {
    /// Takes a command.
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
                    // What stands there goes with the first write of the owner, or with the owner.
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

    /// Takes what the watch of the entry tells.
    pub(in crate::registry) fn changed(&mut self, revision: i64, row: Option<KeyValue>) {
        // A write whose answer was lost shows itself here too.
        if revision > self.known.revision() {
            self.known.hear(revision);
            self.seen(row);
        }
    }

    /// Takes that the entry is watched no longer.
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
        // Entered before the former one leaves, so that the lease stays.
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
        // What stands there with the former value is the entry's own.
        if let Some((lease, revision)) = stands {
            let key = self.place.key.clone().into_bytes();
            self.known.see(Some(KeyValue { key, value: Vec::new(), lease, revision }));
        }
        self.pacing.resume();
    }

    /// Ends the owner; the one before it owns again, if the ended one was never written.
    pub(super) fn release(&mut self) {
        if self.ownership.owner().is_none() {
            return;
        }
        self.ownership.release();
        self.known.forget();
        self.pacing.restart();
        self.late_write.move_on();
    }

    /// Another, or time, changed the entry.
    pub(super) fn seen(&mut self, row: Option<KeyValue>) {
        let Some(owner) = self.ownership.owner_mut() else {
            // Given up, and written all the same.
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

    /// What stood there is gone; also where it had a value that was to be replaced, or of the owner before one that is to replace it.
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
