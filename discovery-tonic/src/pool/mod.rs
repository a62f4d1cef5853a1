//! The control task of a channel: it takes updates from the resolver and publishes what calls read.
//!
//! - [`Pool`] is the task. It follows the resolver ([`following`]), applies each update to its
//!   members, one [`member`] per instance, and starts their drivers. [`mass_removal`] decides which
//!   instances are held when most of the set vanishes; [`departed`] remembers those that left while
//!   ejected.
//! - [`sweep`] examines the endpoints that changed, and all of them every 100 ms while calls are in
//!   flight. [`outlier`] decides which are checked, ejected, probed or restored, according to the
//!   user's [`outlier_detection`] and compared with the whole [`fleet`].
//! - [`publish`] publishes the result for calls, with the weights of [`slow_start`].

pub(crate) mod departed;
pub(crate) mod fleet;
pub(crate) mod following;
pub(crate) mod mass_removal;
pub(crate) mod member;
pub(crate) mod outlier;
pub(crate) mod outlier_detection;
mod publish;
pub(crate) mod slow_start;
mod sweep;

use std::{
    any::Any,
    collections::BTreeMap,
    convert::Infallible,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::Duration,
};

use discovery_core::{Change, Error, Instance, InstanceId, Snapshot, Update};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{Instrument, Span, error, warn};

use crate::{
    endpoint::{Endpoint, config::DriverConfig, driver::drive, tally::Tally},
    error::panic_text,
    metrics::{REPORT, endpoint::EndpointMetrics},
    published::{Published, availability::Availability, overview::Overview, status::RegistryState},
};
use departed::{Departed, REMEMBER};
use fleet::Fleet;
use following::Following;
use mass_removal::{Mass, MassRemoval};
use member::Member;
use outlier_detection::OutlierDetection;

/// The control task of a channel. It follows the updates, runs the drivers of the endpoints and
/// publishes what calls read, with or without traffic.
pub(crate) struct Pool {
    published: Arc<Published>,
    config: PoolConfig,
    members: BTreeMap<InstanceId, Member>,
    /// Removed endpoints that still have requests in flight or a connection attempt under way. If
    /// an instance returns, the latest one at the same address is taken back.
    leaving: BTreeMap<InstanceId, Vec<Member>>,
    departed: Departed,
    fleet: Fleet,
    drivers: FuturesUnordered<BoxFuture<'static, Driven>>,
    mass_removal: MassRemoval,
    /// Once this many other endpoints get calls, the held ones are released early; `None` if none
    /// is held.
    refilled_at: Option<usize>,
    /// An update is being applied. If this is still set after a panic, the update was applied in
    /// part.
    is_applying: bool,
    /// How many instances the registry has, not counting held ones; `None` before the first set.
    size: Option<usize>,
    lost: Option<(Instant, Error)>,
    next_sweep: Instant,
    /// When the metrics learn next how long contact has been lost, if it is.
    next_report: Instant,
    /// Nothing is published before this.
    next_publish: Instant,
    failing_since: Option<Instant>,
    empty_since: Option<Instant>,
    /// When the first update arrived that is not published yet.
    updated: Option<Instant>,
}

/// How an endpoint's driver finished.
enum Driven {
    Ended(Arc<Endpoint>),
    Panicked(Arc<Endpoint>, Box<dyn Any + Send>),
}

/// The configuration of a pool.
pub(crate) struct PoolConfig {
    pub(crate) driver: Arc<DriverConfig>,
    pub(crate) hold: Option<Duration>,
    pub(crate) outlier_detection: OutlierDetection,
    pub(crate) slow_start: Duration,
    /// Whether each endpoint has metrics of its own.
    pub(crate) endpoint_metrics: bool,
}

impl Pool {
    pub(crate) fn new(published: Arc<Published>, config: PoolConfig) -> Self {
        Self {
            published,
            config,
            members: BTreeMap::new(),
            leaving: BTreeMap::new(),
            departed: Departed::default(),
            fleet: Fleet::default(),
            drivers: FuturesUnordered::new(),
            mass_removal: MassRemoval::default(),
            refilled_at: None,
            is_applying: false,
            size: None,
            lost: None,
            next_sweep: Instant::now(),
            next_report: Instant::now(),
            next_publish: Instant::now(),
            failing_since: None,
            empty_since: None,
            updated: None,
        }
    }

