//! Who owns the entry.

use discovery_core::Error;
use tokio::time::Instant;

use super::{Reply, answer, owner::Owner};
use crate::registry::decide::Intent;

/// The registration that owns the entry, if there is one.
#[derive(Debug)]
pub(super) enum Ownership {
    /// A registration owns it. Boxed, because it is much larger than the other variants.
    Owned(Box<Owned>),
    /// Nobody owns it. There may be an entry under this lease, which has to be removed.
    Leaving {
        lease: i64,
        /// When the last registration ended, as for [`Self::Vacant`].
        since: Option<Instant>,
        /// Callers that wait for the removal.
        waiting: Vec<Reply>,
    },
    /// Nobody owns it, and no entry is known to be left.
    Vacant {
        /// When the last registration ended; `None` if there was none or another owner took over.
        since: Option<Instant>,
    },
}

/// The registration that owns the entry, and what remains of those before it.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) owner: Owner,
    /// The former owner, until the owner is first written. If the owner is given up before that,
    /// the former one owns the entry again.
    pub(super) former: Option<Owner>,
    /// The lease of the last write that was attempted, unless its entry is known to be gone.
    pub(super) tried: Option<i64>,
    /// Callers that wait until the owner's first write has replaced a former entry.
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

    /// Makes this the owner. The one before becomes the former owner, if it was written.
    pub(super) fn claim(&mut self, owner: Owner) {
        let mut claimed = Owned { owner, former: None, tried: None, leaving: Vec::new() };
        let leaving = match self.take() {
            Self::Owned(before) => {
                claimed.tried = before.tried;
                // It is superseded only once the new owner is known to be written.
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
        // The entry that they wait to be removed belongs to the new owner now.
        answer(leaving, &Ok(()));
    }

    /// Ends the owner. If it was never written, the former owner owns the entry again.
    pub(super) fn release(&mut self) {
        *self = match self.take() {
            Self::Owned(owned) => {
                owned.owner.release();
                let since = Some(Instant::now());
                match (owned.former, owned.tried) {
                    (Some(mut former), tried) => {
                        // The owner that ends may have been written after all, so the former one
                        // has to be written again.
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

    /// Removes and returns the former owner, if it is the one that is meant.
    pub(super) fn take_former_if(&mut self, is_meant: impl Fn(&Owner) -> bool) -> Option<Owner> {
        match self {
            Self::Owned(owned) => owned.former.take_if(|former| is_meant(former)),
            Self::Leaving { .. } | Self::Vacant { .. } => None,
        }
    }

    /// Ends the owner because the entry belongs to another handle now.
    pub(super) fn supersede(&mut self) {
        if let Self::Owned(owned) = self.take() {
            owned.owner.supersede();
        }
    }

    /// Records that there may be an entry under this lease.
    pub(super) fn may_stand(&mut self, under: i64) {
        match self {
            Self::Owned(owned) => owned.tried = Some(under),
            Self::Leaving { lease, .. } => *lease = under,
            Self::Vacant { since } => {
                *self = Self::Leaving { lease: under, since: *since, waiting: Vec::new() };
            }
        }
    }

    /// Ends the removal and answers the callers that wait for it.
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
