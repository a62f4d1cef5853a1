//! What the messages of a watch mean, without the I/O.

use std::collections::BTreeSet;

use discovery_core::{Error, ErrorKind};

use crate::client::{Canceled, Event, Failure, MAX_ANSWER_BYTES, Message};

/// The position of a watch in etcd's history.
#[derive(Debug)]
pub(super) struct Cursor {
    /// All changes up to here have been passed on.
    revision: i64,
    cluster: u64,
    /// Events of a revision that may continue in the next fragment.
    parts: Vec<Event>,
}

/// The changes of one revision, at most one per key.
pub(super) type Step = Vec<Event>;

/// Why a watch cannot continue after a message.
#[derive(Debug)]
pub(super) enum Stop {
    Canceled(Failure),
    Compacted,
    /// Something that must not happen: another cluster or watch, a history that goes back, an
    /// invalid event.
    Strange(Error),
}

impl Cursor {
    /// Starts after a list at `revision`.
    pub(super) fn new(revision: i64, cluster: u64) -> Self {
        Self { revision, cluster, parts: Vec::new() }
    }

    /// The revision up to which everything was passed on.
    pub(super) fn reached(&self) -> i64 {
        self.revision
    }

    pub(super) fn cluster(&self) -> u64 {
        self.cluster
    }

    /// Records that no more changes will come up to this revision.
    pub(super) fn reach(&mut self, revision: i64) {
        self.revision = self.revision.max(revision);
    }

    /// Continues with another stream, which starts at the last revision that was passed on
    /// completely.
    pub(super) fn resume(&mut self) {
        self.parts.clear();
    }

    /// Takes a message and returns the steps that it completes.
    pub(super) fn advance(&mut self, message: Message) -> Result<Vec<Step>, Stop> {
        match message.canceled {
            Some(Canceled::Compacted) => return Err(Stop::Compacted),
            Some(Canceled::Failed(failure)) => return Err(Stop::Canceled(failure)),
            None => {}
        }
        if !is_same_cluster(message.cluster, self.cluster) {
            return Err(strange("the watch was answered by another cluster"));
        }
        let mut events = std::mem::take(&mut self.parts);
        events.extend(message.events);
        if events.contains(&Event::Unknown) {
            return Err(strange("the watch sent an invalid event"));
        }
        let mut revisions: Vec<_> = events.iter().map(Event::revision).collect();
        if !revisions.is_sorted() {
            return Err(strange("the events of the watch are out of order"));
        }
        if revisions.is_empty() && message.revision != 0 && message.revision < self.revision && !message.fragment {
            // A member that lags answers like this too. The list that follows is linearizable and
            // shows which it is.
            return Err(strange("the registry's history went back"));
        }
        if message.fragment {
            // Only the last revision can continue in the next fragment. Hold back no more than
            // that: one revision is no larger than a request, while everything that a watch missed
            // may be far too much to hold.
            let complete = revisions.partition_point(|revision| Some(revision) < revisions.last());
            self.parts = events.split_off(complete);
            if self.parts.iter().map(size_of).sum::<usize>() > MAX_PARTS_BYTES {
                return Err(strange("the watch sent endless fragments of one revision"));
            }
            revisions.truncate(complete);
        }
        let mut steps: Vec<Step> = Vec::new();
        for (event, revision) in events.into_iter().zip(revisions) {
            match steps.last_mut() {
                // Sent again: some releases go back after a partition.
                _ if revision < self.revision => {}
                Some(step) if revision == self.revision => step.push(event),
                None if revision == self.revision => {}
                _ => {
                    self.revision = revision;
                    steps.push(vec![event]);
                }
            }
        }
        Ok(steps.into_iter().map(last_of_each_key).collect())
    }
}

/// Keeps the last event of each key. etcd changes a key at most once per revision; of a server that
/// does otherwise, the last event counts.
fn last_of_each_key(step: Step) -> Step {
    let mut seen = BTreeSet::new();
    let mut kept: Step = step.into_iter().rev().filter(|event| seen.insert(event.key().to_vec())).collect();
    kept.reverse();
    kept
}

