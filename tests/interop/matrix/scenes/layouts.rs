//! Other layouts than that of etcd's library: Go and Rust servers and clients beside one another.

use crate::{
    client::{Client, ClientSetup},
    failure::Failure,
    pairing::{Caller, Side},
    world::{Layout, World},
};

/// The founding article's: the key `<PSM>/<IP>`, and both again in the value.
pub(super) async fn article(world: World) -> Result<(), Failure> {
    play(World { layout: Layout::Article, ..world }).await
}

/// The address alone as the value, and as the id.
pub(super) async fn plain(world: World) -> Result<(), Failure> {
    play(World { layout: Layout::Plain, prefix: "prod", ..world }).await
}

async fn play(world: World) -> Result<(), Failure> {
    let mut go = world.server(Side::Go, "go").await?;
    let mut rust = world.server(Side::Rust, "rust").await?;
    let setup = ClientSetup { authority: Some("greeter"), ..ClientSetup::default() };
    let mut clients = Vec::new();
    for caller in [Caller::Rust, Caller::RoundRobin] {
        let mut client = Client::start(&world, caller, setup).await?;
        client.answered_by(&["go", "rust"]).await?;
        clients.push(client);
    }

    // A new server of each, seen by both clients; then the old ones stop gracefully.
    let new = [world.server(Side::Go, "new-go").await?, world.server(Side::Rust, "new-rust").await?];
    for client in &mut clients {
        for server in &new {
            let what = format!("{} seen by {} after", server.name, client.caller);
            world.ledger.note_time(&what, server.registered_ns, client.seen(&server.name).await?);
        }
    }
    go.stop().await?;
    rust.stop().await?;
    for client in &mut clients {
        client.answered_by(&["new-go", "new-rust"]).await?;
        client.stop_unfailed().await?;
    }
    Ok(())
}
