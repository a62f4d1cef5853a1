//! Judges the state after the last fault.

use std::time::Duration;

use super::{About, Case, Violation};
use crate::{
    history::{instance_of, owner_in},
    log::{Life, Word},
};

/// The state after the last fault: every stream has what etcd lists, every registration is healed,
/// and nothing is left over.
pub(super) fn check(case: &Case<'_>, found: &mut Vec<Violation>) {
    let end = &case.log.end;
    let mut say = |rule, what: String, about| found.push(Violation { rule, what, at: end.healed, about });
    match end.converged {
        Some(took) if took <= CONVERGED => {}
        took => say("W2", format!("after the last fault the streams had the listed set in {took:?}"), About::All),
    }
    if end.registered.is_none_or(|took| took > REGISTERED) {
        let last = end.unhealed.iter().filter_map(|(at, number)| Some((at, case.log.lives.get(*number)?)));
        let about = last.clone().next().map_or(About::All, |(_, life)| About::Key(life.key.clone()));
        let last: Vec<_> = last.map(|(at, life)| (at, life.number, &life.key, life.pending)).collect();
        let what = format!(
            "after the last fault the registrations were healed in {:?}; the last unhealed were {last:?}",
            end.registered
        );
        say("R2", what, about);
    }
    for life in &case.log.lives {
        if let Some((rule, what)) = astray(case, life) {
            say(rule, format!("registration {} of {}: {what}", life.number, life.key), About::Key(life.key.clone()));
        }
    }
    for (key, stored) in &end.entries {
        let owner = owner_in(stored).and_then(|(number, _)| case.log.lives.get(number));
        // An entry released just before is due when its lease ends.
        let is_over = |life: &Life| life.released.is_some_and(|at| case.lease_ends(life.process.0, at) < end.closing);
        if owner.is_none_or(is_over) {
            say("R6", format!("{key} exists and nobody owns it"), About::Key(key.clone()));
        }
    }
    let left = &end.left;
    if !left.keys.is_empty() || left.leases > 0 {
        say(
            "R6",
            format!("after everything was given up, {} leases and {:?} were left", left.leases, left.keys),
            About::All,
        );
    }
    if left.watches > 0 {
        say("W8", format!("after everything was given up, {} watches were left", left.watches), About::All);
    }
}

/// Returns why a held registration is not as it should be.
fn astray(case: &Case<'_>, life: &Life) -> Option<(&'static str, String)> {
    let closing = case.log.end.closing;
    if !life.is_alive(closing) {
        return None;
    }
    let (_, status) = life.statuses.iter().rev().find(|(at, _)| *at < closing)?;
    let stored = case.log.end.entries.get(&life.key);
    let owner = stored.and_then(owner_in).map(|(number, _)| number);
    match status {
        Word::Superseded => {
            let others = case.log.steps.iter().flat_map(|step| &step.changes).filter(|(key, _)| *key == life.key);
            let mut others = others.filter_map(|(_, stored)| stored.as_ref().and_then(owner_in));
            let by_nobody = !others.any(|(number, _)| number != life.number);
            (by_nobody || owner == Some(life.number)).then(|| ("R3", "it is superseded by nobody".to_owned()))
        }
        Word::Lost => Some(("R2", "it is still lost".to_owned())),
        Word::Registered if owner != Some(life.number) => {
            Some(("R2", format!("it reports that it is registered, but the owner in etcd is {owner:?}")))
        }
        Word::Registered => {
            let wanted = life.instance.as_deref()?;
            let is = stored.and_then(|stored| instance_of(wanted.id(), stored));
            (is.as_ref() != Some(wanted)).then(|| ("R5", format!("expected {wanted:?}, found {is:?}")))
        }
    }
}

/// The promised bound.
const CONVERGED: Duration = Duration::from_secs(3);
/// The longest backoff, an unanswered request and an election, on a busy machine.
const REGISTERED: Duration = Duration::from_secs(5);
