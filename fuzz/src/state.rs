use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use discovery_core::{
    Backoff, Change, Error, ErrorKind, Instance, InstanceId, Resolver, ServiceName, Snapshot, Update, UpdateStream,
    Weight,
    backend::{BadEntry, Entry, Feed, Recovered, Recovery, Source},
};
use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;

/// Whatever a registry does and however slowly it is followed, a consumer that folds the updates
/// holds a set that the registry had: W1 to W7.
pub fn state(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(run(data));
}

async fn run(data: &[u8]) {
    let registry = Arc::new(Mutex::new(Model::default()));
    let backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(50)).expect("allowed");
    let recovery = Recovery::default().backoff(backoff).queue_capacity(3).max_entries(LIMIT);
    let resolver = Recovered::with_recovery(Scripted(Arc::clone(&registry)), recovery);
    let service: ServiceName = "payments".parse().expect("a valid name");
    let mut followers: Vec<Follower> = Vec::new();
    let mut bytes = data.iter().copied().take(400);
    while let (Some(operation), Some(argument)) = (bytes.next(), bytes.next()) {
        match operation % 10 {
            0 if followers.len() < 4 => followers.push(Follower::new(resolver.watch(&service).expect("a runtime"))),
            1 if !followers.is_empty() => drop(followers.remove(usize::from(argument) % followers.len())),
            2 => {
                if let Ok(set) = resolver.list(&service).await {
                    assert_eq!(values(&set), lock(&registry).valid());
                } else {
                    assert!(lock(&registry).entries.len() > LIMIT);
                }
            }
            3 | 4 if !followers.is_empty() => {
                let place = usize::from(argument >> 2) % followers.len();
                followers[place].take(usize::from(argument & 3) + 1, &lock(&registry).history);
                continue;
            }
            5 => lock(&registry).tell(&Event::End(argument)),
            6 => {
                // A step that is not sent as a change is followed by the whole state.
                let mut model = lock(&registry);
                model.step(&steps(argument, &mut bytes));
                let entries = model.all();
                model.tell(&if argument & 1 == 0 { Event::Replace(entries) } else { Event::Reset(entries) });
            }
            _ => {
                let mut model = lock(&registry);
                let step = model.step(&steps(argument, &mut bytes));
                model.tell(&step);
            }
        }
        // Runs every task until it waits.
        tokio::time::sleep(Duration::from_millis(u64::from(argument & 1) * 100 + 1)).await;
    }
    let settled = {
        let mut model = lock(&registry);
        let ids: Vec<u8> = model.entries.keys().copied().skip(LIMIT).collect();
        let step = model.step(&ids.into_iter().map(|id| (id, None)).collect());
        model.tell(&step);
        model.valid()
    };
    // A service with too many entries is tried again within two minutes.
    tokio::time::sleep(Duration::from_secs(130)).await;
    let history = lock(&registry).history.clone();
    for follower in &mut followers {
        follower.take(usize::MAX, &history);
        assert!(follower.lost.is_none(), "it stays lost: {:?}", follower.lost);
        assert_eq!(values(&follower.set), settled);
    }
    assert_eq!(values(&resolver.list(&service).await.expect("it is small")), settled);
}

/// The changes of one step: each sets one of a few ids to a good value or a bad one, or removes it.
fn steps(argument: u8, bytes: &mut impl Iterator<Item = u8>) -> BTreeMap<u8, Option<u8>> {
    let more = bytes.by_ref().take(usize::from(argument >> 6));
    [argument].into_iter().chain(more).map(|byte| (byte >> 3 & 7, Some(byte & 7).filter(|value| *value > 1))).collect()
}

/// A registry and its whole history.
#[derive(Debug, Default)]
struct Model {
    revision: u64,
    /// The value and the revision of each id.
    entries: BTreeMap<u8, (u8, u64)>,
    history: Vec<Values>,
    attempts: Vec<mpsc::UnboundedSender<Event>>,
}

/// The weights of the valid instances, by id.
type Values = BTreeMap<String, u16>;

#[derive(Clone, Debug)]
enum Event {
    Change(Vec<Entry>, Vec<InstanceId>),
    End(u8),
    Replace(Vec<Entry>),
    Reset(Vec<Entry>),
}

impl Model {
    fn step(&mut self, changes: &BTreeMap<u8, Option<u8>>) -> Event {
        self.note();
        self.revision += 1;
        let mut upserts = Vec::new();
        let mut removes = Vec::new();
        for (id, value) in changes {
            match value {
                Some(value) => {
                    self.entries.insert(*id, (*value, self.revision));
                    upserts.push(entry(*id, *value, self.revision));
                }
                None => {
                    self.entries.remove(id);
                    removes.push(id_of(*id));
                }
            }
        }
        self.note();
        Event::Change(upserts, removes)
    }

    fn note(&mut self) {
        if self.entries.len() <= LIMIT {
            self.history.push(self.valid());
        }
    }

