use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::time::{Instant, sleep};

use crate::{
    Failure,
    caller::{Caller, Transport},
    clients,
    servers::{Kind, Servers},
    table::Row,
};

/// How many calls ended badly.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    failed: u32,
    /// Calls that failed, took until their deadline or were dropped.
    slow: u32,
}

/// L1: one of four endpoints refuses connections.
pub(super) async fn refusing() -> Result<Vec<Row>, Failure> {
    let servers = servers_and(Kind::Refusing)?;
    let ours = tally(patient(clients::ours(servers.addresses())?), 1, CALLS).await;
    let tonic = tally(patient(clients::tonic_balanced(servers.addresses())?), 1, CALLS).await;
    let row = Row::new("L1", format!("failed of {CALLS} calls, 1 of 4 endpoints refuses"), ours.failed.into());
    Ok(vec![row.against(TONIC, tonic.failed.into()).most(0.0)])
}

/// L2: one of four endpoints accepts connections and stays silent, or completes handshakes and
/// never answers.
pub(super) async fn silent_and_hung() -> Result<Vec<Row>, Failure> {
    let silent = servers_and(Kind::Silent)?;
    let hung = servers_and(Kind::Hung)?;
    let ours_silent = tally(patient(clients::ours(silent.addresses())?), 1, CALLS).await;
    let ours_wide = tally(patient(clients::ours(hung.addresses())?), 50, CALLS).await;
    let ours_dropped = tally(hasty(clients::ours(hung.addresses())?), 1, CALLS).await;
    let ours_dropped_wide = tally(hasty(clients::ours(hung.addresses())?), 50, CALLS).await;
    let caller = patient(clients::ours(hung.addresses())?);
    let ours_hung = tally(caller.clone(), 1, CALLS).await;
    let (later, calls) = later(caller).await;
    // Few calls that wait most of the time, so all at once.
    let (tonic_silent, tonic_hung, tonic_dropped) = tokio::join!(
        tally(patient(clients::tonic_balanced(silent.addresses())?), 1, FEWER),
        tally(patient(clients::tonic_balanced(hung.addresses())?), 1, FEWER),
        tally(hasty(clients::tonic_balanced(hung.addresses())?), 1, FEWER)
    );
    let row = |what: String, ours: Tally| Row::new("L2", what, ours.slow.into());
    let slow = "slow (1 s) or failed";
    Ok(vec![
        row(format!("{slow} of {CALLS} calls, 1 of 4 endpoints accepts and is silent"), ours_silent)
            .against(TONIC_FEWER, tonic_silent.slow.into())
            .most(0.0),
        row(format!("{slow} of {CALLS} calls, 1 of 4 endpoints shakes hands and never answers"), ours_hung)
            .against(TONIC_FEWER, tonic_hung.slow.into())
            .most(5.0),
        row("the same, 50 at once".to_owned(), ours_wide).most(5.0),
        row(format!("the same, of {calls} calls in the next {} s: probes alone", LATER.as_secs()), later).most(PROBES),
        row(format!("dropped (100 ms) or failed of {CALLS} calls, 1 of 4 endpoints never answers"), ours_dropped)
            .against(TONIC_FEWER, tonic_dropped.slow.into())
            .most(5.0),
        row("the same, 50 at once".to_owned(), ours_dropped_wide).most(5.0),
    ])
}

/// Returns a caller whose calls carry a deadline.
fn patient<T: Transport>(transport: T) -> Caller<T> {
    Caller::new(transport, Some(SLOW))
}

/// Returns a caller that drops its calls without announcing a deadline.
fn hasty<T: Transport>(transport: T) -> Caller<T> {
    Caller::new(transport, None).dropping_after(DROPPED)
}

fn servers_and(kind: Kind) -> Result<Servers, Failure> {
    Servers::start(&[Kind::Greeter, Kind::Greeter, Kind::Greeter, kind])
}

/// Makes calls from a cold start, `width` at a time.
async fn tally<T: Transport>(caller: Caller<T>, width: usize, calls: u32) -> Tally {
    let results = stream::iter(0..calls).map(|_| call(caller.clone())).buffer_unordered(width);
    results.fold(Tally::default(), |tally, one| async move { tally.and(one) }).await
}

/// Makes calls for a while, with pauses.
async fn later<T: Transport>(caller: Caller<T>) -> (Tally, u32) {
    let mut tally = Tally::default();
    let mut calls = 0;
    let start = Instant::now();
    while start.elapsed() < LATER {
        tally = tally.and(call(caller.clone()).await);
        calls += 1;
        sleep(PAUSE).await;
    }
    (tally, calls)
}

async fn call<T: Transport>(mut caller: Caller<T>) -> Tally {
    let start = Instant::now();
    let result = caller.call().await;
    let failed = result.is_err();
    Tally { failed: failed.into(), slow: (failed || start.elapsed() >= SLOW).into() }
}

impl Tally {
    fn and(self, other: Self) -> Self {
        Self { failed: self.failed + other.failed, slow: self.slow + other.slow }
    }
}

const CALLS: u32 = 2_000;
/// tonic keeps making slow calls; these take half a minute.
const FEWER: u32 = 99;
const SLOW: Duration = Duration::from_secs(1);
const DROPPED: Duration = Duration::from_millis(100);
const LATER: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(2);
/// An ejection lasts 1 s and doubles after each failed probe, which itself takes 1 s: one slow call
/// at 1, 4, 9 and 18 s.
const PROBES: f64 = 4.0;
const TONIC: &str = "tonic `balance_list`";
const TONIC_FEWER: &str = "tonic `balance_list`, of its first 99";
