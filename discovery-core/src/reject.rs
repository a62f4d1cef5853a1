//! Bad entries and bad labels: skipped, counted, and logged within bounds.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tracing::warn;

use crate::{
    Error, Instance, InstanceId, ServiceName, SkippedEntries,
    backend::{BadEntry, DroppedLabels, Entry},
};

/// Keeps bad entries out of the sets, counts them and bad labels, and logs each once per revision,
/// within [bounds](QUIET) (W7).
#[derive(Debug, Default)]
pub(crate) struct Rejects {
    state: Mutex<State>,
    skipped: AtomicU64,
    dropped_labels: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    services: HashMap<ServiceName, Standing>,
    bad_log: Log,
    labels_log: Log,
}

/// What is bad in a service now, as far as known.
#[derive(Debug, Default)]
struct Standing {
    /// Bad entries, by key.
    bad: HashMap<String, Bad>,
    /// The key of the newest of them, unless it is not known.
    newest: Option<String>,
    /// The entries with bad labels, by instance.
    labels: HashMap<InstanceId, Seen>,
}

#[derive(Debug)]
struct Bad {
    seen: Seen,
    id: Option<InstanceId>,
    error: Error,
}

/// The revision that was seen last, and the one before that. A list that was read while the watch
/// moved on may be one step behind it; the next list then returns the newer revision again.
#[derive(Clone, Copy, Debug)]
struct Seen {
    revision: u64,
    former: Option<u64>,
}

/// When each entry was last logged, even if it no longer exists.
#[derive(Debug, Default)]
struct Log {
    logged: HashMap<(ServiceName, String), Instant>,
    /// No line is old enough to be forgotten before this time.
    room: Option<Instant>,
}

impl Rejects {
    /// Returns the instances of a whole state.
    pub(crate) fn of_state(&self, service: &ServiceName, entries: Vec<Entry>) -> Vec<Instance> {
        let Split { instances, bad, partial } = split(entries);
        {
            let keys: HashSet<&str> = bad.iter().map(|entry| entry.key.as_str()).collect();
            let ids: HashSet<&InstanceId> = partial.iter().map(|(id, _)| id).collect();
            self.lock().change(service, |standing| {
                standing.bad.retain(|key, _| keys.contains(key.as_str()));
                standing.labels.retain(|id, _| ids.contains(id));
            });
        }
        self.note(service, bad, partial);
        instances
    }

    /// Returns the instances of one step and what it removes, including instances whose value
    /// became bad.
    pub(crate) fn of_step(
        &self,
        service: &ServiceName,
        entries: Vec<Entry>,
        mut removes: Vec<InstanceId>,
    ) -> (Vec<Instance>, Vec<InstanceId>) {
        let Split { instances, bad, partial } = split(entries);
        let become_bad: Vec<InstanceId> = bad.iter().filter_map(|entry| entry.id.clone()).collect();
        self.lock().change(service, |standing| {
            if !standing.bad.is_empty() {
                let mended: HashSet<&InstanceId> = removes.iter().chain(instances.iter().map(Instance::id)).collect();
                standing.bad.retain(|_, entry| !entry.id.as_ref().is_some_and(|id| mended.contains(id)));
            }
            if !standing.labels.is_empty() {
                let is_partial = |id: &InstanceId| partial.iter().any(|(partial, _)| partial == id);
                let good = instances.iter().map(Instance::id).filter(|id| !is_partial(id));
                for id in removes.iter().chain(&become_bad).chain(good) {
                    standing.labels.remove(id);
                }
            }
        });
        removes.extend(become_bad);
        self.note(service, bad, partial);
        (instances, removes)
    }

    /// Forgets bad entries that are gone, by key.
    pub(crate) fn forget(&self, service: &ServiceName, keys: &[String]) {
        self.lock().change(service, |standing| {
            for key in keys {
                standing.bad.remove(key);
            }
        });
    }

    /// Returns how many bad entries a service has now, as far as known.
    pub(crate) fn standing(&self, service: &ServiceName) -> usize {
        self.lock().services.get(service).map_or(0, |standing| standing.bad.len())
    }

    /// Returns what a service has in bad entries now, as far as known.
    pub(crate) fn of_service(&self, service: &ServiceName) -> SkippedEntries {
        let mut state = self.lock();
        state.services.get_mut(service).map_or_else(SkippedEntries::default, Standing::report)
    }

    /// Returns how many bad entries were skipped so far.
    pub(crate) fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    /// Returns how many labels were dropped so far.
    pub(crate) fn dropped_labels(&self) -> u64 {
        self.dropped_labels.load(Ordering::Relaxed)
    }

