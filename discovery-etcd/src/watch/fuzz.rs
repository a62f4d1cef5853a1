//! The body of the fuzz target `watch`: whatever etcd stores and however it sends it, an old
//! watcher and a fresh list agree.

use std::collections::BTreeMap;

use discovery_core::{Instance, InstanceId, backend::Entry};

use super::{
    cursor::{Cursor, Step},
    range::{Changes, Range},
};
use crate::{
    client::{Canceled, Event, KeyValue, Message},
    layout::EtcdNaming,
};

#[cfg(test)]
#[path = "../../../fuzz/src/corpus.rs"]
mod corpus;

/// Panics if a set that follows the messages of a watch differs from a list at the same revision.
#[cfg_attr(not(fuzzing), expect(unreachable_pub, reason = "only the fuzzer sees it outside"))]
pub fn fuzz_watch(data: &[u8]) {
    let service = "s".parse().expect("a valid name");
    let layout = EtcdNaming::default();
    let range = Range::new(&layout, "", &service, usize::MAX);
    let mut etcd = Etcd::default();
    let mut bytes = data.iter().copied().take(600);
    let mut cursor = Cursor::new(0, CLUSTER);
    let mut set = BTreeMap::new();
    while let (Some(operation), Some(argument)) = (bytes.next(), bytes.next()) {
        match operation % 8 {
            0..=2 => etcd.write(argument, &mut bytes),
            3 | 4 => {
                // Up to the end of some revision, in fragments that end anywhere.
                let events = etcd.after(cursor.reached());
                let whole =
                    events.iter().position(|(revision, _)| *revision > cursor.reached() + i64::from(argument >> 4));
                let mut events = &events[..whole.unwrap_or(events.len())];
                while let Some(part) =
                    bytes.next().map(|byte| usize::from(byte & 7)).filter(|part| (1..events.len()).contains(part))
                {
                    follow(&mut cursor, &mut set, &range, etcd.message(true, &events[..part]));
                    events = &events[part..];
                }
                follow(&mut cursor, &mut set, &range, etcd.message(false, events));
                assert_eq!(set, etcd.listed(cursor.reached(), &range), "after {}", cursor.reached());
            }
            5 => {
                // Events that were sent before.
                let before = cursor.reached();
                let events: Vec<_> = etcd.log.iter().filter(|(revision, _)| *revision <= before).cloned().collect();
                let from = events.iter().position(|(revision, _)| *revision > i64::from(argument)).unwrap_or(0);
                follow(&mut cursor, &mut set, &range, etcd.message(false, &events[from..]));
                assert_eq!((cursor.reached(), &set), (before, &etcd.listed(before, &range)));
            }
            _ => {
                // A message that must not happen ends the watch, and a list follows.
                let _ = cursor.advance(etcd.strange(argument, cursor.reached()));
                cursor = Cursor::new(etcd.revision, CLUSTER);
                set = etcd.listed(etcd.revision, &range);
            }
        }
    }
}

fn follow(cursor: &mut Cursor, set: &mut Set, range: &Range<'_>, message: Message) {
    let before = cursor.reached();
    let last = message.revision;
    let steps = cursor.advance(message).expect("etcd sends such messages");
    assert!(before <= cursor.reached() && cursor.reached() <= last);
    steps.into_iter().for_each(|step| apply(set, range, step));
}

/// Applies a step like the core does.
fn apply(set: &mut Set, range: &Range<'_>, step: Step) {
    let Changes { upserts, removes, .. } = range.changes(step);
    let changed = |entry: &Entry| match entry {
        Entry::Bad(entry) => entry.id.clone(),
        Entry::Partial(instance, _) | Entry::Valid(instance) => Some(instance.id().clone()),
    };
    assert!(!upserts.iter().filter_map(changed).any(|id| removes.contains(&id)), "no id is both upserted and removed");
    removes.iter().for_each(|id| drop(set.remove(id)));
    upserts.into_iter().for_each(|entry| take(set, entry));
}

