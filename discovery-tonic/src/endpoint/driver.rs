//! The state machine of one lane: connect, serve, back off, drain.

use std::{future, mem, sync::Arc, time::Duration};

use futures::{
    FutureExt,
    future::{BoxFuture, OptionFuture, join_all},
    stream::{BoxStream, StreamExt},
};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{Instrument, debug};

use super::{
    Endpoint,
    check::Check,
    config::DriverConfig,
    connect::{OwnedTask, PendingHook, connect},
    lane::{Lane, Phase},
    retired::Connections,
};
use crate::{
    connection::{
        Connection, health_check,
        link::{Health, Link},
    },
    error::{BoxError, SharedError},
};

/// The driver of one lane.
struct Driver {
    endpoint: Arc<Endpoint>,
    number: usize,
    config: Arc<DriverConfig>,
    /// The connections that may have requests in flight; the current one is last.
    connections: Connections,
    hook: PendingHook,
    check: CheckConnection,
}

/// The second connection to a silent peer; used by the first lane.
#[derive(Default)]
enum CheckConnection {
    #[default]
    None,
    Connecting(OwnedTask<Option<Connection>>),
    Open(Connection),
}

/// Why a lane has no connection any longer.
enum ServeEnd {
    /// `good`: the connection answered something, or lived for [`GOOD`].
    Closed { good: bool },
    /// Draining began at this moment.
    Drained(Instant),
}

/// The endpoint drains.
struct Draining;

/// How one connection ended.
enum ConnectionEnd {
    Ended(ServeEnd),
    /// This one replaces it.
    Renewed(Connection),
}

/// The connection that replaces another one once it is open.
struct Renewal {
    reason: &'static str,
    successor: BoxFuture<'static, Connection>,
}

/// Connects, serves and reconnects on all lanes, until the endpoint is drained.
///
/// The other lanes connect only while the first one is connected, so that an unreachable peer costs
/// one attempt at a time.
pub(crate) async fn drive(endpoint: Arc<Endpoint>, config: Arc<DriverConfig>) -> Arc<Endpoint> {
    let lane = |number| {
        let endpoint = Arc::clone(&endpoint);
        let config = Arc::clone(&config);
        let (connections, hook, check) = Default::default();
        Driver { endpoint, number, config, connections, hook, check }.run()
    };
    match endpoint.lanes() {
        1 => lane(0).await,
        more => drop(join_all((0..more).map(lane)).await),
    }
    endpoint
}

impl Driver {
    /// Draining interrupts neither a connection attempt nor a backoff. A registry entry that flaps
    /// then resumes the running attempt instead of starting another.
    async fn run(mut self) {
        let config = Arc::clone(&self.config);
        let mut delays = config.backoff.delays();
        let mut failed: Option<SharedError> = None;
        loop {
            if self.number > 0 {
                self.enter(Phase::Idle);
                self.wait_for_first_lane().await;
            }
            let permit = tokio::select! {
                biased;
                () = self.drained() => return self.finish(config.drain).await,
                permit = config.connects.acquire(failed.is_none()) => permit,
            };
            self.enter(Phase::Connecting { failed: failed.clone() });
            let begun = Instant::now();
            // Boxed, like `serve` below, so that the driver of a waiting endpoint is small.
            let connected = connect(&self.endpoint, &config, &mut self.hook, None).boxed().await;
            drop(permit);
            let error: BoxError = match connected {
                Ok(connection) => match self.serve(connection).boxed().await {
                    ServeEnd::Drained(since) => {
                        return self.finish(config.drain.saturating_sub(since.elapsed())).await;
                    }
                    ServeEnd::Closed { good: true } => {
                        delays.reset();
                        failed = None;
                        continue;
                    }
                    ServeEnd::Closed { good: false } => {
                        "the peer closed the connection before it answered anything".into()
                    }
                },
                Err(error) => error,
            };
            let error = SharedError::from(error);
            failed = Some(Arc::clone(&error));
            let until = Instant::now() + delays.next_delay();
            self.lane().stay();
            self.enter(Phase::BackingOff { error });
            // A re-registered instance is probably reachable, so retry early, but no sooner than
            // the minimum backoff after the last attempt began.
            let earliest = until.min(begun + config.backoff.min());
            if self.back_off(until, earliest).await.is_err() {
                return self.finish(config.drain).await;
            }
        }
    }

