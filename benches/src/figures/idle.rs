use std::{process::Stdio, time::Duration};

use support::Etcd;
use tokio::{
    fs,
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::{
    Failure,
    callgrind::driver,
    entries,
    metrics::{Method, Metrics},
    table::Row,
};

/// F13: an idle process that watches 1,000 services and holds 100 registrations.
///
/// Streams and requests are counted by etcd. Reads are the requests `Range` and `Txn`; a
/// transaction counts once, whatever it contains. The reads of the store that result are printed.
pub(super) async fn rows() -> Result<Vec<Row>, Failure> {
    // Each has its own etcd and next to nothing to do.
    let (ours, raw) = tokio::try_join!(Cost::of("ours"), Cost::of("raw"))?;
    let scene = format!("one process watches {SERVICES} services and holds {REGISTRATIONS} registrations, idle");
    let row = |what: &str, of: fn(&Cost) -> f64| Row::new("F13", what, of(&ours)).against(RAW, of(&raw));
    Ok(vec![
        row(&format!("open streams, {scene}"), |cost| cost.watches + cost.keep_alives).most(2.0),
        row("of these, watches", |cost| cost.watches),
        row("of these, of leases", |cost| cost.keep_alives),
        row("reads a second", |cost| cost.ranges + cost.txns).most(2.0),
        row("of these, ranges", |cost| cost.ranges),
        row("of these, transactions", |cost| cost.txns),
        row("ranges of the store a second", |cost| cost.reads),
        row("MiB of resident memory", |cost| cost.memory).more(10.0),
    ])
}

/// The cost of an idle process.
struct Cost {
    /// Open streams.
    watches: f64,
    keep_alives: f64,
    /// Rates per second.
    ranges: f64,
    txns: f64,
    reads: f64,
    /// In MiB.
    memory: f64,
}

impl Cost {
    async fn of(mode: &str) -> Result<Self, Failure> {
        let etcd = Etcd::start().await;
        entries::put(&etcd.members(), SERVICES).await?;
        let process = idle(mode, &etcd.address()).await?;
        sleep(SETTLED).await;
        let before = Metrics::read(&etcd.address()).await?;
        let start = Instant::now();
        sleep(WINDOW).await;
        let after = Metrics::read(&etcd.address()).await?;
        let seconds = start.elapsed().as_secs_f64();
        let rate = |of: &dyn Fn(&Metrics) -> f64| (of(&after) - of(&before)) / seconds;
        let cost = Self {
            watches: after.open(Method::Watch),
            keep_alives: after.open(Method::LeaseKeepAlive),
            ranges: rate(&|metrics| metrics.started(Method::Range)),
            txns: rate(&|metrics| metrics.started(Method::Txn)),
            reads: rate(&Metrics::reads),
            memory: resident(&process).await?,
        };
        eprintln!(
            "idle {mode}: {} + {} streams, {:.2} + {:.2} reads/s, {:.2} ranges/s of the store, {:.1} MiB",
            cost.watches, cost.keep_alives, cost.ranges, cost.txns, cost.reads, cost.memory
        );
        Ok(cost)
    }
}

/// Starts the driver and waits until it idles. It ends when this value is dropped.
async fn idle(mode: &str, address: &str) -> Result<Child, Failure> {
    let mut command = Command::new(driver("idle")?);
    command.args([mode, address, &SERVICES.to_string(), &REGISTRATIONS.to_string()]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let stdout = child.stdout.take().ok_or("the driver has no output")?;
    let line = timeout(START, BufReader::new(stdout).lines().next_line()).await??;
    if line.as_deref() != Some("ready") {
        return Err(format!("idle {mode} did not become ready").into());
    }
    Ok(child)
}

/// Returns the resident memory of a running process, in MiB.
async fn resident(process: &Child) -> Result<f64, Failure> {
    let number = process.id().ok_or("the driver has ended")?;
    let status = fs::read_to_string(format!("/proc/{number}/status")).await?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

const SERVICES: usize = 1_000;
const REGISTRATIONS: usize = 100;
const RAW: &str = "raw etcd-client: one stream with a watch for each, one lease";
/// Longer than any start that works takes.
const START: Duration = Duration::from_secs(60);
/// By then the start has left nothing to do.
const SETTLED: Duration = Duration::from_secs(20);
/// Many periods of everything that happens at intervals.
const WINDOW: Duration = Duration::from_secs(72);
