//! Reading and writing entries. All reads are linearizable, and all writes are guarded.

use std::time::Duration;

use discovery_core::ErrorKind;
use etcd_client::{
    Compare, CompareOp, GetOptions, GetResponse, PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse,
    TxnResponse,
};
use tokio::time::Instant;

use super::{Failure, MAX_ANSWER_BYTES, Member, is_revision};

/// One entry as etcd stores it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct KeyValue {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    /// 0 if the entry has no lease, and so does not expire.
    pub(crate) lease: i64,
    pub(crate) revision: i64,
}

/// A part of a range at one revision.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) rows: Vec<KeyValue>,
    pub(crate) more: bool,
    /// The number of entries in the requested part of the range, those after the page included.
    pub(crate) count: usize,
    pub(crate) revision: i64,
    /// 0 if the member did not report it.
    pub(crate) cluster: u64,
    /// How long the answer took.
    pub(crate) took: Duration,
    /// How long it was allowed to take.
    pub(crate) timeout: Duration,
}

/// A range without its entries.
#[derive(Clone, Debug)]
pub(crate) struct RangeSummary {
    pub(crate) cluster: u64,
    /// The revision of the store, not of the range.
    pub(crate) revision: i64,
    pub(crate) count: i64,
    /// The revision of the newest entry, 0 if there is none.
    pub(crate) newest: i64,
}

/// One key at one revision of the store.
#[derive(Clone, Debug)]
pub(crate) struct KeyReading {
    pub(crate) row: Option<KeyValue>,
    /// The revision of the store, not of the entry.
    pub(crate) revision: i64,
}

/// One of the reads of [`Member::readings`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Asked {
    Key(Vec<u8>),
    /// All keys of `[from, to)`.
    Range {
        from: Vec<u8>,
        to: Vec<u8>,
    },
}

/// The answer to an [`Asked`].
#[derive(Clone, Debug)]
pub(crate) enum Reading {
    Key(KeyReading),
    Range(RangeSummary),
}

/// The result of a guarded put.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Put {
    /// The entry has another revision; this is the current entry, if there is one.
    Refused(Option<KeyValue>),
    /// Written at this revision.
    Written(i64),
}

/// The result of a guarded delete.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Delete {
    /// There is no entry at this revision of the store.
    Gone(i64),
    /// The entry is a different one; this is the current entry.
    Refused(KeyValue),
}

