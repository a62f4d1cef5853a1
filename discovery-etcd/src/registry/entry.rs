use std::{sync::Arc, time::Duration};

use discovery_core::{Backoff, Claim, Delays, Error, ErrorKind, InstanceId, ServiceName, Status, StatusWriter};
use tokio::{sync::oneshot, time::Instant};
use tracing::{debug, info, warn};

use super::decide::{Act, Intent, Seen, decide};
use crate::{
    client::{Failure, Guard, Put, Reason, Row},
    lease::{Lease, LeaseState, Tenancy},
};

/// Whoever asked for something waits here for its end.
pub(super) type Reply = oneshot::Sender<Result<(), Error>>;

/// What the worker of one entry is told.
#[derive(Debug)]
pub(super) enum Command {
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

/// What a handle knows and wants of one entry: every decision about it, without the I/O.
///
/// Several registrations of one id follow one another here, the last one being the owner; between handles the entry's lease
/// decides.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) place: Place,
    lease: Arc<Lease>,
    owner: Option<Owner>,
    /// What stands in etcd as far as was seen since the last write; `None` where nothing was.
    seen: Option<Option<Row>>,
    /// The revision of the last write; what is older was known then.
    written: i64,
    /// The lease of the last write that was tried and of which nothing is known to be gone.
    left: Option<i64>,
    /// Who waits for the removal.
    leaving: Vec<Reply>,
    /// Not to be asked again before then.
    pause: Option<Instant>,
    delays: Delays,
    /// The lease under which the entry was when its watch began.
    watched: Option<i64>,
    /// When to read the entry because its watch ended.
    recheck: Option<Instant>,
    recheck_delays: Delays,
    /// Since when nobody owns it.
    released: Option<Instant>,
    /// A lease that etcd did not know; another one is to come.
    dead: Option<i64>,
    /// A write was not answered and may still be done, by a member that was frozen with it.
    doubt: bool,
}

/// Which entry it is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) service: ServiceName,
    pub(super) id: InstanceId,
    pub(super) key: String,
}

#[derive(Debug)]
struct Owner {
    number: u64,
    value: Vec<u8>,
    intent: Intent,
    status: StatusWriter,
    /// Who waits for the value to be written.
    waiting: Vec<Reply>,
    /// The lease under which it stands as it should.
    held: Option<i64>,
    _tenancy: Tenancy,
}

/// What to do next about an entry.
#[derive(Debug)]
pub(super) enum Next {
    /// Nothing is left to do, now or later.
    Exit,
    /// Read the entry.
    Read,
    /// Delete it, if it still is under this lease.
    Remove(i64),
    /// Wait for news, at most until then.
    Wait(Option<Instant>),
    /// Watch it from this revision on, in place of any former watch.
    Watch(i64),
    /// Put this value under this lease, if the guard holds.
    Write { value: Vec<u8>, lease: i64, guard: Guard },
}

