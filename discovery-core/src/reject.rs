use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tracing::warn;

use crate::{BadEntry, Entry, Instance, InstanceId, ServiceName};

/// Keeps bad entries out of the sets: counts them, and logs each once per revision (W7).
#[derive(Debug, Default)]
pub(crate) struct Rejects {
    /// The bad entries that stand in the registry now, as far as seen.
    standing: Mutex<HashMap<ServiceName, HashMap<String, Standing>>>,
    skipped: AtomicU64,
}

#[derive(Debug)]
struct Standing {
    revision: u64,
    id: Option<InstanceId>,
}

impl Rejects {
    /// The instances of a whole state.
    pub(crate) fn of_state(&self, service: &ServiceName, entries: Vec<Entry>) -> Vec<Instance> {
        let (instances, bad) = split(entries);
        let keys: Vec<&str> = bad.iter().map(|entry| entry.key.as_str()).collect();
        self.with(service, |standing| standing.retain(|key, _| keys.contains(&key.as_str())));
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
        self.with(service, |standing| {
            let mended = |id: &InstanceId| removes.contains(id) || instances.iter().any(|one| one.id() == id);
            standing.retain(|_, entry| !entry.id.as_ref().is_some_and(mended));
        });
        removes.extend(bad.iter().filter_map(|entry| entry.id.clone()));
        self.note(service, bad);
        (instances, removes)
    }

    /// How many bad entries were met so far.
    pub(crate) fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    fn note(&self, service: &ServiceName, bad: Vec<BadEntry>) {
        for BadEntry { key, id, revision, error } in bad {
            let standing = Standing { revision, id };
            let shown = key.escape_debug().to_string();
            let mut all = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
            let former = all.entry(service.clone()).or_default().insert(key, standing);
            drop(all);
            if former.is_none_or(|former| former.revision != revision) {
                self.skipped.fetch_add(1, Ordering::Relaxed);
                warn!(%service, key = shown, revision, error = %error.report(), "bad entry skipped");
            }
        }
    }

    fn with(&self, service: &ServiceName, change: impl FnOnce(&mut HashMap<String, Standing>)) {
        let mut all = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(standing) = all.get_mut(service) {
            change(standing);
            if standing.is_empty() {
                all.remove(service);
            }
        }
    }
}

fn split(entries: Vec<Entry>) -> (Vec<Instance>, Vec<BadEntry>) {
    let (mut instances, mut bad) = (Vec::with_capacity(entries.len()), Vec::new());
    for entry in entries {
        match entry {
            Entry::Bad(entry) => bad.push(entry),
            Entry::Valid(instance) => instances.push(instance),
        }
    }
    (instances, bad)
}

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
        rejects.of_step(&service, vec![Entry::Valid(good)], Vec::new());
        rejects.of_step(&service, vec![bad("a", 2)], Vec::new());
        assert_eq!(rejects.skipped(), 3, "bad again after it was good");
        rejects.of_state(&service, Vec::new());
        assert!(rejects.standing.lock().unwrap().is_empty(), "nothing is remembered of what is gone");
    }
}
