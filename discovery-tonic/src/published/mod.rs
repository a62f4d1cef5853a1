pub(crate) mod endpoints;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use discovery_core::{Error, Instance, InstanceId, ServiceName};
use tokio::time::{Instant, sleep_until};

use crate::{
    balance::{Picked, Pickers},
    call::{Agent, attempt::Target, retry::Retries},
    endpoint::Endpoint,
    error::SharedError,
    metrics::Event,
    signals::Signals,
};
use endpoints::{EndpointStatus, Endpoints};

/// Where the pool publishes and calls read.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) service: ServiceName,
    pub(crate) agent: Agent,
    /// How long a call without a deadline waits for an endpoint.
    pub(crate) wait: Duration,
    pub(crate) retries: Option<Retries>,
    pub(crate) pickers: Pickers<Target>,
    pub(crate) outlook: ArcSwap<Outlook>,
    pub(crate) rows: ArcSwap<Vec<Arc<Row>>>,
    pub(crate) signals: Arc<Signals>,
}

/// What a call that finds no endpoint may expect.
#[derive(Clone, Debug)]
pub(crate) enum Outlook {
    /// An endpoint makes its first attempt.
    Connecting,
    /// The service has no instances.
    Empty { since: Instant },
    /// No endpoint can be reached.
    Failing { since: Instant, endpoints: usize, error: SharedError },
    /// The runtime is gone that the channel was built on.
    Gone,
    /// The registry could not be reached from the start.
    Lost { since: Instant, error: Error },
    /// There are endpoints, although all of them may be full.
    Serving,
    /// The first item of the watch has not come.
    Waiting,
}

/// One endpoint as the pool last published it.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) instance: Arc<Instance>,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) out_until: Option<Instant>,
    pub(crate) held_until: Option<Instant>,
}

impl Board {
    /// Waits for an endpoint, preferably one that was not tried, at most until `limit`; fails at once where waiting leads
    /// nowhere, unless `wait` says to wait all the same. A call with a deadline leaves room to endpoints on trial for no more than half of
    /// its time, or where nothing else is there it would never be sent.
    pub(crate) async fn wait_for_endpoint(
        &self,
        wait: bool,
        limit: Option<Instant>,
        deadline: Option<Instant>,
        tried: &[InstanceId],
    ) -> Result<Picked<Target>, (String, Option<Unreached>)> {
        let mut picker = self.pickers.picker();
        let start = Instant::now();
        let half = deadline.map(|deadline| deadline.saturating_duration_since(start) / 2);
        let patience = start + half.map_or(PATIENCE, |half| half.min(PATIENCE));
        loop {
            // Both before the look, so that nothing that happens after it is missed.
            let mut published = Box::pin(self.signals.published.notified());
            published.as_mut().enable();
            let mut room = self.signals.room.wait();
            let patient = Instant::now() < patience;
            let found = match tried {
                [] => picker.pick(patient),
                _ => picker.pick_other(patient, |target| tried.contains(target.instance.id())),
            };
            if let Some(picked) = found {
                self.signals.sweep();
                self.signals.metrics.count(Event::Pick);
                return Ok(picked);
            }
            let outlook = self.outlook.load_full();
            let waited = limit.is_some_and(|limit| Instant::now() >= limit);
            if waited || !(outlook.may_change() && wait || outlook.is_worth_waiting()) {
                return Err(outlook.explain(&self.service, waited.then_some(self.wait)));
            }
            // The sweeps look at connections whose peers may allow more by now.
            self.signals.sweep();
            let end = async {
                match limit {
                    Some(limit) => sleep_until(limit).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = published => {}
                () = room.turn.as_mut() => {}
                () = sleep_until(patience), if patient => {}
                () = end => {}
            }
        }
    }

    /// All endpoints of the set.
    pub(crate) fn endpoints(&self) -> Endpoints {
        Endpoints(self.rows.load().iter().map(|row| row.status()).collect())
    }
}

impl Row {
    fn status(&self) -> EndpointStatus {
        let (state, in_flight) = self.endpoint.state();
        EndpointStatus {
            instance: Arc::clone(&self.instance),
            state,
            in_flight,
            error: self.endpoint.error(),
            failures: self.endpoint.failures(),
            out_until: self.out_until.map(Instant::into_std),
            held_until: self.held_until.map(Instant::into_std),
        }
    }
}

/// What keeps the endpoints away, as a call's error carries it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreached {
    #[error(transparent)]
    Connection(SharedError),
    #[error(transparent)]
    Registry(#[from] Error),
}

impl Outlook {
    /// Whether an endpoint may turn up by itself in a moment.
    fn is_worth_waiting(&self) -> bool {
        match self {
            Self::Connecting | Self::Serving | Self::Waiting => true,
            Self::Empty { .. } | Self::Failing { .. } | Self::Gone | Self::Lost { .. } => false,
        }
    }

    /// Whether there may ever be an endpoint again.
    fn may_change(&self) -> bool {
        !matches!(self, Self::Gone)
    }

    /// Why a call fails: the service and since when, and what keeps the endpoints away.
    pub(crate) fn explain(&self, service: &ServiceName, waited: Option<Duration>) -> (String, Option<Unreached>) {
        let ago = |since: &Instant| humanly(since.elapsed());
        let (reason, cause) = match self {
            Self::Connecting => ("its endpoints are still connecting".to_owned(), None),
            Self::Empty { since } => (format!("it has had no instances for {}", ago(since)), None),
            Self::Failing { since, endpoints, error } => {
                let reason = format!("none of its {endpoints} endpoints has been reachable for {}", ago(since));
                (reason, Some(Unreached::Connection(Arc::clone(error))))
            }
            Self::Gone => ("the runtime that it was built on has ended".to_owned(), None),
            Self::Lost { since, error } => {
                let reason = format!("the registry has been out of reach for {}", ago(since));
                (reason, Some(error.clone().into()))
            }
            Self::Serving => ("all its endpoints are busy".to_owned(), None),
            Self::Waiting => ("the registry has not answered yet".to_owned(), None),
        };
        let waited = waited.map(|waited| format!(" within {}", humanly(waited))).unwrap_or_default();
        (format!("no endpoint of {service}{waited}: {reason}"), cause)
    }
}

/// A duration to the millisecond.
fn humanly(duration: Duration) -> String {
    format!("{:?}", Duration::from_millis(duration.as_millis().try_into().unwrap_or(u64::MAX)))
}

/// For so long a call leaves room to endpoints on trial at most.
const PATIENCE: Duration = Duration::from_millis(200);
