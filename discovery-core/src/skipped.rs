use crate::Error;

/// The entries of a service that the registry has and that are not served, because they cannot be
/// read (W7).
///
/// [`Resolver::skipped_entries`](crate::Resolver::skipped_entries) returns it.
#[derive(Clone, Debug, Default)]
pub struct SkippedEntries {
    count: usize,
    reason: Option<Error>,
}

impl SkippedEntries {
    /// Creates the report of `count` entries, the newest of which is skipped for `reason`.
    pub fn new(count: usize, reason: Option<Error>) -> Self {
        Self { count, reason }
    }

    /// Returns how many entries are skipped.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns why the newest of them is skipped.
    pub fn reason(&self) -> Option<&Error> {
        self.reason.as_ref()
    }
}
