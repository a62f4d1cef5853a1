//! Chaos tests. Processes register and resolve at random while etcd, the network and the processes
//! themselves fail at random. Afterwards an oracle reads every stream and etcd's own history and
//! reports which promises were broken.
//!
//! All randomness comes from one seed. `make soak SEED=7` repeats a run as far as real processes
//! can be repeated: the plan is the same, the timing is not. With `CHAOS_PLAN=1` the plan of a
//! failed run is printed.
//!
//! `plan` decides what happens and `world` makes it happen to the `process`es, which use a
//! `subject`: the product or the `copy`. `history` and `log` record it, and `oracle` judges the
//! record.

mod copy;
mod hand;
mod history;
mod log;
mod oracle;
mod plan;
mod process;
mod subject;
mod world;

use std::{env, time::Duration};

use copy::Bug;
use futures::{StreamExt, stream};
use log::Log;
use plan::{Plan, Weather};
use subject::Subject;

/// Runs a plan on the product and prints a summary. The error lists the broken promises.
async fn hold(seed: u64, length: Duration) -> Result<(), String> {
    let plan = Plan::of(seed, length, Weather::Foul);
    let log = world::run(&plan, Subject::Product).await;
    println!("seed {seed}: {}", summary(&log));
    let broken = oracle::check(&log);
    if log.failures.is_empty() && broken.is_empty() {
        return Ok(());
    }
    if env::var_os("CHAOS_PLAN").is_some() {
        println!("{plan}");
    }
    if !log.failures.is_empty() {
        return Err(format!("seed {seed}: the run itself failed: {:?}", log.failures));
    }
    let reports: Vec<String> = broken.iter().take(REPORTS).map(|one| one.report(&log).to_string()).collect();
    Err(format!("seed {seed}: {} broken promises\n{}", broken.len(), reports.join("\n")))
}

fn summary(log: &Log) -> String {
    use discovery_core::Update;
    let items = || log.recordings.iter().flat_map(|one| &one.items);
    let count = |is: fn(&Update) -> bool| items().filter(|(_, update)| is(update)).count();
    format!(
        "{} revisions, {} registrations, {} lists, {} streams with {} changes, {} losses, {} resets; converged in {:?}, \
         registered in {:?}",
        log.steps.len(),
        log.lives.iter().filter(|life| life.registered.is_some()).count(),
        log.listings.len(),
        log.recordings.len(),
        count(|update| matches!(update, Update::Change(_))),
        count(|update| matches!(update, Update::Lost(_))),
        count(|update| matches!(update, Update::Reset(_))),
        log.end.converged,
        log.end.registered,
    )
}

/// Reads a number from the environment.
fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_member_keeps_its_promises_for_a_while() {
    hold(2, Duration::from_secs(15)).await.unwrap_or_else(|broken| panic!("{broken}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn three_members_keep_their_promises_for_a_while() {
    hold(1, Duration::from_secs(15)).await.unwrap_or_else(|broken| panic!("{broken}"));
}

/// The proxy counts as one more member here, and is killed and frozen.
#[tokio::test(flavor = "multi_thread")]
async fn one_member_and_its_grpc_proxy_keep_their_promises_for_a_while() {
    hold(20, Duration::from_secs(15)).await.unwrap_or_else(|broken| panic!("{broken}"));
}

/// `CHAOS_SEEDS` runs of `CHAOS_SECONDS` each with fresh seeds, or one run with the seed
/// `CHAOS_SEED`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak: 20 seeds of a minute"]
async fn fresh_seeds_break_no_promise() {
    let length = Duration::from_secs(number("CHAOS_SECONDS").unwrap_or(60));
    let seeds = match number("CHAOS_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("CHAOS_SEEDS").unwrap_or(20)).map(|_| fastrand::u64(..1_000_000)).collect(),
    };
    println!("seeds {seeds:?}");
    let mut broken = Vec::new();
    for seed in seeds {
        if let Err(reports) = hold(seed, length).await {
            println!("{reports}");
            broken.push(seed);
        }
    }
    assert!(broken.is_empty(), "promises are broken with the seeds {broken:?}");
}

/// Runs the harness's own registry on a few seeds until the oracle finds something. Returns the
/// seed and the rule.
async fn found(bug: Option<Bug>) -> Option<(u64, &'static str)> {
    for seed in 0..SEEDS_FOR_A_BUG {
        let plan = Plan::of(seed, Duration::from_secs(8), Weather::Rough);
        let log = world::run(&plan, Subject::Copy(bug)).await;
        assert!(log.failures.is_empty(), "{bug:?}, seed {seed}: the run itself failed: {:?}", log.failures);
        if let Some(first) = oracle::check(&log).first() {
            println!("{bug:?} is found by seed {seed}: {}", first.report(&log));
            return Some((seed, first.rule));
        }
    }
    None
}

/// Asserts that the oracle finds each bug within a few seeds, by one of these rules.
async fn assert_found(table: impl IntoIterator<Item = (Option<Bug>, &'static [&'static str])>) {
    let runs = table.into_iter().map(|(bug, rules)| async move { (bug, rules, found(bug).await) });
    let mut wrong: Vec<String> = Vec::new();
    let mut ended = stream::iter(runs).buffer_unordered(AT_ONCE);
    while let Some((bug, rules, found)) = ended.next().await {
        println!("{bug:?}: {found:?}");
        if !found.map_or(rules.is_empty(), |(_, rule)| rules.contains(&rule)) {
            wrong.push(format!("{bug:?} should break {rules:?}, but the oracle found {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// For each rule, one bug that breaks it is found.
#[tokio::test(flavor = "multi_thread")]
async fn a_planted_bug_of_each_rule_is_found() {
    assert_found([
        (Some(Bug::NoHealing), &["R2"] as &[_]),
        (Some(Bug::PrefixWithoutSeparator), &["W9"]),
        (Some(Bug::RenewedForEver), &["R6"]),
        (Some(Bug::SplitRevisions), &["W2", "W3"]),
        (Some(Bug::UnconditionalDelete), &["R3"]),
    ])
    .await;
}

/// Every bug is found by a rule that it breaks. Without a bug nothing is found.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak: a minute and a half"]
async fn planted_bugs_are_found_and_nothing_else() {
    assert_found([
        (None, &[] as &[_]),
        (Some(Bug::BlindPut), &["R3"]),
        (Some(Bug::DoubledChanges), &["W3"]),
        (Some(Bug::IgnoredCompaction), &["W2", "W3"]),
        (Some(Bug::ListWithoutRevision), &["W2", "W3"]),
        (Some(Bug::NoHealing), &["R2"]),
        (Some(Bug::PrefixWithoutSeparator), &["W9"]),
        (Some(Bug::RemovalByValue), &["W2"]),
        (Some(Bug::RenewedForEver), &["R6"]),
        (Some(Bug::SplitRevisions), &["W2", "W3"]),
        (Some(Bug::UnconditionalDelete), &["R3"]),
        (Some(Bug::UpdateByRemoval), &["R3"]),
    ])
    .await;
}

/// Reports only the first broken promises, because the others mostly follow from them.
const REPORTS: usize = 8;
const SEEDS_FOR_A_BUG: u64 = 3;
/// As many concurrent runs as two cores can carry beside other tests.
const AT_ONCE: usize = 2;
