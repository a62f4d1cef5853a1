use tokio::time::Instant;

use crate::{
    client::{KeyReading, KeyValue},
    registry::decide::Seen,
};

/// What is known of the entry in etcd.
#[derive(Debug)]
pub(super) struct Known {
    stands: Stands,
    /// The revision of the last write, as far as it is known; what is older was known then.
    written: i64,
    /// The store's revision when the entry was last read, or told of by its watch; 0 where it was
    /// written since. What is older was known then, and may be compacted where the entry's own
    /// revision is.
    read_at: i64,
    /// When etcd last answered what was done about it. What was asked before is out of date.
    answered: Instant,
}

/// What stands in etcd as far as was seen since the last write.
#[derive(Debug, Default)]
pub(super) enum Stands {
    /// Nothing was seen.
    #[default]
    Unseen,
    /// There was no entry.
    Absent,
    /// There was this one.
    Entry(KeyValue),
}

impl Known {
    pub(super) fn new() -> Self {
        Self { stands: Stands::Unseen, written: 0, read_at: 0, answered: Instant::now() }
    }

    /// What was seen of the entry since the last write.
    pub(super) fn seen(&self) -> Seen<'_> {
        match &self.stands {
            Stands::Unseen => Seen::Nothing,
            Stands::Absent => Seen::Absent,
            Stands::Entry(row) => Seen::Entry(row),
        }
    }

    /// The revision of the last write, as far as it is known.
    pub(super) fn written(&self) -> i64 {
        self.written
    }

    /// The revision up to which it is known what became of the entry.
    pub(super) fn revision(&self) -> i64 {
        self.written.max(self.read_at)
    }

    /// Whether a reading is out of date. It was asked for at that moment, when so much was known.
    pub(super) fn is_overtaken(&self, asked: Instant, known: i64, reading: &KeyReading) -> bool {
        // Lower than what was known then where etcd was set back to an older copy of its data.
        asked <= self.answered || (known..self.revision()).contains(&reading.revision)
    }

    /// Takes that etcd answered.
    pub(super) fn answer(&mut self) {
        self.answered = Instant::now();
    }

    /// Takes that the entry was written, or removed, at this revision.
    pub(super) fn write(&mut self, revision: i64) {
        self.stands = Stands::Unseen;
        self.written = revision;
        self.read_at = 0;
    }

    /// Takes the revision of a write that was not known to be done.
    pub(super) fn write_late(&mut self, revision: i64) {
        self.written = revision;
    }

    /// Takes the revisions of a reading.
    pub(super) fn read(&mut self, reading: &KeyReading) {
        // Lower than before where etcd was set back to an older copy of its data.
        self.written = reading.row.as_ref().map_or(reading.revision, |row| row.revision);
        self.read_at = reading.revision;
    }

    /// Takes that the watch told of the entry up to this revision.
    pub(super) fn hear(&mut self, revision: i64) {
        self.read_at = revision;
    }

    /// Takes what stands there.
    pub(super) fn see(&mut self, row: Option<KeyValue>) {
        self.stands = row.map_or(Stands::Absent, Stands::Entry);
    }

    /// What stands there may be something else now. Returns what was seen of it.
    pub(super) fn forget(&mut self) -> Stands {
        std::mem::take(&mut self.stands)
    }
}

impl Stands {
    /// Whether it is the entry of this lease and revision.
    pub(super) fn is(&self, lease: i64, revision: i64) -> bool {
        matches!(self, Self::Entry(row) if (row.lease, row.revision) == (lease, revision))
    }
}