    /// Runs until it is dropped with its channel. It survives panics.
    pub(crate) async fn run(mut self, mut following: Following, span: Span) {
        loop {
            let follow = self.follow(&mut following).instrument(span.clone());
            let Err(panic) = AssertUnwindSafe(follow).catch_unwind().await;
            if mem::take(&mut self.is_applying) {
                // The update may be applied in part. Watching again brings a whole set to compare
                // with.
                following.restart();
            }
            // Do not spin if it panics again.
            let later = Instant::now() + AFTER_PANIC;
            self.next_publish = later;
            self.next_sweep = later;
            self.published.wakeups.keep_sweeping();
            let log = || span.in_scope(|| error!(panic = panic_text(&*panic), "control task panicked, restarting"));
            // The subscriber may panic as well.
            let _ = catch_unwind(AssertUnwindSafe(log));
        }
    }

    async fn follow(&mut self, following: &mut Following) -> Infallible {
        let mut stale = true;
        // Counts updates and wake-ups since the last publication, so that an endless series of them
        // does not starve the rest.
        let mut consecutive = 0;
        loop {
            let sweeping = self.published.wakeups.is_sweeping();
            // Biased: updates come first, and publishing after everything that happened before it.
            tokio::select! {
                biased;
                update = following.next(), if consecutive < MOST_IN_A_ROW => {
                    self.is_applying = true;
                    self.apply(update);
                    self.let_go_where_refilled();
                    self.is_applying = false;
                    stale = true;
                    consecutive += 1;
                }
                Some(driven) = self.drivers.next(), if !self.drivers.is_empty() => match driven {
                    Driven::Ended(endpoint) => self.forget(&endpoint),
                    Driven::Panicked(endpoint, panic) => {
                        self.reconnect(&endpoint);
                        stale = true;
                        let panic = panic_text(&*panic);
                        error!(instance = %endpoint.id, panic, "endpoint driver panicked, reconnecting");
                    }
                },
                () = self.published.wakeups.wake.notified(), if consecutive < MOST_IN_A_ROW => {
                    stale = self.look() || stale;
                    consecutive += 1;
                }
                () = sleep_until(self.next_sweep), if sweeping => stale |= self.sweep(),
                () = sleep_until(self.next_report), if REPORT.is_some() && self.lost.is_some() => self.report_outage(),
                // Last of the work, so that everything that has happened is published together.
                () = until(self.next_publish), if stale => {
                    self.publish();
                    stale = false;
                    consecutive = 0;
                }
                () = std::future::ready(()), if consecutive >= MOST_IN_A_ROW => consecutive = 0,
            }
        }
    }

    /// Reports how long contact with the registry has been lost.
    fn report_outage(&mut self) {
        if let (Some((since, _)), Some(pause)) = (&self.lost, REPORT) {
            self.published.wakeups.metrics.lost_for(since.elapsed());
            self.next_report = Instant::now() + pause;
        }
    }

    fn apply(&mut self, update: Update) {
        self.updated.get_or_insert_with(Instant::now);
        let change = match update {
            Update::Lost(error) => {
                self.mass_removal.lose(
                    Instant::now(),
                    self.config.hold.unwrap_or_default(),
                    self.size.unwrap_or_default(),
                );
                let since = self.lost.take().map_or_else(Instant::now, |(since, _)| since);
                self.lost = Some((since, error));
                return;
            }
            Update::Change(change) => change,
            Update::Reset(set) => {
                let known = self.members.values().filter(|member| member.held_until().is_none());
                known.map(|member| Arc::clone(member.instance())).collect::<Snapshot>().diff(&set)
            }
        };
        if let Some((since, _)) = self.lost.take() {
            let now = Instant::now();
            self.hold_on(now - since);
            self.mass_removal.regain(now);
        }
        self.change(&change);
    }

