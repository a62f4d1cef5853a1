// Follows the instances of a service, as a stream of updates and as a view.
//
//     cargo run --example watch --features memory

use discovery::{Instance, MemoryBackend, Registry, Resolver, ResolverExt, Snapshot, Update};
use futures::StreamExt;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let backend = MemoryBackend::new();
    let service = "payments".parse()?;

    // A stream, for code that reacts to each change. It never ends; dropping it stops it.
    let mut updates = backend.watch(&service)?;
    // A view, for code that needs the current set now and then.
    let mut view = backend.view(&service)?;
    let _registration = backend.register(&service, Instance::new("10.0.7.4:50051".parse()?)).await?;

    let mut set = Snapshot::default();
    while set.is_empty() {
        let update = updates.next().await.ok_or("the stream never ends")?;
        set = set.after(&update);
        match update {
            Update::Reset(set) => println!("the whole set: {set:?}"),
            Update::Change(change) => println!("set: {:?}, removed: {:?}", change.upserts(), change.removes()),
            Update::Lost(error) => println!("the set stays as last known: {}", error.report()),
        }
    }

    while view.current().is_empty() {
        view.changed().await;
    }
    println!("{} instance, stale since {:?}", view.current().len(), view.stale_since());
    Ok(())
}
