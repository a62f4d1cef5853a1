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
    /// What is bad in the registry now, as far as known.
    standing: HashMap<ServiceName, HashMap<String, Standing>>,
    log: Log,
}

#[derive(Debug)]
struct Standing {
    revision: u64,
    /// The revision before that. A list that was read while the watch moved on may be one step
    /// behind it; the next list then returns the newer revision again.
    former: Option<u64>,
    id: Option<InstanceId>,
    loss: Loss,
}

/// What is not served of an entry.
#[derive(Debug)]
enum Loss {
    /// The whole entry, for this reason.
    Entry(Error),
    Labels,
}

/// Something to count and to log.
enum Flaw {
    Entry(BadEntry),
    Labels(InstanceId, DroppedLabels),
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
        let (instances, flaws) = split(entries);
        let keys: HashSet<&str> = flaws.iter().map(Flaw::key).collect();
        self.lock().retain(service, |key, _| keys.contains(key));
        self.note(service, flaws);
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
        let (instances, flaws) = split(entries);
        // Usually nothing is bad, and there is nothing to look for.
        if self.lock().standing.contains_key(service) {
            let mended: HashSet<&InstanceId> = removes.iter().chain(instances.iter().map(Instance::id)).collect();
            self.lock().retain(service, |_, entry| !entry.id.as_ref().is_some_and(|id| mended.contains(id)));
        }
        for flaw in &flaws {
            if let Flaw::Entry(bad) = flaw {
                removes.extend(bad.id.clone());
            }
        }
        self.note(service, flaws);
        (instances, removes)
    }

    /// Returns how many bad entries a service has now, as far as known.
    pub(crate) fn standing(&self, service: &ServiceName) -> usize {
        self.lock().bad_entries(service).count()
    }

    /// Returns what a service has in bad entries now, as far as known.
    pub(crate) fn of_service(&self, service: &ServiceName) -> SkippedEntries {
        let state = self.lock();
        let newest = state.bad_entries(service).max_by_key(|(revision, _)| *revision);
        SkippedEntries::new(state.bad_entries(service).count(), newest.map(|(_, error)| error.clone()))
    }

    /// Returns how many bad entries were skipped so far.
    pub(crate) fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    /// Returns how many labels were dropped so far.
    pub(crate) fn dropped_labels(&self) -> u64 {
        self.dropped_labels.load(Ordering::Relaxed)
    }

    fn note(&self, service: &ServiceName, flaws: Vec<Flaw>) {
        for flaw in flaws {
            let revision = flaw.revision();
            let mut state = self.lock();
            let of_service = state.standing.entry(service.clone()).or_default();
            let known = of_service.get(flaw.key());
            if known.is_some_and(|known| known.revision == revision || known.former == Some(revision)) {
                continue;
            }
            let former = known.map(|known| known.revision);
            let standing = Standing { revision, former, id: flaw.id().cloned(), loss: flaw.loss() };
            of_service.insert(flaw.key().to_owned(), standing);
            let key = cut(flaw.key().escape_debug().to_string());
            let is_logged = state.log.admits((service.clone(), flaw.key().to_owned()), Instant::now());
            drop(state);
            match flaw {
                Flaw::Entry(BadEntry { error, .. }) => {
                    self.skipped.fetch_add(1, Ordering::Relaxed);
                    if is_logged {
                        warn!(%service, key, revision, error = cut(error.report().to_string()), "bad entry skipped");
                    }
                }
                Flaw::Labels(_, DroppedLabels { labels, error, .. }) => {
                    self.dropped_labels.fetch_add(labels, Ordering::Relaxed);
                    if is_logged {
                        let error = cut(error.report().to_string());
                        warn!(%service, key, revision, labels, error, "bad labels dropped");
                    }
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flaw {
    fn key(&self) -> &str {
        match self {
            Self::Entry(bad) => &bad.key,
            Self::Labels(_, dropped) => &dropped.key,
        }
    }

    fn revision(&self) -> u64 {
        match self {
            Self::Entry(bad) => bad.revision,
            Self::Labels(_, dropped) => dropped.revision,
        }
    }

    fn id(&self) -> Option<&InstanceId> {
        match self {
            Self::Entry(bad) => bad.id.as_ref(),
            Self::Labels(id, _) => Some(id),
        }
    }

    fn loss(&self) -> Loss {
        match self {
            Self::Entry(bad) => Loss::Entry(bad.error.clone()),
            Self::Labels(..) => Loss::Labels,
        }
    }
}

impl State {
    /// The revisions of a service's bad entries, and what is wrong with them.
    fn bad_entries(&self, service: &ServiceName) -> impl Iterator<Item = (u64, &Error)> {
        self.standing.get(service).into_iter().flat_map(HashMap::values).filter_map(|standing| match &standing.loss {
            Loss::Entry(error) => Some((standing.revision, error)),
            Loss::Labels => None,
        })
    }

    fn retain(&mut self, service: &ServiceName, mut stands: impl FnMut(&str, &Standing) -> bool) {
        if let Some(standing) = self.standing.get_mut(service) {
            standing.retain(|key, entry| stands(key, entry));
            if standing.is_empty() {
                self.standing.remove(service);
            }
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

fn split(entries: Vec<Entry>) -> (Vec<Instance>, Vec<Flaw>) {
    let mut instances = Vec::with_capacity(entries.len());
    let mut flaws = Vec::new();
    for entry in entries {
        match entry {
            Entry::Bad(entry) => flaws.push(Flaw::Entry(entry)),
            Entry::Partial(instance, dropped) => {
                flaws.push(Flaw::Labels(instance.id().clone(), dropped));
                instances.push(instance);
            }
            Entry::Valid(instance) => instances.push(instance),
        }
    }
    (instances, flaws)
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
        assert!(rejects.lock().standing.is_empty(), "nothing is kept of removed entries");
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
        assert_eq!(rejects.of_service(&service).count(), 0, "the entry is not skipped");
        rejects.of_step(&service, vec![bad("a", 3)], Vec::new());
        let skipped = rejects.of_service(&service);
        assert_eq!((skipped.count(), skipped.reason().unwrap().to_string()), (1, "not JSON".to_owned()));
        rejects.of_step(&service, vec![partial(4, 1)], Vec::new());
        assert_eq!((rejects.dropped_labels(), rejects.of_service(&service).count()), (6, 0));
        rejects.of_step(&service, vec![Entry::Valid(one)], Vec::new());
        assert!(rejects.lock().standing.is_empty(), "nothing is kept of entries that were mended");
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
