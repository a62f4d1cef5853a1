/// The last write, and what of the writes before it may still be done.
///
/// A write that is not answered may be done late, by a member that was frozen with it or behind a
/// network that holds it back, for as long as its lease lives.
#[derive(Debug, Default)]
pub(super) struct LateWrite {
    /// What the last write was for.
    last: Option<Guard>,
    doubt: Doubt,
}

/// The state of an entry that a write is for.
#[derive(Clone, Copy, Debug)]
struct Guard {
    lease: i64,
    revision: i64,
}

#[derive(Clone, Copy, Debug, Default)]
enum Doubt {
    /// No write may still be done.
    #[default]
    None,
    /// One under this lease may be, and what the next one is for is open.
    Under(i64),
    /// The last one may be, and the next one is for the same state of the entry.
    Repeated(Guard),
}

impl LateWrite {
    /// The lease of a write that may still be done.
    pub(super) fn lease(&self) -> Option<i64> {
        match self.doubt {
            Doubt::None => None,
            Doubt::Under(lease) | Doubt::Repeated(Guard { lease, .. }) => Some(lease),
        }
    }

    /// The revision that an unanswered write under this lease was for, if the next one is to be for
    /// the same.
    pub(super) fn repeated(&self, lease: i64) -> Option<i64> {
        match self.doubt {
            Doubt::Repeated(guard) if guard.lease == lease => Some(guard.revision),
            _ => None,
        }
    }

    /// Takes what the next write is for.
    pub(super) fn begin(&mut self, lease: i64, revision: i64) {
        self.last = Some(Guard { lease, revision });
    }

    /// Takes that a write under this lease was not answered.
    pub(super) fn doubt(&mut self, lease: i64) {
        let last = self.last.filter(|guard| guard.lease == lease);
        self.doubt = last.map_or(Doubt::Under(lease), Doubt::Repeated);
    }

    /// Takes that the next write need not be for what the unanswered one was for, which may still
    /// be done.
    pub(super) fn move_on(&mut self) {
        if let Doubt::Repeated(Guard { lease, .. }) = self.doubt {
            self.doubt = Doubt::Under(lease);
        }
    }

    /// Minds no longer that a write may still be done.
    pub(super) fn forget(&mut self) {
        self.doubt = Doubt::None;
    }
}
