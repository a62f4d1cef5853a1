//! What etcd's answers mean for the entry.

use discovery_core::Status;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{Entry, answer, conflict, is_final, known::Stands, owner::Former, ownership::Ownership};
use crate::{
    client::{Delete, Failure, KeyReading, Put, Reason},
    registry::decide::{Act, Intent},
};

/// Answers of etcd.
impl Entry {
    /// Records that a write under this lease was not answered, so that it may be applied at any
    /// time.
    pub(in crate::registry) fn doubt(&mut self, lease: i64) {
        self.late_write.doubt(lease);
    }

    /// Handles the answer to a write.
    pub(in crate::registry) fn written(&mut self, lease: i64, answer: Result<Put, Failure>) {
        self.known.answer();
        if !answer.as_ref().is_err_and(Failure::is_unsent) {
            // The write was sent, so there may be an entry under this lease whatever the answer is.
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
        // It is unknown whether the entry was written.
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
                // Restore the former value only while a caller waits for the update. A caller whose
                // update timed out was promised that the backend keeps trying to write it.
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

    /// Returns to the value before an update that was refused for good. `stood` is what was last
    /// seen of the entry.
    fn restore(&mut self, stood: &Stands) {
        let Some(owner) = self.ownership.owner_mut() else { return };
        let Some(Former { value, stands }) = owner.before.take() else { return };
        owner.value = value;
        let is_untouched =
            |(lease, revision): &(i64, i64)| stood.is(*lease, *revision) && self.known.written() == *revision;
        if let Some((lease, _)) = stands.filter(is_untouched) {
            // The entry still has the former value, so there is nothing to write.
            owner.held = Some(lease);
            self.pacing.resume();
        }
    }

    /// Settles an outcome that is certain: informs the owner and everybody who waits.
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
                // The entry was written under the lease of the last attempt.
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
            Act::Write(_) => unreachable!("a write is settled by its answer"),
        }
    }

    /// Handles the answer to a removal.
    pub(in crate::registry) fn removed(&mut self, answered: Result<Delete, Failure>) {
        self.known.answer();
        match answered {
            // An unanswered write was applied late. Remove that entry too.
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

    /// Handles an audit: a reading that shows whether the watch missed a change. It was requested
    /// at `asked`, when the entry was known up to the revision `known`.
    pub(in crate::registry) fn audited(&mut self, asked: Instant, known: i64, reading: KeyReading) {
        if !self.known.is_overtaken(asked, known, &reading) {
            self.read(Ok(reading));
        }
    }

    /// Handles a reading of the entry, made after its watch ended or by an audit.
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
                    // The watch missed this change, so begin another one.
                    self.watched.leave();
                }
            }
            Err(_) => self.watched.recheck_later(),
        }
    }
}
