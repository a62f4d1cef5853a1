// A backend of your own: one attempt at following a service. The core adds retries, sharing and
// diffing, so that it can be used like any other resolver.
//
//     cargo run --example backend

use std::time::Duration;

use discovery::{Error, Instance, Resolver, ServiceName};
use discovery_core::backend::{Entry, Feed, Recovered, Source};
use futures::StreamExt;

/// Polls an inventory: here one address made from the service's name.
#[derive(Debug)]
struct Inventory;

impl Inventory {
    async fn read(&self, service: &ServiceName) -> Result<Vec<Entry>, Error> {
        Ok(vec![Entry::Valid(Instance::new(format!("{service}.internal:50051").parse()?))])
    }
}

#[async_trait::async_trait]
impl Source for Inventory {
    async fn follow(&self, service: &ServiceName, feed: Feed) -> Result<(), Error> {
        let mut live = feed.reset(self.read(service).await?);
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            live.replace(self.read(service).await?);
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let resolver = Recovered::new(Inventory);
    let update = resolver.watch(&"payments".parse()?)?.next().await;
    println!("{update:?}");
    Ok(())
}
