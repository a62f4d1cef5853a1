//! The key range of one service, and how keys become entries.

use std::hash::{DefaultHasher, Hash, Hasher};

use discovery_core::{
    Error, ErrorKind, InstanceId, ServiceName,
    backend::{BadEntry, DroppedLabels, Entry, Live},
};

use super::{cursor::Step, source::EtcdSource};
use crate::{
    client::{Event, KeyValue},
    layout::{Content, Decoded, Layout, Tail},
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
    ///
    /// A layout whose methods contradict one another may cost time here, but no entry of this key.
    pub(super) fn behind_subtree(&self, key: &[u8]) -> Option<Vec<u8>> {
        let tail = readable(key.strip_prefix(&*self.from)?);
        let subtree = self.layout.subtree(tail)?;
        let is_part = !subtree.is_empty() && tail.starts_with(subtree);
        if !is_part || !matches!(self.classify(key), Tail::Other) {
            return None;
        }
        Some(end_of_prefix(&key[..self.from.len() + subtree.len()]))
    }

    /// Reads an entry; without instances if the key is not an entry.
    pub(super) fn read(&self, row: &KeyValue) -> Read {
        let (ids, error) = match self.classify(&row.key) {
            Tail::Other => return Read::default(),
            Tail::Bad(error) => (Vec::new(), error),
            tail => {
                let ids = tail.into_ids();
                match self.decode(row) {
                    Ok(decoded) => return Read::of(decoded, ids, row),
                    Err(error) => (ids, error),
                }
            }
        };
        let mut absent = ids.into_iter();
        let bad = BadEntry { key: name_of_key(&row.key), id: absent.next(), revision: revision_of(row), error };
        Read { entries: vec![Entry::Bad(bad)], absent: absent.collect() }
    }

    fn decode(&self, row: &KeyValue) -> Result<Vec<Decoded>, Error> {
        let tail = row.key.strip_prefix(&*self.from).and_then(|tail| std::str::from_utf8(tail).ok());
        self.layout.read(tail.expect("a key that names instances is in the range and UTF-8"), &row.value)
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
        let Changes { upserts, removes, gone } = self.changes(step);
        if !gone.is_empty() {
            live.forget_bad(gone);
        }
        if !upserts.is_empty() || !removes.is_empty() {
            live.change(upserts, removes);
        }
    }

    pub(super) fn changes(&self, step: Step) -> Changes {
        let mut changes = Changes::default();
        for event in step {
            match event {
                Event::Put { row, .. } => {
                    let read = self.read(&row);
                    changes.upserts.extend(read.entries);
                    changes.removes.extend(read.absent);
                }
                Event::Delete { key, .. } => match self.classify(&key) {
                    Tail::Bad(_) => changes.gone.push(name_of_key(&key)),
                    tail => changes.removes.extend(tail.into_ids()),
                },
                Event::Unknown => unreachable!("the cursor rejects unknown events"),
            }
        }
        changes
    }
}

/// What an entry holds.
#[derive(Default)]
pub(super) struct Read {
    pub(super) entries: Vec<Entry>,
    /// The instances that the key names and that none of the entries is about.
    absent: Vec<InstanceId>,
}

/// What one revision changes.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) upserts: Vec<Entry>,
    pub(super) removes: Vec<InstanceId>,
    /// The keys of bad entries without an id that are gone.
    gone: Vec<String>,
}

impl Read {
    fn of(decoded: Vec<Decoded>, ids: Vec<InstanceId>, row: &KeyValue) -> Self {
        let is_read = |id: &InstanceId| decoded.iter().any(|one| one.id() == id);
        let absent = ids.into_iter().filter(|id| !is_read(id)).collect();
        Self { entries: decoded.into_iter().map(|one| entry(one, row)).collect(), absent }
    }
}

fn entry(one: Decoded, row: &KeyValue) -> Entry {
    match one.0 {
        Content::Instance(instance) => Entry::Valid(instance),
        Content::Partial(instance, labels, error) => {
            let key = name_of_key(&row.key);
            Entry::Partial(instance, DroppedLabels { key, revision: revision_of(row), labels, error })
        }
        Content::Bad(id, error) => {
            // Several instances of one key may be bad, and each is counted.
            let key = format!("{} ({id})", name_of_key(&row.key));
            Entry::Bad(BadEntry { key, id: Some(id), revision: revision_of(row), error })
        }
    }
}

fn revision_of(row: &KeyValue) -> u64 {
    row.revision.unsigned_abs()
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
