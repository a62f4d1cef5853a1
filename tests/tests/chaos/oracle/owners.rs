//! Judges writes, removals and statuses by the history of each key.

use std::collections::BTreeMap;

use super::{About, Case, SLACK, TTL, Violation, is_by_hand};
use crate::{
    history::{Revision, Step, Stored, owner_in},
    log::{Disturbance, Life, Target, Whom, Word},
};

/// R2 to R5 by the history of each key: who wrote, what was removed, and why.
pub(super) fn check(case: &Case<'_>, found: &mut Vec<Violation>) {
    let mut standing: BTreeMap<&str, &Stored> = BTreeMap::new();
    let mut leases: BTreeMap<i64, (usize, u32)> = BTreeMap::new();
    let mut epoch = 0;
    for step in &case.log.steps {
        if step.revision.epoch != epoch {
            epoch = step.revision.epoch;
            standing.clear();
        }
        for (key, stored) in &step.changes {
            let broken = match stored {
                Some(stored) => put(case, standing.insert(key, stored), stored, step, &mut leases),
                None => standing.remove(key.as_str()).and_then(|former| removed(case, key, former, step)),
            };
            found.extend(broken.map(|(rule, what)| {
                let what = format!("{key} at {:?}: {what}", step.revision);
                Violation { rule, what, at: step.at, about: About::Key(key.clone()) }
            }));
        }
    }
    for life in &case.log.lives {
        let spans = spans(case, life);
        let broken = outlives(case, life, &spans).into_iter().chain(lies(case, life, &spans));
        found.extend(broken.map(|(rule, at, what)| {
            let what = format!("registration {} of {}: {what}", life.number, life.key);
            Violation { rule, what, at, about: About::Key(life.key.clone()) }
        }));
    }
}

