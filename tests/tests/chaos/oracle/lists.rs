//! Judges lists.

use std::time::Duration;

use super::{About, Case, Violation};
use crate::{
    history::{State, owner_of},
    log::{Life, Listing, Word},
};

/// Lists are linearizable: each is a state that was current between its call and its answer. So a
/// list shows what was registered (R1) or updated (R5) before the call, and not what was
/// deregistered (R4) before it.
pub(super) fn check(case: &Case<'_>, found: &mut Vec<Violation>) {
    for listing in &case.log.listings {
        let states = &case.states[&listing.service];
        let lives = case.log.lives.iter().filter(|life| life.key.starts_with(&format!("chaos/{}/", listing.service)));
        let missed = || lives.filter_map(|life| missed(case, listing, life, states)).next();
        // A stale list misses much, so report only that.
        let broken = stale(listing, states).or_else(missed);
        found.extend(broken.map(|(rule, what)| {
            let at = listing.ended;
            let about = About::Service(listing.service.clone());
            let what = format!("the list of {} begun at {:.3?}: {what}", listing.service, listing.began);
            Violation { rule, what, at, about }
        }));
    }
}

type Broken = (&'static str, String);

fn stale(listing: &Listing, states: &[State]) -> Option<Broken> {
    // What the recorder had received by then, etcd had applied.
    let from = states.partition_point(|state| state.at < listing.began).saturating_sub(1);
    if states[from..].iter().any(|state| state.set == listing.set) {
        return None;
    }
    Some(match states.iter().rev().find(|state| state.set == listing.set) {
        Some(state) => ("R1", format!("it is of {:?}, but the registry was at {:?}", state.since, states[from].since)),
        None => ("W2", format!("the registry never had {:?}", listing.set)),
    })
}

fn missed(case: &Case<'_>, listing: &Listing, life: &Life, states: &[State]) -> Option<Broken> {
    let shown = listing.set.iter().filter_map(|one| owner_of(one)).find(|(number, _)| *number == life.number);
    if let Some((number, version)) = shown {
        if life.gone.is_some_and(|gone| gone < listing.began) && !is_superseded(case, life) {
            return Some(("R4", format!("it shows registration {number}, which was deregistered at {:?}", life.gone)));
        }
        let written = life.updates.iter().filter(|update| update.done.is_some_and(|done| done < listing.began));
        let written = written.map(|update| update.version).max();
        if let Some(written) = written.filter(|written| *written > version) {
            let what = format!("it shows version {version} of registration {number}, which was updated to {written}");
            return Some(("R5", what));
        }
    }
    let registered = life.registered.filter(|registered| *registered < listing.began)?;
    let is_its = |state: &State| state.set.iter().any(|one| owner_of(one).is_some_and(|owner| owner.0 == life.number));
    let Some(first) = states.iter().position(is_its) else {
        return Some(("R1", format!("registration {} was Ok at {registered:.3?}, but never written", life.number)));
    };
    let is_after = states[first..].iter().any(|state| state.set == listing.set);
    (!is_after).then(|| ("R1", format!("it is from before registration {}, Ok at {registered:.3?}", life.number)))
}

/// Returns whether another registration took over before this one was deregistered, which then does
/// not wait. Within a process the takeover is visible before it is written.
fn is_superseded(case: &Case<'_>, life: &Life) -> bool {
    let gone = life.gone.unwrap_or(Duration::MAX);
    let successor = |other: &&Life| {
        let is_one = other.number != life.number && other.key == life.key && other.process == life.process;
        is_one && other.began > life.began && other.began < gone
    };
    life.statuses.iter().any(|(_, word)| *word == Word::Superseded)
        || case.log.lives.iter().any(|other| successor(&other))
}
