//! Registers a process that is not a tonic server, and follows the status of the registration.
//!
//! ```sh
//! cargo run --example register --features memory
//! ```

use discovery::{Instance, MemoryBackend, Registry, Status, Weight};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // In production: discovery::open("etcd://10.0.0.1:2379/prod?ttl=15s")?
    let backend = MemoryBackend::new();
    let service = "payments".parse()?;

    // It stays registered, whatever happens to the registry, until it is deregistered or dropped.
    let instance = Instance::new("10.0.7.4:50051".parse()?).with_id("payments-1".parse()?);
    let registration = backend.register(&service, instance).await?;

    // The memory backend simulates faults: this process seems frozen for longer than its lease.
    let mut statuses = registration.statuses();
    backend.expire(&service, "payments-1");
    while let Some(status) = statuses.changed().await {
        match status {
            Status::Lost { error, .. } => println!("not registered: {}", error.report()),
            Status::Registered { .. } => break,
            _ => return Err("somebody else took over".into()),
        }
    }
    println!("registered again");

    // Half of the usual share of requests, from now on.
    let half = Weight::new(50)?;
    registration.update(|instance| instance.with_weight(half)).await?;
    registration.deregister().await?;
    Ok(())
}
