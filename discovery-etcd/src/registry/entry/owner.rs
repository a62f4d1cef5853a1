//! A registration as its entry sees it.

use discovery_core::{Error, ErrorKind, Status, backend::StatusWriter};

use super::{Reply, answer, superseded};
use crate::{lease::LeaseUser, registry::decide::Intent};

/// A registration that owns the entry, or has owned it and may own it again.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) number: u64,
    pub(super) value: Vec<u8>,
    pub(super) intent: Intent,
    pub(super) status: StatusWriter,
    /// Callers that wait until the value is written.
    pub(super) waiting: Vec<Reply>,
    /// The lease under which the entry is registered with this value; `None` if it has to be
    /// written.
    pub(super) held: Option<i64>,
    /// The value before an update that has not been written yet.
    pub(super) before: Option<Former>,
    pub(super) _user: LeaseUser,
}

/// The value before an update, to which the owner returns if the update is refused for good.
#[derive(Debug)]
pub(super) struct Former {
    pub(super) value: Vec<u8>,
    /// The lease and the revision of the entry with this value; `None` if it was not written
    /// either.
    pub(super) stands: Option<(i64, i64)>,
}

impl Owner {
    /// Ends this registration because another one took over.
    pub(super) fn supersede(mut self) {
        self.status.set(Status::superseded());
        answer(self.waiting.drain(..), &Err(superseded()));
    }

    /// Ends this registration because it was deregistered or given up.
    pub(super) fn release(mut self) {
        self.status.set(Status::deregistered());
        let given_up = Error::new(ErrorKind::Closed, "the registration was given up");
        answer(self.waiting.drain(..), &Err(given_up));
    }
}
