//! A server that is registered for as long as it serves.
//!
//! ```text
//! cargo run --example greeter-server --features etcd -- greeter-1
//! ```
//!
//! Ctrl-C or SIGTERM stops it in order: it deregisters, serves on while clients hear of that, and shuts down.

use std::{error::Error, net::SocketAddr, pin::pin, time::Duration};

use clap::Parser;
use discovery::{Address, Instance, Registry, ServiceName};
use greeter::Greeter;
use tokio::{net::TcpListener, sync::oneshot, time};
use tonic::transport::server::{Server, TcpIncoming};

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

    let listener = TcpListener::bind(listen).await?;
    let address = match advertise {
        Some(address) => address,
        None => listener.local_addr()?.try_into()?,
    };
    let (shutdown, asked) = oneshot::channel::<()>();
    let mut serving = tokio::spawn(
        Server::builder()
            .add_service(Greeter::new(&name).into_service())
            .serve_with_incoming_shutdown(TcpIncoming::from(listener), async { asked.await.unwrap_or_default() }),
    );

    // Registered once it listens, not before.
    println!("{name} listens at {address}, and registers");
    let backend = discovery::connect(&registry)?;
    let mut registration = backend.register(&service, Instance::new(address.clone())).await?;
    println!("{name} serves {service} at {address}");

    let mut stop = pin!(asked_to_stop());
    loop {
        tokio::select! {
            asked = &mut stop => break asked?,
            ended = &mut serving => return Ok(ended??),
            // The registration heals itself; this only tells how it stands.
            status = registration.changed() => println!("{name}: {status:?}"),
        }
    }

    println!("{name} stops");
    if let Err(error) = registration.deregister().await {
        eprintln!("{name}: {}", error.report());
    }
    time::sleep(Duration::from_millis(drain)).await;
    // Nobody listens where the server has ended before.
    let _ = shutdown.send(());
    // A client that never ends its call must not keep the process.
    time::timeout(Duration::from_secs(10), serving).await???;
    println!("{name} stopped");
    Ok(())
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
