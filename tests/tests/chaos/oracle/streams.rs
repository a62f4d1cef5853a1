//! Judges update streams.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use discovery_core::{Change, Instance, Snapshot, Update};

use super::{About, Case, DEADLINE, SLACK, Violation};
use crate::{
    history::{State, Stored, id_of, instance_of},
    log::{Recording, Whom},
};

/// W1 to W6 and W9: every stream follows the registry's history.
pub(super) fn check(case: &Case<'_>, found: &mut Vec<Violation>) {
    for (place, recording) in case.log.recordings.iter().enumerate() {
        let states = &case.states[&recording.service];
        let broken = begins(case, recording).into_iter().chain(follow(case, recording, states));
        found.extend(broken.map(|(rule, at, what)| {
            let what = format!("stream {} of {}: {what}", recording.name, recording.service);
            Violation { rule, what, at, about: About::Stream(place) }
        }));
    }
}

type Broken = (&'static str, Duration, String);

/// W1, including its time limit, and W4.
fn begins(case: &Case<'_>, recording: &Recording) -> Option<Broken> {
    if recording.ended {
        return Some(("W4", recording.closed.unwrap_or_default(), "it ended by itself".into()));
    }
    let frozen = case.log.disturbances.iter().filter(|one| one.whom == Whom::Process(recording.process));
    let frozen: Duration = frozen.map(|one| one.end.saturating_sub(one.start)).sum();
    let latest = recording.opened + DEADLINE + SLACK + frozen;
    let first = recording.items.first().map(|(at, _)| *at);
    let lived_so_long = recording.closed.is_none_or(|closed| closed > latest);
    match first {
        Some(at) if at > latest => Some(("W1", at, format!("the first item arrived {:?} late", at - latest))),
        None if lived_so_long => Some(("W1", latest, "no first item".into())),
        _ => None,
    }
}

/// Returns the first violation; later ones follow from it.
fn follow(case: &Case<'_>, recording: &Recording, states: &[State]) -> Option<Broken> {
    let mut held = Snapshot::default();
    // Where in the history the stream may be. Sets recur, so there may be several places.
    let mut places: Vec<usize> = Vec::new();
    let mut lost = None;
    for (number, (at, update)) in recording.items.iter().enumerate() {
        let broken = |rule, what: String| Some((rule, *at, format!("item {number}: {what}")));
        match update {
            Update::Change(_) if number == 0 => return broken("W1", "the first item is a change".into()),
            Update::Change(change) => {
                if lost.is_some() {
                    return broken("W5", "a change after a loss, before any reset".into());
                }
                if let Some(what) = idle(&held, change) {
                    return broken("W3", what);
                }
                held = held.after_change(change);
                let next: Vec<_> = places.iter().map(|place| place + 1).collect();
                let next: Vec<_> = next.into_iter().filter(|place| is_at(states, *place, &held)).collect();
                if next.is_empty() {
                    let (rule, what) = explain(case, recording, states, &places, &held);
                    return broken(rule, what);
                }
                places = next;
            }
            Update::Lost(error) => {
                if lost == Some(error.kind()) {
                    return broken("W5", format!("{:?} is reported twice", error.kind()));
                }
                lost = Some(error.kind());
            }
            Update::Reset(set) => {
                lost = None;
                let from = places.iter().min().copied().unwrap_or_default();
                let next: Vec<_> = (from..states.len()).filter(|place| is_at(states, *place, set)).collect();
                if next.is_empty() {
                    let (rule, what) = explain(case, recording, states, &places, set);
                    return broken(rule, format!("reset: {what}"));
                }
                let to = next[next.len() - 1];
                if let Some(moved) = moved(&held, set, &states[from..=to]) {
                    return broken("W3", format!("the reset moves {}, which did not change", moved.id()));
                }
                held = set.clone();
                places = next;
            }
        }
    }
    None
}

fn is_at(states: &[State], place: usize, set: &Snapshot) -> bool {
    states.get(place).is_some_and(|state| state.set == *set)
}

/// Returns how a change carries something that changes nothing.
fn idle(held: &Snapshot, change: &Change) -> Option<String> {
    if change.is_empty() {
        return Some("an empty change".into());
    }
    let same = change.upserts().iter().find(|one| held.get(one.id().as_str()) == Some(one));
    let absent = change.removes().iter().find(|id| held.get(id.as_str()).is_none());
    let upserted: BTreeSet<_> = change.upserts().iter().map(|one| one.id()).collect();
    let both = change.removes().iter().find(|id| upserted.contains(id));
    same.map(|one| format!("the change carries {}, which did not change", one.id()))
        .or_else(|| absent.map(|id| format!("the change removes {id}, which was not there")))
        .or_else(|| both.map(|id| format!("the change both sets and removes {id}")))
}

/// Returns an instance that did not change and is another allocation now.
fn moved(held: &Snapshot, set: &Snapshot, meanwhile: &[State]) -> Option<Arc<Instance>> {
    let stayed = |one: &&Arc<Instance>| {
        let id = one.id().as_str();
        meanwhile.iter().all(|state| state.set.get(id) == Some(one))
            && held.get(id).is_some_and(|old| old == *one && !Arc::ptr_eq(old, one))
    };
    set.iter().find(stayed).cloned()
}

/// Explains why a set is not a possible next state.
fn explain(
    case: &Case<'_>,
    recording: &Recording,
    states: &[State],
    places: &[usize],
    set: &Snapshot,
) -> (&'static str, String) {
    let place = places.iter().max().copied().unwrap_or_default();
    let known = states.iter().rev().find(|state| state.set == *set);
    let from = &states[place];
    let is_own = |one: &Arc<Instance>| states.iter().any(|state| state.set.get(one.id().as_str()) == Some(one));
    if let Some(foreign) = set.iter().find(|one| !is_own(one)) {
        return match elsewhere(case, recording, foreign) {
            Some(key) => ("W9", format!("{} is the value of {key}, which is not a key of the service", foreign.id())),
            None => ("W2", format!("{} was never registered", foreign.id())),
        };
    }
    match known {
        Some(state) if state.since > from.since => {
            ("W3", format!("it went from {:?} to {:?} and skipped the states between", from.since, state.since))
        }
        Some(state) => ("W2", format!("it went back from {:?} to {:?}", from.since, state.since)),
        None => {
            let expected = states.get(place + 1).map(|state| from.set.diff(&state.set));
            ("W2", format!("after {:?} the registry never had {set:?}; the next change was {expected:?}", from.since))
        }
    }
}

/// Returns the key of another service, or a deeper one, that held an instance.
fn elsewhere<'a>(case: &Case<'a>, recording: &Recording, foreign: &Instance) -> Option<&'a String> {
    let changes = case.log.steps.iter().flat_map(|step| &step.changes);
    let mut others = changes.filter(|(key, _)| id_of(&recording.service, key).is_none());
    let is_it = |stored: &Stored| instance_of(foreign.id(), stored).is_some_and(|one| one == *foreign);
    others.find(|(_, stored)| stored.as_ref().is_some_and(is_it)).map(|(key, _)| key)
}
