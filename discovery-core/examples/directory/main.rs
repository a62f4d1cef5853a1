//! Registers this process in a directory, and prints the other instances.
//!
//! ```text
//! cargo run --example directory -- /tmp/registry payments 127.0.0.1:50051
//! ```

#[expect(dead_code, reason = "the conformance tests use the rest")]
mod backend;

use std::{path::Path, time::Duration};

use backend::Directory;
use discovery_core::{Instance, Registry, Resolver};
use futures::StreamExt;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(root), Some(service), Some(address)) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: directory <root> <service> <host:port>".into());
    };
    Directory::create(Path::new(&root))?;
    let directory = Directory::open(Path::new(&root), Duration::from_secs(5))?;
    let service = service.parse()?;
    let registration = directory.register(&service, Instance::new(address.parse()?)).await?;
    println!("{} is registered; its status is {:?}", registration.id(), registration.status());
    let mut updates = directory.watch(&service)?;
    while let Some(update) = updates.next().await {
        println!("{update:?}");
    }
    Ok(())
}