    fn tell(&mut self, event: &Event) {
        self.attempts.retain(|attempt| attempt.send(event.clone()).is_ok());
    }

    fn all(&self) -> Vec<Entry> {
        self.entries.iter().map(|(id, (value, revision))| entry(*id, *value, *revision)).collect()
    }

    fn valid(&self) -> Values {
        let good = self.entries.iter().filter(|(_, (value, _))| *value != BAD);
        good.map(|(id, (value, _))| (id_of(*id).into(), u16::from(*value))).collect()
    }
}

fn entry(id: u8, value: u8, revision: u64) -> Entry {
    if value == BAD {
        let error = Error::new(ErrorKind::InvalidInput, "bad");
        return Entry::Bad(BadEntry { key: id.to_string(), id: Some(id_of(id)), revision, error });
    }
    let instance = Instance::new("10.0.0.1:80".parse().expect("a valid address")).with_id(id_of(id));
    Entry::Valid(instance.with_weight(Weight::new(u16::from(value)).expect("a small weight")))
}

fn id_of(id: u8) -> InstanceId {
    format!("i{id}").parse().expect("a valid id")
}

fn values(set: &Snapshot) -> Values {
    set.iter().map(|one| (one.id().to_string(), one.weight().value())).collect()
}

/// Follows the model.
#[derive(Debug)]
struct Scripted(Arc<Mutex<Model>>);

#[async_trait]
impl Source for Scripted {
    async fn follow(&self, _: &ServiceName, feed: Feed) -> Result<(), Error> {
        let (entries, mut events) = {
            let mut model = lock(&self.0);
            let (sender, events) = mpsc::unbounded_channel();
            model.note();
            model.attempts.push(sender);
            (model.all(), events)
        };
        let mut live = feed.reset(entries);
        while let Some(event) = events.recv().await {
            match event {
                Event::Change(upserts, removes) => live.change(upserts, removes),
                // Bypasses the panic hook, at which libFuzzer would stop.
                Event::End(0..64) => std::panic::resume_unwind(Box::new("a panic on demand")),
                Event::End(64..128) => return Err(Error::new(ErrorKind::PermissionDenied, "lost")),
                Event::End(_) => return Err(Error::new(ErrorKind::Unavailable, "lost")),
                Event::Replace(entries) => live.replace(entries),
                Event::Reset(entries) => live.reset(entries),
            }
        }
        Ok(())
    }
}

/// A consumer that folds its updates, and what they allow so far.
struct Follower {
    updates: UpdateStream,
    set: Snapshot,
    lost: Option<ErrorKind>,
    has_set: bool,
    /// The position in the history at which, or after which, the registry had this set.
    place: usize,
}

impl Follower {
    fn new(updates: UpdateStream) -> Self {
        Self { updates, set: Snapshot::default(), lost: None, has_set: false, place: 0 }
    }

    /// Takes up to `count` updates that are ready.
    fn take(&mut self, count: usize, history: &[Values]) {
        for _ in 0..count {
            let Some(update) = self.updates.next().now_or_never() else { return };
            let update = update.expect("streams do not end");
            let next = self.set.after(&update);
            match &update {
                Update::Change(change) => {
                    assert!(self.has_set && self.lost.is_none(), "a Reset comes first, and after every loss");
                    assert!(!change.is_empty());
                    let changed = self.set.diff(&next);
                    let parts = |change: &Change| {
                        let upserts: BTreeSet<_> = change.upserts().iter().map(|one| one.id().clone()).collect();
                        (upserts, change.removes().iter().cloned().collect::<BTreeSet<_>>())
                    };
                    assert_eq!(parts(&changed), parts(change), "a change is what changed");
                    assert_eq!(
                        changed.upserts().len() + changed.removes().len(),
                        change.upserts().len() + change.removes().len()
                    );
                }
                Update::Lost(error) => {
                    assert_ne!(self.lost, Some(error.kind()), "a loss is reported once");
                    self.lost = Some(error.kind());
                    continue;
                }
                Update::Reset(_) => (self.has_set, self.lost) = (true, None),
            }
            for one in &next {
                let Some(former) = self.set.get(one.id().as_str()).filter(|former| *former == one) else { continue };
                // A consumer that fell behind may have missed a different value in between.
                let value = Some(one.weight().value());
                let stayed = history[self.place..].iter().all(|had| had.get(one.id().as_str()).copied() == value);
                assert!(Arc::ptr_eq(former, one) || !stayed, "an unchanged instance was replaced: {one:?}");
            }
            let held = values(&next);
            let ahead = history[self.place..].iter().position(|had| *had == held);
            self.place += ahead.unwrap_or_else(|| panic!("the registry never had {held:?}, or not in this order"));
            self.set = next;
        }
    }
}

fn lock(model: &Mutex<Model>) -> std::sync::MutexGuard<'_, Model> {
    model.lock().expect("no panic under the lock")
}

const LIMIT: usize = 5;
const BAD: u8 = 7;
