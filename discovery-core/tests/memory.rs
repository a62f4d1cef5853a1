//! The memory that many watchers of one large service need: next to none, because they share the
//! sets.
//!
//! Memory is measured per process, so each number of watchers is measured in a process of its own:
//! this program, started again.

#![cfg(target_os = "linux")]

use std::{env, fs, process::Command};

use async_trait::async_trait;
use discovery_core::{
    Error, Instance, Resolver, ServiceName, Snapshot, Update, UpdateStream,
    backend::{Entry, Feed, Recovered, Source},
};
use futures::StreamExt;
use tokio::sync::{Mutex, mpsc};

const WATCHERS: &str = "DISCOVERY_TEST_WATCHERS";
const INSTANCES: u16 = 10_000;
const CHANGES: u16 = 100;
const PHASES: [&str; 4] = ["first set", "100 changes", "audit", "reset"];

/// A thousand watchers of ten thousand instances use at most 1.5 times the memory of one: after the
/// first set, after a hundred changes, after an audit, and after a `Reset`.
#[test]
fn a_thousand_watchers_cost_little_more_than_one() {
    let one = measured(1);
    let thousand = measured(1_000);
    for (phase, (one, thousand)) in PHASES.iter().zip(one.iter().zip(&thousand)) {
        println!("{phase}: 1 watcher {one} kB, 1,000 watchers {thousand} kB, {:.2} times", thousand / one);
    }
    for (phase, (one, thousand)) in PHASES.iter().zip(one.iter().zip(&thousand)) {
        assert!(*thousand <= 1.5 * one, "{phase}: {thousand} kB against {one} kB");
    }
}

/// Returns the memory that watching took after each phase, in kB.
fn measured(watchers: usize) -> Vec<f64> {
    let child = Command::new(env::current_exe().unwrap())
        .args(["child", "--exact", "--ignored", "--nocapture"])
        .env(WATCHERS, watchers.to_string())
        .output()
        .unwrap();
    let text = String::from_utf8(child.stdout).unwrap();
    let taken: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("taken=")?.parse().ok()).collect();
    assert_eq!(taken.len(), PHASES.len(), "{text}{}", String::from_utf8_lossy(&child.stderr));
    taken
}

/// Not a test of its own: the test above starts it. It prints what each phase left in memory.
#[tokio::test]
#[ignore = "is started by the other test here"]
async fn child() {
    let Ok(watchers) = env::var(WATCHERS) else { return };
    let before = resident();
    let (orders, received) = mpsc::channel(1);
    let resolver = Recovered::new(Ordered(Mutex::new(received)));
    let service: ServiceName = "payments".parse().unwrap();
    let mut all: Vec<(UpdateStream, Snapshot)> =
        (0..watchers.parse().unwrap()).map(|_| (resolver.watch(&service).unwrap(), Snapshot::default())).collect();
    // The test runner has printed a part of its line.
    println!();
    take(&mut all, |update| matches!(update, Update::Reset(_))).await;
    println!("taken={}", resident() - before);
    for number in 0..CHANGES {
        orders.send(Order::Change(number)).await.unwrap();
        take(&mut all, |update| matches!(update, Update::Change(change) if change.upserts().len() == 1)).await;
    }
    println!("taken={}", resident() - before);
    orders.send(Order::Audit).await.unwrap();
    take(&mut all, |update| matches!(update, Update::Change(change) if change.upserts().len() == 1)).await;
    println!("taken={}", resident() - before);
    orders.send(Order::Reset).await.unwrap();
    take(&mut all, |update| matches!(update, Update::Reset(_))).await;
    println!("taken={}", resident() - before);
    assert!(all.iter().all(|(_, set)| set.len() == usize::from(INSTANCES)));
}

/// Takes one update from every watcher.
async fn take(all: &mut [(UpdateStream, Snapshot)], is_expected: impl Fn(&Update) -> bool) {
    for (updates, set) in all {
        let update = updates.next().await.unwrap();
        assert!(is_expected(&update));
        *set = set.after(&update);
    }
}

/// Returns the resident memory of this process in kB.
fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[derive(Debug)]
enum Order {
    /// Replaces the whole state, in which one instance differs.
    Audit,
    Change(u16),
    Reset,
}

/// Carries out the orders of the test.
#[derive(Debug)]
struct Ordered(Mutex<mpsc::Receiver<Order>>);

#[async_trait]
impl Source for Ordered {
    async fn follow(&self, _: &ServiceName, feed: Feed) -> Result<(), Error> {
        let mut live = feed.reset((0..INSTANCES).map(|number| instance(number, 0)));
        let all = |version: u16| {
            (0..INSTANCES).map(move |number| instance(number, if number < CHANGES { version } else { 0 }))
        };
        while let Some(order) = self.0.lock().await.recv().await {
            match order {
                Order::Audit => live.replace(all(1).chain([instance(0, 2)])),
                Order::Change(number) => live.change([instance(number, 1)], []),
                Order::Reset => live.reset(all(1).chain([instance(0, 2)])),
            }
        }
        Ok(())
    }
}

/// An instance of about a kilobyte.
fn instance(number: u16, version: u16) -> Entry {
    let address = format!("10.0.{}.{}:80", number / 250, number % 250).parse().unwrap();
    let metadata = [("filler", "x".repeat(900)), ("version", version.to_string())].try_into().unwrap();
    Entry::Valid(Instance::new(address).with_metadata(metadata))
}