/// Roughly how much memory an event takes.
fn size_of(event: &Event) -> usize {
    let value = if let Event::Put { row, .. } = event { row.value.len() } else { 0 };
    size_of_val(event) + event.key().len() + value
}

/// Whether two answers may come from the same cluster. A proxy does not know its cluster's id and
/// sends 0.
pub(super) fn is_same_cluster(one: u64, other: u64) -> bool {
    one == 0 || other == 0 || one == other
}

pub(super) fn strange(message: &'static str) -> Stop {
    Stop::Strange(Error::new(ErrorKind::Unavailable, message).with_operation("watch"))
}

/// The limit of what is held back of one revision; beyond it, a list serves as well.
const MAX_PARTS_BYTES: usize = 2 * MAX_ANSWER_BYTES;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::client::KeyValue;

    fn put(key: &str, revision: i64) -> Event {
        let row = KeyValue { key: key.into(), value: Vec::new(), lease: 1, revision };
        Event::Put { row, is_new: false }
    }

    fn delete(key: &str, revision: i64) -> Event {
        Event::Delete { key: key.into(), revision }
    }

    fn message(revision: i64, fragment: bool, events: Vec<Event>) -> Message {
        Message { cluster: 7, revision, fragment, events, ..Message::default() }
    }

    #[test]
    fn one_revision_is_one_step() {
        let mut cursor = Cursor::new(10, 7);
        assert!(cursor.advance(message(10, false, vec![])).unwrap().is_empty(), "created");
        let steps = cursor.advance(message(12, false, vec![put("a", 11), put("b", 12), delete("c", 12)])).unwrap();
        assert_eq!(steps, [vec![put("a", 11)], vec![put("b", 12), delete("c", 12)]]);
        assert_eq!(cursor.reached(), 12);
    }

    #[test]
    fn a_fragmented_revision_is_passed_on_whole() {
        let mut cursor = Cursor::new(10, 7);
        assert!(cursor.advance(message(11, true, vec![put("a", 11)])).unwrap().is_empty());
        assert!(cursor.advance(message(11, true, vec![put("b", 11)])).unwrap().is_empty());
        assert_eq!(cursor.reached(), 10, "resuming between fragments would lose what is held back");
        let steps = cursor.advance(message(11, false, vec![put("c", 11)])).unwrap();
        assert_eq!(steps, [vec![put("a", 11), put("b", 11), put("c", 11)]]);
    }

    #[test]
    fn fragments_are_held_for_one_revision_only() {
        let mut cursor = Cursor::new(10, 7);
        let steps = cursor.advance(message(14, true, vec![put("a", 11), put("b", 11), put("a", 12)])).unwrap();
        assert_eq!(steps, [vec![put("a", 11), put("b", 11)]]);
        assert_eq!((cursor.reached(), cursor.parts.len()), (11, 1), "resuming requests all of revision 12 again");
        let steps = cursor.advance(message(14, false, vec![put("b", 12), put("a", 14)])).unwrap();
        assert_eq!(steps, [vec![put("a", 12), put("b", 12)], vec![put("a", 14)]]);
        assert_eq!(cursor.reached(), 14);
        assert!(matches!(cursor.advance(message(14, true, vec![put("a", 16)])), Ok(steps) if steps.is_empty()));
        assert!(matches!(cursor.advance(message(14, false, vec![put("a", 15)])), Err(Stop::Strange(_))));
    }

    #[test]
    fn another_stream_resumes_at_the_last_complete_revision() {
        let mut cursor = Cursor::new(10, 7);
        assert!(cursor.advance(message(12, true, vec![put("a", 12)])).unwrap().is_empty());
        cursor.resume();
        let told = vec![put("x", 10), put("a", 12), put("b", 12)];
        assert_eq!(cursor.advance(message(12, false, told)).unwrap(), [vec![put("a", 12), put("b", 12)]]);
    }

    #[test]
    fn repeated_events_are_dropped_and_the_last_one_of_a_key_counts() {
        let mut cursor = Cursor::new(10, 7);
        let steps = cursor.advance(message(12, false, vec![put("a", 9), put("a", 10), put("b", 11), delete("b", 11)]));
        assert_eq!(steps.unwrap(), [vec![delete("b", 11)]]);
        assert!(cursor.advance(message(12, false, vec![put("b", 11)])).unwrap().is_empty());
    }

    #[test]
    fn a_proxy_without_a_cluster_id_is_not_another_cluster() {
        let mut cursor = Cursor::new(10, 7);
        assert!(cursor.advance(Message { cluster: 0, ..message(11, false, vec![put("a", 11)]) }).is_ok());
        assert!(Cursor::new(10, 0).advance(message(11, false, vec![put("a", 11)])).is_ok());
    }

    #[test]
    fn invalid_messages_end_the_watch() {
        let at = |message| Cursor::new(10, 7).advance(message).unwrap_err();
        assert!(matches!(at(Message { cluster: 8, ..message(11, false, vec![]) }), Stop::Strange(_)));
        assert!(matches!(at(message(9, false, vec![])), Stop::Strange(_)));
        assert!(matches!(at(message(12, false, vec![put("a", 12), put("a", 11)])), Stop::Strange(_)));
        assert!(matches!(at(message(12, false, vec![Event::Unknown])), Stop::Strange(_)));
        let canceled = Message { canceled: Some(Canceled::Compacted), ..Message::default() };
        assert!(matches!(at(canceled), Stop::Compacted), "its header has neither a revision nor a cluster");
    }

    #[test]
    fn fragments_are_held_up_to_a_bound() {
        let part = |bytes| {
            let row = KeyValue { key: b"k".to_vec(), value: vec![b'x'; bytes], lease: 1, revision: 11 };
            Message { fragment: true, ..message(11, true, vec![Event::Put { row, is_new: false }]) }
        };
        let mut cursor = Cursor::new(10, 7);
        for _ in 0..2 {
            // A complete revision no longer counts.
            assert!(cursor.advance(part(MAX_PARTS_BYTES - 1000)).unwrap().is_empty());
            cursor.advance(message(11, false, vec![])).unwrap();
        }
        assert!(cursor.advance(part(MAX_PARTS_BYTES - 1000)).unwrap().is_empty());
        assert!(matches!(cursor.advance(part(1000)), Err(Stop::Strange(_))));
    }

    proptest! {
        #[test]
        fn steps_ascend_and_nothing_is_lost_or_repeated(
            sizes in proptest::collection::vec(1usize..5, 1..12),
            cuts in proptest::collection::vec(any::<bool>(), 60),
        ) {
            // A history, sent in fragments, with each message ending at the end of a revision and
            // some of them sent twice.
            let history: Vec<(i64, Vec<Event>)> = sizes
                .iter()
                .zip(1..)
                .map(|(size, revision)| (revision, (0..*size).map(|n| put(&n.to_string(), revision)).collect()))
                .collect();
            let mut cursor = Cursor::new(0, 7);
            let mut got = Vec::new();
            let mut cuts = cuts.into_iter().cycle();
            for (revision, events) in &history {
                let mut rest = events.clone();
                while rest.len() > 1 && cuts.next().unwrap() {
                    let part = rest.remove(0);
                    got.extend(cursor.advance(message(*revision, true, vec![part])).unwrap());
                }
                got.extend(cursor.advance(message(*revision, false, rest)).unwrap());
                if cuts.next().unwrap() {
                    prop_assert!(cursor.advance(message(*revision, false, events.clone())).unwrap().is_empty());
                }
            }
            prop_assert_eq!(got, history.into_iter().map(|(_, events)| events).collect::<Vec<_>>());
        }
    }
}
