//! The registration of a process that is killed or frozen. The process is this same program,
//! started again.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use discovery_core::{
    Claim, ErrorKind, InstanceId, Registry, Resolver, Snapshot, Status, Update, UpdateStream, Weight,
};
use futures::{StreamExt, future::join_all};
use support::{
    Etcd, eventually,
    scene::{SOON, TTL, connect, connect_to, instance, payments, until},
};
use tokio::time::{sleep, timeout};

const MEMBER: &str = "DISCOVERY_TEST_MEMBER";
const NUMBER: &str = "DISCOVERY_TEST_NUMBER";

/// A child process for other tests. It registers an instance and prints every status.
#[tokio::test]
#[ignore = "is started by the other tests here"]
async fn child() {
    let (Ok(member), Ok(number)) = (env::var(MEMBER), env::var(NUMBER)) else { return };
    let backend = connect_to([member]);
    let _updates = backend.watch(&payments()).unwrap();
    let mut registration = backend.register(&payments(), instance(number.parse().unwrap())).await.unwrap();
    let mut status = registration.status();
    loop {
        let word = match status {
            Status::Registered { .. } => "registered",
            Status::Lost { .. } => "lost",
            Status::Superseded { .. } => "superseded",
            _ => "other",
        };
        // Starts a new line, because the test runner may have left one unfinished.
        println!("\nstatus={word}");
        match registration.changed().await {
            Some(next) => status = next,
            // Superseded: the test reads that and kills this process.
            None => std::future::pending().await,
        }
    }
}

/// A process that registers one instance.
struct Process {
    child: Child,
    id: InstanceId,
    words: Receiver<String>,
}

impl Process {
    fn start(etcd: &Etcd, number: u16) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["child", "--exact", "--ignored", "--nocapture"])
            .env(MEMBER, etcd.address())
            .env(NUMBER, number.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, words) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if let Some(word) = line.strip_prefix("status=") {
                    let _ = sender.send(word.to_owned());
                }
            }
        });
        Self { child, id: instance(number).id().clone(), words }
    }

    /// Starts this many processes and waits until all are registered.
    fn start_many(etcd: &Etcd, count: u16) -> Vec<Self> {
        let processes: Vec<_> = (0..count).map(|number| Self::start(etcd, number)).collect();
        for process in &processes {
            process.says("registered");
        }
        processes
    }

    fn signal(&self, name: &str) {
        Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status().unwrap();
    }

    /// Waits for the next status, which must be this one.
    fn says(&self, word: &str) {
        let next = self.words.recv_timeout(SOON).unwrap_or_else(|_| panic!("{} never reported {word}", self.id));
        assert_eq!(next, word);
    }

    fn until(&self, word: &str) {
        while self.words.recv_timeout(SOON).unwrap_or_else(|_| panic!("{} never reported {word}", self.id)) != word {}
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The weights with which each instance was seen, from first to last; 0 is a removal.
type Story = BTreeMap<InstanceId, Vec<u16>>;

/// Adds the changes of `set` to the story until the stream has been quiet for this long. What it
/// reads from the stream may include an outage: a loaded machine can miss a bound of the watch.
async fn follow(updates: &mut UpdateStream, mut set: Snapshot, story: &mut Story, quiet: Duration) {
    while let Ok(Some(update)) = timeout(quiet, updates.next()).await {
        let next = set.after(&update);
        let change = set.diff(&next);
        for one in change.upserts() {
            story.entry(one.id().clone()).or_default().push(one.weight().value());
        }
        for id in change.removes() {
            story.entry(id.clone()).or_default().push(0);
        }
        set = next;
    }
}

/// Rounds of `fault_b8`, all at once: a process is frozen for longer than its TTL, another handle
/// registers under its id, and the process is woken, in odd rounds at the very moment of the
/// takeover. The sleeper must be superseded and change nothing. Returns in how many rounds it
/// changed something.
async fn pause_takeover_resume(etcd: &Etcd, rounds: u16) -> usize {
    let observer = connect(etcd);
    let heavy = Weight::new(300).unwrap();
    let processes = Process::start_many(etcd, rounds);
    let mut updates = observer.watch(&payments()).unwrap();
    let Some(Update::Reset(set)) = updates.next().await else { panic!("no first set") };
    assert_eq!(set.len(), usize::from(rounds));
    processes.iter().for_each(|process| process.signal("STOP"));
    let gone = async || observer.list(&payments()).await.unwrap().is_empty();
    eventually("gone", TTL + Duration::from_secs(2), gone).await;
    let taking = (0..rounds).zip(&processes).map(|(number, process)| {
        let observer = &observer;
        async move {
            if number % 2 == 1 {
                process.signal("CONT");
            }
            observer.register(&payments(), instance(number).with_weight(heavy)).await.unwrap()
        }
    });
    let registrations = join_all(taking).await;
    for process in processes.iter().step_by(2) {
        process.signal("CONT");
        process.until("superseded");
    }
    for process in processes.iter().skip(1).step_by(2) {
        process.until("superseded");
    }
    let mut story = Story::new();
    follow(&mut updates, set, &mut story, TTL * 2).await;
    assert_eq!(story.len(), usize::from(rounds));
    for registration in &registrations {
        assert!(registration.status().is_registered());
        let refused = observer.register_with(&payments(), (*registration.instance()).clone(), Claim::IfAbsent).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Conflict);
    }
    for registration in registrations {
        registration.deregister().await.unwrap();
    }
    story.values().filter(|seen| seen.iter().skip_while(|weight| **weight != 300).count() != 1).count()
}

