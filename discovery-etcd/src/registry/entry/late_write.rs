//! Writes that were not answered and may still be applied.

/// The last write, and whether an unanswered one may still be applied.
///
/// An unanswered write may be applied late, as long as its lease lives: a frozen member or a slow
/// network may hold it back.
#[derive(Debug, Default)]
pub(super) struct LateWrite {
    /// The guard of the last write.
    last: Option<Guard>,
    doubt: Doubt,
}

/// The condition of a write: its lease, and the revision that the entry must have.
#[derive(Clone, Copy, Debug)]
struct Guard {
    lease: i64,
    revision: i64,
}

/// Whether an unanswered write may still be applied.
#[derive(Clone, Copy, Debug, Default)]
enum Doubt {
    /// No.
    #[default]
    None,
    /// Yes, under this lease. The next write may have any guard.
    Under(i64),
    /// Yes, with this guard. The next write must have the same one, so that neither of them
    /// can overwrite a later write.
    Repeated(Guard),
}

impl LateWrite {
    /// The lease of a write that may still be applied.
    pub(super) fn lease(&self) -> Option<i64> {
        match self.doubt {
            Doubt::None => None,
            Doubt::Under(lease) | Doubt::Repeated(Guard { lease, .. }) => Some(lease),
        }
    }

    /// The revision that guarded an unanswered write under this lease, if the next write must use
    /// the same one.
    pub(super) fn repeated(&self, lease: i64) -> Option<i64> {
        match self.doubt {
            Doubt::Repeated(guard) if guard.lease == lease => Some(guard.revision),
            _ => None,
        }
    }

    /// Records the guard of a write that is about to be sent.
    pub(super) fn begin(&mut self, lease: i64, revision: i64) {
        self.last = Some(Guard { lease, revision });
    }

    /// Records that a write under this lease was not answered.
    pub(super) fn doubt(&mut self, lease: i64) {
        let last = self.last.filter(|guard| guard.lease == lease);
        self.doubt = last.map_or(Doubt::Under(lease), Doubt::Repeated);
    }

    /// Allows the next write another guard. The unanswered write may still be applied.
    pub(super) fn move_on(&mut self) {
        if let Doubt::Repeated(Guard { lease, .. }) = self.doubt {
            self.doubt = Doubt::Under(lease);
        }
    }

    /// Stops expecting that a write may still be applied.
    pub(super) fn forget(&mut self) {
        self.doubt = Doubt::None;
    }
}
