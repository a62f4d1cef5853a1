//! A server that is registered for as long as it serves.
//!
//! ```text
//! cargo run --example greeter-server --features etcd,server -- greeter-1
//! ```
//!
//! Ctrl-C or SIGTERM stops it gracefully: it deregisters, keeps serving until clients have noticed,
//! and shuts down.

use std::{error::Error, net::SocketAddr, time::Duration};

use clap::Parser;
use discovery::{Address, RegisteredServer, ServiceName, server::Stage};
use greeter::Greeter;
use tonic::transport::Server;

#[derive(Parser)]
struct Arguments {
    /// The name that it puts into its answers.
    name: String,
    /// Where it registers.
    #[arg(long, default_value = "etcd://127.0.0.1:2379/example?ttl=5s")]
    registry: String,
    /// The service that it serves.
    #[arg(long, default_value = "greeter")]
    service: ServiceName,
    /// Where it listens.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where others reach it, if not where it listens.
    #[arg(long)]
    advertise: Option<Address>,
    /// For how many milliseconds it serves on after it deregistered.
    #[arg(long, default_value_t = 500)]
    drain: u64,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let Arguments { name, registry, service, listen, advertise, drain } = Arguments::parse();

    let backend = discovery::open(&registry)?;
    let mut builder =
        RegisteredServer::builder(backend, service.clone()).drain_time(Duration::from_millis(drain)).stop_on_signals();
    if let Some(address) = advertise {
        builder = builder.advertise(address);
    }
    let server = builder.bind(listen).await?;
    let handle = server.handle();
    let address = server.instance().address().clone();
    println!("{name} listens at {address}, and registers");

    let life = name.clone();
    tokio::spawn(async move {
        handle.reached(Stage::Serving).await;
        println!("{life} serves {service} at {address}");
        handle.reached(Stage::Draining).await;
        println!("{life} leaves");
    });
    let router = Server::builder().add_service(Greeter::new(&name).into_service());
    let stopped = server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)).await?;
    if stopped.aborted_connections > 0 {
        println!(
            "{name}: {} connections outlasted the shutdown timeout, and were aborted",
            stopped.aborted_connections
        );
    }
    println!("{name} stopped");
    Ok(())
}
