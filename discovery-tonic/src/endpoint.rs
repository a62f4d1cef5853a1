use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use discovery_core::{Address, Backoff, Instance};
use futures::{
    FutureExt,
    stream::{BoxStream, StreamExt},
};
use http::uri::{Authority, Scheme};
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    balance::Load,
    connection::{Connection, Cut, Sender},
    connector::{BoxError, Connector, SharedError},
    health::{self, Health},
    hold,
    metrics::Event,
    settings::EndpointSettings,
    signals::Signals,
    window::Totals,
};

/// An instance as the channel sees it: one connection after another, and what calls report of it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: Address,
    instance: Mutex<Arc<Instance>>,
    pub(crate) signals: Arc<Signals>,
    /// Requests in a row without an answer.
    failures: AtomicU32,
    /// Answers so far.
    answers: AtomicU32,
    /// Requests so far that failed, and those of them that never had an answer.
    failed: AtomicU32,
    lost: AtomicU32,
    phase: Mutex<Phase>,
    draining: AtomicBool,
    /// It was drained and is not any more.
    returned: AtomicBool,
    /// It was silent, so that it may be frozen, until it shakes hands again.
    suspect: AtomicBool,
    /// Makes the driver look again: at the connection, and at whether it shall drain.
    look: Notify,
}

/// Where an endpoint stands.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    BackingOff {
        error: SharedError,
    },
    /// `first`: nothing has failed since the endpoint was new, or since its last good connection.
    Connecting {
        first: bool,
    },
    /// It will not connect again.
    Ended,
    Idle,
    Ready(Link),
}

/// A connection that takes requests.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    /// Where the requests say that they go.
    pub(crate) origin: (Scheme, Authority),
    pub(crate) sender: Sender,
    pub(crate) load: Arc<Load>,
    pub(crate) health: Health,
}

/// What drives an endpoint.
#[derive(Clone)]
pub(crate) struct Plan {
    /// Lets only so many endpoints of a channel connect at a time.
    pub(crate) connects: Arc<Semaphore>,
    pub(crate) connector: Connector,
    pub(crate) settings: Settings,
    pub(crate) backoff: Backoff,
    pub(crate) drain: Duration,
    /// The gRPC service whose health is followed, if any is.
    pub(crate) health: Option<String>,
}

/// The user's hook: how an instance is connected.
pub(crate) type Settings = Arc<dyn Fn(&Instance) -> EndpointSettings + Send + Sync>;

/// Why a connection was let go.
enum End {
    Closed,
    /// The order came at this moment.
    Drained(Instant),
}

impl Endpoint {
    pub(crate) fn new(instance: Arc<Instance>, signals: Arc<Signals>) -> Arc<Self> {
        Arc::new(Self {
            address: instance.address().clone(),
            instance: Mutex::new(instance),
            signals,
            failures: AtomicU32::new(0),
            answers: AtomicU32::new(0),
            failed: AtomicU32::new(0),
            lost: AtomicU32::new(0),
            phase: Mutex::new(Phase::Idle),
            draining: AtomicBool::new(false),
            returned: AtomicBool::new(false),
            suspect: AtomicBool::new(false),
            look: Notify::new(),
        })
    }