/// `fault_b8`, all 100 rounds.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak: 100 rounds of more than a TTL"]
async fn fault_b8_a_hundred_rounds_of_sleeping_through_a_takeover() {
    let etcd = Etcd::start().await;
    let mut overwritten = 0;
    for _ in 0..10 {
        overwritten += pause_takeover_resume(&etcd, 10).await;
    }
    println!("fault_b8: {overwritten} of 100 entries were overwritten after a takeover");
    assert_eq!(overwritten, 0);
}

/// Suspends a process that registers and watches. On waking it first reports that it is lost and
/// then does each thing once: it does not catch up on missed timers.
async fn suspended_for(time: Duration) {
    let etcd = Etcd::start().await;
    let process = Process::start(&etcd, 0);
    process.says("registered");
    let counts = || {
        let [grants, renewals, txns, ranges, watches] =
            ["LeaseGrant", "LeaseKeepAlive", "Txn", "Range", "Watch"].map(|method| etcd.requests(0, method));
        let puts = etcd.metric(0, "etcd_mvcc_put_total").unwrap_or_default() as u64;
        [grants, renewals, puts, ranges + txns, watches]
    };
    sleep(TTL).await;
    process.signal("STOP");
    sleep(time).await;
    let before = counts();
    process.signal("CONT");
    process.says("lost");
    process.until("registered");
    sleep(TTL).await;
    let after = counts();
    let [grants, renewals, writes, reads, watches] = std::array::from_fn(|place| after[place] - before[place]);
    println!(
        "fault_d2: in the {TTL:?} after {time:?} of sleep: {grants} grants, {renewals} renewals, {writes} writes, {reads} reads, {watches} watches"
    );
    assert_eq!(grants, 1);
    assert_eq!(writes, 1);
    // The new lease is renewed at once and then after each third of its TTL; the old one may be
    // renewed once.
    assert!((1..=6).contains(&renewals), "{renewals} renewals");
    // The writes are transactions too, and each watch is audited six times per TTL.
    assert!(reads <= 14, "{reads} reads");
    assert!(watches <= 6, "{watches} watches");
}

