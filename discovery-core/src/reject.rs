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
    Instance, InstanceId, ServiceName,
    backend::{BadEntry, Entry},
};

/// Keeps bad entries out of the sets: counts them, and logs each once per revision, within [bounds](QUIET) (W7).
#[derive(Debug, Default)]
pub(crate) struct Rejects {
    state: Mutex<State>,
    skipped: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// The bad entries that stand in the registry now, as far as seen.
    standing: HashMap<ServiceName, HashMap<String, Standing>>,
    log: Log,
}

#[derive(Debug)]
struct Standing {
    revision: u64,
    /// The one before: a list that was read while the watch went on may be a step behind it, and the next list has the newer one
    /// again.
    former: Option<u64>,
    id: Option<InstanceId>,
}

/// When which entry was logged last, whether it still stands or not.
#[derive(Debug, Default)]
struct Log {
    logged: HashMap<(ServiceName, String), Instant>,
    /// Nothing becomes forgotten before.
    room: Option<Instant>,
}

impl Rejects {
    /// The instances of a whole state.
    pub(crate) fn of_state(&self, service: &ServiceName, entries: Vec<Entry>) -> Vec<Instance> {
        let (instances, bad) = split(entries);
        let keys: HashSet<&str> = bad.iter().map(|entry| entry.key.as_str()).collect();
        self.lock().retain(service, |key, _| keys.contains(key));
        self.note(service, bad);
        instances
    }

    /// The instances of one step, and what it removes: also the instances whose value became bad.
    pub(crate) fn of_step(
        &self,
        service: &ServiceName,
        entries: Vec<Entry>,
        mut removes: Vec<InstanceId>,
    ) -> (Vec<Instance>, Vec<InstanceId>) {
        let (instances, bad) = split(entries);
        // Nearly always nothing stands that could be mended.
        if self.standing(service) > 0 {
            let mended: HashSet<&InstanceId> = removes.iter().chain(instances.iter().map(Instance::id)).collect();
            self.lock().retain(service, |_, entry| !entry.id.as_ref().is_some_and(|id| mended.contains(id)));
        }
        removes.extend(bad.iter().filter_map(|entry| entry.id.clone()));
        self.note(service, bad);
        (instances, removes)
    }

    /// How many bad entries a service has now, as far as seen.
    pub(crate) fn standing(&self, service: &ServiceName) -> usize {
        self.lock().standing.get(service).map_or(0, HashMap::len)
    }

    /// How many bad entries were met so far.
    pub(crate) fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    fn note(&self, service: &ServiceName, bad: Vec<BadEntry>) {
        for BadEntry { key, id, revision, error } in bad {
            let mut state = self.lock();
            let of_service = state.standing.entry(service.clone()).or_default();
            let known = of_service.get(&key);
            if known.is_some_and(|known| known.revision == revision || known.former == Some(revision)) {
                continue;
            }
            let former = known.map(|known| known.revision);
            of_service.insert(key.clone(), Standing { revision, former, id });
            self.skipped.fetch_add(1, Ordering::Relaxed);
            let shown = cut(key.escape_debug().to_string());
            let is_logged = state.log.admits((service.clone(), key), Instant::now());
            drop(state);
            if is_logged {
                warn!(%service, key = shown, revision, error = cut(error.report().to_string()), "bad entry skipped");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
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
    /// Whether an entry is to be logged now.
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

/// Text for the log, of bounded length.
fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_SHOWN) {
        text.truncate(end);
        text.push('…');
    }
    text
}

fn split(entries: Vec<Entry>) -> (Vec<Instance>, Vec<BadEntry>) {
    let mut instances = Vec::with_capacity(entries.len());
    let mut bad = Vec::new();
    for entry in entries {
        match entry {
            Entry::Bad(entry) => bad.push(entry),
            Entry::Valid(instance) => instances.push(instance),
        }
    }
    (instances, bad)
}

/// For so long an entry is not logged again, though it be written anew: who may write to the registry must not be able to fill
/// the log. The count tells of all.
const QUIET: Duration = Duration::from_secs(60);
/// How many lines are logged in that time, whatever number of entries they are about.
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
    fn a_bad_entry_counts_once_per_revision_until_it_is_mended() {
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
        assert_eq!(rejects.skipped(), 2, "a list that was read before the step, and one after it");
        rejects.of_step(&service, vec![Entry::Valid(good)], Vec::new());
        rejects.of_step(&service, vec![bad("a", 2)], Vec::new());
        assert_eq!(rejects.skipped(), 3, "bad again after it was good");
        rejects.of_state(&service, Vec::new());
        assert!(rejects.lock().standing.is_empty(), "nothing is remembered of what is gone");
    }

    #[test]
    fn an_entry_is_logged_once_a_minute_and_all_of_them_not_too_often() {
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
    fn what_is_logged_has_bounds() {
        assert_eq!(cut("ä".repeat(512)), "ä".repeat(512));
        assert_eq!(cut("ä".repeat(1_000_000)), format!("{}…", "ä".repeat(512)));
    }
}
