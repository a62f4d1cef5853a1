//! A client over a `BalancedChannel`, as a process.

use std::{sync::Arc, time::Duration};

use discovery::BalancedChannel;
use greeter::GreeterClient;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use super::{
    kinds::Kind,
    lines::{commands, emit, refuse},
    tally::Tally,
};
use crate::failure::Failure;

/// How a client is started.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct CallOptions {
    /// The URL of the registry.
    pub(crate) registry: String,
    pub(crate) service: String,
    /// The number of callers.
    pub(crate) concurrency: usize,
    /// The time from one call to the next of each caller.
    pub(crate) interval_ms: u64,
    /// The deadline of each call.
    pub(crate) timeout_ms: u64,
}

/// Calls until `stop` or the end of stdin.
pub(crate) async fn call(options: CallOptions) -> Result<(), Failure> {
    let backend = discovery::open(&options.registry)?;
    let channel = BalancedChannel::new(backend, options.service.parse()?)?;
    emit("calling", json!({ "target": options.service, "policy": "balanced_channel" }));

    let tally = Arc::new(Tally::default());
    let (stop, stopped) = watch::channel(());
    let mut callers = JoinSet::new();
    for _ in 0..options.concurrency {
        let client = GreeterClient::new(channel.clone());
        callers.spawn(keep_calling(client, Arc::clone(&tally), stopped.clone(), Pace::of(&options)));
    }
    attend(&tally).await;
    // Calls in flight complete and count.
    drop(stop);
    callers.join_all().await;
    tally.report();
    Ok(())
}

#[derive(Clone, Copy, Debug)]
struct Pace {
    interval: Duration,
    deadline: Duration,
}

impl Pace {
    fn of(options: &CallOptions) -> Self {
        Self {
            interval: Duration::from_millis(options.interval_ms),
            deadline: Duration::from_millis(options.timeout_ms),
        }
    }
}

/// Makes one call after the other.
async fn keep_calling(
    mut client: GreeterClient<BalancedChannel>,
    tally: Arc<Tally>,
    mut stopped: watch::Receiver<()>,
    pace: Pace,
) {
    let mut ticks = interval(pace.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for kind in Kind::ALL.into_iter().cycle() {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stopped.changed() => return,
        }
        match kind.call(&mut client, pace.deadline).await {
            Ok(server) => tally.succeeded(kind, server),
            Err(status) => tally.failed(&status),
        }
    }
}

/// Carries out the commands until the last.
async fn attend(tally: &Tally) {
    let mut commands = commands();
    while let Some(command) = commands.recv().await {
        match command.word.as_str() {
            "report" => tally.report(),
            "wait" => match command.rest.parse() {
                Ok(servers) => tally.wait(servers),
                Err(_) => refuse(&command, "wait needs a number of servers"),
            },
            "stop" => return,
            _ => refuse(&command, "the commands are report, wait N and stop"),
        }
    }
}
