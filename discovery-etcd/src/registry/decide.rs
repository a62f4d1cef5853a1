use discovery_core::Claim;

use crate::client::KeyValue;

/// How far a registration may go against what stands in its place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Intent {
    /// It was written before, and is repaired where it is missing. Never takes over.
    Heal,
    /// It is new, and takes the place only if it is free.
    IfAbsent,
    /// It is new, and takes the place.
    TakeOver,
}

/// What is known of the entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Seen<'a> {
    Nothing,
    Absent,
    Entry(&'a KeyValue),
}

/// What to do about the entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Act {
    /// The place is another's, who must be left alone.
    Conflict,
    /// It is there as it should be, since this revision.
    Done(i64),
    /// Another took over what was this registration's. Final.
    Superseded,
    /// Write it over what is of this revision, 0 being that of no entry.
    Write(i64),
}

impl From<Claim> for Intent {
    fn from(claim: Claim) -> Self {
        match claim {
            Claim::IfAbsent => Self::IfAbsent,
            // Taking over is the default, so also of claims that this version does not know.
            _ => Self::TakeOver,
        }
    }
}

/// Decides by what is known; where that is out of date the write is refused, and what stands there is known then.
///
/// Leases tell whose an entry is: `lease` is the present one, and `is_own` knows the earlier ones too. Revisions guard the writes,
/// since a write may arrive long after it was given up, and an entry of the same lease may be a later one.
pub(super) fn decide(intent: Intent, seen: Seen<'_>, wanted: &[u8], lease: i64, is_own: impl Fn(i64) -> bool) -> Act {
    match (intent, seen) {
        (_, Seen::Entry(row)) if row.lease == lease && row.value == wanted => Act::Done(row.revision),
        (Intent::TakeOver, Seen::Entry(row)) => Act::Write(row.revision),
        (_, Seen::Entry(row)) if is_own(row.lease) => Act::Write(row.revision),
        (Intent::IfAbsent, Seen::Entry(_)) => Act::Conflict,
        // Without a lease it was put by hand. No registrar owns it, and nothing would ever end it.
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
    fn what_is_done_about_what_stands_there() {
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

    /// etcd's side of a guarded put, after which the world is as it says.
    fn put(world: &mut Option<KeyValue>, revision: i64, lease: i64, value: &str) -> bool {
        let holds = world.as_ref().map_or(0, |row| row.revision) == revision;
        if holds {
            *world = Some(row(lease, value));
        }
        holds
    }

    proptest! {
        #[test]
        fn healing_ends_soon_and_never_touches_what_is_anothers(
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
                        prop_assert!(writes <= 2, "a refusal tells enough");
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