/// `fault_d2`, for a minute.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak: a minute"]
async fn fault_d2_a_process_suspended_for_a_minute_does_not_catch_up_on_timers() {
    suspended_for(Duration::from_secs(60)).await;
}

/// Tests that measure time. `scripts/test` runs them after all others.
mod timed {
    use super::*;

    /// `fault_b1`. A registrar crashes: its lease removes the entry between one TTL and 1 s later,
    /// counted from the last renewal, which was at most a third of the TTL before the crash.
    #[tokio::test(flavor = "multi_thread")]
    async fn fault_b1_a_killed_process_is_gone_with_its_lease() {
        let etcd = Etcd::start().await;
        let observer = connect(&etcd);
        let mut updates = observer.watch(&payments()).unwrap();
        let mut set = Snapshot::default();
        let processes = Process::start_many(&etcd, 4);
        until(&mut updates, &mut set, |set| set.len() == 4).await;
        let mut killed = BTreeMap::new();
        for process in &processes {
            process.signal("KILL");
            killed.insert(process.id.clone(), Instant::now());
            // At a different moment between two renewals each.
            sleep(TTL / 12).await;
        }
        while !set.is_empty() {
            let update = timeout(SOON, updates.next()).await.unwrap().unwrap();
            let next = set.after(&update);
            for id in set.diff(&next).removes() {
                let took = killed[id].elapsed();
                println!("fault_b1: gone {took:?} after the kill, with a ttl of {TTL:?}");
                assert!(took > TTL * 2 / 3 && took < TTL + Duration::from_secs(1), "{took:?}");
            }
            set = next;
        }
    }

    /// `fault_b8`. A registrar that slept through a takeover overwrites nothing: 0 of 100 rounds,
    /// the first of which run here.
    #[tokio::test(flavor = "multi_thread")]
    async fn fault_b8_a_process_that_slept_through_a_takeover_leaves_the_entry_alone() {
        let etcd = Etcd::start().await;
        let overwritten = pause_takeover_resume(&etcd, 8).await;
        println!("fault_b8: {overwritten} of 8 entries were overwritten after a takeover");
        assert_eq!(overwritten, 0);
    }

    /// `fault_d2`. A process is suspended: missed timers cause no burst, and the loss is known
    /// before anything else is done.
    #[tokio::test(flavor = "multi_thread")]
    async fn fault_d2_a_suspended_process_does_not_catch_up_on_timers() {
        suspended_for(TTL * 5).await;
    }

    /// `fault_b3`. A registrar is frozen for longer than its TTL: on waking it reports that it was
    /// lost and registers again within 1 s (2 s on a loaded machine). Others see exactly one
    /// removal and one addition.
    #[tokio::test(flavor = "multi_thread")]
    async fn fault_b3_a_frozen_process_registers_again_on_waking() {
        let etcd = Etcd::start().await;
        let observer = connect(&etcd);
        let processes = Process::start_many(&etcd, 4);
        let mut updates = observer.watch(&payments()).unwrap();
        let Some(Update::Reset(set)) = updates.next().await else { panic!("no first set") };
        assert_eq!(set.len(), 4);
        processes.iter().for_each(|process| process.signal("STOP"));
        let count = async || observer.list(&payments()).await.unwrap().len();
        eventually("gone", TTL + Duration::from_secs(2), async || count().await == 0).await;
        processes.iter().for_each(|process| process.signal("CONT"));
        let took = eventually("back", Duration::from_secs(2), async || count().await == 4).await;
        println!("fault_b3: 4 processes back {took:?} after waking");
        for process in &processes {
            process.says("lost");
            // It may be lost again for another reason.
            process.until("registered");
        }
        let mut story = Story::new();
        follow(&mut updates, set, &mut story, TTL).await;
        assert_eq!(story.len(), 4);
        let weight = instance(0).weight().value();
        assert!(story.values().all(|seen| *seen == [0, weight]), "one removal and one addition each: {story:?}");
    }
}
