use discovery_core::{Claim, Error, ErrorKind, Status, StatusWriter};
use tokio::{sync::oneshot, time::Instant};
use tracing::warn;

use super::{Entry, Owner, answer, conflict, superseded};
use crate::{client::Row, registry::decide::Intent};

/// Whoever asked for something waits here for its end.
pub(in crate::registry) type Reply = oneshot::Sender<Result<(), Error>>;

/// What the worker of one entry is told.
#[derive(Debug)]
pub(in crate::registry) enum Command {
    /// A registration wants the entry.
    Claim { number: u64, value: Vec<u8>, claim: Claim, status: StatusWriter, reply: Reply },
    /// End a registration, or whichever there is.
    Release { number: Option<u64>, reply: Option<Reply> },
    /// The entry changed.
    Seen { revision: i64, row: Option<Row> },
    /// The entry is watched no longer.
    Unwatched,
    /// A registration has another value.
    Update { number: u64, value: Vec<u8>, reply: Reply },
}

/// What registrations, and the watch of the entry, tell.
impl Entry {
    /// Takes a command.
    pub(in crate::registry) fn take(&mut self, command: Command) {
        match command {
            Command::Claim { number, value, claim, status, reply } => self.claim(number, value, claim, status, reply),
            Command::Update { number, value, reply } => match &mut self.owner {
                Some(owner) if owner.number == number => {
                    owner.value = value;
                    owner.waiting.push(reply);
                    // What stood there with the former value is the entry's own.
                    if let Some(lease) = owner.held.take() {
                        let row = Row {
                            key: self.place.key.clone().into_bytes(),
                            value: Vec::new(),
                            lease,
                            revision: self.written,
                        };
                        self.seen = Some(Some(row));
                    }
                    self.pause = None;
                }
                _ => answer([reply], &Err(superseded())),
            },
            Command::Release { number, reply } => {
                let is_owner = |owner: &Owner| number.is_none_or(|number| owner.number == number);
                if self.owner.as_ref().is_some_and(is_owner) {
                    self.release();
                }
                match (&self.owner, reply) {
                    (None, Some(reply)) if self.left.is_some() => self.leaving.push(reply),
                    (_, reply) => answer(reply, &Ok(())),
                }
            }
            Command::Seen { revision, row } => {
                // A write whose answer was lost shows itself here too.
                if revision > self.written {
                    self.seen(row);
                }
            }
            Command::Unwatched => {
                self.watched = None;
                self.recheck = Some(Instant::now() + self.recheck_delays.next_delay());
            }
        }
    }

    fn claim(&mut self, number: u64, value: Vec<u8>, claim: Claim, status: StatusWriter, reply: Reply) {
        if reply.is_closed() {
            return;
        }
        let intent = Intent::from(claim);
        if let Some(former) = &mut self.owner {
            if intent == Intent::IfAbsent {
                return answer([reply], &Err(conflict()));
            }
            former.status.set(Status::superseded());
            answer(former.waiting.drain(..), &Err(superseded()));
        }
        // Entered before the former one leaves, so that the lease stays.
        let tenancy = self.lease.enter();
        let owner = Owner { number, value, intent, status, waiting: vec![reply], held: None, _tenancy: tenancy };
        self.owner = Some(owner);
        // What they wait to be gone is this one's now.
        answer(self.leaving.drain(..), &Ok(()));
        (self.seen, self.pause, self.released) = (None, None, None);
        self.pauses.reset();
    }

    pub(super) fn release(&mut self) {
        let Some(mut owner) = self.owner.take() else { return };
        owner.status.set(Status::deregistered());
        let given_up = Error::new(ErrorKind::Closed, "the registration was given up");
        answer(owner.waiting.drain(..), &Err(given_up));
        (self.seen, self.pause) = (None, None);
        self.released = Some(Instant::now());
        self.pauses.reset();
    }

    /// Another, or time, changed the entry.
    pub(super) fn seen(&mut self, row: Option<Row>) {
        let Some(owner) = &mut self.owner else { return };
        let Some(lease) = owner.held else {
            self.seen = Some(row);
            return;
        };
        if row.as_ref().is_some_and(|row| row.lease == lease && row.value == owner.value) {
            return;
        }
        owner.held = None;
        if row.as_ref().is_none_or(|row| row.lease == 0 || row.lease == lease) {
            let error = Error::new(ErrorKind::Unavailable, "the entry was removed or overwritten from outside");
            owner.status.set(Status::lost(error));
            warn!(service = %self.place.service, id = %self.place.id, "registration lost, writing it again");
        }
        self.seen = Some(row);
        self.recheck_delays.reset();
    }
}
