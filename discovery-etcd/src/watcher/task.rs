//! The task behind a [`Watcher`](super::Watcher): one loop that owns the streams and starts what is
//! due.

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use discovery_core::{Backoff, Delays, Error, ErrorKind};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tracing::debug;

use super::{
    Order,
    audits::{AuditPace, Audits, question},
    carrier::{Carried, Carrier, Command, Report},
    ids::Ids,
    plan::{Act, Break, Opening, Plan},
    subscription::{Audited, Ended, Notice},
};
use crate::{
    client::{Failure, Member, Reading, Reason, StreamConnection, WatchStream},
    cluster::Cluster,
    pace::Pace,
};

/// The task of a handle's watcher. It does what the [`Plan`] decides.
pub(super) struct Task {
    cluster: Arc<Cluster>,
    pace: Pace,
    orders: mpsc::UnboundedReceiver<Order>,
    reports: mpsc::UnboundedReceiver<Report>,
    reporting: mpsc::UnboundedSender<Report>,
    plan: Plan,
    audits: Audits,
    watches: BTreeMap<u64, Carried>,
    streams: HashMap<u64, Stream>,
    /// The waits between attempts to open a stream, unless a caller waits for one.
    delays: Delays,
    not_before: Instant,
    opening: Option<Pending<Opened>>,
    moving: Option<Pending<Option<Opened>>>,
    life: Option<Pending<SignOfLife>>,
    next_life: Instant,
    /// The least number of a watch whose key the next sign of life reads.
    next_read: u64,
    audit: Option<Pending<Audit>>,
    next_audit: Instant,
    /// What each watch knew at the last check for watches that are level with their stream.
    known: HashMap<u64, i64>,
    /// How many signs of life in a row were refused for their token.
    refused: u32,
}

type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A stream, as the watcher's task knows it. Dropping it ends the stream's task.
struct Stream {
    connection: StreamConnection,
    commands: mpsc::UnboundedSender<Command>,
    task: JoinHandle<()>,
    opened: Instant,
}

/// The result of opening a stream.
struct Opened {
    opening: Opening,
    member: Arc<Member>,
    result: Result<WatchStream, Failure>,
}

/// The result of checking whether the member is alive.
struct SignOfLife {
    /// The watch whose key was read.
    number: u64,
    /// The highest revision that was known then.
    known: i64,
    member: Arc<Member>,
    result: Result<i64, Failure>,
}

/// The result of reading the keys of some watches.
struct Audit {
    numbers: Vec<u64>,
    asked: Instant,
    /// What each of them knew then.
    known: Vec<i64>,
    result: Result<Vec<Reading>, Failure>,
}

enum Happened {
    Order(Option<Order>),
    Report(Report),
    Opened(Opened),
    Moved(Option<Opened>),
    Life(SignOfLife),
    Audit(Audit),
    Tick,
}

impl Task {
    pub(super) fn new(
        cluster: Arc<Cluster>,
        pace: Pace,
        audits: AuditPace,
        orders: mpsc::UnboundedReceiver<Order>,
    ) -> Self {
        let (reporting, reports) = mpsc::unbounded_channel();
        let delays = Backoff::new(Duration::from_millis(50), Duration::from_secs(2))
            .expect("50 ms to 2 s lies within the bounds")
            .delays();
        let now = Instant::now();
        Self {
            cluster,
            pace,
            orders,
            reports,
            reporting,
            plan: Plan::default(),
            audits: Audits::new(audits),
            watches: BTreeMap::new(),
            streams: HashMap::new(),
            delays,
            not_before: now,
            opening: None,
            moving: None,
            life: None,
            next_life: now,
            next_read: 0,
            audit: None,
            next_audit: now,
            known: HashMap::new(),
            refused: 0,
        }
    }

    /// Runs until nobody can send orders any more.
    pub(super) async fn run(mut self) {
        loop {
            self.begin();
            match self.happen().await {
                Happened::Order(None) => return,
                Happened::Order(Some(order)) => self.obey(order),
                Happened::Report(report) => self.take(report),
                Happened::Opened(opened) => self.opened(opened),
                Happened::Moved(moved) => self.moved(moved),
                Happened::Life(life) => self.live(life),
                Happened::Audit(audit) => self.audited(audit),
                Happened::Tick => {}
            }
        }
    }

    async fn happen(&mut self) -> Happened {
        let next = self.next_tick();
        tokio::select! {
            biased;
            order = self.orders.recv() => Happened::Order(order),
            Some(report) = self.reports.recv() => Happened::Report(report),
            opened = outcome(&mut self.opening) => Happened::Opened(opened),
            moved = outcome(&mut self.moving) => Happened::Moved(moved),
            life = outcome(&mut self.life) => Happened::Life(life),
            audit = outcome(&mut self.audit) => Happened::Audit(audit),
            () = at(next) => Happened::Tick,
        }
    }

