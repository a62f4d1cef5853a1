//! What becomes of the registration of a process that is killed or frozen: the process is this very program, started again.

use std::{
    env,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use discovery_core::{Instance, Registry, Resolver, ServiceName, Status, Weight};
use discovery_etcd::{EtcdBackend, EtcdConfig};
use support::{Etcd, eventually};

const TTL: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_secs(10);
const MEMBER: &str = "DISCOVERY_TEST_MEMBER";

fn connect(member: &str) -> EtcdBackend {
    EtcdBackend::connect(EtcdConfig::new([member]).with_ttl(TTL)).unwrap()
}

fn payments() -> ServiceName {
    "payments".parse().unwrap()
}

fn instance() -> Instance {
    Instance::new("10.0.0.1:80".parse().unwrap())
}

/// Not a test of its own: what the other tests start. It registers, and prints every status.
#[tokio::test]
#[ignore = "is started by the other tests here"]
async fn child() {
    let Ok(member) = env::var(MEMBER) else { return };
    let backend = connect(&member);
    let mut registration = backend.register(&payments(), instance()).await.unwrap();
    let mut status = registration.status();
    loop {
        let word = match status {
            Status::Registered { .. } => "registered",
            Status::Lost { .. } => "lost",
            Status::Superseded { .. } => "superseded",
            _ => "other",
        };
        // A line of its own, whatever the test runner has written before.
        println!("\nstatus={word}");
        status = registration.changed().await;
    }
}

struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    fn start(etcd: &Etcd) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["child", "--exact", "--ignored", "--nocapture"])
            .env(MEMBER, etcd.address())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if let Some(word) = line.strip_prefix("status=") {
                    let _ = sender.send(word.to_owned());
                }
            }
        });
        Self { child, lines }
    }

    fn signal(&self, name: &str) {
        Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status().unwrap();
    }

    fn until(&self, word: &str) {
        while self.lines.recv_timeout(SOON).unwrap_or_else(|_| panic!("the child never said {word}")) != word {}
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn count(backend: &EtcdBackend) -> usize {
    backend.list(&payments()).await.unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_is_gone_with_its_lease() {
    let etcd = Etcd::start().await;
    let observer = connect(&etcd.address());
    let process = Process::start(&etcd);
    process.until("registered");
    assert_eq!(count(&observer).await, 1);
    process.signal("KILL");
    let took = eventually("gone", TTL + Duration::from_secs(1), async || count(&observer).await == 0).await;
    println!("gone {took:?} after the kill");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_process_registers_again_on_waking() {
    let etcd = Etcd::start().await;
    let observer = connect(&etcd.address());
    let process = Process::start(&etcd);
    process.until("registered");
    process.signal("STOP");
    eventually("gone", TTL + Duration::from_secs(1), async || count(&observer).await == 0).await;
    process.signal("CONT");
    let took = eventually("back", Duration::from_secs(2), async || count(&observer).await == 1).await;
    process.until("lost");
    process.until("registered");
    println!("back {took:?} after waking");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_slept_through_a_takeover_leaves_the_entry_alone() {
    let etcd = Etcd::start().await;
    let observer = connect(&etcd.address());
    let process = Process::start(&etcd);
    process.until("registered");
    process.signal("STOP");
    eventually("gone", TTL + Duration::from_secs(1), async || count(&observer).await == 0).await;
    let heavy = Weight::new(300).unwrap();
    let registration = observer.register(&payments(), instance().with_weight(heavy)).await.unwrap();
    process.signal("CONT");
    process.until("superseded");
    process.signal("KILL");
    tokio::time::sleep(TTL * 2).await;
    assert!(registration.status().is_registered());
    let set = observer.list(&payments()).await.unwrap();
    assert_eq!(set.iter().map(|one| one.weight()).collect::<Vec<_>>(), [heavy]);
}