impl Member {
    /// Reads up to `limit` entries of `[from, to)`, linearizably, at `revision`, or the current
    /// ones if that is 0.
    pub(crate) async fn page(&self, from: Vec<u8>, to: Vec<u8>, limit: i64, revision: i64) -> Result<Page, Failure> {
        let first = from.clone();
        let end = to.clone();
        let page = self.call("list", async |client| {
            let options = GetOptions::new()
                .with_range(to)
                .with_limit(limit)
                .with_revision(revision)
                .with_sort(SortTarget::Key, SortOrder::Ascend);
            let mut kv = client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES);
            let begun = Instant::now();
            let mut answer = kv.get(from, Some(options)).await?;
            let took = begun.elapsed();
            let header = answer.take_header();
            Ok(Page {
                more: answer.more(),
                // A negative count is as wrong as 0.
                count: usize::try_from(answer.count()).unwrap_or(0),
                rows: answer.take_kvs().into_iter().map(KeyValue::from).collect(),
                revision: header.as_ref().map_or(0, |header| header.revision()),
                cluster: header.as_ref().map_or(0, |header| header.cluster_id()),
                took,
                timeout: self.request_timeout,
            })
        });
        let page = self.authorized(page.await)?;
        page.check(&first, &end).map_err(|what| Failure::strange("list", &self.address, what))?;
        Ok(page)
    }

    /// Reads at most 128 keys and ranges at one revision, linearizably. Of a range, reads how many
    /// keys there are and the newest of them.
    ///
    /// etcd reads a whole range to find its newest key, but the answer is small.
    pub(crate) async fn readings(&self, questions: Vec<Asked>) -> Result<Vec<Reading>, Failure> {
        let reads: Vec<TxnOp> = questions.iter().map(Asked::operation).collect();
        let answer = self.call("audit", async |client| {
            let mut kv = client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES);
            kv.txn(Txn::new().and_then(reads)).await
        });
        let answer = self.authorized(answer.await)?;
        let revision = answer.header().map_or(0, |header| header.revision());
        let cluster = answer.header().map_or(0, |header| header.cluster_id());
        let answers = answer.op_responses().into_iter();
        let readings = questions.iter().zip(answers).map(|(asked, answer)| match answer {
            TxnOpResponse::Get(answer) => asked.reading(answer, revision, cluster),
            _ => Err("a read was answered as another operation"),
        });
        let readings: Result<Vec<Reading>, &'static str> = readings.collect();
        let readings = readings.and_then(|readings| {
            if readings.len() == questions.len() { Ok(readings) } else { Err("not all reads were answered") }
        });
        readings.map_err(|what| Failure::strange("audit", &self.address, what))
    }

    /// Reads one entry, linearizably.
    pub(crate) async fn read(&self, key: Vec<u8>) -> Result<KeyReading, Failure> {
        let asked = key.clone();
        let read = self.call("read", async |client| {
            let mut answer = client.kv_client().get(key, None).await?;
            let revision = answer.header().map_or(0, |header| header.revision());
            Ok(KeyReading { row: answer.take_kvs().into_iter().next().map(KeyValue::from), revision })
        });
        self.authorized(read.await)?.check(&asked).map_err(|what| Failure::strange("read", &self.address, what))
    }

    /// Puts an entry under a lease if the entry's revision is still `revision` (0: no entry).
    /// Otherwise reads it.
    ///
    /// So a put that arrives late, after its caller gave up, overwrites nothing that happened
    /// since.
    pub(crate) async fn put(&self, key: Vec<u8>, value: Vec<u8>, lease: i64, revision: i64) -> Result<Put, Failure> {
        let asked = key.clone();
        let answer = self.call("put", async |client| {
            let put = TxnOp::put(key.clone(), value, Some(PutOptions::new().with_lease(lease)));
            let put = Txn::new().when([is_of(&key, revision)]).and_then([put]);
            Ok(Answer::from(client.kv_client().txn(put.or_else([TxnOp::get(key, None)])).await?))
        });
        let answer = self.authorized(answer.await)?;
        answer.of_put(&asked, revision).map_err(|what| Failure::strange("put", &self.address, what))
    }

    /// Deletes an entry if its revision and lease are still these. Otherwise reads it.
    ///
    /// The lease guards against a store that was wiped and reached the same revision again.
    pub(crate) async fn delete(&self, key: Vec<u8>, lease: i64, revision: i64) -> Result<Delete, Failure> {
        let asked = key.clone();
        let answer = self.call("delete", async |client| {
            let is_it = [is_of(&key, revision), Compare::lease(key.clone(), CompareOp::Equal, lease)];
            let delete = Txn::new().when(is_it).and_then([TxnOp::delete(key.clone(), None)]);
            Ok(Answer::from(client.kv_client().txn(delete.or_else([TxnOp::get(key, None)])).await?))
        });
        let answer = self.authorized(answer.await)?;
        answer.of_delete(&asked, lease, revision).map_err(|what| Failure::strange("delete", &self.address, what))
    }
}

impl Member {
    /// Records an answer about entries, which etcd gives only if it accepts the token. It is less
    /// strict about leases, about streams that are being opened, and about puts for which it has no
    /// space.
    pub(super) fn authorized<T>(&self, result: Result<T, Failure>) -> Result<T, Failure> {
        let is_authorized =
            |failure: &Failure| failure.reason.is_of_cluster() && failure.error.kind() != ErrorKind::ResourceExhausted;
        if result.as_ref().err().is_none_or(is_authorized) {
            self.dial.auth.accepted();
        }
        result
    }
}

/// The answer to a transaction that writes one entry under a condition, and otherwise reads it.
#[derive(Debug)]
struct Answer {
    succeeded: bool,
    revision: i64,
    /// What was read; `None` if nothing was.
    read: Option<Option<KeyValue>>,
}

