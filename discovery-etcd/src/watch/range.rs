//! The key range of one service, and how keys become entries.

use std::hash::{DefaultHasher, Hash, Hasher};

use discovery_core::{
    Error, ErrorKind, InstanceId, ServiceName,
    backend::{BadEntry, DroppedLabels, Entry, Live},
};

use super::{cursor::Step, source::EtcdSource};
use crate::{
    client::{Event, KeyValue},
    layout::{Decoded, Layout, Tail},
    watcher::Keys,
};

/// The keys of one service, and how to read them.
pub(super) struct Range<'a> {
    layout: &'a dyn Layout,
    pub(super) from: Vec<u8>,
    pub(super) to: Vec<u8>,
    /// A list with more entries than this is not read to its end.
    pub(super) limit: usize,
}

impl<'a> Range<'a> {
    pub(super) fn of(source: &'a EtcdSource, service: &ServiceName, limit: usize) -> Self {
        Self::new(&*source.layout, &source.prefix, service, limit)
    }

    pub(super) fn new(layout: &'a dyn Layout, prefix: &str, service: &ServiceName, limit: usize) -> Self {
        let from = format!("{prefix}{}", layout.range(service)).into_bytes();
        let to = end_of_prefix(&from);
        Self { layout, from, to, limit }
    }

    pub(super) fn keys(&self) -> Keys {
        Keys::Range { from: self.from.clone(), to: self.to.clone() }
    }

    /// What a key is.
    pub(super) fn classify(&self, key: &[u8]) -> Tail {
        let Some(tail) = key.strip_prefix(&*self.from) else { return Tail::Other };
        match std::str::from_utf8(tail) {
            Ok(tail) => self.layout.classify(tail),
            Err(_) if self.layout.subtree(readable(tail)).is_some() => Tail::Other,
            Err(_) => Tail::Bad(Error::new(ErrorKind::InvalidInput, "the key is not UTF-8")),
        }
    }

    /// The least key after the subtree of deeper paths that a key belongs to, if it belongs to one.
    pub(super) fn behind_subtree(&self, key: &[u8]) -> Option<Vec<u8>> {
        let subtree = self.layout.subtree(readable(key.strip_prefix(&*self.from)?))?;
        // A contradictory layout may cost time, but must not cost entries.
        if !matches!(self.classify(key), Tail::Other) {
            return None;
        }
        Some(end_of_prefix(&key[..self.from.len() + subtree.len()]))
    }

    /// The instances of an entry, each bad if the entry is; none if the key is not an entry.
    pub(super) fn entries(&self, row: &KeyValue) -> Vec<Entry> {
        let tail = row.key.strip_prefix(&*self.from).and_then(|tail| std::str::from_utf8(tail).ok());
        // Usually the entry is good, and its key need not be classified.
        let error = match tail.map(|tail| self.layout.read(tail, &row.value)) {
            Some(Ok(read)) => return read.into_iter().map(|one| entry(one, row)).collect(),
            Some(Err(error)) => Some(error),
            None => None,
        };
        let (ids, error) = match (self.classify(&row.key), error) {
            (Tail::Other, _) => return Vec::new(),
            (Tail::Bad(error), _) => (vec![None], error),
            (tail, Some(error)) => (tail.into_ids().into_iter().map(Some).collect(), error),
            (_, None) => (vec![None], Error::new(ErrorKind::InvalidInput, "the key is not UTF-8")),
        };
        let revision = row.revision.unsigned_abs();
        let key = name_of_key(&row.key);
        let bad = |id| Entry::Bad(BadEntry { key: key.clone(), id, revision, error: error.clone() });
        ids.into_iter().map(bad).collect()
    }

    /// By how many entries a step grows the range.
    pub(super) fn growth(&self, step: &Step) -> i64 {
        let of_event = |event: &Event| match event {
            _ if !event.key().starts_with(&self.from) => 0,
            Event::Delete { .. } => -1,
            Event::Put { is_new, .. } => i64::from(*is_new),
            Event::Unknown => 0,
        };
        step.iter().map(of_event).sum()
    }