    fn note(&self, service: &ServiceName, bad: Vec<BadEntry>, partial: Vec<(InstanceId, DroppedLabels)>) {
        for BadEntry { key, id, revision, error } in bad {
            let mut state = self.lock();
            let standing = state.services.entry(service.clone()).or_default();
            let Some(seen) = Seen::after(standing.bad.get(&key).map(|known| known.seen), revision) else { continue };
            standing.bad.insert(key.clone(), Bad { seen, id, error: error.clone() });
            standing.newest = Some(key.clone());
            self.skipped.fetch_add(1, Ordering::Relaxed);
            let shown = cut(key.escape_debug().to_string());
            let is_logged = state.bad_log.admits((service.clone(), key), Instant::now());
            drop(state);
            if is_logged {
                warn!(%service, key = shown, revision, error = cut(error.report().to_string()), "bad entry skipped");
            }
        }
        for (id, DroppedLabels { key, revision, labels, error }) in partial {
            let mut state = self.lock();
            let standing = state.services.entry(service.clone()).or_default();
            let Some(seen) = Seen::after(standing.labels.get(&id).copied(), revision) else { continue };
            standing.labels.insert(id, seen);
            self.dropped_labels.fetch_add(labels, Ordering::Relaxed);
            let shown = cut(key.escape_debug().to_string());
            let is_logged = state.labels_log.admits((service.clone(), key), Instant::now());
            drop(state);
            if is_logged {
                let error = cut(error.report().to_string());
                warn!(%service, key = shown, revision, labels, error, "bad labels dropped");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Changes what is known of a service, if anything is.
    fn change(&mut self, service: &ServiceName, change: impl FnOnce(&mut Standing)) {
        if let Some(standing) = self.services.get_mut(service) {
            change(standing);
            if standing.bad.is_empty() && standing.labels.is_empty() {
                self.services.remove(service);
            }
        }
    }
}

impl Standing {
    fn report(&mut self) -> SkippedEntries {
        let is_known = self.newest.as_ref().is_some_and(|key| self.bad.contains_key(key));
        if !is_known {
            let newest = self.bad.iter().max_by_key(|(_, entry)| entry.seen.revision);
            self.newest = newest.map(|(key, _)| key.clone());
        }
        let newest = self.newest.as_ref().and_then(|key| self.bad.get(key));
        SkippedEntries::new(self.bad.len(), newest.map(|entry| entry.error.clone()))
    }
}

impl Seen {
    /// Returns what is seen once this revision arrives, or `None` if it was seen before.
    fn after(known: Option<Self>, revision: u64) -> Option<Self> {
        match known {
            Some(known) if known.revision == revision || known.former == Some(revision) => None,
            known => Some(Self { revision, former: known.map(|known| known.revision) }),
        }
    }
}

impl Log {
    /// Returns whether an entry is to be logged now, and records it if so.
    fn admits(&mut self, entry: (ServiceName, String), now: Instant) -> bool {
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < QUIET;
        if self.logged.get(&entry).is_some_and(is_recent) {
            return false;
        }
        if self.logged.len() >= MAX_LINES && self.room.is_none_or(|room| room <= now) {
            self.logged.retain(|_, at| is_recent(at));
            self.room = self.logged.values().min().map(|at| *at + QUIET);
        }
        let has_room = self.logged.len() < MAX_LINES;
        if has_room {
            self.logged.insert(entry, now);
        }
        has_room
    }
}

/// Truncates text for the log.
fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_SHOWN) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Entries, sorted by what is wrong with them.
struct Split {
    /// The instances that are served.
    instances: Vec<Instance>,
    bad: Vec<BadEntry>,
    /// The labels that are not served, and whose they are.
    partial: Vec<(InstanceId, DroppedLabels)>,
}

fn split(entries: Vec<Entry>) -> Split {
    let mut split = Split { instances: Vec::with_capacity(entries.len()), bad: Vec::new(), partial: Vec::new() };
    for entry in entries {
        match entry {
            Entry::Bad(entry) => split.bad.push(entry),
            Entry::Partial(instance, dropped) => {
                split.partial.push((instance.id().clone(), dropped));
                split.instances.push(instance);
            }
            Entry::Valid(instance) => split.instances.push(instance),
        }
    }
    split
}

/// How long an entry is not logged again, even if it is rewritten. A client that may write to the
/// registry must not be able to fill the log. The counter includes every bad revision.
const QUIET: Duration = Duration::from_secs(60);
/// How many lines are logged within [`QUIET`], however many entries are bad.
const MAX_LINES: usize = 1000;
/// How many characters of a key or an error are logged.
const MAX_SHOWN: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Error, ErrorKind};

    fn bad(key: &str, revision: u64) -> Entry {
        let error = Error::new(ErrorKind::InvalidInput, "not JSON");
        Entry::Bad(BadEntry { key: key.to_owned(), id: key.parse().ok(), revision, error })
    }