impl From<TxnResponse> for Answer {
    fn from(answer: TxnResponse) -> Self {
        let read = answer.op_responses().into_iter().find_map(|answer| match answer {
            TxnOpResponse::Get(mut answer) => Some(answer.take_kvs().into_iter().next().map(KeyValue::from)),
            _ => None,
        });
        let revision = answer.header().map_or(0, |header| header.revision());
        Self { succeeded: answer.succeeded(), revision, read }
    }
}

impl Answer {
    fn of_put(self, key: &[u8], revision: i64) -> Result<Put, &'static str> {
        if self.succeeded {
            return if is_revision(self.revision) { Ok(Put::Written(self.revision)) } else { Err(NO_REVISION) };
        }
        let row = self.refusal(key, |row| row.map_or(0, |row| row.revision) == revision);
        Ok(Put::Refused(row?))
    }

    fn of_delete(self, key: &[u8], lease: i64, revision: i64) -> Result<Delete, &'static str> {
        let now = self.revision;
        if !is_revision(now) {
            return Err(NO_REVISION);
        }
        let row = if self.succeeded {
            None
        } else {
            self.refusal(key, |row| row.is_some_and(|row| (row.lease, row.revision) == (lease, revision)))?
        };
        Ok(row.map_or(Delete::Gone(now), Delete::Refused))
    }

    /// The entry that caused the refusal. `holds` checks that the condition really does not hold.
    fn refusal(self, key: &[u8], holds: impl Fn(Option<&KeyValue>) -> bool) -> Result<Option<KeyValue>, &'static str> {
        let row = of_key(key, self.read.ok_or("a write was neither done nor refused with the current entry")?)?;
        if holds(row.as_ref()) { Err("a write was refused though its condition holds") } else { Ok(row) }
    }
}

impl Asked {
    fn operation(&self) -> TxnOp {
        match self {
            Self::Key(key) => TxnOp::get(key.clone(), None),
            Self::Range { from, to } => {
                let newest = GetOptions::new().with_keys_only().with_limit(1);
                let newest = newest.with_sort(SortTarget::Mod, SortOrder::Descend).with_range(to.clone());
                TxnOp::get(from.clone(), Some(newest))
            }
        }
    }

    fn reading(&self, mut answer: GetResponse, revision: i64, cluster: u64) -> Result<Reading, &'static str> {
        match self {
            Self::Key(key) => {
                let row = answer.take_kvs().into_iter().next().map(KeyValue::from);
                KeyReading { row, revision }.check(key).map(Reading::Key)
            }
            Self::Range { .. } => {
                let newest = answer.kvs().first().map_or(0, |entry| entry.mod_revision());
                Ok(Reading::Range(RangeSummary { cluster, revision, count: answer.count(), newest }))
            }
        }
    }
}

impl KeyReading {
    /// Checks that this can be a reading of `key`.
    fn check(self, key: &[u8]) -> Result<Self, &'static str> {
        if !is_revision(self.revision) {
            return Err(NO_REVISION);
        }
        let row = of_key(key, self.row)?;
        if row.as_ref().is_some_and(|row| !(1..=self.revision).contains(&row.revision)) {
            return Err("the entry is newer than the store");
        }
        Ok(Self { row, ..self })
    }
}

fn of_key(key: &[u8], row: Option<KeyValue>) -> Result<Option<KeyValue>, &'static str> {
    if row.as_ref().is_some_and(|row| row.key != key) { Err("the answer holds another key") } else { Ok(row) }
}

impl Page {
    /// Checks that this can be a page of `[from, to)`. If there are more, the next page starts
    /// after its last entry.
    fn check(&self, from: &[u8], to: &[u8]) -> Result<(), &'static str> {
        if !is_revision(self.revision) {
            return Err(NO_REVISION);
        }
        if self.more && self.rows.is_empty() {
            return Err("an empty page announces more entries");
        }
        let is_counted = if self.more { self.count > self.rows.len() } else { self.count == self.rows.len() };
        if !is_counted {
            return Err("the number of entries does not match their count");
        }
        let mut former: Option<&[u8]> = None;
        for row in &self.rows {
            if former.map_or(&*row.key < from, |former| *row.key <= *former) || *row.key >= *to {
                return Err("an entry is outside the range or out of order");
            }
            former = Some(&row.key);
        }
        Ok(())
    }
}