type Broken = (&'static str, String);

/// R3: the later registration owns the entry, and each handle has its own leases.
fn put(
    case: &Case<'_>,
    former: Option<&Stored>,
    stored: &Stored,
    step: &Step,
    leases: &mut BTreeMap<i64, (usize, u32)>,
) -> Option<Broken> {
    let life = life_of(case, stored)?;
    if stored.lease == 0 {
        return Some(("R6", format!("registration {} wrote without a lease", life.number)));
    }
    let holder = *leases.entry(stored.lease).or_insert(life.process);
    if holder != life.process {
        return Some(("R3", format!("{:?} wrote under a lease of {holder:?}", life.process)));
    }
    let other = former.filter(|former| former.lease != 0).and_then(|former| life_of(case, former))?;
    let came_later = life.registered.is_some_and(|registered| other.began > registered);
    // Within a process the former owner gets the entry back if the later registration was given up
    // before it was `Ok`.
    let failed = other.process == life.process && other.registered.is_none();
    let failed = failed && other.released.is_some_and(|at| at <= step.at);
    (other.number != life.number && came_later && !failed).then(|| {
        let number = life.number;
        let other = other.number;
        ("R3", format!("registration {number} overwrote {other}, which took over from it"))
    })
}

/// R2, R3, R5: an entry that is removed while its owner holds it went with its lease, and for a
/// reason.
fn removed(case: &Case<'_>, key: &str, former: &Stored, step: &Step) -> Option<Broken> {
    let life = life_of(case, former)?;
    if !life.is_alive(step.at) || is_by_hand(case.log, &Target::Key(key.to_owned()), step.revision, step.at) {
        return None;
    }
    let number = life.number;
    let later = case.log.steps.iter().skip_while(|one| one.revision <= step.revision);
    let mut later = later.take_while(|one| one.revision.epoch == step.revision.epoch);
    let uses =
        |one: &Step| one.changes.iter().any(|(_, put)| put.as_ref().is_some_and(|put| put.lease == former.lease));
    if let Some(later) = later.find(|one| uses(one)) {
        let what = format!("the entry of registration {number}, which held it, was removed");
        return Some(("R3", format!("{what}; its lease lived on, as {:?} shows", later.revision)));
    }
    let revoked = Target::Lease(former.lease);
    if case.log.by_hand.iter().any(|one| one.target == revoked && one.began <= step.at) {
        return None;
    }
    let concerns = |one: &&Disturbance| one.whom == Whom::Everybody || one.whom == Whom::Process(life.process.0);
    let disturbed = case.log.disturbances.iter().filter(concerns).any(|one| {
        let reach = one.end + TTL * 2 + SLACK;
        one.start <= step.at && step.at <= reach
    });
    (!disturbed).then(|| ("R2", format!("registration {number} lost its lease although nothing disturbed it")))
}

/// A time during which a registration's entry existed, by the history.
struct Span {
    from: Revision,
    at: std::time::Duration,
    until: Option<std::time::Duration>,
    /// The owner of the next value.
    next: Option<usize>,
}

fn spans(case: &Case<'_>, life: &Life) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let mut epoch = 0;
    for step in &case.log.steps {
        let is_open = spans.last().is_some_and(|span| span.until.is_none());
        if step.revision.epoch != epoch {
            epoch = step.revision.epoch;
            if let (true, Some(span)) = (is_open, spans.last_mut()) {
                span.until = Some(step.at);
            }
        }
        for (_, stored) in step.changes.iter().filter(|(key, _)| *key == life.key) {
            let owner = stored.as_ref().and_then(owner_in).map(|(number, _)| number);
            let is_open = spans.last().is_some_and(|span| span.until.is_none());
            match (owner == Some(life.number), is_open) {
                (true, false) => spans.push(Span { from: step.revision, at: step.at, until: None, next: None }),
                (false, true) => {
                    if let Some(span) = spans.last_mut() {
                        span.until = Some(step.at);
                        span.next = owner;
                    }
                }
                _ => {}
            }
        }
    }
    spans
}

/// R4: a released entry is gone in time and does not come back.
fn outlives(case: &Case<'_>, life: &Life, spans: &[Span]) -> Option<(&'static str, std::time::Duration, String)> {
    let released = life.released?;
    let due = case.lease_ends(life.process.0, released);
    let last = spans.last()?;
    let until = last.until.unwrap_or(std::time::Duration::MAX);
    let is_over = case.log.steps.last().is_some_and(|step| step.at > due);
    (until > due && (last.until.is_some() || is_over)).then(|| {
        let what = format!("released at {released:.3?}, its entry of {:?} had to be gone by {due:.3?}", last.from);
        let ended =
            last.until.map_or_else(|| "it never went away".to_owned(), |until| format!("it went away at {until:.3?}"));
        ("R4", due, format!("{what}; {ended}"))
    })
}

/// R2: a status never stays `Registered` for longer than a TTL while the entry is missing.
fn lies(case: &Case<'_>, life: &Life, spans: &[Span]) -> Option<(&'static str, std::time::Duration, String)> {
    let gaps = spans.iter().enumerate().filter_map(|(place, span)| {
        let until = spans.get(place + 1).map(|next| next.at).or(life.released);
        Some((span.until?, until.unwrap_or(case.log.end.healed)))
    });
    for (from, until) in gaps {
        let patience = case.after_faults(life.process.0, from, TTL + SLACK * 2);
        for (place, (since, word)) in life.statuses.iter().enumerate() {
            let until_then = life.statuses.get(place + 1).map_or(until, |(at, _)| *at).min(until);
            if *word == Word::Registered && until_then > patience && *since < patience {
                let what =
                    format!("not in etcd since {from:.3?}, but `Registered` from {since:.3?} to {until_then:.3?}");
                return Some(("R2", patience, what));
            }
        }
    }
    None
}

fn life_of<'a>(case: &Case<'a>, stored: &Stored) -> Option<&'a Life> {
    let (number, _) = owner_in(stored)?;
    case.log.lives.get(number)
}
