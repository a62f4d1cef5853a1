//! The conformance suite detects faults: each mutant breaks one law, and the suite reports that law
//! and no other.
//!
//! `mutant` is the broken backend and its harness; `registration` and `stream` are the parts that
//! most mutations change.

#[path = "../harness/mod.rs"]
mod harness;
mod mutant;
mod registration;
mod stream;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Once,
    time::Duration,
};

use discovery_core::conformance::{Law, laws};
use mutant::{MutantHarness, Mutation};

/// Makes one test for each mutant, which names the law that it breaks.
macro_rules! mutants {
    ($($name:ident: $mutation:ident breaks $law:literal,)+) => {
        $(#[test]
        fn $name() {
            breaks(Mutation::$mutation, $law);
        })+

        #[test]
        fn every_law_has_a_mutant() {
            let broken = [$($law),+];
            for law in laws() {
                assert!(broken.contains(&number(&law).as_str()), "no mutant breaks {}", law.name);
            }
        }
    };
}

mutants! {
    w01_a_late_joiner_does_not_see_the_outage: HidesOutageFromLateJoiner breaks "W1",
    w01_silence_until_the_registry_is_reached: SilentUntilReached breaks "W1",
    w02_a_wipe_is_reported_as_removals: WipeAsChange breaks "W2",
    w02_a_former_state_comes_back: RollsBack breaks "W2",
    w03_a_change_carries_what_did_not_change: IdleUpserts breaks "W3",
    w03_a_reset_replaces_what_did_not_change: FreshArcs breaks "W3",
    w03_changes_during_an_outage_are_missed: Gap breaks "W3",
    w04_a_panic_ends_the_stream: EndsOnPanic breaks "W4",
    w04_the_stream_ends_with_the_handle: EndsWithHandle breaks "W4",
    w04_the_registration_ends_with_the_handle: RegistrationEndsWithHandle breaks "W4",
    w05_a_new_kind_of_outage_is_not_reported: OneKindOnly breaks "W5",
    w05_an_equal_reset_is_omitted: SkipsEqualReset breaks "W5",
    w05_an_outage_is_reported_twice: LosesTwice breaks "W5",
    w06_one_queue_for_all_waits_for_the_slowest: Lockstep breaks "W6",
    w06_the_queue_has_no_bound: Unbounded breaks "W6",
    w07_a_bad_entry_fails_the_list: BadEntryFailsList breaks "W7",
    w07_a_bad_entry_is_counted_at_each_read: CountsEachRead breaks "W7",
    w07_a_bad_entry_is_logged_at_each_read: LogsEachRead breaks "W7",
    w07_a_bad_value_leaves_the_old_instance: BadValueIgnored breaks "W7",
    w08_an_upstream_watch_for_each_watcher: UpstreamEach breaks "W8",
    w08_the_upstream_watch_stays_open: UpstreamStays breaks "W8",
    w09_a_deeper_key_is_a_bad_entry: CountsDeeperKeys breaks "W9",
    w09_the_prefix_leaks: PrefixLeaks breaks "W9",
    w10_an_unknown_service_is_an_error: UnknownIsError breaks "W10",
    r01_a_list_is_stale: StaleList breaks "R1",
    r01_odd_characters_are_lost: StripsOddCharacters breaks "R1",
    r02_an_entry_removed_by_hand_is_not_restored: NeverHeals breaks "R2",
    r02_the_status_is_always_registered: StatusLies breaks "R2",
    r03_a_claim_takes_over: ClaimTakesOver breaks "R3",
    r03_a_former_owner_returns: FormerOwnerReturns breaks "R3",
    r03_healing_takes_over: HealingTakesOver breaks "R3",
    r03_a_superseded_registration_deletes: SupersededDeletes breaks "R3",
    r03_a_superseded_registration_overwrites: SupersededOverwrites breaks "R3",
    r04_a_drop_leaves_the_entry: DropLeaves breaks "R4",
    r04_a_killed_process_stays: NoLease breaks "R4",
    r04_deregister_is_ok_during_an_outage: DeregisterLies breaks "R4",
    r04_deregister_returns_too_early: DeregistersLater breaks "R4",
    r05_a_refused_update_is_written_later: RefusedUpdateIsWrittenLater breaks "R5",
    r05_an_update_forgets_the_metadata: UpdateForgetsMetadata breaks "R5",
    r05_an_update_removes_first: UpdateRemovesFirst breaks "R5",
    r06_a_dropped_register_leaves_its_entry: LeavesHalfDone breaks "R6",
    r06_a_dropped_register_writes_later: WritesLater breaks "R6",
}

#[test]
fn the_wrapper_alone_breaks_nothing() {
    let broken: Vec<_> = laws().into_iter().filter_map(|law| Some((law, broken_by(Mutation::None, law)?))).collect();
    assert!(broken.is_empty(), "{broken:?}");
}

fn breaks(mutation: Mutation, expected: &str) {
    let broken: Vec<_> = laws().into_iter().filter_map(|law| Some((number(&law), broken_by(mutation, law)?))).collect();
    for (law, message) in &broken {
        println!("{mutation:?} breaks {law}: {message}");
    }
    let laws: Vec<_> = broken.iter().map(|(law, _)| law.as_str()).collect();
    assert_eq!(laws, [expected], "{mutation:?} must break {expected} and no other law: {broken:#?}");
    assert!(broken[0].1.starts_with(&format!("{expected}: ")), "the failure must name its law: {}", broken[0].1);
}

/// Runs one law on a new mutant, with a paused clock of its own. Returns the message of the
/// failure.
fn broken_by(mutation: Mutation, law: Law) -> Option<String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().name() != Some(LAW_THREAD) {
                print(info);
            }
        }));
    });
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let run = async { tokio::time::timeout(LIMIT, (law.run)(&MutantHarness::new(mutation))).await };
        match catch_unwind(AssertUnwindSafe(|| runtime.block_on(run))) {
            Ok(Ok(())) => None,
            Ok(Err(_)) => Some("the law did not end".to_owned()),
            Err(panic) => {
                Some(panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic without text".to_owned()))
            }
        }
    };
    std::thread::Builder::new().name(LAW_THREAD.to_owned()).spawn(run).unwrap().join().unwrap()
}

/// Returns `W1` for `w01_starts_with_the_set`.
fn number(law: &Law) -> String {
    let (letter, number) = law.name[..3].split_at(1);
    format!("{}{}", letter.to_uppercase(), number.parse::<u8>().unwrap())
}

const LAW_THREAD: &str = "law";
const LIMIT: Duration = Duration::from_secs(3600);
