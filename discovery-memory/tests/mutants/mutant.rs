//! The memory backend, broken in one way.

use std::{
    collections::{HashMap, HashSet},
    mem::ManuallyDrop,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use discovery_core::{
    Claim, Error, ErrorKind, Instance, InstanceId, Metadata, Registration, Registry, Resolver, ServiceName, Snapshot,
    UpdateStream,
    conformance::{Capabilities, Harness, Process, Timings},
};
use discovery_memory::MemoryBackend;
use tokio::time::{Instant, sleep};

use crate::{harness::MemoryHarness, registration, stream};

/// What is broken. Each breaks the law for which the test lists it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Mutation {
    BadEntryFailsList,
    BadValueIgnored,
    ClaimTakesOver,
    CountsDeeperKeys,
    CountsEachRead,
    DeregisterLies,
    DeregistersLater,
    DropLeaves,
    EndsOnPanic,
    EndsWithHandle,
    FormerOwnerReturns,
    FreshArcs,
    Gap,
    HealingTakesOver,
    HidesOutageFromLateJoiner,
    IdleUpserts,
    LeavesHalfDone,
    Lockstep,
    LogsEachRead,
    LosesTwice,
    NeverHeals,
    NoLease,
    None,
    OneKindOnly,
    PrefixLeaks,
    RefusedUpdateIsWrittenLater,
    RegistrationEndsWithHandle,
    RollsBack,
    SilentUntilReached,
    SkipsEqualReset,
    StaleList,
    StatusLies,
    StripsOddCharacters,
    SupersededDeletes,
    SupersededOverwrites,
    Unbounded,
    UnknownIsError,
    UpdateForgetsMetadata,
    UpdateRemovesFirst,
    UpstreamEach,
    UpstreamStays,
    WipeAsChange,
    WritesLater,
}

/// What the mutants of one registry share, beyond what a backend could know.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// When each instance was first registered.
    pub(crate) known: Mutex<HashMap<(ServiceName, InstanceId), Instant>>,
    pub(crate) bad: Mutex<HashSet<InstanceId>>,
    pub(crate) expired: Mutex<HashSet<InstanceId>>,
    pub(crate) removed: Mutex<HashSet<InstanceId>>,
    /// The position of each stream.
    pub(crate) places: Mutex<Vec<std::sync::Weak<AtomicU64>>>,
    pub(crate) outage: AtomicBool,
    deeper: AtomicU64,
    reads: AtomicU64,
}

/// A handle on the broken backend.
#[derive(Debug)]
pub(crate) struct Mutant {
    pub(crate) memory: MemoryBackend,
    pub(crate) mutation: Mutation,
    pub(crate) marks: Arc<Marks>,
    /// Lives as long as this handle.
    pub(crate) alive: Arc<()>,
}

pub(crate) struct MutantHarness {
    memory: MemoryHarness,
    mutation: Mutation,
    marks: Arc<Marks>,
}

#[async_trait]
impl Registry for Mutant {
    async fn register_with(
        &self,
        service: &ServiceName,
        instance: Instance,
        claim: Claim,
    ) -> Result<Registration, Error> {
        let key = (service.clone(), instance.id().clone());
        self.marks.known.lock().unwrap().entry(key).or_insert_with(Instant::now);
        match self.mutation {
            Mutation::ClaimTakesOver => self.memory.register(service, instance).await,
            Mutation::StripsOddCharacters => {
                self.memory.register_with(service, without_odd_characters(instance), claim).await
            }
            Mutation::LeavesHalfDone => {
                // Without a guard for a drop between the write and the answer.
                let written = ManuallyDrop::new(self.memory.register_with(service, instance, claim).await?);
                sleep(Duration::from_millis(5)).await;
                Ok(ManuallyDrop::into_inner(written))
            }
            Mutation::WritesLater => {
                let memory = self.memory.clone();
                let service = service.clone();
                let write = async move {
                    sleep(Duration::from_millis(5)).await;
                    memory.register_with(&service, instance, claim).await.map(ManuallyDrop::new)
                };
                // The task continues when its caller is dropped.
                let written = tokio::spawn(write).await.expect("it does not panic")?;
                Ok(ManuallyDrop::into_inner(written))
            }
            Mutation::None
            | Mutation::DeregisterLies
            | Mutation::DeregistersLater
            | Mutation::DropLeaves
            | Mutation::FormerOwnerReturns
            | Mutation::HealingTakesOver
            | Mutation::NeverHeals
            | Mutation::RefusedUpdateIsWrittenLater
            | Mutation::StatusLies
            | Mutation::SupersededDeletes
            | Mutation::SupersededOverwrites
            | Mutation::UpdateForgetsMetadata
            | Mutation::UpdateRemovesFirst => registration::wrap(self, service, instance, claim).await,
            _ => self.memory.register_with(service, instance, claim).await,
        }
    }
}