    /// When something becomes due that no event announces.
    fn next_tick(&self) -> Option<Instant> {
        if self.plan.is_empty() {
            return None;
        }
        let opens = (self.opening.is_none() && self.plan.wants_stream()).then_some(self.not_before);
        let lives = (self.life.is_none() && self.plan.main().is_some()).then_some(self.next_life);
        let audits = (self.audit.is_none() && self.plan.main().is_some()).then_some(self.next_audit);
        // What is already due was begun, or waits for another event.
        let now = Instant::now();
        opens.into_iter().chain(lives).chain(audits).filter(|at| *at > now).min()
    }

    /// Begins what is due.
    fn begin(&mut self) {
        if self.plan.is_empty() {
            // Nobody waits for these any more.
            self.opening = None;
            self.moving = None;
            self.life = None;
            self.audit = None;
            return;
        }
        let now = Instant::now();
        if self.opening.is_none() && now >= self.not_before {
            self.begin_opening();
        }
        let Some(main) = self.plan.main() else { return };
        if self.life.is_none() && now >= self.next_life {
            self.begin_sign_of_life(main);
            self.begin_move(main);
            self.gather();
        }
        if self.audit.is_none() && now >= self.next_audit {
            self.begin_audit(main, now);
        }
    }

    fn begin_opening(&mut self) {
        let Some(opening) = self.plan.next_opening() else { return };
        let request = self.watches[&opening.first].request(opening.turn);
        let cluster = Arc::clone(&self.cluster);
        let limit = self.pace.patience();
        self.opening = Some(Box::pin(async move {
            let asking = cluster.choose();
            let result = asking.member().watch(request, limit).await;
            let member = asking.ended(&result);
            Opened { opening, member, result }
        }));
    }

    /// Follows the handle if it moves to another member. The present stream continues until each of
    /// its watches is created on the new one.
    fn begin_move(&mut self, main: u64) {
        let Some(stream) = self.streams.get(&main).filter(|_| self.moving.is_none()) else { return };
        let Some(opening) = self.plan.next_move() else { return };
        let request = self.watches[&opening.first].request(opening.turn);
        let cluster = Arc::clone(&self.cluster);
        let limit = self.pace.patience();
        let than = Arc::clone(stream.connection.member());
        self.moving = Some(Box::pin(async move {
            let asking = cluster.another(&than)?;
            let result = asking.member().watch(request, limit).await;
            let member = asking.ended(&result);
            Some(Opened { opening, member, result })
        }));
    }

    /// Reads something small that the handle may read, to see whether the member is alive.
    fn begin_sign_of_life(&mut self, main: u64) {
        let Some(stream) = self.streams.get(&main) else { return };
        // In turns, so that each watch learns after one round that its permission was withdrawn.
        let following = self.watches.range(self.next_read..).next();
        let Some((&number, carried)) = following.or_else(|| self.watches.first_key_value()) else { return };
        self.next_read = number + 1;
        let key = carried.keys().from().to_vec();
        let known = self.watches.values().map(|carried| carried.shared.known()).max().unwrap_or(0);
        let connection = stream.connection.clone();
        let limit = self.pace.deadline;
        self.life = Some(Box::pin(async move {
            let result = connection.revision(key, limit).await;
            SignOfLife { number, known, member: Arc::clone(connection.member()), result }
        }));
    }

    fn begin_audit(&mut self, main: u64, now: Instant) {
        let Some(stream) = self.streams.get(&main) else { return };
        let numbers = self.audits.next(&self.watches, now);
        if numbers.is_empty() {
            self.next_audit = now + self.pace.interval;
            return;
        }
        let carried: Vec<&Carried> = numbers.iter().map(|number| &self.watches[number]).collect();
        let questions = carried.iter().map(|carried| question(carried.keys())).collect();
        let known = carried.iter().map(|carried| carried.shared.known()).collect();
        for number in &numbers {
            self.audits.schedule(*number, self.watches[number].keys(), now);
        }
        let member = Arc::clone(stream.connection.member());
        self.audit = Some(Box::pin(async move {
            let result = member.readings(questions).await;
            Audit { numbers, asked: now, known, result }
        }));
    }

