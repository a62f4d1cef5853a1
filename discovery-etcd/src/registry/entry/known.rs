//! The last known state of the entry in etcd.

use tokio::time::Instant;

use crate::{
    client::{KeyReading, KeyValue},
    registry::decide::Seen,
};

/// What is known about the entry in etcd.
#[derive(Debug)]
pub(super) struct Known {
    stands: Stands,
    /// The revision of the last known write. Changes up to it are accounted for.
    written: i64,
    /// The store's revision when the entry was last read or changed according to its watch; 0 if it
    /// was written since. A watch begins here rather than at the entry's own revision, which may be
    /// compacted.
    read_at: i64,
    /// When etcd last answered a request about the entry. Readings requested before are outdated.
    answered: Instant,
}

/// The entry as last seen since the last write.
#[derive(Debug, Default)]
pub(super) enum Stands {
    /// It was not seen.
    #[default]
    Unseen,
    /// There was no entry.
    Absent,
    /// There was this entry.
    Entry(KeyValue),
}

impl Known {
    pub(super) fn new() -> Self {
        Self { stands: Stands::Unseen, written: 0, read_at: 0, answered: Instant::now() }
    }

    /// The entry as last seen since the last write.
    pub(super) fn seen(&self) -> Seen<'_> {
        match &self.stands {
            Stands::Unseen => Seen::Nothing,
            Stands::Absent => Seen::Absent,
            Stands::Entry(row) => Seen::Entry(row),
        }
    }

    /// The revision of the last known write.
    pub(super) fn written(&self) -> i64 {
        self.written
    }

    /// The revision up to which all changes of the entry are known.
    pub(super) fn revision(&self) -> i64 {
        self.written.max(self.read_at)
    }

    /// Whether a reading is outdated. It was requested at `asked`, when the entry was known up to
    /// the revision `known`.
    pub(super) fn is_overtaken(&self, asked: Instant, known: i64, reading: &KeyReading) -> bool {
        // A revision below `known` is not outdated: etcd was restored from an older copy of its
        // data.
        asked <= self.answered || (known..self.revision()).contains(&reading.revision)
    }

    /// Records that etcd answered.
    pub(super) fn answer(&mut self) {
        self.answered = Instant::now();
    }

    /// Records that the entry was written or removed at this revision.
    pub(super) fn write(&mut self, revision: i64) {
        self.stands = Stands::Unseen;
        self.written = revision;
        self.read_at = 0;
    }

    /// Records the revision of a write that was not known to be applied.
    pub(super) fn write_late(&mut self, revision: i64) {
        self.written = revision;
    }

    /// Records the revisions of a reading.
    pub(super) fn read(&mut self, reading: &KeyReading) {
        // May be lower than before, if etcd was restored from an older copy of its data.
        self.written = reading.row.as_ref().map_or(reading.revision, |row| row.revision);
        self.read_at = reading.revision;
    }

    /// Records that the watch reported a change at this revision.
    pub(super) fn hear(&mut self, revision: i64) {
        self.read_at = revision;
    }

    /// Records the entry that was seen.
    pub(super) fn see(&mut self, row: Option<KeyValue>) {
        self.stands = row.map_or(Stands::Absent, Stands::Entry);
    }

    /// Forgets the entry that was seen, which may have changed, and returns it.
    pub(super) fn forget(&mut self) -> Stands {
        std::mem::take(&mut self.stands)
    }
}

impl Stands {
    /// Whether it is an entry with this lease and revision.
    pub(super) fn is(&self, lease: i64, revision: i64) -> bool {
        matches!(self, Self::Entry(row) if (row.lease, row.revision) == (lease, revision))
    }
}