fn take(set: &mut Set, entry: Entry) {
    match entry {
        Entry::Bad(entry) => drop(entry.id.map(|id| set.remove(&id))),
        Entry::Partial(instance, _) | Entry::Valid(instance) => drop(set.insert(instance.id().clone(), instance)),
    }
}

type Set = BTreeMap<InstanceId, Instance>;

/// Everything that was ever written.
#[derive(Default)]
struct Etcd {
    revision: i64,
    log: Vec<(i64, Event)>,
}

impl Etcd {
    /// Writes one revision: one to four keys, each put or deleted.
    fn write(&mut self, argument: u8, bytes: &mut impl Iterator<Item = u8>) {
        self.revision += 1;
        let more = bytes.by_ref().take(usize::from(argument >> 6));
        let changes: BTreeMap<_, _> = [argument]
            .into_iter()
            .chain(more)
            .map(|byte| (usize::from(byte & 7), usize::from(byte >> 3 & 7)))
            .collect();
        for (key, value) in changes {
            let key = KEYS[key].to_vec();
            let revision = self.revision;
            let event = match VALUES.get(value) {
                Some(value) => {
                    let row = KeyValue { key, value: value.to_vec(), lease: 1, revision };
                    Event::Put { row, is_new: false }
                }
                None => Event::Delete { key, revision },
            };
            self.log.push((revision, event));
        }
    }

    /// The events that a watch after a revision must receive.
    fn after(&self, revision: i64) -> Vec<(i64, Event)> {
        self.log.iter().filter(|(at, _)| *at > revision).cloned().collect()
    }

    fn message(&self, fragment: bool, events: &[(i64, Event)]) -> Message {
        let events = events.iter().map(|(_, event)| event.clone()).collect();
        Message { cluster: CLUSTER, revision: self.revision, fragment, events, ..Message::default() }
    }

    fn strange(&self, argument: u8, reached: i64) -> Message {
        let honest = self.message(argument & 8 != 0, &[]);
        let events = self.after(reached);
        match argument & 7 {
            0 => Message { cluster: CLUSTER + 1, ..honest },
            1 => Message { canceled: Some(Canceled::Compacted), ..Message::default() },
            2 => Message { events: vec![Event::Unknown], ..honest },
            3 => Message { revision: reached - 1, ..honest },
            4 => Message { events: events.into_iter().rev().map(|(_, event)| event).collect(), ..honest },
            5 => Message { revision: i64::MAX, ..honest },
            6 => Message { revision: i64::MIN, ..honest },
            _ => Message { watch: -1, ..honest },
        }
    }

    /// The set that a list at a revision returns.
    fn listed(&self, revision: i64, range: &Range<'_>) -> Set {
        let mut rows = BTreeMap::new();
        for (_, event) in self.log.iter().take_while(|(at, _)| *at <= revision) {
            match event {
                Event::Put { row, .. } => drop(rows.insert(row.key.clone(), row.clone())),
                Event::Delete { key, .. } => drop(rows.remove(key)),
                Event::Unknown => unreachable!("etcd writes puts and deletes"),
            }
        }
        let mut set = Set::new();
        rows.into_values().flat_map(|row| range.read(&row).entries).for_each(|entry| take(&mut set, entry));
        set
    }
}

const CLUSTER: u64 = 7;
const KEYS: [&[u8]; 8] = [b"s/a", b"s/b", b"s/c", b"s/a/x", b"s/", b"s/\xff", b"s/b c", b"s/.."];
/// An index past the end is a delete.
const VALUES: [&[u8]; 5] = [
    br#"{"Op":0,"Addr":"10.0.0.1:80"}"#,
    br#"{"Op":0,"Addr":"10.0.0.1:80","Metadata":{"weight":3}}"#,
    br#"{"Op":0,"Addr":"10.0.0.2:80"}"#,
    br#"{"Op":0,"Addr":"169.254.169.254:80"}"#,
    b"?",
];

#[cfg(test)]
mod tests {
    #[test]
    fn fault_d11_an_old_watcher_and_a_fresh_list_agree() {
        super::corpus::run("watch", 1_500, super::fuzz_watch);
    }
}