    /// Passes on all changes of one revision as one update.
    pub(super) fn apply(&self, step: Step, live: &mut Live) {
        let (upserts, removes) = self.changes(step);
        if !upserts.is_empty() || !removes.is_empty() {
            live.change(upserts, removes);
        }
    }

    pub(super) fn changes(&self, step: Step) -> (Vec<Entry>, Vec<InstanceId>) {
        let mut upserts = Vec::new();
        let mut removes = Vec::new();
        for event in step {
            match event {
                Event::Put { row, .. } => upserts.extend(self.entries(&row)),
                Event::Delete { key, .. } => removes.extend(self.classify(&key).into_ids()),
                Event::Unknown => unreachable!("the cursor rejects unknown events"),
            }
        }
        (upserts, removes)
    }
}

fn entry(one: Decoded, row: &KeyValue) -> Entry {
    match one.into_parts() {
        (instance, None) => Entry::Valid(instance),
        (instance, Some((labels, error))) => {
            let revision = row.revision.unsigned_abs();
            Entry::Partial(instance, DroppedLabels { key: name_of_key(&row.key), revision, labels, error })
        }
    }
}

/// The longest prefix of a key that is valid UTF-8.
fn readable(tail: &[u8]) -> &str {
    let end = std::str::from_utf8(tail).map_or_else(|error| error.valid_up_to(), str::len);
    std::str::from_utf8(&tail[..end]).expect("valid up to `end`")
}

/// A key as short text, different for different keys. etcd accepts arbitrary bytes, more than a
/// megabyte of them.
fn name_of_key(key: &[u8]) -> String {
    match std::str::from_utf8(key) {
        Ok(text) if key.len() <= MAX_KEY_BYTES => text.to_owned(),
        _ => {
            let shown = &key[..key.len().min(MAX_KEY_BYTES)];
            let mut hasher = DefaultHasher::new();
            key.hash(&mut hasher);
            format!("{} ({} bytes, {:016x})", String::from_utf8_lossy(shown), key.len(), hasher.finish())
        }
    }
}

/// The least key greater than all keys with this prefix, which ends in a separator and so below
/// 0xff.
fn end_of_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // etcd's notation for all keys from `from` on.
    vec![0]
}

/// Longer than the key of any instance.
const MAX_KEY_BYTES: usize = 1100;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::EtcdNaming;

    #[test]
    fn deeper_paths_belong_to_no_instance_and_have_an_end() {
        let layout = EtcdNaming::default();
        let range = Range::new(&layout, "prod/", &"svc".parse().unwrap(), 10);
        for (key, behind) in [
            (&b"prod/svc/eu/e1"[..], Some(&b"prod/svc/eu0"[..])),
            (b"prod/svc/eu/", Some(b"prod/svc/eu0")),
            (b"prod/svc/eu/a/b", Some(b"prod/svc/eu0")),
            (b"prod/svc//x", Some(b"prod/svc/0")),
            (b"prod/svc/eu/\xff", Some(b"prod/svc/eu0")),
            (b"prod/svc/\xff/e1", None),
            (b"prod/svc/e1", None),
            (b"prod/svc/", None),
            (b"prod/other/eu/e1", None),
        ] {
            let name = String::from_utf8_lossy(key);
            assert_eq!(range.behind_subtree(key).as_deref(), behind, "{name}");
            assert_eq!(
                matches!(range.classify(key), Tail::Other),
                behind.is_some() || key.starts_with(b"prod/other"),
                "{name}"
            );
        }
    }

    #[test]
    fn names_of_keys_are_short_and_distinct() {
        assert_eq!(name_of_key("payments/ä".as_bytes()), "payments/ä");
        let one = vec![b'a'; 1_400_000];
        let other = vec![b'a'; 1_400_001];
        let names =
            [&one[..], &other, b"payments/\xfe", b"payments/\xff", "payments/\u{fffd}".as_bytes()].map(name_of_key);
        for (place, name) in names.iter().enumerate() {
            assert!(name.len() < 1200 && !names[..place].contains(name), "{name}");
        }
    }
}