fn is_of(key: &[u8], revision: i64) -> Compare {
    Compare::mod_revision(key, CompareOp::Equal, revision)
}

impl From<etcd_client::KeyValue> for KeyValue {
    fn from(entry: etcd_client::KeyValue) -> Self {
        let lease = entry.lease();
        let revision = entry.mod_revision();
        let (key, value) = entry.into_key_value();
        Self { key, value, lease, revision }
    }
}

const NO_REVISION: &str = "the answer has no revision";

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: &str, lease: i64) -> KeyValue {
        KeyValue { key: key.into(), value: Vec::new(), lease, revision: 3 }
    }

    #[test]
    fn writes_are_done_or_refused_with_the_current_entry() {
        let refused = |read: &Option<Option<KeyValue>>| Answer { succeeded: false, revision: 5, read: read.clone() };
        let done = |revision| Answer { succeeded: true, revision, read: None };
        for revision in [0, -1, i64::MAX] {
            assert!(done(revision).of_put(b"k", 0).is_err() && done(revision).of_delete(b"k", 7, 3).is_err());
        }
        assert_eq!(done(5).of_put(b"k", 0), Ok(Put::Written(5)));
        assert_eq!(done(5).of_delete(b"k", 7, 3), Ok(Delete::Gone(5)));
        let nothing = None;
        let absent = Some(None);
        let mine = Some(Some(row("k", 7)));
        let by_hand = Some(Some(row("k", 0)));
        let other = Some(Some(row("other", 9)));
        for (revision, read, is_good) in [
            (0, &nothing, false),
            (0, &absent, false),
            (0, &mine, true),
            (0, &other, false),
            (2, &absent, true),
            (2, &mine, true),
            (3, &absent, true),
            (3, &mine, false),
        ] {
            let expected = if is_good { Ok(Put::Refused(read.clone().unwrap())) } else { Err(()) };
            assert_eq!(refused(read).of_put(b"k", revision).map_err(drop), expected, "{revision} {read:?}");
        }
        for (revision, read, is_good) in [
            (3, &nothing, false),
            (3, &absent, true),
            (3, &by_hand, true),
            (3, &mine, false),
            (2, &mine, true),
            (3, &other, false),
        ] {
            let expected = read.clone().filter(|_| is_good).map(|row| row.map_or(Delete::Gone(5), Delete::Refused));
            assert_eq!(refused(read).of_delete(b"k", 7, revision).ok(), expected, "{revision} {read:?}");
        }
    }

    #[test]
    fn impossible_readings_are_rejected() {
        for (key, revision, is_good) in
            [(None, 5, true), (None, 0, false), (Some("k"), 3, true), (Some("k"), 2, false), (Some("other"), 5, false)]
        {
            let reading = KeyReading { row: key.map(|key| row(key, 0)), revision };
            assert_eq!(reading.check(b"k").is_ok(), is_good, "{key:?} {revision}");
        }
    }

    #[test]
    fn impossible_pages_are_rejected() {
        for (name, keys, more, count, revision, is_good) in [
            ("none", &[][..], false, 0, 5, true),
            ("all", &["b", "b/1", "c"], false, 3, 5, true),
            ("some", &["b"], true, 2, 5, true),
            ("more of none", &[], true, 1, 5, false),
            ("all, and fewer are counted", &["b", "c"], false, 1, 5, false),
            ("all, and more are counted", &["b", "c"], false, 3, 5, false),
            ("some, and no more are counted", &["b"], true, 1, 5, false),
            ("no header", &["b"], false, 1, 0, false),
            ("a revision that has no next one", &["b"], false, 1, i64::MAX, false),
            ("below the range", &["a", "c"], false, 2, 5, false),
            ("above the range", &["b", "d"], false, 2, 5, false),
            ("no key", &[""], false, 1, 5, false),
            ("the same key twice", &["b", "b"], false, 2, 5, false),
            ("out of order", &["c", "b"], false, 2, 5, false),
        ] {
            let rows = keys.iter().map(|key| row(key, 0)).collect();
            let page = Page { rows, more, count, revision, cluster: 7, took: Duration::ZERO, timeout: Duration::ZERO };
            assert_eq!(page.check(b"b", b"d").is_ok(), is_good, "{name}");
        }
    }
}
