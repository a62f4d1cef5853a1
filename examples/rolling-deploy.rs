//! A fleet that is replaced server after server under load, with a line per second to watch.
//!
//! ```text
//! cargo run --example rolling-deploy --features memory,server
//! cargo run --example rolling-deploy --features memory,server -- --drain 0ms
//! cargo run --example rolling-deploy --features memory,server,etcd -- --registry 'etcd://127.0.0.1:2379/deploy?ttl=5s'
//! ```

use std::{collections::BTreeSet, error::Error, sync::Arc, time::Duration};

use clap::Parser;
use discovery::{
    Backend, BalancedChannel, RegisteredServer, ServiceName,
    tonic::{
        EndpointState,
        server::{ServerHandle, Stage},
    },
};
use greeter::{GreetRequest, Greeter, GreeterClient};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tonic::{Status, transport::Server};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Parser)]
struct Arguments {
    /// Where the servers register.
    #[arg(long, default_value = "memory:")]
    registry: String,
    /// How many servers serve at a time.
    #[arg(long, default_value_t = 6)]
    servers: usize,
    /// How often all of them are replaced.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How many calls are made a second, whatever becomes of those before.
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// How long a server serves on after it left the registry.
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    drain: Duration,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let (service, backend) = ("greeter".parse::<ServiceName>()?, discovery::connect(&arguments.registry)?);
    let fleet = Fleet { backend: Arc::clone(&backend), service: service.clone(), drain: arguments.drain };
    let mut servers = Vec::new();
    for number in 1..=arguments.servers {
        servers.push(fleet.deploy(number).await?);
    }

    let channel = BalancedChannel::new(backend, service)?;
    channel.ready(Duration::from_secs(10)).await?;
    let (ended, calls) = mpsc::unbounded_channel();
    let load = tokio::spawn(call(GreeterClient::new(channel.clone()), arguments.rate, ended));
    let watching = tokio::spawn(watch(channel, calls));

    for number in (1..).skip(arguments.servers).take(arguments.rounds * arguments.servers) {
        servers.push(fleet.deploy(number).await?);
        servers.remove(0).stop().await?;
    }
    sleep(Duration::from_secs(1)).await;
    // The calls in flight end by themselves, and the watcher with the last of them.
    load.abort();
    let (calls, failed) = watching.await?;
    for server in servers {
        server.stop().await?;
    }
    println!("{calls} calls, {failed} failed");
    if failed > 0 { Err("a deployment must not fail calls".into()) } else { Ok(()) }
}

/// Where servers are deployed.
struct Fleet {
    backend: Arc<dyn Backend>,
    service: ServiceName,
    drain: Duration,
}

struct Running {
    handle: ServerHandle,
    task: JoinHandle<Result<()>>,
}

impl Fleet {
    async fn deploy(&self, number: usize) -> Result<Running> {
        let id = format!("greeter-{number}").parse()?;
        let server = RegisteredServer::builder(Arc::clone(&self.backend), self.service.clone())
            .instance(move |instance| instance.with_id(id))
            .drain(self.drain)
            .bind("127.0.0.1:0".parse()?)
            .await?;
        let router = Server::builder().add_service(Greeter::new(&number.to_string()).into_service());
        let handle = server.handle();
        let task = tokio::spawn(async move {
            server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)).await?;
            Ok(())
        });
        timeout(Duration::from_secs(10), handle.reached(Stage::Serving)).await?;
        Ok(Running { handle, task })
    }
}

impl Running {
    async fn stop(self) -> Result<()> {
        self.handle.stop();
        self.task.await?
    }
}

/// Calls at a steady rate.
async fn call(client: GreeterClient<BalancedChannel>, rate: u32, ended: mpsc::UnboundedSender<Option<Status>>) {
    let mut ticks = interval(Duration::from_secs(1) / rate.max(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        ticks.tick().await;
        let (mut client, ended) = (client.clone(), ended.clone());
        tokio::spawn(async move {
            let request = GreetRequest { delay_ms: 20, ..GreetRequest::default() };
            // Nobody counts any more where the receiver is gone.
            let _ = ended.send(client.greet(request).await.err());
        });
    }
}

/// Prints a line a second; returns all calls and the failed ones once all have ended.
async fn watch(channel: BalancedChannel, mut ended: mpsc::UnboundedReceiver<Option<Status>>) -> (u64, u64) {
    let (start, mut ticks) = (Instant::now(), interval(Duration::from_secs(1)));
    let ((mut calls, mut failed), (mut all, mut all_failed)) = ((0, 0), (0, 0));
    loop {
        tokio::select! {
            one = ended.recv() => match one {
                Some(None) => calls += 1,
                Some(Some(status)) => {
                    (calls, failed) = (calls + 1, failed + 1);
                    println!("  {status}");
                }
                None => return (all + calls, all_failed + failed),
            },
            _ = ticks.tick() => {
                let seconds = start.elapsed().as_secs();
                let endpoints = channel.endpoints();
                let ready = endpoints.iter().filter(|one| one.state == EndpointState::Ready);
                let ready: BTreeSet<_> = ready.map(|one| one.instance.id().as_str()).collect();
                let ready = ready.into_iter().collect::<Vec<_>>().join(" ");
                println!("{seconds:3} s  {calls:5} calls  {failed:3} failed  {} endpoints: {ready}", endpoints.len());
                (all, all_failed) = (all + calls, all_failed + failed);
                (calls, failed) = (0, 0);
            }
        }
    }
}
