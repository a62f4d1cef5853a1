//! Decides from a [`Log`] alone which promises were broken. It consists of pure functions modelled
//! on etcd's own checks of its watches (ordered, unique, atomic, reliable, resumable).
//!
//! The history is the truth. The recorder learns of a revision a little after it happened, so
//! whatever is judged by time is judged in favour of the code under test. What is judged by
//! revisions is exact.
//!
//! `streams`, `lists` and `owners` judge the run, and `end` the state that it leaves.

mod end;
mod lists;
mod owners;
mod streams;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, time::Duration};

use discovery_core::ServiceName;

use crate::{
    history::{State, states},
    log::{Disturbance, Log, Target, Whom},
};

/// A promise that was broken.
#[derive(Debug)]
pub(crate) struct Violation {
    /// The promise, such as `W3`.
    pub(crate) rule: &'static str,
    pub(crate) what: String,
    pub(crate) at: Duration,
    /// The stream, registration or key whose log shows it.
    pub(crate) about: About,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum About {
    All,
    Key(String),
    Service(ServiceName),
    /// By its index in the log.
    Stream(usize),
}

/// What all checks read.
struct Case<'a> {
    log: &'a Log,
    /// By service.
    states: BTreeMap<&'a ServiceName, Vec<State>>,
}

/// Bounds that follow from the configuration of the run.
pub(crate) const TTL: Duration = Duration::from_secs(2);
pub(crate) const ELECTION: Duration = Duration::from_secs(1);
/// The deadline of an operation, and of a stream's first item.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);
/// An allowance for a busy machine.
pub(crate) const SLACK: Duration = Duration::from_secs(1);

/// Returns all broken promises.
pub(crate) fn check(log: &Log) -> Vec<Violation> {
    let services = log.recordings.iter().map(|one| &one.service).chain(log.listings.iter().map(|one| &one.service));
    let states = services.map(|service| (service, states(&log.steps, service))).collect();
    let case = Case { log, states };
    let mut found = Vec::new();
    streams::check(&case, &mut found);
    lists::check(&case, &mut found);
    owners::check(&case, &mut found);
    end::check(&case, &mut found);
    found.sort_by_key(|violation| violation.at);
    found
}

impl Case<'_> {
    /// Returns when what a process released must be gone: after the TTL and a second, counted
    /// again, plus an election, from the end of each fault that affected the process or everybody.
    fn lease_ends(&self, process: usize, from: Duration) -> Duration {
        self.after_faults(process, from, TTL + Duration::from_secs(1) + SLACK)
    }

    /// Returns when a grace period that starts at `from` is over. Every fault within it restarts
    /// it.
    fn after_faults(&self, process: usize, from: Duration, grace: Duration) -> Duration {
        let concerns = |one: &&Disturbance| one.whom == Whom::Everybody || one.whom == Whom::Process(process);
        let mut faults: Vec<_> = self.log.disturbances.iter().filter(concerns).collect();
        faults.sort_by_key(|fault| fault.start);
        let mut end = from + grace;
        for fault in faults {
            if fault.end >= from && fault.start <= end {
                end = end.max(fault.end + grace + ELECTION);
            }
        }
        end
    }
}

impl Violation {
    /// Formats the violation with the part of the log that shows it.
    pub(crate) fn report<'a>(&'a self, log: &'a Log) -> impl fmt::Display + 'a {
        Report { violation: self, log }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:.3?}: {}", self.rule, self.at, self.what)
    }
}

struct Report<'a> {
    violation: &'a Violation,
    log: &'a Log,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let violation = self.violation;
        let log = self.log;
        let (key, service, stream) = match &violation.about {
            About::All => (None, None, None),
            About::Key(key) => (Some(key.clone()), None, None),
            About::Service(service) => (None, Some(service.clone()), None),
            About::Stream(place) => (None, Some(log.recordings[*place].service.clone()), Some(*place)),
        };
        let near = |at: Duration| at + BEFORE >= violation.at && at <= violation.at + AFTER;
        let mut lines: Vec<(Duration, String)> = log.acts.iter().filter(|(at, _)| near(*at)).cloned().collect();
        for step in log.steps.iter().filter(|step| near(step.at)) {
            for (changed, stored) in &step.changes {
                let of_service = |service: &ServiceName| changed.starts_with(&format!("chaos/{service}"));
                if key.as_ref().is_none_or(|key| key == changed) && service.as_ref().is_none_or(of_service) {
                    let value = stored.as_ref().map(|one| String::from_utf8_lossy(&one.value).into_owned());
                    let lease = stored.as_ref().map_or(0, |one| one.lease);
                    let revision = (step.revision.epoch, step.revision.number);
                    lines.push((step.at, format!("  etcd {revision:?} {changed} = {value:?} lease {lease:x}")));
                }
            }
        }
        for life in log.lives.iter().filter(|life| key.as_ref().is_some_and(|key| *key == life.key)) {
            let words = life.statuses.iter().filter(|(at, _)| near(*at));
            lines.extend(words.map(|(at, word)| (*at, format!("  registration {} is {word:?}", life.number))));
        }
        if let Some(place) = stream {
            let items = log.recordings[place].items.iter().filter(|(at, _)| near(*at));
            lines.extend(items.map(|(at, item)| (*at, format!("  stream {item:?}"))));
        }
        lines.sort_by_key(|(at, _)| *at);
        // The lines nearest to the violation.
        let place = lines.partition_point(|(at, _)| *at <= violation.at);
        let from = place.saturating_sub(LINES);
        writeln!(f, "{violation}")?;
        for (at, line) in lines.iter().skip(from).take(LINES + LINES / 4) {
            writeln!(f, "    {at:9.3?} {line}")?;
        }
        Ok(())
    }
}

/// Returns whether the harness itself did this.
fn is_by_hand(log: &Log, target: &Target, revision: crate::history::Revision, at: Duration) -> bool {
    log.by_hand.iter().filter(|one| one.target == *target).any(|one| match one.revision {
        Some(known) => known == revision,
        None => one.began <= at,
    })
}

const BEFORE: Duration = Duration::from_secs(8);
const AFTER: Duration = Duration::from_secs(10);
const LINES: usize = 40;
