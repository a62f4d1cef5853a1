use std::{ops::Range, time::Duration};

use futures::future::join3;
use tokio::time::sleep;
use tonic::Code;

use crate::{
    Failure,
    caller::{Caller, Transport},
    clients,
    load::{Ended, steady},
    servers::{Kind, Servers},
    table::Row,
};

/// A fleet that is well for a while, until some of its servers are not.
#[derive(Clone, Copy)]
struct Scene {
    servers: usize,
    ill: usize,
    kind: Kind,
    /// How many seconds all servers are well, some are ill, and all are well again.
    seconds: [u32; 3],
    /// Returns how long a server works on a call.
    work: fn() -> Duration,
    /// When callers drop a call; if `None`, calls have a deadline instead.
    dropped: Option<Duration>,
}

/// F7: one of many servers becomes slow or hangs, or a few fail at once.
pub(super) async fn rows() -> Result<Vec<Row>, Failure> {
    let slow = Scene { servers: 11, ill: 1, kind: Kind::Slow, seconds: [15, 30, 15], work: even, dropped: None };
    let hung = Scene { kind: Kind::Hung, seconds: [5, 20, 0], ..slow };
    let dropped = Scene { work: brief, dropped: Some(DROPPED), ..hung };
    let unavailable = Kind::Failing(Code::Unavailable);
    let failing = Scene { servers: 20, ill: 2, kind: unavailable, work: uneven, ..hung };

    let mut rows = Vec::new();
    let calls = slow.calls(0..3);
    let what = format!("late (1 s) or failed of {calls} calls, of 11 servers 1 takes 2 s for half of the time");
    let ended = slow.run().await?.map(|all| count(&all, Ended::is_late));
    let [beside_tower, beside_tonic] = compared(&what, ended);
    rows.extend([Row::new("F7", what, ended[0]).most(calls / 1000.0), beside_tower.more(0.0), beside_tonic]);

    for (scene, how) in [(hung, ""), (dropped, ", callers drop after 100 ms")] {
        let what =
            format!("calls to 1 of 11 servers, which hangs, after its first second, in percent of its fair share{how}");
        let later = scene.falls_ill() + Duration::from_secs(1);
        let percent = (scene.calls(1..2) - f64::from(RATE)) / 11.0 / 100.0;
        // Every late call was sent to the ill server.
        let shares = scene.run().await?.map(|all| count(&all, |call| call.due >= later && call.is_late()) / percent);
        rows.push(Row::new("F7", &what, shares[0]).most(20.0));
        rows.extend(compared(&what, shares));
    }

    let what = format!("failed of {} calls, 2 of 20 servers fail at once", failing.calls(1..2));
    let failed = failing.run().await?.map(|all| count(&all, Ended::failed));
    let [beside_tower, beside_tonic] = compared(&what, failed);
    rows.extend([beside_tower.ratio(0.15), beside_tonic]);
    Ok(rows)
}

/// Compares the first of three numbers with the others.
fn compared(what: &str, [ours, tower, tonic]: [f64; 3]) -> [Row; 2] {
    [(TOWER, tower), (TONIC, tonic)].map(|(peer, value)| Row::new("F7", what, ours).against(peer, value))
}

impl Scene {
    /// Makes our, tower's and tonic's calls at the same time, each to a separate fleet.
    async fn run(self) -> Result<[Vec<Ended>; 3], Failure> {
        let kinds = vec![Kind::Greeter; self.servers];
        let [ours, tower, tonic] = [Servers::start(&kinds)?, Servers::start(&kinds)?, Servers::start(&kinds)?];
        let channels = (
            clients::ours_ready(ours.addresses()).await?,
            clients::tower_ewma(tower.addresses()).await?,
            clients::tonic_balanced(tonic.addresses())?,
        );
        let (ours, tower, tonic) =
            join3(self.load(ours, channels.0), self.load(tower, channels.1), self.load(tonic, channels.2)).await;
        Ok([ours?, tower?, tonic?])
    }

    async fn load<T: Transport>(self, mut servers: Servers, transport: T) -> Result<Vec<Ended>, Failure> {
        let mut turn = |kind| (0..self.ill).try_for_each(|number| servers.turn(number, kind));
        let [well, ill, again] = self.seconds.map(|seconds| Duration::from_secs(seconds.into()));
        let course = async {
            sleep(well).await;
            turn(self.kind)?;
            sleep(ill).await;
            turn(Kind::Greeter)?;
            sleep(again).await;
            Ok(())
        };
        let caller = match self.dropped {
            Some(after) => Caller::new(transport, None).dropping_after(after),
            None => Caller::new(transport, Some(LATE)),
        };
        let (calls, course) = steady(&caller, RATE, self.work, course).await;
        course.map(|()| calls)
    }

    /// Returns when some servers fall ill.
    fn falls_ill(self) -> Duration {
        Duration::from_secs(self.seconds[0].into())
    }

    /// Returns how many calls are due in these phases.
    fn calls(self, parts: Range<usize>) -> f64 {
        f64::from(RATE * self.seconds[parts].iter().sum::<u32>())
    }
}

impl Ended {
    fn is_late(&self) -> bool {
        self.failed() || self.took >= LATE
    }
}

fn count(calls: &[Ended], so: impl Fn(&Ended) -> bool) -> f64 {
    calls.iter().filter(|call| so(call)).count() as f64
}

/// A median of 167 ms, and nothing near the deadline.
fn even() -> Duration {
    Duration::from_millis(fastrand::u64(84..=250))
}

/// Nothing near the time after which callers drop a call.
fn brief() -> Duration {
    Duration::from_millis(fastrand::u64(20..=60))
}

/// Exponential, with a mean of 40 ms.
fn uneven() -> Duration {
    Duration::from_millis(40).mul_f64(-(1.0 - fastrand::f64()).ln())
}

const LATE: Duration = Duration::from_secs(1);
const DROPPED: Duration = Duration::from_millis(100);
/// Calls per second.
const RATE: u32 = 1_000;
const TONIC: &str = "tonic `balance_list`";
const TOWER: &str = "tower `Balance`, `PeakEwma`";