    /// The instance, as it is registered now.
    pub(crate) fn instance(&self) -> Arc<Instance> {
        Arc::clone(&self.instance.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes note of another weight or other metadata.
    pub(crate) fn describe(&self, instance: &Arc<Instance>) {
        *self.instance.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(instance);
    }

    /// Counts an answer, whatever it says: the peer is there.
    pub(crate) fn answered(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends a row of failures.
    pub(crate) fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a request that failed without an answer.
    pub(crate) fn lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        self.failed();
    }

    /// What has become of all requests so far.
    pub(crate) fn totals(&self) -> Totals {
        let ended = self.answers().wrapping_add(self.lost.load(Ordering::Relaxed));
        Totals { ended, failed: self.failed.load(Ordering::Relaxed) }
    }

    /// Counts a failure; the pool decides what follows from it.
    pub(crate) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.signals.dirty.notify_one();
    }

    pub(crate) fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    pub(crate) fn answers(&self) -> u32 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Starts counting failures anew, and takes one request at a time until one is answered.
    pub(crate) fn put_on_trial(&self) {
        self.failures.store(0, Ordering::Relaxed);
        if let Phase::Ready(link) = &*self.lock() {
            link.load.set_trial(1);
        }
    }

    /// Makes the driver connect anew, because the peer is silent: one that is frozen does not shake hands, so that no call has to find
    /// out. What is in flight goes on where it is.
    pub(crate) fn replace(&self) {
        self.suspect.store(true, Ordering::Release);
        if let Some(link) = self.link() {
            link.load.close();
        }
        self.look();
    }

    pub(crate) fn phase(&self) -> Phase {
        self.lock().clone()
    }

    /// The connection that takes requests.
    pub(crate) fn link(&self) -> Option<Link> {
        match &*self.lock() {
            Phase::Ready(link) => Some(link.clone()),
            Phase::BackingOff { .. } | Phase::Connecting { .. } | Phase::Ended | Phase::Idle => None,
        }
    }

    /// The connection that shall get requests now.
    pub(crate) fn serving(&self) -> Option<Link> {
        self.link().filter(|link| link.health == Health::Serving && !link.load.is_closed())
    }

    /// Takes note of what the peer says of its health, which is an answer too.
    fn tell(&self, health: Health) {
        if let Phase::Ready(link) = &mut *self.lock() {
            link.health = health;
        }
        if health == Health::Serving {
            self.succeeded();
            self.answered();
        }
        self.signals.dirty.notify_one();
    }

    /// Lets the driver end the connection once its requests have ended, or takes that back.
    pub(crate) fn drain(&self, draining: bool) {
        self.draining.store(draining, Ordering::Release);
        self.returned.store(!draining, Ordering::Release);
        self.look.notify_one();
    }

    /// Makes the driver look at its connection: hyper does not tell of a GOAWAY while streams live.
    pub(crate) fn look(&self) {
        self.look.notify_one();
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    fn enter(&self, phase: Phase) {
        *self.lock() = phase;
        self.signals.dirty.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connects, serves and connects again, until the endpoint is drained.
///
/// An attempt, and the wait after one that failed, go on to their end while the endpoint drains: an entry that flaps finds them as they
/// are, instead of costing an attempt each time.
pub(crate) async fn drive(endpoint: Arc<Endpoint>, plan: Plan) {
    let mut delays = plan.backoff.delays();
    let mut knocks = plan.backoff.at_most(KNOCK).delays();
    let mut suspect_since = None;
    let mut first = true;
    // The connections whose requests may still be in flight, the present one among them.
    let mut all: Vec<(Cut, Arc<Load>)> = Vec::new();
    loop {
        endpoint.enter(Phase::Connecting { first });
        let permit = tokio::select! {
            biased;
            () = drained(&endpoint) => return settle(&endpoint, &all, plan.drain).await,
            permit = plan.connects.acquire() => permit,
        };
        let begun = Instant::now();
        let connected = connect(&endpoint, &plan).await;
        drop(permit);
        let event = if connected.is_ok() { Event::Connect } else { Event::ConnectFailure };
        endpoint.signals.metrics.count(event);
        let error: BoxError = match connected {
            Ok(connection) => {
                endpoint.suspect.store(false, Ordering::Release);
                suspect_since = None;
                knocks.reset();
                let (since, load) = (Instant::now(), Arc::clone(connection.load()));
                all.retain(|(_, load)| load.in_flight() > 0);
                all.push((connection.cut(), Arc::clone(&load)));
                match serve(&endpoint, connection, &plan).await {
                    End::Drained(since) => {
                        return settle(&endpoint, &all, plan.drain.saturating_sub(since.elapsed())).await;
                    }
                    End::Closed if load.is_proven() || since.elapsed() >= GOOD => {
                        delays.reset();
                        first = true;
                        continue;
                    }
                    End::Closed => "the peer closed the connection before it answered anything".into(),
                }
            }
            Err(error) => error,
        };
        first = false;
        let is_suspect =
            endpoint.suspect.load(Ordering::Acquire) && suspect_since.get_or_insert(begun).elapsed() < KNOCKING;
        let until = Instant::now() + if is_suspect { knocks.next_delay() } else { delays.next_delay() };
        endpoint.returned.store(false, Ordering::Release);
        endpoint.enter(Phase::BackingOff { error: error.into() });
        // Who registers again is probably there again; but not more often than a first wait allows.
        let earliest = until.min(begun + plan.backoff.min());
        tokio::select! {
            () = sleep_until(until) => {}
            () = returned(&endpoint) => sleep_until(earliest).await,
        }
    }
}

/// One attempt to connect. The connector and the hook are the user's; a panic of theirs is a failed attempt.
async fn connect(endpoint: &Arc<Endpoint>, plan: &Plan) -> Result<Connection, BoxError> {
    let attempt = async {
        let settings = (plan.settings)(&endpoint.instance());
        let looker = Arc::clone(endpoint);
        let ended = move || looker.look();
        // The health check has a stream of its own.
        let reserved = u32::from(plan.health.is_some());
        Connection::open(&plan.connector, &endpoint.address, &settings, &endpoint.signals, reserved, ended).await
    };
    let attempt = AssertUnwindSafe(attempt).catch_unwind().await;
    attempt.unwrap_or_else(|_| Err("the connector, or the hook of its settings, panicked".into()))
}

/// Offers a connection until it closes, or until the endpoint is drained of what is on it.
async fn serve(endpoint: &Endpoint, connection: Connection, plan: &Plan) -> End {
    let mut link = connection.link();
    let mut checks = plan.health.clone().map(|service| {
        link.health = Health::Unknown;
        health::follow(&link, service, plan.backoff)
    });
    endpoint.enter(Phase::Ready(link));
    let mut draining_since = None;
    loop {
        tokio::select! {
            () = endpoint.look.notified() => connection.look(),
            () = sleep(DRAIN_TICK), if draining_since.is_some() => {}
            Some(health) = next(&mut checks) => endpoint.tell(health),
        }
        let closed = connection.is_closed();
        if closed {
            connection.load().close();
        }
        if !endpoint.is_draining() {
            if closed {
                endpoint.enter(Phase::Connecting { first: true });
                return End::Closed;
            }
            draining_since = None;
            continue;
        }
        let since = *draining_since.get_or_insert_with(Instant::now);
        // Kept for a moment even if idle, because the endpoint may be held after all.
        let idle = since.elapsed() >= hold::GRACE && connection.load().close_if_idle();
        if closed || idle || since.elapsed() >= plan.drain {
            connection.load().close();
            return End::Drained(since);
        }
    }
}

/// The next health, where there is a check.
async fn next(checks: &mut Option<BoxStream<'static, Health>>) -> Option<Health> {
    checks.as_mut()?.next().await
}

/// Waits until nothing is in flight on closed connections, at most for `limit`, then cuts what is left.
async fn settle(endpoint: &Endpoint, all: &[(Cut, Arc<Load>)], limit: Duration) {
    endpoint.enter(Phase::Ended);
    let since = Instant::now();
    while all.iter().any(|(_, load)| load.in_flight() > 0) {
        if since.elapsed() >= limit {
            return all.iter().for_each(|(cut, _)| cut.cut());
        }
        sleep(DRAIN_TICK).await;
    }
}

/// Waits until the endpoint is taken back after it was drained.
async fn returned(endpoint: &Endpoint) {
    while !endpoint.returned.swap(false, Ordering::AcqRel) {
        endpoint.look.notified().await;
    }
}

/// Waits for the order to drain, for endpoints that have nothing to drain.
async fn drained(endpoint: &Endpoint) {
    while !endpoint.is_draining() {
        endpoint.look.notified().await;
    }
}

/// A connection that lived for so long was good, even if nobody used it.
const GOOD: Duration = Duration::from_secs(1);
/// The longest wait between attempts to connect a peer that was there a moment ago, and may be there again in another.
const KNOCK: Duration = Duration::from_secs(1);
/// For so long a peer that became silent is expected back any moment.
const KNOCKING: Duration = Duration::from_secs(30);
const DRAIN_TICK: Duration = Duration::from_millis(20);
