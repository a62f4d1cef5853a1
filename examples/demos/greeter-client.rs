//! A client that calls all the time, and prints who serves and who answered.
//!
//! ```text
//! cargo run --example greeter-client --features etcd,tonic
//! ```
//!
//! Start and stop some `greeter-server`s next to it. Ctrl-C or SIGTERM ends it.

use std::{collections::BTreeMap, error::Error, mem, pin::pin, time::Duration};

use clap::Parser;
use discovery::{BalancedChannel, Resolver, ServiceName, Snapshot, Update, UpdateStream};
use futures::StreamExt;
use greeter::{GreetRequest, GreeterClient};
use tokio::{sync::mpsc, time};
use tonic::Status;

#[derive(Parser)]
struct Arguments {
    /// Where the servers are registered.
    #[arg(long, default_value = "etcd://127.0.0.1:2379/example?ttl=5s")]
    registry: String,
    /// The service to call.
    #[arg(long, default_value = "greeter")]
    service: ServiceName,
    /// How many calls are made at a time.
    #[arg(long, default_value_t = 4)]
    callers: usize,
    /// For how many milliseconds each caller rests after a call.
    #[arg(long, default_value_t = 5)]
    rest: u64,
}

/// The server's name, or why there is none.
type Answer = Result<String, Status>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let Arguments { registry, service, callers, rest } = Arguments::parse();

    let backend = discovery::open(&registry)?;
    tokio::spawn(print_changes(backend.watch(&service)?));
    let channel = BalancedChannel::new(backend, service)?;

    let (answers, mut answered) = mpsc::channel(1024);
    tokio::spawn(async move {
        while let Err(error) = channel.wait_until_ready(Duration::from_secs(5)).await {
            println!("nobody to call: {}", error.report());
        }
        for _ in 0..callers {
            tokio::spawn(call(GreeterClient::new(channel.clone()), Duration::from_millis(rest), answers.clone()));
        }
    });

    let mut second = Tally::default();
    let mut total = Tally::default();
    let mut tick = time::interval(Duration::from_secs(1));
    let mut stop = pin!(asked_to_stop());
    loop {
        tokio::select! {
            asked = &mut stop => break asked?,
            _ = tick.tick() => mem::take(&mut second).print("the last second"),
            Some(answer) = answered.recv() => {
                second.count(&answer);
                total.count(&answer);
            }
        }
    }
    total.print("in all");
    Ok(())
}

async fn call(mut client: GreeterClient<BalancedChannel>, rest: Duration, answers: mpsc::Sender<Answer>) {
    loop {
        let request = GreetRequest { name: "world".to_owned(), ..GreetRequest::default() };
        let answer = client.greet(request).await.map(|response| response.into_inner().server);
        if answers.send(answer).await.is_err() {
            return;
        }
        time::sleep(rest).await;
    }
}

/// Prints each change of the set at once.
async fn print_changes(mut updates: UpdateStream) {
    let mut set = Snapshot::default();
    while let Some(update) = updates.next().await {
        if let Update::Lost(error) = &update {
            println!("! {}; the set stays as last known", error.report());
        }
        let next = set.after(&update);
        let change = set.diff(&next);
        for instance in change.upserts() {
            println!("+ {} of weight {}", instance.address(), instance.weight());
        }
        for id in change.removes() {
            println!("- {id}");
        }
        set = next;
    }
}

/// Who answered how often, and what failed.
#[derive(Default)]
struct Tally {
    answered: BTreeMap<String, usize>,
    failed: usize,
    failure: Option<Status>,
}

impl Tally {
    fn count(&mut self, answer: &Answer) {
        match answer {
            Ok(server) => *self.answered.entry(server.clone()).or_default() += 1,
            Err(status) => {
                self.failed += 1;
                self.failure.get_or_insert_with(|| status.clone());
            }
        }
    }

    fn print(&self, when: &str) {
        let answered: Vec<String> = self.answered.iter().map(|(server, count)| format!("{server} {count}")).collect();
        match self.failed + self.answered.values().sum::<usize>() {
            0 => return,
            calls => println!("{when}: {calls} calls, {} failed; answered by [{}]", self.failed, answered.join(", ")),
        }
        if let Some(status) = &self.failure {
            println!("  the first failure: {:?}: {}", status.code(), status.message());
        }
    }
}

#[cfg(unix)]
async fn asked_to_stop() -> std::io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

#[cfg(not(unix))]
async fn asked_to_stop() -> std::io::Result<()> {
    tokio::signal::ctrl_c().await
}
