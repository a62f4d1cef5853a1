use discovery_core::{Error, ErrorKind, Status, backend::StatusWriter};

use super::{Reply, answer, superseded};
use crate::{lease::LeaseUser, registry::decide::Intent};

/// A registration that has the entry, or had it and may have it again.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) number: u64,
    pub(super) value: Vec<u8>,
    pub(super) intent: Intent,
    pub(super) status: StatusWriter,
    /// The callers that wait until the value is written.
    pub(super) waiting: Vec<Reply>,
    /// The lease under which it stands as it should.
    pub(super) held: Option<i64>,
    /// What was wanted before an update that is not written yet.
    pub(super) before: Option<Former>,
    pub(super) _user: LeaseUser,
}

/// The value before an update, to come back to if the update is refused for good.
#[derive(Debug)]
pub(super) struct Former {
    pub(super) value: Vec<u8>,
    /// The lease under which it stands, and its revision; `None` where it was not written either.
    pub(super) stands: Option<(i64, i64)>,
}

impl Owner {
    /// Ends it for another registration's sake.
    pub(super) fn supersede(mut self) {
        self.status.set(Status::superseded());
        answer(self.waiting.drain(..), &Err(superseded()));
    }

    /// Ends it for its own sake.
    pub(super) fn release(mut self) {
        self.status.set(Status::deregistered());
        let given_up = Error::new(ErrorKind::Closed, "the registration was given up");
        answer(self.waiting.drain(..), &Err(given_up));
    }
}