impl Entry {
    pub(super) fn new(place: Place, lease: Arc<Lease>, backoff: Backoff) -> Self {
        let recheck = Backoff::new(Duration::from_millis(500), Duration::from_secs(30))
            .expect("500 ms to 30 s lies within the bounds");
        Self {
            place,
            lease,
            owner: None,
            seen: None,
            written: 0,
            left: None,
            leaving: Vec::new(),
            pause: None,
            delays: backoff.delays(),
            watched: None,
            recheck: None,
            recheck_delays: recheck.delays(),
            released: None,
            dead: None,
            doubt: false,
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
        let now = Instant::now();
        let pause = self.pause.filter(|until| *until > now);
        let Some(owner) = &mut self.owner else {
            return Ok(match (self.left, pause) {
                (None, _) => Next::Exit,
                (Some(_), Some(until)) => Next::Wait(Some(until)),
                (Some(lease), None) => Next::Remove(lease),
            });
        };
        let id = match lease {
            LeaseState::Held { id } if self.dead != Some(*id) => *id,
            LeaseState::Held { .. } | LeaseState::Idle => return Ok(Next::Wait(None)),
            LeaseState::Lost { error } => {
                self.lost(error.clone());
                // Given up where it cannot become one.
                return if self.owner.is_some() { Ok(Next::Wait(None)) } else { self.step(lease) };
            }
        };
        if owner.held == Some(id) {
            // A watch that began under another lease may wait for a revision of a history that is no more.
            if self.watched != Some(id) && self.recheck.is_none() {
                self.watched = Some(id);
                return Ok(Next::Watch(self.written + 1));
            }
            return Ok(match self.recheck {
                Some(at) if at <= now => Next::Read,
                at => Next::Wait(at),
            });
        }
        if owner.held.take().is_some() {
            // Another lease came without a moment in which there was none to see.
            self.seen = None;
        }
        if let Some(until) = pause {
            return Ok(Next::Wait(Some(until)));
        }
        let seen = match &self.seen {
            None => Seen::Nothing,
            Some(None) => Seen::Absent,
            Some(Some(row)) => Seen::Entry(row),
        };
        match decide(owner.intent, seen, &owner.value, id, |lease| self.lease.is_own(lease)) {
            Act::Write(guard) => {
                // From here on there may be an entry, whatever is answered.
                self.left = Some(id);
                Ok(Next::Write { value: owner.value.clone(), lease: id, guard })
            }
            act => Err(act),
        }
    }

    /// Forgets a pause, because the lease changed.
    pub(super) fn resume(&mut self) {
        self.pause = None;
    }

    /// Takes a command.
    pub(super) fn take(&mut self, command: Command) {
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
        self.delays.reset();
    }

    fn release(&mut self) {
        let Some(mut owner) = self.owner.take() else { return };
        owner.status.set(Status::deregistered());
        let given_up = Error::new(ErrorKind::Closed, "the registration was given up");
        answer(owner.waiting.drain(..), &Err(given_up));
        (self.seen, self.pause) = (None, None);
        self.released = Some(Instant::now());
        self.delays.reset();
    }

    /// Another, or time, changed the entry.
    fn seen(&mut self, row: Option<Row>) {
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

    /// The lease is lost, and the entry with it.
    fn lost(&mut self, error: Error) {
        let Some(owner) = &mut self.owner else { return };
        if owner.held.take().is_some() {
            warn!(service = %self.place.service, id = %self.place.id, error = %error.report(), "registration lost");
        }
        self.seen = None;
        self.dead = None;
        let is_final = is_final(&error);
        owner.status.set(Status::lost(error.clone()));
        if owner.intent != Intent::Heal && is_final {
            self.give_up(error);
        }
    }

    /// A registration that never was cannot become one.
    fn give_up(&mut self, error: Error) {
        if let Some(owner) = &mut self.owner {
            answer(owner.waiting.drain(..), &Err(error));
        }
        self.release();
    }

    /// Takes the answer to a write.
    pub(super) fn written(&mut self, lease: i64, answer: Result<Put, Failure>) {
        match answer {
            Ok(Put::Written(revision)) => self.settle(Act::Done(revision)),
            Ok(Put::Refused(row)) => self.seen = Some(row),
            Err(failure) if failure.reason == Reason::LeaseGone => {
                self.dead = Some(lease);
                self.lease.report_gone(lease);
            }
            Err(failure) => self.failed(failure),
        }
    }

    fn failed(&mut self, failure: Failure) {
        self.pause = Some(Instant::now() + self.delays.next_delay());
        // The entry may be written or not.
        self.seen = None;
        self.doubt |= failure.is_member();
        let Some(owner) = &mut self.owner else { return };
        let is_final = is_final(&failure.error);
        if owner.intent != Intent::Heal {
            owner.status.set(Status::lost(failure.error.clone()));
            if is_final {
                self.give_up(failure.error);
            }
        } else {
            if !owner.status.status().is_registered() {
                owner.status.set(Status::lost(failure.error.clone()));
            }
            if is_final {
                answer(owner.waiting.drain(..), &Err(failure.error));
            }
        }
    }

    /// Takes what is certain about the entry.
    fn settle(&mut self, act: Act) {
        let Some(owner) = &mut self.owner else { return };
        match act {
            Act::Done(revision) => {
                if !owner.status.status().is_registered() {
                    if owner.intent == Intent::Heal {
                        info!(service = %self.place.service, id = %self.place.id, "registered again");
                    }
                    owner.status.set(Status::registered());
                }
                owner.intent = Intent::Heal;
                // What is done is done under the lease that was tried last.
                owner.held = self.left;
                answer(owner.waiting.drain(..), &Ok(()));
                (self.seen, self.recheck) = (None, None);
                self.written = revision;
                self.delays.reset();
            }
            Act::Conflict => {
                self.left = None;
                self.give_up(conflict());
            }
            Act::Superseded => {
                warn!(service = %self.place.service, id = %self.place.id, "registration superseded by another owner");
                owner.status.set(Status::superseded());
                answer(owner.waiting.drain(..), &Err(superseded()));
                self.left = None;
                self.owner = None;
            }
            Act::Write(_) => unreachable!("a write is not certain before it is answered"),
        }
    }

    /// Takes the answer to a removal under `lease`; `is_renewed` says whether that is kept for others.
    pub(super) fn removed(&mut self, lease: i64, answered: Result<Option<Row>, Failure>, is_renewed: bool) {
        match answered {
            Ok(Some(row)) if row.lease != lease && self.lease.is_own(row.lease) => self.left = Some(row.lease),
            Ok(_) => {
                if std::mem::take(&mut self.doubt) {
                    // Whatever member was frozen with the write has done it by then, or lost it. So once more.
                    self.pause = Some(Instant::now() + Duration::from_secs(1));
                } else {
                    self.left = None;
                }
                answer(self.leaving.drain(..), &Ok(()));
            }
            Err(failure) => {
                debug!(error = %failure.error.report(), "entry not removed yet");
                // By then its lease has ended.
                let patience = self.lease.granted().unwrap_or_default() * 2 + Duration::from_secs(10);
                if !is_renewed && self.released.is_none_or(|since| since.elapsed() > patience) {
                    self.left = None;
                    answer(self.leaving.drain(..), &Err(failure.error));
                }
                self.pause = Some(Instant::now() + self.delays.next_delay());
            }
        }
    }

    /// Takes what was read, because the watch ended and things may have happened since.
    pub(super) fn read(&mut self, answered: Result<Option<Row>, Failure>) {
        self.recheck = None;
        match answered {
            Ok(row) => {
                if let Some(row) = &row {
                    self.written = row.revision;
                }
                self.seen(row);
            }
            Err(_) => self.recheck = Some(Instant::now() + self.recheck_delays.next_delay()),
        }
    }

    /// Whether the entry has a watch, which is forgotten with this.
    pub(super) fn leave(&mut self) -> bool {
        self.watched.take().is_some()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // In order, there is no owner any more. Else the runtime went, and nobody keeps the entry.
        if let Some(owner) = &self.owner {
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

/// Whether trying again cannot help before somebody changes something.
fn is_final(error: &Error) -> bool {
    !error.is_retryable()
}

fn conflict() -> Error {
    Error::new(ErrorKind::Conflict, "another owner's entry lives")
}

pub(super) fn superseded() -> Error {
    Error::new(ErrorKind::Conflict, "another owner took the id over")
}

#[cfg(test)]
mod tests;
