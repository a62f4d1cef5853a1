//! Whether a registration may write its entry, given what is there: plain functions without I/O.

use discovery_core::Claim;

use crate::client::KeyValue;

/// What a registration may do to an entry that is already there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Intent {
    /// The registration was written before, and is repaired. It never takes over.
    Heal,
    /// The registration is new, and is written only if there is no entry.
    IfAbsent,
    /// The registration is new, and takes over any entry.
    TakeOver,
}

/// What is known about the entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Seen<'a> {
    Nothing,
    Absent,
    Entry(&'a KeyValue),
}

/// What to do about the entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Act {
    /// Fail: the entry has another owner.
    Conflict,
    /// Do nothing: the entry is as wanted, since this revision.
    Done(i64),
    /// End the registration, because another owner has taken over. Final.
    Superseded,
    /// Write the entry if its mod revision is this one; 0 means that there is no entry.
    Write(i64),
}

impl From<Claim> for Intent {
    fn from(claim: Claim) -> Self {
        match claim {
            Claim::IfAbsent => Self::IfAbsent,
            // `TakeOver` is the default, so it also applies to claims that are unknown here.
            _ => Self::TakeOver,
        }
    }
}

/// Decides from the last known state of the entry. If that is stale, the guarded write is refused,
/// and the refusal carries the current entry.
///
/// An entry belongs to the owner of its lease: `lease` is the current one, and `is_own` also knows
/// earlier ones. Writes are guarded by revision rather than by lease, because a write may arrive
/// long after it was given up, when there is a later entry under the same lease.
pub(super) fn decide(intent: Intent, seen: Seen<'_>, wanted: &[u8], lease: i64, is_own: impl Fn(i64) -> bool) -> Act {
    match (intent, seen) {
        (_, Seen::Entry(row)) if row.lease == lease && row.value == wanted => Act::Done(row.revision),
        (Intent::TakeOver, Seen::Entry(row)) => Act::Write(row.revision),
        (_, Seen::Entry(row)) if is_own(row.lease) => Act::Write(row.revision),
        (Intent::IfAbsent, Seen::Entry(_)) => Act::Conflict,
        // An entry without a lease was written by hand. No registrar owns it, and it would never
        // expire.
        (Intent::Heal, Seen::Entry(row)) if row.lease == 0 => Act::Write(row.revision),
        (Intent::Heal, Seen::Entry(_)) => Act::Superseded,
        (_, Seen::Nothing | Seen::Absent) => Act::Write(0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINE: i64 = 7;
    const FORMER: i64 = 6;
    const OTHER: i64 = 9;

    fn is_own(lease: i64) -> bool {
        [MINE, FORMER].contains(&lease)
    }

    fn row(lease: i64, value: &str) -> KeyValue {
        KeyValue { key: b"k".to_vec(), value: value.into(), lease, revision: 3 }
    }

    #[test]
    fn each_intent_has_one_act_for_each_known_state() {
        use Intent::{Heal, IfAbsent, TakeOver};
        let same = row(MINE, "v");
        let other_value = row(MINE, "w");
        let former = row(FORMER, "v");
        let by_hand = row(0, "v");
        let another = row(OTHER, "v");
        for (intent, seen, act) in [
            (TakeOver, Seen::Nothing, Act::Write(0)),
            (TakeOver, Seen::Absent, Act::Write(0)),
            (TakeOver, Seen::Entry(&another), Act::Write(3)),
            (TakeOver, Seen::Entry(&by_hand), Act::Write(3)),
            (IfAbsent, Seen::Nothing, Act::Write(0)),
            (IfAbsent, Seen::Absent, Act::Write(0)),
            (IfAbsent, Seen::Entry(&another), Act::Conflict),
            (IfAbsent, Seen::Entry(&by_hand), Act::Conflict),
            // The answer to the first attempt was lost.
            (TakeOver, Seen::Entry(&same), Act::Done(3)),
            (IfAbsent, Seen::Entry(&same), Act::Done(3)),
            (IfAbsent, Seen::Entry(&former), Act::Write(3)),
            (Heal, Seen::Nothing, Act::Write(0)),
            (Heal, Seen::Absent, Act::Write(0)),
            (Heal, Seen::Entry(&same), Act::Done(3)),
            (Heal, Seen::Entry(&other_value), Act::Write(3)),
            (Heal, Seen::Entry(&former), Act::Write(3)),
            (Heal, Seen::Entry(&by_hand), Act::Write(3)),
            (Heal, Seen::Entry(&another), Act::Superseded),
        ] {
            assert_eq!(decide(intent, seen, b"v", MINE, is_own), act, "{intent:?} {seen:?}");
        }
    }

    /// etcd's side of a guarded put: changes the world and returns `true` if the guard holds.
    fn put(world: &mut Option<KeyValue>, revision: i64, lease: i64, value: &str) -> bool {
        let holds = world.as_ref().map_or(0, |row| row.revision) == revision;
        if holds {
            *world = Some(row(lease, value));
        }
        holds
    }

    proptest! {
        #[test]
        fn healing_takes_two_writes_at_most_and_never_touches_another_owners_entry(
            before in proptest::option::of((prop_oneof![Just(0), Just(MINE), Just(FORMER), Just(OTHER)], "[vw]")),
            heal in any::<bool>(),
            known in any::<bool>(),
        ) {
            let before = before.map(|(lease, value)| row(lease, &value));
            let intent = if heal { Intent::Heal } else { Intent::IfAbsent };
            let mut world = before.clone();
            let mut seen = known.then(|| before.clone());
            let mut writes = 0;
            let act = loop {
                let view = match &seen {
                    None => Seen::Nothing,
                    Some(None) => Seen::Absent,
                    Some(Some(row)) => Seen::Entry(row),
                };
                match decide(intent, view, b"v", MINE, is_own) {
                    Act::Write(revision) => {
                        writes += 1;
                        prop_assert!(writes <= 2, "a refusal carries the current entry");
                        if put(&mut world, revision, MINE, "v") {
                            break Act::Done(3);
                        }
                        seen = Some(world.clone());
                    }
                    act => break act,
                }
            };
            let is_anothers = before.as_ref().is_some_and(|row| row.lease == OTHER || (!heal && row.lease == 0));
            if is_anothers {
                prop_assert_eq!(world, before);
                prop_assert_eq!(act, if heal { Act::Superseded } else { Act::Conflict });
            } else {
                prop_assert_eq!(world, Some(row(MINE, "v")));
                prop_assert_eq!(act, Act::Done(3));
            }
        }
    }
}