    fn change(&mut self, change: &Change) {
        let before = self.size.unwrap_or_default();
        let mut added = 0;
        for instance in change.upserts() {
            self.mass_removal.forget(instance.id());
            added += usize::from(self.upsert(instance));
        }
        self.size = Some((before + added).saturating_sub(change.removes().len()));
        if change.removes().is_empty() {
            return;
        }
        let now = Instant::now();
        let hold = self.config.hold;
        let mass = hold.and_then(|limit| self.mass_removal.step(now, limit, before, added, change.removes()));
        match mass {
            // It includes every instance that this step removes.
            Some(mass) => self.keep(mass, now),
            None => change.removes().iter().for_each(|id| self.remove(id)),
        }
    }

    /// Adds or updates an instance; returns whether the registry has one more.
    fn upsert(&mut self, instance: &Arc<Instance>) -> bool {
        let mut is_known = false;
        if let Some(member) = self.members.get_mut(instance.id()) {
            is_known = member.held_until().is_none();
            if member.endpoint.address == *instance.address() {
                // Keep the connection and its statistics (B5).
                member.set_instance(instance);
                member.hold(None);
                return !is_known;
            }
            self.remove(instance.id());
        }
        let member = match self.take_back(instance) {
            Some(mut member) => {
                member.set_instance(instance);
                member
            }
            None => self.connect(instance),
        };
        self.members.insert(instance.id().clone(), member);
        !is_known
    }

    fn connect(&mut self, instance: &Arc<Instance>) -> Member {
        let tally = Arc::new(Tally::new(self.config.outlier_detection.codes()));
        let mut member = Member::new(instance, self.drive(instance, tally, Duration::ZERO));
        if let Some(outlier) = self.departed.take(instance) {
            member.outlier = outlier;
            self.published.wakeups.sweep();
        }
        member
    }

    /// Creates an endpoint for an instance, and starts its driver after this delay.
    fn drive(&self, instance: &Arc<Instance>, tally: Arc<Tally>, after: Duration) -> Arc<Endpoint> {
        let driver = Arc::clone(&self.config.driver);
        let wakeups = Arc::clone(&self.published.wakeups);
        let metrics = match self.config.endpoint_metrics {
            true => EndpointMetrics::new(&self.published.service, instance.id()),
            false => EndpointMetrics::default(),
        };
        let endpoint = Endpoint::new(Arc::clone(instance), driver.connections, tally, metrics, wakeups);
        let driven = Arc::clone(&endpoint);
        let run = async move {
            if !after.is_zero() {
                sleep(after).await;
            }
            let driving = AssertUnwindSafe(drive(Arc::clone(&driven), driver)).catch_unwind();
            match driving.await {
                Ok(ended) => Driven::Ended(ended),
                Err(panic) => Driven::Panicked(driven, panic),
            }
        };
        self.drivers.push(run.boxed());
        endpoint
    }

    /// Replaces an endpoint whose driver panicked, if it is still in the set.
    fn reconnect(&mut self, endpoint: &Arc<Endpoint>) {
        self.forget(endpoint);
        let Some(former) = self.members.get(&endpoint.id) else { return };
        if !Arc::ptr_eq(&former.endpoint, endpoint) {
            return;
        }
        let instance = Arc::clone(former.instance());
        let panics = former.panics.saturating_add(1);
        let backoff = self.config.driver.backoff;
        let wait = backoff.min().saturating_mul(1 << panics.min(16)).min(backoff.max());
        let tally = Arc::clone(&former.endpoint.tally);
        former.endpoint.metrics.set_ready(false);
        let mut member = Member::new(&instance, self.drive(&instance, tally, wait));
        member.panics = panics;
        member.outlier = former.outlier.with_new_connections();
        member.hold(former.held_until());
        self.members.insert(endpoint.id.clone(), member);
    }