    /// Waits until the next connection attempt, or only until `earliest` if the endpoint is taken
    /// back.
    ///
    /// # Errors
    ///
    /// [`Draining`] if the endpoint drains while former connections have calls to end, for which
    /// the backoff may be too long.
    async fn back_off(&mut self, until: Instant, earliest: Instant) -> Result<(), Draining> {
        loop {
            let overdue = self.connections.overdue();
            tokio::select! {
                () = sleep_until(until) => return Ok(()),
                returned = self.wait_until_returned() => {
                    returned?;
                    sleep_until(earliest).await;
                    return Ok(());
                }
                Some(()) = OptionFuture::from(overdue.map(sleep_until)) => self.connections.cut_overdue(),
            }
        }
    }

    /// Waits until the endpoint is taken back, or drains while calls are left. One future for both,
    /// since a wake-up reaches only one waiter.
    async fn wait_until_returned(&self) -> Result<(), Draining> {
        loop {
            if self.endpoint.is_draining() && self.connections.has_calls() {
                return Err(Draining);
            }
            if self.lane().has_returned() {
                return Ok(());
            }
            self.lane().recheck_wanted().await;
        }
    }

    /// Serves a connection, and each successor that is open before the former one ends.
    async fn serve(&mut self, mut connection: Connection) -> ServeEnd {
        let mut health = if self.config.health.is_some() { Health::Unknown } else { Health::Serving };
        loop {
            self.connections.add(&connection);
            connection = match self.serve_one(&connection, &mut health).await {
                ConnectionEnd::Renewed(successor) => successor,
                ConnectionEnd::Ended(served) => return served,
            };
        }
    }

    /// Serves a connection until it closes, until the endpoint has drained, or until a successor is
    /// open.
    async fn serve_one(&mut self, connection: &Connection, health: &mut Health) -> ConnectionEnd {
        let since = Instant::now();
        let config = Arc::clone(&self.config);
        let endpoint = Arc::clone(&self.endpoint);
        let lane = endpoint.lane(self.number);
        // The last known health holds until the peer reports another.
        let link = Link { health: *health, ..connection.link() };
        let mut checks = config.health.clone().map(|service| health_check::follow(&link, service, config.backoff));
        let mut renewal = self.renewal(connection, since);
        self.enter(Phase::Ready(link));
        let mut draining_since = None;
        let mut checked_health = None;
        loop {
            // The pool may have changed its order with any wake-up, so look at the check first.
            if let Some(successor) = self.follow_check(draining_since.is_some()) {
                self.connections.retire(None);
                return ConnectionEnd::Renewed(successor);
            }
            match &self.check {
                CheckConnection::Open(checked) if checked_health.is_none() => {
                    let follow = |service| health_check::follow(&checked.link(), service, config.backoff);
                    checked_health = config.health.clone().map(follow);
                }
                CheckConnection::Open(_) => {}
                CheckConnection::None | CheckConnection::Connecting(_) => checked_health = None,
            }
            let overdue = self.connections.overdue();
            let tick = draining_since.map(|since: Instant| tick(since, config.drain));
            tokio::select! {
                () = lane.recheck_wanted() => connection.recheck(),
                Some(()) = OptionFuture::from(tick.map(sleep)) => connection.recheck(),
                Some(said) = next(&mut checks) => {
                    debug!(instance = %self.endpoint.id, health = ?said, "endpoint reported its health");
                    *health = said;
                    self.endpoint.tell(self.number, said);
                }
                Some(successor) = OptionFuture::from(renewal.as_mut().map(|renewal| &mut renewal.successor)),
                    if draining_since.is_none() =>
                {
                    let reason = renewal.map(|renewal| renewal.reason).unwrap_or_default();
                    debug!(instance = %self.endpoint.id, reason, "connection replaced");
                    self.connections.retire(Some(Instant::now() + self.config.drain));
                    return ConnectionEnd::Renewed(successor);
                }
                Some(said) = next(&mut checked_health) => endpoint.tell_check(said),
                made = self.check.made() => {
                    let link = made.as_ref().map(|made| Link { health: *health, ..made.link() });
                    debug!(instance = %self.endpoint.id, is_alive = link.is_some(), "silent endpoint checked");
                    self.check = CheckConnection::None;
                    if let (true, Some(made)) = (self.endpoint.take_check(link), made) {
                        self.check = CheckConnection::Open(made);
                    }
                }
                Some(()) = OptionFuture::from(overdue.map(sleep_until)) => self.connections.cut_overdue(),
            }
            let closed = connection.is_closed();
            if closed {
                connection.load().close();
            }
            if !self.endpoint.is_draining() {
                if closed {
                    debug!(instance = %self.endpoint.id, "connection ended");
                    if let Some(successor) = self.checked_successor() {
                        return ConnectionEnd::Renewed(successor);
                    }
                    self.enter(Phase::Connecting { failed: None });
                    let good = connection.load().has_answered() || since.elapsed() >= GOOD;
                    return ConnectionEnd::Ended(ServeEnd::Closed { good });
                }
                let is_worn = connection.is_worn() && renewal.as_ref().is_none_or(|renewal| renewal.reason != WORN);
                if draining_since.take().is_some() || is_worn {
                    renewal = self.renewal(connection, since);
                }
                continue;
            }
            // Drop a half-open successor: it would keep holding its connect permit.
            renewal = None;
            let since = *draining_since.get_or_insert_with(Instant::now);
            // Keep it for a moment even if idle, because the endpoint may be taken back to be held.
            let idle = since.elapsed() >= GRACE && connection.load().close_if_idle();
            if closed || idle || since.elapsed() >= config.drain {
                connection.load().close();
                // The connection of a check ends with the others.
                drop(self.checked_successor());
                return ConnectionEnd::Ended(ServeEnd::Drained(since));
            }
        }
    }

