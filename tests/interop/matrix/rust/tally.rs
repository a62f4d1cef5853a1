//! Counts calls between two reports.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::{Value, json};
use tonic::Status;

use super::{
    kinds::Kind,
    lines::{emit, unix_ns},
};
use crate::report::Report;

#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    since: Report,
    /// When each server last answered. Reports keep it, since an answer that has ceased is of
    /// interest later.
    last: BTreeMap<String, u64>,
    waits: Vec<usize>,
}

impl Tally {
    pub(super) fn succeeded(&self, kind: Kind, server: String) {
        let mut counts = self.lock();
        if !counts.last.contains_key(&server) {
            emit("seen", json!({ "server": server }));
        }
        counts.last.insert(server.clone(), unix_ns());
        counts.since.calls += 1;
        *counts.since.by_kind.entry(kind.name().to_owned()).or_default() += 1;
        *counts.since.by_server.entry(server).or_default() += 1;
        counts.answer_waits();
    }

    pub(super) fn failed(&self, status: &Status) {
        let mut counts = self.lock();
        counts.since.calls += 1;
        counts.since.failed += 1;
        let error = format!("{:?}: {}", status.code(), status.message());
        *counts.since.errors.entry(error).or_default() += 1;
    }

    /// Answers once this many different servers have answered since the last report.
    pub(super) fn wait(&self, servers: usize) {
        let mut counts = self.lock();
        counts.waits.push(servers);
        counts.answer_waits();
    }

    /// Emits the counts and begins again.
    pub(super) fn report(&self) {
        let mut counts = self.lock();
        let report = Report { last_at_unix_ns: counts.last.clone(), ..mem::take(&mut counts.since) };
        emit("report", serde_json::to_value(report).unwrap_or(Value::Null));
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn answer_waits(&mut self) {
        let answered = self.since.by_server.len();
        let (ready, open) = mem::take(&mut self.waits).into_iter().partition::<Vec<_>, _>(|wait| *wait <= answered);
        self.waits = open;
        for _ in ready {
            emit("waited", json!({ "servers": self.since.by_server.keys().collect::<Vec<_>>() }));
        }
    }
}