    #[test]
    fn a_bad_entry_counts_once_per_revision_until_it_is_repaired() {
        let rejects = Rejects::default();
        let service: ServiceName = "payments".parse().unwrap();
        let good = Instance::new("10.0.0.1:80".parse().unwrap()).with_id("a".parse().unwrap());

        let served = rejects.of_state(&service, vec![bad("a", 1), Entry::Valid(good.clone())]);
        assert!(served.contains(&good) && served.len() == 1);
        rejects.of_state(&service, vec![bad("a", 1)]);
        assert_eq!(rejects.skipped(), 1, "the same value again");
        let (_, removes) = rejects.of_step(&service, vec![bad("a", 2)], Vec::new());
        assert_eq!((rejects.skipped(), removes), (2, vec!["a".parse().unwrap()]), "a bad value removes");
        rejects.of_state(&service, vec![bad("a", 1)]);
        rejects.of_state(&service, vec![bad("a", 2)]);
        assert_eq!(rejects.skipped(), 2, "a list read before the step, and one read after it");
        rejects.of_step(&service, vec![Entry::Valid(good)], Vec::new());
        rejects.of_step(&service, vec![bad("a", 2)], Vec::new());
        assert_eq!(rejects.skipped(), 3, "bad again after it was good");
        rejects.of_state(&service, Vec::new());
        assert!(rejects.lock().services.is_empty(), "nothing is kept of removed entries");
    }

    #[test]
    fn an_instance_with_bad_labels_is_served_and_they_count_once_per_revision() {
        let rejects = Rejects::default();
        let service: ServiceName = "payments".parse().unwrap();
        let one = Instance::new("10.0.0.1:80".parse().unwrap()).with_id("a".parse().unwrap());
        let partial = |revision, labels| {
            let error = Error::new(ErrorKind::InvalidInput, "a key with a space");
            Entry::Partial(one.clone(), DroppedLabels { key: "a".to_owned(), revision, labels, error })
        };

        assert_eq!(rejects.of_state(&service, vec![partial(1, 2)]), std::slice::from_ref(&one));
        rejects.of_state(&service, vec![partial(1, 2)]);
        assert_eq!((rejects.dropped_labels(), rejects.skipped()), (2, 0), "the same value again");
        let (upserts, removes) = rejects.of_step(&service, vec![partial(2, 3)], Vec::new());
        assert_eq!((upserts, removes), (vec![one.clone()], Vec::new()), "bad labels remove nothing");
        assert_eq!((rejects.dropped_labels(), rejects.standing(&service)), (5, 0));
        rejects.of_state(&service, vec![partial(1, 2)]);
        rejects.of_state(&service, vec![partial(2, 3)]);
        assert_eq!(rejects.dropped_labels(), 5, "a list read before the step, and one read after it");
        assert_eq!(rejects.of_service(&service).count(), 0, "the entry is not skipped");
        rejects.of_step(&service, vec![bad("a", 3)], Vec::new());
        let skipped = rejects.of_service(&service);
        assert_eq!((skipped.count(), skipped.reason().unwrap().to_string()), (1, "not JSON".to_owned()));
        rejects.of_step(&service, vec![partial(4, 1)], Vec::new());
        assert_eq!((rejects.dropped_labels(), rejects.of_service(&service).count()), (6, 0));
        rejects.of_step(&service, vec![Entry::Valid(one)], Vec::new());
        assert!(rejects.lock().services.is_empty(), "nothing is kept of entries that were mended");
    }

    #[test]
    fn a_bad_entry_without_an_id_stands_until_its_key_is_gone() {
        let rejects = Rejects::default();
        let service: ServiceName = "payments".parse().unwrap();
        rejects.of_step(&service, vec![bad("a b", 1), bad("a/b", 2)], Vec::new());
        assert_eq!(rejects.of_service(&service).count(), 2);
        rejects.forget(&service, &["a/b".to_owned()]);
        let skipped = rejects.of_service(&service);
        assert_eq!((skipped.count(), skipped.reason().is_some()), (1, true), "the reason is that of the other one");
        rejects.forget(&service, &["a b".to_owned()]);
        assert!(rejects.lock().services.is_empty());
    }

    #[test]
    fn each_entry_is_logged_once_a_minute_and_all_of_them_within_a_bound() {
        let entry = |key: u64| ("payments".parse::<ServiceName>().unwrap(), key.to_string());
        let mut log = Log::default();
        let start = Instant::now();
        assert!(log.admits(entry(0), start));
        assert!(!log.admits(entry(0), start + QUIET / 2));
        assert!(log.admits(entry(0), start + QUIET));
        let logged = (0..100_000).filter(|key| log.admits(entry(*key), start + QUIET)).count();
        assert_eq!((logged, log.logged.len()), (MAX_LINES - 1, MAX_LINES));
        assert!(!log.admits(entry(0), start + QUIET * 3 / 2));
        assert!(log.admits(entry(0), start + QUIET * 2), "room again");
    }

    #[test]
    fn logged_text_is_bounded() {
        assert_eq!(cut("ä".repeat(512)), "ä".repeat(512));
        assert_eq!(cut("ä".repeat(1_000_000)), format!("{}…", "ä".repeat(512)));
    }
}