    /// Begins, continues or ends the check of a silent peer, as the pool wants; returns the
    /// connection that is to replace the current one.
    fn follow_check(&mut self, is_draining: bool) -> Option<Connection> {
        if self.number > 0 {
            return None;
        }
        let wanted = if is_draining { Check::None } else { self.endpoint.check() };
        match (mem::take(&mut self.check), wanted) {
            (CheckConnection::Open(checked), Check::Replacing(_)) if !checked.is_closed() => {
                debug!(instance = %self.endpoint.id, "silent connection replaced");
                self.endpoint.forget_check();
                return Some(checked);
            }
            (CheckConnection::Open(checked), Check::Open(_)) if !checked.is_closed() => {
                checked.recheck();
                self.check = CheckConnection::Open(checked);
            }
            (CheckConnection::Open(checked), _) => {
                self.connections.add_retired(&checked);
                self.endpoint.forget_check();
            }
            (connecting @ CheckConnection::Connecting(_), Check::Pending) => self.check = connecting,
            (CheckConnection::None, Check::Pending) => {
                let endpoint = Arc::clone(&self.endpoint);
                let config = Arc::clone(&self.config);
                let connecting = async move {
                    // Counts as a repeated attempt, so that the first attempts of others go first.
                    let _permit = config.connects.acquire(false).await;
                    connect(&endpoint, &config, &mut PendingHook::default(), Some(1)).await.ok()
                };
                self.check = CheckConnection::Connecting(OwnedTask(tokio::spawn(connecting.in_current_span())));
            }
            // The connection of this check is gone.
            (_, Check::Open(_) | Check::Replacing(_) | Check::Ending) => self.endpoint.forget_check(),
            (_, Check::None | Check::Failed) => {}
        }
        None
    }

    /// The connection of a check, if it may replace one that has ended; otherwise it is closed too.
    fn checked_successor(&mut self) -> Option<Connection> {
        let CheckConnection::Open(checked) = mem::take(&mut self.check) else { return None };
        self.endpoint.forget_check();
        if checked.is_closed() || self.endpoint.is_draining() {
            self.connections.add_retired(&checked);
            return None;
        }
        Some(checked)
    }