    fn obey(&mut self, order: Order) {
        let now = Instant::now();
        match order {
            Order::Watch { carried, start } => {
                let number = carried.number;
                self.audits.schedule(number, carried.keys(), now);
                if matches!(carried.keys(), super::Keys::Range { .. }) {
                    // A caller waits for this watch, and some member has just answered it.
                    self.not_before = self.not_before.min(now + SPACING);
                }
                let acts = self.plan.add(number, carried.keys(), start, now);
                self.watches.insert(number, carried);
                self.act(acts, None);
            }
            Order::Leave { number } => {
                self.forget(number);
                let acts = self.plan.leave(number);
                self.act(acts, None);
            }
            Order::Audit { number } => {
                // What is already on its way gets this much time to arrive.
                self.audits.hurry(number, now + self.pace.interval);
            }
            Order::Distrust { number, stream, failure } => {
                if let Some(stream) = stream.or_else(|| self.plan.stream_of(number)) {
                    self.broken(stream, failure);
                }
            }
        }
    }

    fn take(&mut self, report: Report) {
        match report {
            Report::Created { stream, number, turn } => {
                let acts = self.plan.created(stream, number, turn);
                self.act(acts, None);
            }
            Report::Refused { stream, number, failure } => {
                debug!(error = %failure.error.report(), "watch refused");
                let is_for_token =
                    failure.reason == Reason::Token || failure.error.kind() == ErrorKind::PermissionDenied;
                let acts = self.plan.refused(stream, number, is_for_token);
                self.act(acts, Some(&failure));
            }
            Report::Broken { stream, failure } => self.broken(stream, failure),
        }
    }

    fn opened(&mut self, opened: Opened) {
        let Opened { opening, member, result } = opened;
        match result {
            Ok(stream) => {
                self.carry(opening, stream);
                self.next_life = Instant::now() + self.interval();
            }
            Err(failure) => {
                debug!(error = %failure.error.report(), "watch stream not opened");
                let failure = self.cluster.of_all(&[member], failure);
                let acts = self.plan.not_opened(&opening);
                self.act(acts, Some(&failure));
                self.not_before = Instant::now() + self.delays.next_delay();
            }
        }
    }

    fn moved(&mut self, moved: Option<Opened>) {
        let Some(Opened { opening, result, .. }) = moved else { return };
        match result {
            Ok(stream) => self.carry(opening, stream),
            Err(failure) => debug!(error = %failure.error.report(), "watches not moved"),
        }
    }

    /// Starts the task of a stream.
    fn carry(&mut self, opening: Opening, opened: WatchStream) {
        let WatchStream { requests, answers, connection } = opened;
        let turn = opening.turn;
        let (stream, acts) = self.plan.opened(opening, Instant::now());
        let (commands, commanded) = mpsc::unbounded_channel();
        let carrier = Carrier {
            stream,
            ids: Ids::new(turn),
            watches: HashMap::new(),
            unwanted: Vec::new(),
            commands: commanded,
            reports: self.reporting.clone(),
            patience: self.pace.patience(),
        };
        let task = tokio::spawn(carrier.run(requests, answers));
        self.streams.insert(stream, Stream { connection, commands, task, opened: Instant::now() });
        if !acts.iter().any(|act| matches!(act, Act::Ask { turn: asked, .. } if *asked == turn)) {
            // The watch was dropped in the meantime.
            self.command(stream, Command::Leave { turn });
        }
        self.act(acts, None);
    }

    /// Does what the plan decided. Watches that end report `failure`.
    fn act(&mut self, acts: Vec<Act>, failure: Option<&Failure>) {
        for act in acts {
            match act {
                Act::Ask { stream, number, turn } => {
                    if let Some(carried) = self.watches.get(&number).cloned() {
                        self.command(stream, Command::Ask { turn, carried });
                    }
                }
                Act::Leave { stream, turn } => self.command(stream, Command::Leave { turn }),
                Act::Close { stream } => drop(self.streams.remove(&stream)),
                Act::Resume { number } => self.audits.hurry(number, Instant::now()),
                Act::End { number } => self.end(number, failure),
            }
        }
    }

    fn end(&mut self, number: u64, failure: Option<&Failure>) {
        let ended = match failure {
            Some(failure) if failure.reason == Reason::Compacted => Ended::Compacted,
            Some(failure) => Ended::Broken(failure.error.clone()),
            None => Ended::Broken(Error::new(ErrorKind::Unavailable, "the watch ended").with_operation("watch")),
        };
        if let Some(carried) = self.watches.get(&number) {
            carried.tell(Notice::Ended(ended));
        }
        self.forget(number);
    }

    fn forget(&mut self, number: u64) {
        self.watches.remove(&number);
        self.audits.forget(number);
        self.known.remove(&number);
    }

    fn command(&self, stream: u64, command: Command) {
        if let Some(stream) = self.streams.get(&stream) {
            // A stream that has just ended reports that itself.
            let _ = stream.commands.send(command);
        }
    }

