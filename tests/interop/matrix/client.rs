//! A client in its own process, in Go or Rust, that makes all four kinds of calls without a break.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::{
    failure::{Failure, expect},
    ledger::Ledger,
    pairing::Caller,
    process::Process,
    report::Report,
    rust::call::CallOptions,
    world::World,
};

/// A running client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) caller: Caller,
    /// All calls that it has reported.
    pub(crate) total: Report,
    process: Process,
    ledger: Arc<Ledger>,
}

/// How a client is started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientSetup {
    /// How many calls may be in flight.
    pub(crate) concurrency: usize,
    /// The pause between two calls of each caller.
    pub(crate) interval_ms: u64,
    /// What a Go client sends as `:authority`.
    pub(crate) authority: Option<&'static str>,
}

impl Default for ClientSetup {
    fn default() -> Self {
        Self { concurrency: 2, interval_ms: 10, authority: None }
    }
}

impl Client {
    /// Starts a client of the servers that are registered.
    pub(crate) async fn start(world: &World, caller: Caller, setup: ClientSetup) -> Result<Self, Failure> {
        let command = match caller {
            Caller::PickFirst | Caller::RoundRobin => {
                let policy = if caller == Caller::PickFirst { "pick_first" } else { "round_robin" };
                let mut peer = world.peer("call");
                peer.args(["--policy", policy, "--concurrency", &setup.concurrency.to_string()]);
                peer.args(["--interval", &format!("{}ms", setup.interval_ms)]);
                peer.args(["--timeout", &format!("{TIMEOUT_MS}ms")]);
                peer.args(setup.authority.iter().flat_map(|authority| ["--authority", authority]));
                peer
            }
            Caller::Rust => {
                let options = CallOptions {
                    registry: world.url(),
                    service: world.service.clone(),
                    concurrency: setup.concurrency,
                    interval_ms: setup.interval_ms,
                    timeout_ms: TIMEOUT_MS,
                };
                World::rust("call", serde_json::to_string(&options)?)?
            }
        };
        let mut process = Process::start(&format!("client {caller}"), command, &world.ledger)?;
        process.event("calling").await?;
        Ok(Self { caller, total: Report::default(), process, ledger: Arc::clone(&world.ledger) })
    }

    /// Returns the calls since the last report.
    pub(crate) async fn report(&mut self) -> Result<Report, Failure> {
        self.process.send("report").await?;
        self.take_report().await
    }

    /// Waits until this many servers have answered since the last report.
    pub(crate) async fn wait(&mut self, servers: usize) -> Result<(), Failure> {
        self.process.send(&format!("wait {servers}")).await?;
        self.process.event("waited").await.map(drop)
    }

    /// Waits until the calls of a short while are answered by exactly these servers.
    pub(crate) async fn answered_by(&mut self, servers: &[&str]) -> Result<(), Failure> {
        let start = Instant::now();
        loop {
            let report = self.report().await?;
            if report.is_from(servers) {
                return Ok(());
            }
            expect(start.elapsed() < SOON, || {
                format!("the calls are not answered by {servers:?} within {SOON:?}: {report}")
            })?;
            sleep(WINDOW).await;
        }
    }

    /// Waits until this many calls have been made since the last report, and reports them.
    pub(crate) async fn calls(&mut self, count: u64) -> Result<Report, Failure> {
        let start = Instant::now();
        let mut sum = Report::default();
        while sum.calls < count {
            expect(start.elapsed() < SOON, || format!("there are no {count} calls within {SOON:?}: {sum}"))?;
            sleep(WINDOW).await;
            sum.add(&self.report().await?);
        }
        Ok(sum)
    }

    /// Waits for the first answer of a server, and returns when that was.
    pub(crate) async fn seen(&mut self, server: &str) -> Result<u64, Failure> {
        let seen = self.process.event_where("seen", |event| event.text("server") == server).await?;
        Ok(seen.at_unix_ns)
    }

    /// Returns when a server has last answered, as far as that was reported.
    pub(crate) fn last_answer(&self, server: &str) -> u64 {
        self.total.last_at_unix_ns.get(server).copied().unwrap_or_default()
    }

    /// Stops calling, and waits for the calls in flight.
    pub(crate) async fn stop(&mut self) -> Result<(), Failure> {
        self.process.send("stop").await?;
        self.take_report().await.map(drop)
    }

    /// Stops calling, and fails if a call ever failed.
    pub(crate) async fn stop_unfailed(&mut self) -> Result<(), Failure> {
        self.stop().await?;
        expect(self.total.failed == 0, || format!("{}: {}", self.caller, self.total))?;
        expect(self.total.calls > 0, || format!("{}: it has made no calls", self.caller))
    }

    async fn take_report(&mut self) -> Result<Report, Failure> {
        let report: Report = self.process.event("report").await?.into()?;
        self.ledger.add(&report);
        self.total.add(&report);
        Ok(report)
    }
}

const SOON: Duration = Duration::from_secs(20);
/// Long enough for some calls of every caller.
const WINDOW: Duration = Duration::from_millis(100);
/// Longer than a busy machine keeps a process waiting.
const TIMEOUT_MS: u64 = 8000;
