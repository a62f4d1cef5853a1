use discovery_core::Error;
use tokio::time::Instant;

use super::{Reply, answer, owner::Owner};
use crate::registry::decide::Intent;

/// The registration that owns the entry, if there is one.
#[derive(Debug)]
pub(super) enum Ownership {
    /// A registration has it. Boxed, since it is much larger than the others.
    Owned(Box<Owned>),
    /// Nobody has it, and what may stand under this lease is to be removed.
    Leaving {
        lease: i64,
        /// When the last registration ended, as in [`Self::Vacant`].
        since: Option<Instant>,
        /// The callers that wait for the removal.
        waiting: Vec<Reply>,
    },
    /// Nobody has it, and nothing is known to be left of it.
    Vacant {
        /// When the last registration ended; `None` where there was none, or another took over.
        since: Option<Instant>,
    },
}

/// The registration that has the entry, and who still waits for it to stand.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) owner: Owner,
    /// The owner before one that was never written yet; owns again if that is given up.
    pub(super) former: Option<Owner>,
    /// The lease of the last write that was tried and of which nothing is known to be gone.
    pub(super) tried: Option<i64>,
    /// The callers that wait until the owner's first write has replaced what stood there.
    pub(super) leaving: Vec<Reply>,
}

impl Ownership {
    pub(super) fn owner(&self) -> Option<&Owner> {
        match self {
            Self::Owned(owned) => Some(&owned.owner),
            Self::Leaving { .. } | Self::Vacant { .. } => None,
        }
    }

    pub(super) fn owner_mut(&mut self) -> Option<&mut Owner> {
        match self {
            Self::Owned(owned) => Some(&mut owned.owner),
            Self::Leaving { .. } | Self::Vacant { .. } => None,
        }
    }

    /// Gives the entry to this owner. The one before it steps back, if it was written.
    pub(super) fn claim(&mut self, owner: Owner) {
        let mut claimed = Owned { owner, former: None, tried: None, leaving: Vec::new() };
        let leaving = match self.take() {
            Self::Owned(before) => {
                claimed.tried = before.tried;
                // Not superseded before it is certain that this one stands in its place.
                if before.owner.intent == Intent::Heal {
                    claimed.former = Some(before.owner);
                } else {
                    claimed.former = before.former;
                    before.owner.supersede();
                }
                before.leaving
            }
            Self::Leaving { lease, waiting, .. } => {
                claimed.tried = Some(lease);
                waiting
            }
            Self::Vacant { .. } => Vec::new(),
        };
        *self = Self::Owned(Box::new(claimed));
        // What they wait to be gone is this one's now.
        answer(leaving, &Ok(()));
    }

    /// Ends the owner; the one before it owns again, if the ended one was never written.
    pub(super) fn release(&mut self) {
        *self = match self.take() {
            Self::Owned(owned) => {
                owned.owner.release();
                let since = Some(Instant::now());
                match (owned.former, owned.tried) {
                    (Some(mut former), tried) => {
                        // The ended one may have been written all the same.
                        former.held = None;
                        Self::Owned(Box::new(Owned { owner: former, former: None, tried, leaving: owned.leaving }))
                    }
                    (None, Some(lease)) => Self::Leaving { lease, since, waiting: owned.leaving },
                    (None, None) => Self::Vacant { since },
                }
            }
            unowned => unowned,
        };
    }

    /// Takes the owner before the present one out, if it is the one that is meant.
    pub(super) fn take_former_if(&mut self, is_meant: impl Fn(&Owner) -> bool) -> Option<Owner> {
        match self {
            Self::Owned(owned) => owned.former.take_if(|former| is_meant(former)),
            Self::Leaving { .. } | Self::Vacant { .. } => None,
        }
    }

    /// Ends the owner, because another owns the place now.
    pub(super) fn supersede(&mut self) {
        if let Self::Owned(owned) = self.take() {
            owned.owner.supersede();
        }
    }

    /// Takes that there may be an entry under this lease.
    pub(super) fn may_stand(&mut self, under: i64) {
        match self {
            Self::Owned(owned) => owned.tried = Some(under),
            Self::Leaving { lease, .. } => *lease = under,
            Self::Vacant { since } => {
                *self = Self::Leaving { lease: under, since: *since, waiting: Vec::new() };
            }
        }
    }

    /// Ends the removal, and tells those who wait for it.
    pub(super) fn end_removal(&mut self, result: &Result<(), Error>) {
        *self = match self.take() {
            Self::Leaving { since, waiting, .. } => {
                answer(waiting, result);
                Self::Vacant { since }
            }
            other => other,
        };
    }

    fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Vacant { since: None })
    }
}