    /// Closes a stream that failed, and holds its member responsible unless the failure is the
    /// cluster's.
    fn broken(&mut self, stream: u64, failure: Failure) {
        let Some(state) = self.streams.get(&stream) else { return };
        debug!(error = %failure.error.report(), "watch stream broken");
        if state.opened.elapsed() >= STEADY {
            self.delays.reset();
        }
        let why = if failure.reason == Reason::TooLarge { Break::TooLarge } else { Break::Lost };
        let member = Arc::clone(state.connection.member());
        let failure = self.cluster.blame(&member, failure);
        let acts = self.plan.broken(stream, why);
        self.act(acts, Some(&failure));
        if why == Break::Lost && self.plan.main().is_none() {
            self.life = None;
            self.audit = None;
            self.not_before = Instant::now() + self.delays.next_delay();
        }
    }

    /// Handles the answer to a sign of life, or its absence.
    fn live(&mut self, life: SignOfLife) {
        let SignOfLife { number, known, member, result } = life;
        self.next_life = Instant::now() + self.interval();
        let failure = match result {
            Ok(revision) if revision < known => {
                let error = Error::new(ErrorKind::Unavailable, "the registry's history went back");
                Failure::new(Reason::Strange, error.with_operation("watch"))
            }
            Ok(_) => {
                self.refused = 0;
                return;
            }
            // etcd keeps sending changes after it withdrew a permission. The owner of the watch
            // must know.
            Err(failure) if failure.error.kind() == ErrorKind::PermissionDenied => {
                let acts = self.plan.leave(number);
                self.act(acts, None);
                return self.end(number, Some(&failure));
            }
            // Another token may be accepted. Asked at once, before a token that lives shorter than
            // the interval expires as well.
            Err(failure) if failure.reason == Reason::Token && self.refused == 0 => {
                self.refused += 1;
                self.next_life = Instant::now();
                return;
            }
            // The member answers, if only that it is overloaded. The audits detect lasting
            // problems.
            Err(failure) if failure.reason == Reason::Overloaded || !failure.is_member() => {
                debug!(error = %failure.error.report(), "member not checked");
                return;
            }
            Err(failure) => failure,
        };
        self.refused = 0;
        // The watches may have moved to another member in the meantime.
        let same = self.streams.iter().filter(|(_, stream)| Arc::ptr_eq(stream.connection.member(), &member));
        let streams: Vec<u64> = same.map(|(stream, _)| *stream).collect();
        for stream in streams {
            self.broken(stream, failure.clone());
        }
    }

    fn audited(&mut self, audit: Audit) {
        let Audit { numbers, asked, known, result } = audit;
        match result {
            Ok(readings) => {
                for ((number, known), reading) in numbers.into_iter().zip(known).zip(readings) {
                    if let Some(carried) = self.watches.get(&number) {
                        carried.tell(Notice::Audited(Audited { asked, known, reading }));
                    }
                }
            }
            Err(failure) if failure.error.kind() == ErrorKind::PermissionDenied => match numbers[..] {
                [number] => {
                    let acts = self.plan.leave(number);
                    self.act(acts, None);
                    self.end(number, Some(&failure));
                }
                _ => self.audits.separate(numbers),
            },
            // One of them may be too large, or all together.
            Err(failure) if matches!(failure.reason, Reason::Refused | Reason::TooLarge) && numbers.len() > 1 => {
                self.audits.separate(numbers);
            }
            // Signs of life decide about the member.
            Err(failure) => debug!(error = %failure.error.report(), "watches not audited"),
        }
    }

    /// Moves watches that have caught up to the main stream.
    fn gather(&mut self) {
        let level: HashMap<u64, i64> =
            self.watches.iter().map(|(number, carried)| (*number, carried.shared.known())).collect();
        let before = std::mem::replace(&mut self.known, level);
        let acts = self.plan.gather(Instant::now(), |number| before.get(&number) == self.known.get(&number));
        self.act(acts, None);
    }

    fn interval(&self) -> Duration {
        self.pace.interval.mul_f64(0.8 + 0.2 * fastrand::f64())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Waits for the pending future, forever if there is none. Cancel safe.
async fn outcome<T>(pending: &mut Option<Pending<T>>) -> T {
    let outcome = match pending {
        Some(pending) => pending.await,
        None => std::future::pending().await,
    };
    *pending = None;
    outcome
}

/// Waits until `when`, forever if it is `None`.
async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// The time between two attempts to open a stream while a caller waits.
const SPACING: Duration = Duration::from_millis(50);
/// A stream that lasted this long does not count as one of many that end at once.
const STEADY: Duration = Duration::from_secs(10);