#[async_trait]
impl Resolver for Mutant {
    async fn list(&self, service: &ServiceName) -> Result<Snapshot, Error> {
        self.marks.reads.fetch_add(1, Ordering::Relaxed);
        let set = self.memory.list(service).await?;
        let known = self.marks.known.lock().unwrap().clone();
        let unreadable = || Error::new(ErrorKind::InvalidInput, "an entry cannot be read");
        match self.mutation {
            Mutation::BadEntryFailsList if !self.marks.bad.lock().unwrap().is_empty() => Err(unreadable()),
            Mutation::UnknownIsError if !known.keys().any(|(name, _)| name == service) => {
                Err(Error::new(ErrorKind::Unavailable, "there is no such service"))
            }
            Mutation::StaleList => {
                let old = |id: &InstanceId| {
                    known.get(&(service.clone(), id.clone())).is_none_or(|since| since.elapsed() > STALE)
                };
                Ok(set.iter().filter(|one| old(one.id())).cloned().collect())
            }
            Mutation::LogsEachRead => {
                for id in &*self.marks.bad.lock().unwrap() {
                    tracing::warn!(key = %id, "bad entry skipped");
                }
                Ok(set)
            }
            Mutation::PrefixLeaks => {
                let longer = self.memory.list(&format!("{service}-history").parse().unwrap()).await?;
                Ok(set.iter().chain(&longer).cloned().collect())
            }
            _ => Ok(set),
        }
    }

    fn watch(&self, service: &ServiceName) -> Result<UpdateStream, Error> {
        stream::watch(self, service)
    }
}

impl Drop for Mutant {
    fn drop(&mut self) {
        if self.mutation == Mutation::RegistrationEndsWithHandle {
            self.memory.crash();
        }
    }
}

impl MutantHarness {
    pub(crate) fn new(mutation: Mutation) -> Self {
        Self { memory: MemoryHarness::new(), mutation, marks: Arc::default() }
    }
}

#[async_trait]
impl Harness for MutantHarness {
    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }

    fn timings(&self) -> Timings {
        self.memory.timings()
    }

    async fn process(&self) -> Process {
        let memory = self.memory.memory.another_process();
        let killed = memory.clone();
        let counted = memory.clone();
        let mutation = self.mutation;
        let marks = Arc::clone(&self.marks);
        let mutant = Mutant { memory, mutation, marks: Arc::clone(&marks), alive: Arc::new(()) };
        let kill = move || {
            if mutation != Mutation::NoLease {
                killed.crash();
            }
        };
        Process::new(mutant).killed_by(kill).counting_skipped(move || match (mutation, counted.skipped()) {
            (Mutation::CountsDeeperKeys, skipped) => skipped + marks.deeper.load(Ordering::Relaxed),
            (Mutation::CountsEachRead, 1..) => marks.reads.load(Ordering::Relaxed),
            (_, skipped) => skipped,
        })
    }

    async fn interrupt(&self) {
        self.marks.outage.store(true, Ordering::Relaxed);
        self.memory.interrupt().await;
    }

    async fn restore(&self) {
        self.marks.outage.store(false, Ordering::Relaxed);
        self.memory.restore().await;
    }

    async fn refuse(&self) {
        self.memory.refuse().await;
    }

    async fn deny(&self) {
        self.memory.deny().await;
    }

    async fn permit(&self) {
        self.memory.permit().await;
    }

    async fn expire(&self, service: &ServiceName, id: &InstanceId) {
        self.marks.expired.lock().unwrap().insert(id.clone());
        self.memory.expire(service, id).await;
    }

    async fn remove(&self, service: &ServiceName, id: &InstanceId) {
        self.marks.removed.lock().unwrap().insert(id.clone());
        if self.mutation != Mutation::NeverHeals {
            self.memory.remove(service, id).await;
        }
    }

    async fn wipe(&self) {
        self.memory.wipe().await;
    }

    async fn put_bad(&self, service: &ServiceName, id: &InstanceId) {
        self.marks.bad.lock().unwrap().insert(id.clone());
        self.memory.put_bad(service, id).await;
    }

    async fn put_deeper(&self, service: &ServiceName) {
        self.marks.deeper.fetch_add(1, Ordering::Relaxed);
        self.memory.put_deeper(service).await;
    }

    async fn panic_watches(&self, service: &ServiceName) {
        self.memory.panic_watches(service).await;
    }

    async fn upstream_watches(&self, service: &ServiceName) -> usize {
        if self.mutation == Mutation::UpstreamEach {
            // As in a backend that shares nothing.
            return self.marks.places.lock().unwrap().iter().filter(|place| place.strong_count() > 0).count();
        }
        self.memory.upstream_watches(service).await
    }
}

fn without_odd_characters(instance: Instance) -> Instance {
    let mut metadata = Metadata::default();
    for (key, value) in instance.metadata().iter() {
        metadata.insert(key, value.replace(char::is_control, "")).unwrap();
    }
    instance.with_metadata(metadata)
}

/// How long a stale list does not show what is new.
const STALE: Duration = Duration::from_millis(50);
