use std::time::Duration;

use tokio::{task::JoinSet, time::Instant};

use crate::{
    Failure,
    caller::{Caller, Transport},
    clients,
    servers::{Kind, Servers},
    table::Row,
};

/// The calls of one caller, or of all.
#[derive(Clone, Copy, Debug, Default)]
struct Waited {
    /// Calls that were answered.
    calls: u32,
    failed: u32,
    longest: Duration,
    /// The total time of all calls, including failed ones.
    time: Duration,
}

/// The callers of one client.
struct Callers(Vec<Waited>);

/// F14: more callers than streams, which the only server limits per connection.
pub(super) async fn rows() -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for (callers, streams) in [(64, 8), (8, 4)] {
        let servers = Servers::start(&[Kind::Limited(streams)])?;
        let first = *servers.addresses().first().ok_or("no address")?;
        let ours = Callers::run(clients::ours_ready(&[first]).await?, callers).await?;
        let tonic = Callers::run(clients::tonic_single(first).await?, callers).await?;
        let how = format!("{callers} callers on {streams} streams");
        eprintln!("{how}: ours {}, tonic {}", ours.describe(), tonic.describe());

        let row = |what: &str, of: fn(&Callers) -> f64| Row::new("F14", format!("{what}, {how}"), of(&ours));
        let beside = |what: &str, of: fn(&Callers) -> f64| row(what, of).against(TONIC, of(&tonic));
        rows.extend([
            row("ms of the longest wait", Callers::longest).against("the mean wait", ours.mean_wait()).ratio(2.0),
            beside("ms of the longest wait", Callers::longest),
            row("fewest calls of a caller", Callers::fewest).against("the mean of all callers", ours.mean()).least(0.9),
            beside("fewest calls of a caller", Callers::fewest),
            beside("mean calls of a caller", Callers::mean),
            beside("most calls of a caller", Callers::most),
            beside(&format!("failed of {} calls", ours.all().calls + ours.all().failed), |all| all.all().failed.into())
                .most(0.0),
        ]);
    }
    Ok(rows)
}

impl Callers {
    /// Runs callers that each call again at once, over clones of one transport.
    async fn run<T: Transport>(transport: T, callers: u32) -> Result<Self, Failure> {
        let mut caller = Caller::new(transport, Some(DEADLINE));
        // The server's limit arrives before its first answer. Until then a client may open more
        // streams and be refused.
        caller.call().await?;
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..callers {
            let mut caller = caller.clone();
            tasks.spawn(async move {
                let mut waited = Waited::default();
                while start.elapsed() < WHILE {
                    let before = Instant::now();
                    let failed = caller.call_for(WORK).await.is_err();
                    let time = before.elapsed();
                    let one = Waited { calls: (!failed).into(), failed: failed.into(), longest: time, time };
                    waited = waited.and(one);
                }
                waited
            });
        }
        let mut all = Vec::new();
        while let Some(waited) = tasks.join_next().await {
            all.push(waited?);
        }
        Ok(Self(all))
    }

    fn all(&self) -> Waited {
        self.0.iter().copied().fold(Waited::default(), Waited::and)
    }

    /// Returns the longest wait in milliseconds.
    fn longest(&self) -> f64 {
        self.all().longest.as_secs_f64() * 1e3
    }

    /// Returns how long each call would wait if all waited the same, in milliseconds: the number of
    /// callers divided by the throughput.
    fn mean_wait(&self) -> f64 {
        let all = self.all();
        all.time.as_secs_f64() * 1e3 / f64::from(all.calls + all.failed)
    }

    fn fewest(&self) -> f64 {
        self.0.iter().map(|one| one.calls).min().unwrap_or_default().into()
    }

    fn most(&self) -> f64 {
        self.0.iter().map(|one| one.calls).max().unwrap_or_default().into()
    }

    fn mean(&self) -> f64 {
        f64::from(self.all().calls) / self.0.len() as f64
    }

    fn describe(&self) -> String {
        let fewest = self.fewest();
        let mean = self.mean();
        let most = self.most();
        let failed = self.all().failed;
        let longest = self.longest();
        let wait = self.mean_wait();
        format!(
            "{fewest} to {most} calls, {mean:.1} in the mean; {longest:.0} ms, {wait:.0} in the mean; {failed} failed"
        )
    }
}

impl Waited {
    fn and(self, other: Self) -> Self {
        Self {
            calls: self.calls + other.calls,
            failed: self.failed + other.failed,
            longest: self.longest.max(other.longest),
            time: self.time + other.time,
        }
    }
}

/// How long new calls are started, and how long the server works on each.
const WHILE: Duration = Duration::from_secs(12);
const WORK: Duration = Duration::from_millis(20);
const DEADLINE: Duration = Duration::from_secs(10);
const TONIC: &str = "one tonic `Channel`";