    /// The replacement of a connection that was opened at this moment, if it is due to be replaced.
    fn renewal(&self, connection: &Connection, since: Instant) -> Option<Renewal> {
        let (reason, wait) = match connection.age() {
            _ if connection.is_worn() => (WORN, Duration::ZERO),
            Some(age) => ("age", age.saturating_sub(since.elapsed())),
            None => return None,
        };
        Some(Renewal { reason, successor: self.successor(wait) })
    }

    /// Opens the successor once the connection has reached this age, and retries until it succeeds.
    fn successor(&self, age: Duration) -> BoxFuture<'static, Connection> {
        let endpoint = Arc::clone(&self.endpoint);
        let config = Arc::clone(&self.config);
        Box::pin(async move {
            sleep(age).await;
            let mut delays = config.backoff.delays();
            let mut first = true;
            let mut hook = PendingHook::default();
            loop {
                let permit = config.connects.acquire(first).await;
                if let Ok(connection) = connect(&endpoint, &config, &mut hook, None).await {
                    return connection;
                }
                drop(permit);
                first = false;
                sleep(delays.next_delay()).await;
            }
        })
    }

    /// Waits until no requests are in flight on closed connections. After `limit` it aborts the
    /// rest.
    async fn finish(&self, limit: Duration) {
        self.enter(Phase::Ended);
        let since = Instant::now();
        while self.connections.has_calls() {
            if since.elapsed() >= limit {
                return self.connections.cut();
            }
            sleep(DRAIN_TICK.min(limit)).await;
        }
    }

    /// Waits until the first lane is connected.
    ///
    /// While the endpoint drains, waits instead until the first lane has ended, because the
    /// endpoint may be taken back; or returns at once if this lane has calls to end.
    async fn wait_for_first_lane(&mut self) {
        while !self.may_continue() {
            let overdue = self.connections.overdue();
            tokio::select! {
                () = self.lane().recheck_wanted() => {}
                Some(()) = OptionFuture::from(overdue.map(sleep_until)) => self.connections.cut_overdue(),
            }
        }
    }

    fn may_continue(&self) -> bool {
        let first = self.endpoint.lane(0);
        if self.endpoint.is_draining() { first.has_ended() || self.connections.has_calls() } else { first.is_ready() }
    }

    /// Waits until the endpoint drains.
    async fn drained(&self) {
        while !self.endpoint.is_draining() {
            self.lane().recheck_wanted().await;
        }
    }

    fn lane(&self) -> &Lane {
        self.endpoint.lane(self.number)
    }

    fn enter(&self, phase: Phase) {
        self.endpoint.enter(self.number, phase);
    }
}

impl CheckConnection {
    /// Waits for the second connection; `None` if it could not be opened. Pending forever if none
    /// is being opened. Dropped before completion, it loses nothing.
    async fn made(&mut self) -> Option<Connection> {
        match self {
            Self::Connecting(connecting) => (&mut connecting.0).await.ok().flatten(),
            Self::None | Self::Open(_) => future::pending().await,
        }
    }
}

/// The next reported health, if health is checked.
async fn next(checks: &mut Option<BoxStream<'static, Health>>) -> Option<Health> {
    checks.as_mut()?.next().await
}

/// How long to wait before looking again whether an endpoint has drained, which began at `since`.
fn tick(since: Instant, limit: Duration) -> Duration {
    let elapsed = since.elapsed();
    GRACE.saturating_sub(elapsed).max(DRAIN_TICK).min(limit.saturating_sub(elapsed))
}

/// The reason of a replacement because too many calls were given up.
const WORN: &str = "abandoned calls";
/// A connection that lived this long was good, even if it was never used.
const GOOD: Duration = Duration::from_secs(1);
/// How long the connection of a removed endpoint is kept, at least, since it may be taken back to
/// be held.
const GRACE: Duration = Duration::from_secs(1);
const DRAIN_TICK: Duration = Duration::from_millis(50);
