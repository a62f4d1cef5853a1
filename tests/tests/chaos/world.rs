//! Carries out a plan: starts etcd, the proxies and the processes, and applies each act to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use discovery_core::{ServiceName, Snapshot};
use support::{Etcd, Fault, GrpcProxy, Proxy};
use tokio::{
    sync::{Mutex, RwLock, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    hand::Hand,
    history::{PREFIX, Recorder, Stored, id_of, instance_of, owner_in},
    log::{Journal, Left, Life, Log, Whom, Word},
    oracle::{DEADLINE, ELECTION, SLACK, TTL},
    plan::{Act, Members, PROCESSES, Plan},
    process::Process,
    subject::Subject,
};

/// Runs a plan on real etcd processes and returns the log.
pub(crate) async fn run(plan: &Plan, subject: Subject) -> Log {
    let journal = Journal::new();
    let registrations = plan.acts.iter().filter(|(_, act)| matches!(act, Act::Register { .. })).count();
    journal.open().lives = (0..registrations).map(|number| Life { number, ..Life::default() }).collect();
    let etcd = match plan.members {
        1 => Etcd::setup().flag("--bcrypt-cost=4").start().await,
        members => {
            // The harness checks a password on each connection, and members are replaced at any
            // time.
            let setup = Etcd::setup().members(members).peers_through_proxies();
            setup.flag("--bcrypt-cost=4").flag("--strict-reconfig-check=false").start().await
        }
    };
    let grpc_proxy = if plan.has_grpc_proxy { Some(GrpcProxy::before(&etcd).await) } else { None };
    let mut members = etcd.members();
    members.extend(grpc_proxy.iter().map(GrpcProxy::address));
    let mut proxies = Vec::new();
    for _ in 0..PROCESSES {
        let mut own = Vec::new();
        for member in &members {
            own.push(Proxy::to(member).await);
        }
        proxies.push(own);
    }
    let (hurry, hurried) = watch::channel(false);
    let start = |(place, proxies): (usize, &Vec<Proxy>)| {
        Process::start(place, proxies, subject, journal.clone(), hurried.clone())
    };
    let processes = proxies.iter().enumerate().map(start).collect();
    let recorder = Recorder::start(etcd.members(), journal.clone());
    let ground = Ground {
        hand: Hand { members: etcd.members(), journal: journal.clone() },
        journal,
        etcd,
        grpc_proxy: grpc_proxy.map(Mutex::new),
        proxies,
        recorder: Mutex::new(recorder),
        epoch: RwLock::new(0),
        fault: Mutex::new(()),
        wiping: AtomicBool::new(false),
    };
    let mut world = World { ground: Arc::new(ground), processes, owners: BTreeMap::new(), faults: JoinSet::new() };
    world.play(plan).await;
    hurry.send_replace(true);
    world.settle().await;
    world.give_up().await;
    world.finish().await
}

struct World {
    ground: Arc<Ground>,
    processes: Vec<Process>,
    /// The processes of registrations and streams.
    owners: BTreeMap<Place, usize>,
    /// Faults in progress.
    faults: JoinSet<()>,
}

#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
enum Place {
    Registration(usize),
    Stream(usize),
}

/// What all processes share: etcd, the network, and what the harness knows of both.
struct Ground {
    journal: Journal,
    etcd: Etcd,
    /// Allows one fault of it at a time.
    grpc_proxy: Option<Mutex<GrpcProxy>>,
    /// By process and member; the gRPC proxy is last.
    proxies: Vec<Vec<Proxy>>,
    recorder: Mutex<Recorder>,
    hand: Hand,
    /// Held for reading by tasks that a wipe would confuse.
    epoch: RwLock<u32>,
    /// Allows one fault of the cluster at a time.
    fault: Mutex<()>,
    wiping: AtomicBool,
}

impl World {
    async fn play(&mut self, plan: &Plan) {
        let start = self.ground.journal.now();
        // Ordered by time; restarts are added as crashes happen.
        let mut restarts: BTreeSet<(Duration, usize)> = BTreeSet::new();
        let mut frozen = Duration::ZERO;
        for (at, act) in &plan.acts {
            while let Some((due, process)) = restarts.first().copied().filter(|(due, _)| due <= at) {
                restarts.pop_first();
                self.sleep_until(start + due).await;
                self.processes[process].restart();
            }
            self.sleep_until(start + *at).await;
            match act {
                Act::Crash { process, pause } => {
                    restarts.insert((*at + *pause, *process));
                }
                Act::Freeze { pause, .. } => frozen = frozen.max(self.ground.journal.now() + *pause),
                _ => {}
            }
            if !matches!(act, Act::List { .. } | Act::Update { .. }) {
                self.ground.journal.note(format_args!("{act:?}"));
            }
            self.act(act.clone());
        }
        for (_, process) in restarts {
            self.processes[process].restart();
        }
        while self.faults.join_next().await.is_some() {}
        self.sleep_until(frozen).await;
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Burst { registration } => self.of(Place::Registration(registration)).update(registration, BURST),
            Act::Update { registration } => self.of(Place::Registration(registration)).update(registration, 1),
            Act::Deregister { registration } => self.of(Place::Registration(registration)).deregister(registration),
            Act::Drop { registration } => self.of(Place::Registration(registration)).drop_registration(registration),
            Act::Close { stream } => self.of(Place::Stream(stream)).close(stream),
            Act::List { process, service } => self.processes[process].list(service),
            Act::Open { process, stream, service, slow } => {
                self.owners.insert(Place::Stream(stream), process);
                self.processes[process].open(stream, service, slow);
            }
            Act::Register { process, registration, service, id, claim } => {
                self.owners.insert(Place::Registration(registration), process);
                self.processes[process].register(registration, service, id, claim);
            }
            Act::Crash { process, .. } => self.processes[process].crash(),
            Act::Freeze { process, pause } => self.processes[process].freeze(pause),
            fault => {
                let ground = Arc::clone(&self.ground);
                self.faults.spawn(async move { ground.fault(fault).await });
            }
        }
    }

    fn of(&mut self, place: Place) -> &mut Process {
        &mut self.processes[self.owners[&place]]
    }

    async fn sleep_until(&self, at: Duration) {
        sleep(at.saturating_sub(self.ground.journal.now())).await;
    }

    /// Waits, after the last fault, until all streams and registrations are as they should be.
    async fn settle(&self) {
        let journal = &self.ground.journal;
        let healed = journal.now();
        journal.note("the last fault is over");
        let mut converged = None;
        let mut registered = None;
        // A lease that the last fault ends is gone within the first seconds. A registration that is
        // being updated is not judged.
        while journal.now() < healed + SETTLE
            && (converged.is_none()
                || registered.is_none()
                || journal.now() < healed + TTL + SLACK
                || is_busy(&journal.open()))
        {
            if let Some((entries, _)) = self.ground.hand.entries().await {
                let now = journal.now();
                if converged.is_none() && have_converged(&journal.open(), &entries) {
                    converged = Some(now - healed);
                }
                let unhealed = unhealed(&journal.open(), &entries);
                registered = unhealed.is_empty().then(|| registered.unwrap_or(now - healed));
                if !unhealed.is_empty() {
                    journal.open().end.unhealed = unhealed.into_iter().map(|number| (now, number)).collect();
                }
                self.ground.clear(&entries).await;
            }
            sleep(Duration::from_millis(20)).await;
        }
        let entries = self.last_entries().await;
        let mut log = journal.open();
        if is_busy(&log) {
            log.failures.push("updates do not end".into());
        }
        if entries.is_none() {
            log.failures.push("etcd did not answer after the last fault".into());
        }
        let end = &mut log.end;
        end.healed = healed;
        end.converged = converged;
        end.registered = registered;
        end.closing = journal.now();
        end.entries = entries.unwrap_or_default();
    }

    /// Reads the entries once all is over. A busy machine may need several attempts.
    async fn last_entries(&self) -> Option<BTreeMap<String, Stored>> {
        let end = self.ground.journal.now() + SETTLE;
        loop {
            match self.ground.hand.entries().await {
                Some((entries, _)) => return Some(entries),
                None if self.ground.journal.now() < end => sleep(Duration::from_millis(20)).await,
                None => return None,
            }
        }
    }

    /// Gives up everything and waits until nothing is left.
    async fn give_up(&mut self) {
        let start = self.ground.journal.now();
        for process in &mut self.processes {
            if timeout(DEADLINE + SLACK, process.give_up()).await.is_err() {
                self.ground.journal.open().failures.push("giving up took longer than the deadline".into());
            }
        }
        // Leases of processes that crashed in the end have to expire.
        let patience = TTL + ELECTION + Duration::from_secs(1) + SLACK * 2;
        let mut left = Left::default();
        while self.ground.journal.now() < start + DEADLINE + patience {
            let entries = self.ground.hand.entries().await;
            let leases = self.ground.hand.leases().await;
            let keys = entries.map(|(entries, _)| entries.into_keys().collect()).unwrap_or_default();
            left = Left { keys, leases: leases.unwrap_or_default(), watches: self.ground.watches() };
            if left.keys.is_empty() && left.leases == 0 && left.watches == 0 {
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
        self.ground.journal.open().end.left = left;
    }

    async fn finish(self) -> Log {
        let mut recorder = self.ground.recorder.lock().await;
        if let Some((_, revision)) = self.ground.hand.entries().await {
            recorder.catch_up(revision).await;
        }
        let mut log = self.ground.journal.take();
        log.steps = recorder.steps();
        log
    }
}

impl Ground {
    async fn fault(&self, fault: Act) {
        match fault {
            Act::Cut { process, member, fault, pause } => {
                let whom = process.map_or(Whom::Everybody, Whom::Process);
                let start = self.journal.now();
                self.set(process, member, fault);
                sleep(pause).await;
                self.set(process, member, Fault::None);
                self.journal.disturbed(whom, start);
            }
            Act::Kill { target, pause } => self.down(target, pause, Etcd::kill).await,
            Act::Stop { target, pause } => self.down(target, pause, Etcd::stop).await,
            Act::Pause { target, pause } => {
                let _one = self.fault.lock().await;
                let start = self.journal.now();
                let places = self.places(target);
                places.iter().for_each(|place| self.etcd.pause(*place));
                sleep(pause).await;
                places.iter().for_each(|place| self.etcd.resume(*place));
                self.answering(start).await;
            }
            Act::KillGrpcProxy { pause } => {
                let proxy = self.grpc_proxy().lock().await;
                let start = self.journal.now();
                proxy.kill();
                sleep(pause).await;
                proxy.restart().await;
                self.answering(start).await;
            }
            Act::PauseGrpcProxy { pause } => {
                let proxy = self.grpc_proxy().lock().await;
                let start = self.journal.now();
                proxy.pause();
                sleep(pause).await;
                proxy.resume();
                self.answering(start).await;
            }
            Act::Isolate { target, pause } => {
                let _one = self.fault.lock().await;
                let start = self.journal.now();
                self.places(target).into_iter().for_each(|place| self.etcd.isolate(place));
                sleep(pause).await;
                self.etcd.heal();
                self.answering(start).await;
            }
            Act::Authentication { pause } => {
                let _one = self.fault.lock().await;
                let start = self.journal.now();
                if self.hand.enable_authentication().await.is_some() {
                    sleep(pause).await;
                }
                self.hand.disable_authentication().await;
                self.answering(start).await;
            }
            Act::Replace { member } => {
                let _one = self.fault.lock().await;
                let start = self.journal.now();
                self.etcd.replace(member, false).await;
                self.answering(start).await;
            }
            Act::Wipe => self.wipe().await,
            by_hand => self.by_hand(by_hand).await,
        }
    }

    async fn by_hand(&self, act: Act) {
        let epoch = self.epoch.read().await;
        let key = |service: &ServiceName, id: &str| format!("{PREFIX}{service}/{id}");
        let value = |text: &str| {
            let instance = discovery_core::Instance::new(text.parse().expect("an address"));
            Some(support::entry::encode(&instance))
        };
        let changes = match act {
            Act::Compact { back } => {
                let reached = self.recorder.lock().await.reached();
                return self.hand.compact(reached.number - back).await;
            }
            Act::Revoke { service, id } => return self.hand.revoke(&key(&service, &format!("i{id}"))).await,
            Act::Delete { service, id } => vec![(key(&service, &format!("i{id}")), None)],
            Act::Overwrite { service, id } => vec![(key(&service, &format!("i{id}")), value("10.9.0.1:80"))],
            Act::PutBad { service, id } => vec![(key(&service, &format!("i{id}")), Some(b"{".to_vec()))],
            Act::PutDeeper { service } => vec![(key(&service, "deeper/10.9.0.2:80"), value("10.9.0.2:80"))],
            Act::PutPair { service, there } => ["10.9.0.3:80", "10.9.0.4:80"]
                .map(|address| (key(&service, address), if there { value(address) } else { None }))
                .to_vec(),
            other => unreachable!("{other:?} is done elsewhere"),
        };
        self.hand.change(*epoch, changes).await;
    }

    /// Ends members and starts them again.
    async fn down(&self, target: Members, pause: Duration, end: impl Fn(&Etcd, usize)) {
        let _one = self.fault.lock().await;
        let start = self.journal.now();
        let places = self.places(target);
        places.iter().for_each(|place| end(&self.etcd, *place));
        sleep(pause).await;
        for place in places {
            self.etcd.restart(place).await;
        }
        self.answering(start).await;
    }

    /// Cuts everybody off, so that nobody knows more than the recorder, and lets etcd start again
    /// without data.
    async fn wipe(&self) {
        let _one = self.fault.lock().await;
        let mut epoch = self.epoch.write().await;
        let start = self.journal.now();
        self.wiping.store(true, Ordering::SeqCst);
        self.each(None, None, Fault::Refuse);
        sleep(Duration::from_millis(50)).await;
        let mut recorder = self.recorder.lock().await;
        if let Some((_, revision)) = self.hand.entries().await {
            recorder.catch_up(revision).await;
            self.etcd.wipe().await;
            *epoch += 1;
            recorder.begin_epoch();
        }
        self.wiping.store(false, Ordering::SeqCst);
        self.each(None, None, Fault::None);
        self.answering(start).await;
    }

    /// Waits until etcd answers and records the disturbance.
    async fn answering(&self, start: Duration) {
        while self.hand.entries().await.is_none() {
            sleep(Duration::from_millis(50)).await;
        }
        self.journal.disturbed(Whom::Everybody, start);
    }

    fn set(&self, process: Option<usize>, member: Option<usize>, fault: Fault) {
        if !self.wiping.load(Ordering::SeqCst) {
            self.each(process, member, fault);
        }
    }

    fn each(&self, process: Option<usize>, member: Option<usize>, fault: Fault) {
        for (of, proxies) in self.proxies.iter().enumerate() {
            for (to, proxy) in proxies.iter().enumerate() {
                if process.is_none_or(|process| process == of) && member.is_none_or(|member| member == to) {
                    proxy.set(fault);
                }
            }
        }
    }

    fn places(&self, target: Members) -> Vec<usize> {
        let count = self.etcd.members().len();
        match target {
            Members::Leader => vec![self.etcd.leader().unwrap_or_default()],
            Members::Majority => (0..=count / 2).collect(),
            Members::One(place) => vec![place],
        }
    }

    fn grpc_proxy(&self) -> &Mutex<GrpcProxy> {
        self.grpc_proxy.as_ref().expect("the plan has the gRPC proxy")
    }

    /// Returns how many watches etcd has besides the harness's own: the recorder has one on each
    /// member, and the gRPC proxy has two, by which it learns whether there is a leader.
    fn watches(&self) -> usize {
        let count = |place| self.etcd.metric(place, "etcd_debugging_mvcc_watcher_total").unwrap_or_default() as usize;
        let members = self.etcd.members().len();
        let own = members + if self.grpc_proxy.is_some() { 2 } else { 0 };
        (0..members).map(count).sum::<usize>().saturating_sub(own)
    }

    /// Removes entries put by hand that no registration will repair.
    async fn clear(&self, entries: &BTreeMap<String, Stored>) {
        let epoch = *self.epoch.read().await;
        for (key, stored) in entries.iter().filter(|(_, stored)| owner_in(stored).is_none()) {
            let is_repaired = |life: &Life| life.key == *key && life.released.is_none() && !is_superseded(life);
            if !self.journal.open().lives.iter().any(is_repaired) {
                self.hand.clear(epoch, key, stored).await;
            }
        }
    }
}

fn is_superseded(life: &Life) -> bool {
    matches!(life.statuses.last(), Some((_, Word::Superseded)))
}

/// Returns whether every open stream has the listed set.
fn have_converged(log: &Log, entries: &BTreeMap<String, Stored>) -> bool {
    log.recordings.iter().filter(|recording| recording.closed.is_none()).all(|recording| {
        let valid = entries.iter().filter_map(|(key, stored)| {
            let id = id_of(&recording.service, key)?;
            instance_of(&id, stored)
        });
        recording.held() == (valid.collect::<Snapshot>(), false)
    })
}

/// Returns the registrations that are neither superseded nor in etcd as they should be.
fn unhealed(log: &Log, entries: &BTreeMap<String, Stored>) -> Vec<usize> {
    let is_right = |life: &&Life| {
        let is_said = matches!(life.statuses.last(), Some((_, Word::Registered)));
        let is_there = || {
            let (Some(stored), Some(wanted)) = (entries.get(&life.key), &life.instance) else { return false };
            instance_of(wanted.id(), stored).as_ref() == Some(wanted)
        };
        is_superseded(life) || (is_said && (life.pending > 0 || is_there()))
    };
    let held = log.lives.iter().filter(|life| life.released.is_none() && !life.key.is_empty());
    held.filter(|life| !is_right(life)).map(|life| life.number).collect()
}

/// Returns whether a registration is being updated.
fn is_busy(log: &Log) -> bool {
    log.lives.iter().any(|life| life.released.is_none() && life.registered.is_some() && life.pending > 0)
}

/// More updates than a stream's queue holds.
const BURST: usize = 160;
/// Long enough to show by how much a bound is missed.
const SETTLE: Duration = Duration::from_secs(30);
