//! The tools of the laws: bounded waits, and a consumer that folds its updates.

use std::{
    fmt,
    io::{Write, stderr},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use tokio::time::{sleep, timeout};

use super::{Harness, Timings};
use crate::{
    Backend, Change, Error, Instance, InstanceId, Metadata, Registration, ServiceName, Snapshot, Update, UpdateStream,
    Weight,
};

/// The consumer of a law: it folds the updates and bounds every wait.
pub(super) struct Follower {
    law: &'static str,
    timings: Timings,
    updates: UpdateStream,
    pub(super) set: Snapshot,
}

impl Follower {
    pub(super) fn new(
        law: &'static str,
        harness: &dyn Harness,
        backend: &Arc<dyn Backend>,
        service: &ServiceName,
    ) -> Self {
        let updates = backend.watch(service).unwrap_or_else(|error| panic!("{law}: watch failed: {}", error.report()));
        Self { law, timings: harness.timings(), updates, set: Snapshot::default() }
    }

    /// Returns the next update.
    pub(super) async fn next(&mut self, what: &str) -> Update {
        let next = timeout(self.timings.settle, self.updates.next()).await;
        let Ok(next) = next else { panic!("{}: no update within {:?}: {what}", self.law, self.timings.settle) };
        let Some(update) = next else { panic!("{}: the stream ended: {what}", self.law) };
        self.set = self.set.after(&update);
        update
    }

    /// Returns the next set or change, skipping losses of contact.
    pub(super) async fn next_set(&mut self, what: &str) -> Update {
        loop {
            match self.next(what).await {
                Update::Lost(_) => {}
                update => return update,
            }
        }
    }

    /// Returns the updates up to the wanted set, which may already be the current one.
    pub(super) async fn until(&mut self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Vec<Update> {
        let mut seen = Vec::new();
        let bound = self.timings.settle * 2;
        let all = async {
            while !wanted(&self.set) {
                seen.push(self.next(what).await);
            }
        };
        if timeout(bound, all).await.is_err() {
            panic!("{}: not reached within {bound:?}: {what}; the set is {:?}", self.law, self.set);
        }
        seen
    }

    /// Returns the error of the next loss of contact.
    pub(super) async fn until_lost(&mut self, what: &str) -> Error {
        loop {
            if let Update::Lost(error) = self.next(what).await {
                return error;
            }
        }
    }

    /// Returns an update that comes while none may come.
    pub(super) async fn unexpected(&mut self) -> Option<Update> {
        let update = timeout(self.timings.quiet, self.updates.next()).await.ok()??;
        self.set = self.set.after(&update);
        Some(update)
    }
}

/// Waits until a condition holds; fails the law after `bound`.
pub(super) async fn eventually(law: &str, what: &str, bound: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !holds().await {
            sleep(ASK).await;
        }
    };
    if timeout(bound, asking).await.is_err() {
        panic!("{law}: not within {bound:?}: {what}");
    }
}

/// Returns the value of a call; fails the law if the call fails or does not end.
pub(super) async fn ok<T>(
    law: &str,
    harness: &dyn Harness,
    what: &str,
    call: impl Future<Output = Result<T, Error>>,
) -> T {
    let bound = harness.timings().settle;
    match timeout(bound, call).await {
        Err(_) => panic!("{law}: no answer within {bound:?}: {what}"),
        Ok(Err(error)) => panic!("{law}: {what} failed: {}", error.report()),
        Ok(Ok(value)) => value,
    }
}

/// Returns the error of a call that must fail.
pub(super) async fn failure<T>(
    law: &str,
    harness: &dyn Harness,
    what: &str,
    call: impl Future<Output = Result<T, Error>>,
) -> Error {
    let bound = harness.timings().settle;
    match timeout(bound, call).await {
        Err(_) => panic!("{law}: no answer within {bound:?}: {what}"),
        Ok(Err(error)) => error,
        Ok(Ok(_)) => panic!("{law}: {what} succeeded"),
    }
}

/// Registers an instance; fails the law if that fails.
pub(super) async fn register(
    law: &str,
    harness: &dyn Harness,
    backend: &Arc<dyn Backend>,
    service: &ServiceName,
    instance: &Instance,
) -> Registration {
    ok(law, harness, "register", backend.register(service, instance.clone())).await
}

/// Returns whether a fresh list shows exactly this instance.
pub(super) async fn lists(backend: &Arc<dyn Backend>, service: &ServiceName, instance: &Instance) -> bool {
    let set = backend.list(service).await;
    set.is_ok_and(|set| set.get(instance.id().as_str()).is_some_and(|one| **one == *instance))
}

/// Returns whether a fresh list shows no instance with this id.
pub(super) async fn misses(backend: &Arc<dyn Backend>, service: &ServiceName, id: &InstanceId) -> bool {
    backend.list(service).await.is_ok_and(|set| set.get(id.as_str()).is_none())
}

/// Returns whether a set holds exactly these ids.
pub(super) fn has(set: &Snapshot, ids: &[&Instance]) -> bool {
    set.len() == ids.len() && ids.iter().all(|one| set.get(one.id().as_str()).is_some())
}

/// Returns a part of a change that changes nothing.
pub(super) fn idle_part(before: &Snapshot, change: &Change) -> Option<String> {
    let same = change.upserts().iter().find(|one| before.get(one.id().as_str()) == Some(one));
    let gone = change.removes().iter().find(|id| before.get(id.as_str()).is_none());
    let empty = change.is_empty().then(|| "nothing at all".to_owned());
    empty
        .or_else(|| same.map(|one| format!("{} unchanged", one.id())))
        .or_else(|| gone.map(|id| format!("{id} already gone")))
}

/// Returns whether the harness can do what a law, or a part of it, needs; reports the skip if it
/// cannot.
pub(super) fn can(law: &str, declared: bool, capability: &str, part: impl fmt::Display) -> bool {
    if !declared {
        // Not `eprintln!`, whose output is captured when the test passes.
        let _ =
            writeln!(stderr(), "conformance: {law} SKIPPED ({part}): it needs `{capability}`, which is not declared");
    }
    declared
}

/// A service for a law.
pub(super) fn service(name: &str) -> ServiceName {
    name.parse().expect("the laws' names are allowed")
}

/// An instance for a law, identified by its number.
pub(super) fn instance(number: u8) -> Instance {
    let address = format!("10.9.0.{number}:80").parse().expect("the laws' addresses are allowed");
    let metadata = [("number", number.to_string())].try_into().expect("the laws' metadata is allowed");
    Instance::new(address).with_metadata(metadata)
}

/// The same instance with another weight.
pub(super) fn reweighed(instance: &Instance, weight: u16) -> Instance {
    instance.clone().with_weight(Weight::new(weight).expect("the laws' weights are allowed"))
}

/// Metadata that a careless format loses or breaks.
pub(super) fn odd_metadata() -> Metadata {
    let odd = [
        ("empty", ""),
        ("lines", "a\nb\r\n\tc"),
        ("quotes", "\"'`\\"),
        ("control", "\u{0}\u{1b}[31m\u{7f}"),
        ("unicode", "ü 漢字 🦀 \u{202e}\u{feff}"),
        ("syntax", "{\"Op\":0}=&;,<>%2F/"),
        ("k=\"{}\\;/%", "a key like a value"),
    ];
    odd.try_into().expect("the laws' metadata is allowed")
}

/// The interval between two checks of a condition that must be polled.
const ASK: Duration = Duration::from_millis(5);
