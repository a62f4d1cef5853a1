//! What the laws are written with: bounded waits, and a consumer that folds what it is told.

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

/// A consumer as a law sees it: it folds the updates and bounds every wait.
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

    /// The next update.
    pub(super) async fn next(&mut self, what: &str) -> Update {
        let next = timeout(self.timings.settle, self.updates.next()).await;
        let Ok(next) = next else { panic!("{}: nothing came within {:?}: {what}", self.law, self.timings.settle) };
        let Some(update) = next else { panic!("{}: the stream ended: {what}", self.law) };
        self.set = self.set.after(&update);
        update
    }

    /// The next set or change, past losses of contact.
    pub(super) async fn next_set(&mut self, what: &str) -> Update {
        loop {
            match self.next(what).await {
                Update::Lost(_) => {}
                update => return update,
            }
        }
    }

    /// The updates up to the set that is asked for, which may stand already.
    pub(super) async fn until(&mut self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Vec<Update> {
        let mut seen = Vec::new();
        let bound = self.timings.settle * 2;
        let all = async {
            while !wanted(&self.set) {
                seen.push(self.next(what).await);
            }
        };
        if timeout(bound, all).await.is_err() {
            panic!("{}: it did not come to this within {bound:?}: {what}; the set is {:?}", self.law, self.set);
        }
        seen
    }

    /// The updates up to the next loss of contact, and why it is lost.
    pub(super) async fn until_lost(&mut self, what: &str) -> Error {
        loop {
            if let Update::Lost(error) = self.next(what).await {
                return error;
            }
        }
    }

    /// The update that came in a time in which none may come.
    pub(super) async fn unexpected(&mut self) -> Option<Update> {
        let update = timeout(self.timings.quiet, self.updates.next()).await.ok()??;
        self.set = self.set.after(&update);
        Some(update)
    }
}

/// Waits until a condition holds, and fails the law after `bound`.
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

/// Fails the law where a call fails or does not end.
pub(super) async fn ok<T>(
    law: &str,
    harness: &dyn Harness,
    what: &str,
    call: impl Future<Output = Result<T, Error>>,
) -> T {
    let bound = harness.timings().settle;
    match timeout(bound, call).await {
        Err(_) => panic!("{law}: no end within {bound:?}: {what}"),
        Ok(Err(error)) => panic!("{law}: {what} failed: {}", error.report()),
        Ok(Ok(value)) => value,
    }
}

/// The error of a call that must fail.
pub(super) async fn failure<T>(
    law: &str,
    harness: &dyn Harness,
    what: &str,
    call: impl Future<Output = Result<T, Error>>,
) -> Error {
    let bound = harness.timings().settle;
    match timeout(bound, call).await {
        Err(_) => panic!("{law}: no end within {bound:?}: {what}"),
        Ok(Err(error)) => error,
        Ok(Ok(_)) => panic!("{law}: {what} went through"),
    }
}

/// Registers, and fails the law where that fails.
pub(super) async fn register(
    law: &str,
    harness: &dyn Harness,
    backend: &Arc<dyn Backend>,
    service: &ServiceName,
    instance: &Instance,
) -> Registration {
    ok(law, harness, "register", backend.register(service, instance.clone())).await
}

/// Whether a fresh list shows an instance just like this.
pub(super) async fn lists(backend: &Arc<dyn Backend>, service: &ServiceName, instance: &Instance) -> bool {
    let set = backend.list(service).await;
    set.is_ok_and(|set| set.get(instance.id().as_str()).is_some_and(|one| **one == *instance))
}

/// Whether a fresh list shows no instance of this id.
pub(super) async fn misses(backend: &Arc<dyn Backend>, service: &ServiceName, id: &InstanceId) -> bool {
    backend.list(service).await.is_ok_and(|set| set.get(id.as_str()).is_none())
}

/// Whether a set holds just these ids.
pub(super) fn has(set: &Snapshot, ids: &[&Instance]) -> bool {
    set.len() == ids.len() && ids.iter().all(|one| set.get(one.id().as_str()).is_some())
}

/// What a change says that was so before.
pub(super) fn idle_part(before: &Snapshot, change: &Change) -> Option<String> {
    let same = change.upserts().iter().find(|one| before.get(one.id().as_str()) == Some(one));
    let gone = change.removes().iter().find(|id| before.get(id.as_str()).is_none());
    let empty = change.is_empty().then(|| "nothing at all".to_owned());
    empty.or_else(|| same.map(|one| format!("{} as it was", one.id()))).or_else(|| gone.map(|id| format!("{id} gone")))
}

/// Whether the harness can do what a law, or a part of it, needs; where it cannot, says that it is skipped.
pub(super) fn can(law: &str, declared: bool, capability: &str, part: impl fmt::Display) -> bool {
    if !declared {
        // Not `eprintln!`, which a passing test would swallow.
        let _ =
            writeln!(stderr(), "conformance: {law} SKIPPED ({part}): it needs `{capability}`, which is not declared");
    }
    declared
}

/// A service for a law.
pub(super) fn service(name: &str) -> ServiceName {
    name.parse().expect("the laws' names are allowed")
}

/// An instance for a law, told apart from others by its number.
pub(super) fn instance(number: u8) -> Instance {
    let address = format!("10.9.0.{number}:80").parse().expect("the laws' addresses are allowed");
    let metadata = [("number", number.to_string())].try_into().expect("the laws' metadata is allowed");
    Instance::new(address).with_metadata(metadata)
}

/// The same instance with other values.
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

/// How long between two looks at something that shows itself only when asked.
const ASK: Duration = Duration::from_millis(5);