    /// Takes back a leaving endpoint as it is, connected or connecting: its entry flapped, or it is
    /// to be held.
    fn take_back(&mut self, instance: &Instance) -> Option<Member> {
        let leaving = self.leaving.get_mut(instance.id())?;
        let of_address = |member: &Member| member.endpoint.address == *instance.address();
        let mut member =
            leaving.swap_remove(leaving.iter().rposition(|member| of_address(member) && member.endpoint.is_driven())?);
        if leaving.is_empty() {
            self.leaving.remove(instance.id());
        }
        member.endpoint.drain(false);
        member.refresh(Instant::now());
        Some(member)
    }

    /// Forgets an endpoint whose driver has ended.
    fn forget(&mut self, endpoint: &Arc<Endpoint>) {
        let Some(leaving) = self.leaving.get_mut(&endpoint.id) else { return };
        for member in leaving.extract_if(.., |member| Arc::ptr_eq(&member.endpoint, endpoint)) {
            let known = self.config.outlier_detection.max_ejection_time.max(REMEMBER);
            self.departed.keep(endpoint, &member.outlier, Instant::now() + known);
        }
        if leaving.is_empty() {
            self.leaving.remove(&endpoint.id);
        }
    }

    fn remove(&mut self, id: &InstanceId) {
        if let Some(mut member) = self.members.remove(id) {
            member.hold(None);
            member.endpoint.metrics.set_ready(false);
            member.endpoint.drain(true);
            // An endpoint that has not begun to connect has nothing to finish or to take back.
            if !member.endpoint.is_idle() {
                self.leaving.entry(id.clone()).or_default().push(member);
            }
        }
    }

    /// Holds the connected instances of a mass removal, for as long as the set may take to refill.
    fn keep(&mut self, mass: Mass, now: Instant) {
        let Some(limit) = self.config.hold else { return };
        let mut count = 0;
        for id in mass.vanished {
            if !self.members.contains_key(&id) {
                let left = self.leaving.get(&id).and_then(|leaving| leaving.last());
                let Some(instance) = left.map(|member| Arc::clone(member.instance())) else { continue };
                let Some(member) = self.take_back(&instance) else { continue };
                self.members.insert(id.clone(), member);
            }
            match self.members.get_mut(&id) {
                Some(member) if member.is_connected() => {
                    member.hold(member.held_until().or(Some(now + limit)));
                    count += 1;
                }
                _ => self.remove(&id),
            }
        }
        if count > 0 {
            self.refilled_at = self.refilled_at.max(Some(mass.before));
            self.published.wakeups.sweep();
            warn!(endpoints = count, "most instances vanished at once, holding the connected ones");
        }
    }

    /// Extends the holds by the length of an outage: instances could not register again during it.
    fn hold_on(&mut self, outage: Duration) {
        for member in self.members.values_mut() {
            if let Some(until) = member.held_until() {
                member.hold(Some(until + outage));
            }
        }
    }
}

impl Drop for Pool {
    /// Calls keep the pool alive, so this runs before they end only if the runtime shuts down.
    fn drop(&mut self) {
        // Empty the set first: a call must not pick an endpoint that nothing drives any more.
        self.published.balancer.publish_shared(Vec::new());
        let reason = if thread::panicking() {
            "its control task panicked"
        } else {
            "the runtime that it was built on has shut down"
        };
        let availability = Arc::new(Availability::Gone { reason });
        self.published.availability.store(Arc::clone(&availability));
        let rows = self.published.overview.load().rows.clone();
        let overview = Overview { rows, ready: 0, registry: RegistryState::Stopped { reason }, availability };
        self.published.overview.store(Arc::new(overview));
        self.published.wakeups.published.notify_waiters();
        self.published.wakeups.metrics.end();
        // The overview keeps the endpoints.
        self.members.values().for_each(|member| member.endpoint.metrics.set_ready(false));
    }
}

/// Waits until a moment, or not at all if it has passed: a timer would round up to the next
/// millisecond.
async fn until(moment: Instant) {
    if Instant::now() < moment {
        sleep_until(moment).await;
    }
}

/// How long publishing and sweeping pause after a panic.
const AFTER_PANIC: Duration = Duration::from_millis(200);
/// How many updates and wake-ups are handled before drivers, sweeps and publishing get a turn.
const MOST_IN_A_ROW: u32 = 64;
