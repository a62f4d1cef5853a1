use discovery_core::Status;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{Entry, answer, conflict, is_final, known::Stands, owner::Former, ownership::Ownership};
use crate::{
    client::{Delete, Failure, KeyReading, Put, Reason},
    registry::decide::{Act, Intent},
};

/// What etcd answers to what was done about the entry.
impl Entry {
    /// Takes that a write under this lease was not answered, and so may be done at any time.
    pub(in crate::registry) fn doubt(&mut self, lease: i64) {
        self.late_write.doubt(lease);
    }

    /// Takes the answer to a write.
    pub(in crate::registry) fn written(&mut self, lease: i64, answer: Result<Put, Failure>) {
        self.known.answer();
        if !answer.as_ref().is_err_and(Failure::is_unsent) {
            // There may be an entry, whatever is answered.
            self.ownership.may_stand(lease);
        }
        if answer.is_ok() {
            self.late_write.move_on();
        }
        match answer {
            Ok(Put::Written(revision)) => self.settle(Act::Done(revision)),
            Ok(Put::Refused(row)) => {
                if let Some(row) = &row {
                    self.known.write_late(row.revision);
                }
                if row.as_ref().is_none_or(|row| row.lease == 0) {
                    self.missed();
                }
                self.known.see(row);
                self.pacing.refuse();
            }
            Err(failure) if failure.reason == Reason::LeaseGone => {
                self.dead = Some(lease);
                self.lease.report_gone(lease);
            }
            Err(failure) => {
                if failure.may_be_done() {
                    self.doubt(lease);
                }
                self.failed(failure);
            }
        }
    }

    fn failed(&mut self, failure: Failure) {
        self.pacing.fail(&failure);
        // The entry may be written or not.
        let stood = self.known.forget();
        let Some(owner) = self.ownership.owner_mut() else { return };
        let is_final = is_final(&failure.error);
        if owner.intent != Intent::Heal {
            owner.status.set(Status::lost(failure.error.clone()));
            if is_final {
                self.give_up(failure.error);
            }
        } else {
            if !owner.status.current().is_registered() {
                owner.status.set(Status::lost(failure.error.clone()));
            }
            if is_final {
                // An update that nobody waits for any more was given up as one that is still to be
                // written.
                owner.waiting.retain(|reply| !reply.is_closed());
                if !owner.waiting.is_empty() {
                    self.restore(&stood);
                }
            }
            let Some(owner) = self.ownership.owner_mut() else { return };
            if is_final {
                answer(owner.waiting.drain(..), &Err(failure.error));
            }
        }
    }

    /// Wants again what was wanted before an update that was refused for good; `stood` is what was
    /// seen of the entry.
    fn restore(&mut self, stood: &Stands) {
        let Some(owner) = self.ownership.owner_mut() else { return };
        let Some(Former { value, stands }) = owner.before.take() else { return };
        owner.value = value;
        let is_untouched =
            |(lease, revision): &(i64, i64)| stood.is(*lease, *revision) && self.known.written() == *revision;
        if let Some((lease, _)) = stands.filter(is_untouched) {
            // It was never away, so there is nothing to write.
            owner.held = Some(lease);
            self.pacing.resume();
        }
    }

    /// Takes what is certain about the entry.
    pub(super) fn settle(&mut self, act: Act) {
        let Ownership::Owned(owned) = &mut self.ownership else { return };
        let owner = &mut owned.owner;
        match act {
            Act::Done(revision) => {
                if !owner.status.current().is_registered() {
                    self.losses.restored(&self.place);
                    owner.status.set(Status::registered());
                }
                owner.intent = Intent::Heal;
                owner.before = None;
                // What is done is done under the lease that was tried last.
                owner.held = owned.tried;
                answer(owner.waiting.drain(..), &Ok(()));
                if let Some(former) = owned.former.take() {
                    former.supersede();
                }
                answer(owned.leaving.drain(..), &Ok(()));
                self.known.write(revision);
                self.watched.settle();
                self.pacing.succeed();
            }
            Act::Conflict => {
                owned.tried = None;
                self.give_up(conflict());
            }
            Act::Superseded => {
                warn!(service = %self.place.service, id = %self.place.id, "registration superseded by another owner");
                self.ownership.supersede();
            }
            Act::Write(_) => unreachable!("a write is not certain before it is answered"),
        }
    }

    /// Takes the answer to a removal.
    pub(in crate::registry) fn removed(&mut self, answered: Result<Delete, Failure>) {
        self.known.answer();
        match answered {
            // Written later than was known.
            Ok(Delete::Refused(row)) if self.lease.is_own(row.lease) => {
                self.ownership.may_stand(row.lease);
                self.known.write_late(row.revision);
            }
            Ok(answered) => {
                if let Delete::Gone(revision) = answered {
                    self.known.write(revision);
                }
                self.ownership.end_removal(&Ok(()));
            }
            Err(failure) => {
                debug!(error = %failure.error.report(), "entry not removed yet");
                self.pacing.fail(&failure);
            }
        }
    }

    /// Takes what was read to see whether the watch tells all. It was asked for at that moment,
    /// when so much was known.
    pub(in crate::registry) fn audited(&mut self, asked: Instant, known: i64, reading: KeyReading) {
        if !self.known.is_overtaken(asked, known, &reading) {
            self.read(Ok(reading));
        }
    }

    /// Takes what was read, because the watch ended and things may have happened since.
    pub(in crate::registry) fn read(&mut self, answered: Result<KeyReading, Failure>) {
        self.known.answer();
        match answered {
            Ok(reading) => {
                self.watched.settle();
                self.known.read(&reading);
                self.late_write.move_on();
                let is_held = |ownership: &Ownership| ownership.owner().is_some_and(|owner| owner.held.is_some());
                let was_held = is_held(&self.ownership);
                self.seen(reading.row);
                if was_held && !is_held(&self.ownership) {
                    // Where the watch did not tell, another one may.
                    self.watched.leave();
                }
            }
            Err(_) => self.watched.recheck_later(),
        }
    }
}
