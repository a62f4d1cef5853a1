//! Servers come and go gracefully: no call fails.

use crate::{
    failure::Failure,
    pairing::{Pairing, Side},
    server::{Server, ServerSetup},
    world::World,
};

/// Another server starts, and the first one stops.
pub(super) async fn start_and_stop(world: World, pairing: Pairing) -> Result<(), Failure> {
    let mut first = world.server(pairing.server, "first").await?;
    let mut client = world.client(pairing.client).await?;
    client.answered_by(&["first"]).await?;

    let second = world.server(pairing.server, "second").await?;
    if pairing.client.spreads() {
        world.ledger.note_time("new seen after", second.registered_ns, client.seen("second").await?);
        client.answered_by(&["first", "second"]).await?;
    }

    let left = first.stop().await?;
    client.answered_by(&["second"]).await?;
    world.ledger.note_time("old left after", left, client.last_answer("first"));
    client.stop_unfailed().await
}

/// A server deregisters, and the same key is there again: in Go from the same process, in Rust from
/// another process with the same id at another address.
pub(super) async fn same_key(world: World, pairing: Pairing) -> Result<(), Failure> {
    let mut stays = world.server(pairing.server, "stays").await?;
    let setup = ServerSetup { id: Some("returns".to_owned()), ..ServerSetup::default() };
    let mut before = Server::start(&world, pairing.server, "before", setup.clone()).await?;
    let mut client = world.client(pairing.client).await?;
    client.wait(pairing.client.calls_of(2)).await?;

    let mut successor = None;
    let (returned, name) = match pairing.server {
        Side::Go => {
            before.ask("deregister", "deregistered").await?;
            client.answered_by(&["stays"]).await?;
            (before.ask("register", "registered").await?.at_unix_ns, "before")
        }
        Side::Rust => {
            // The former process still serves when the other one registers.
            before.leave().await?;
            let after = successor.insert(Server::start(&world, pairing.server, "after", setup).await?);
            before.process.event("stopped").await?;
            (after.registered_ns, "after")
        }
    };
    if pairing.client.spreads() {
        if pairing.server == Side::Rust {
            world.ledger.note_time("seen after", returned, client.seen(name).await?);
        }
        client.answered_by(&["stays", name]).await?;
    }
    // What remains must be enough.
    stays.stop().await?;
    client.answered_by(&[name]).await?;
    client.stop_unfailed().await
}
