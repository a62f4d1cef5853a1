//! Go changes the entry of a Rust server behind its back.

use std::time::{Duration, Instant};

use serde_json::Value;
use support::Raw;
use tokio::time::sleep;

use crate::{
    client::Client,
    failure::{Failure, expect},
    pairing::{Pairing, Side},
    server::{Server, ServerSetup},
    world::World,
};

/// The entry is deleted: Rust writes it again.
pub(super) async fn deleted(world: World, pairing: Pairing) -> Result<(), Failure> {
    let stays = world.server(Side::Rust, "stays").await?;
    let deleted = world.server(Side::Rust, "deleted").await?;
    let mut client = world.client(pairing.client).await?;
    client.wait(pairing.client.calls_of(2)).await?;

    world.administer("delete", &["--id", "deleted"]).await?;
    let start = Instant::now();
    until_own(&world, &deleted).await?;
    world.ledger.note(format!("written again after {} ms", start.elapsed().as_millis()));
    is_complete(&world, pairing, client, stays, "deleted").await
}

/// The entry is overwritten without a lease: Rust writes its own again.
pub(super) async fn overwritten(world: World, pairing: Pairing) -> Result<(), Failure> {
    let stays = world.server(Side::Rust, "stays").await?;
    let overwritten = world.server(Side::Rust, "overwritten").await?;
    let mut client = world.client(pairing.client).await?;
    client.wait(pairing.client.calls_of(2)).await?;

    world.administer("put", &["--id", "overwritten", "--addr", &stays.address]).await?;
    let start = Instant::now();
    until_own(&world, &overwritten).await?;
    world.ledger.note(format!("healed after {} ms", start.elapsed().as_millis()));
    is_complete(&world, pairing, client, stays, "overwritten").await
}

/// A Go server registers under the same key: Rust is superseded, and neither writes the entry again
/// nor deletes it when it stops.
pub(super) async fn taken_over(world: World, pairing: Pairing) -> Result<(), Failure> {
    let mut former = world.server(Side::Rust, "former").await?;
    let mut client = world.client(pairing.client).await?;
    client.answered_by(&["former"]).await?;

    let setup = ServerSetup { id: Some("former".to_owned()), ..ServerSetup::default() };
    let owner = Server::start(&world, Side::Go, "owner", setup).await?;
    let superseded = former.process.event("superseded").await?.at_unix_ns;
    world.ledger.note_time("superseded after", owner.registered_ns, superseded);
    client.answered_by(&["owner"]).await?;
    former.stop_unregistered().await?;
    let (value, lease) = entry(&mut world.raw().await, &world, "former").await?;
    expect(lease != 0 && value["Addr"] == *owner.address, || {
        format!("the entry is no longer the new owner's: {value} with the lease {lease:x}")
    })?;
    client.calls(20).await?;
    client.stop_unfailed().await
}

/// Waits until the entry is the server's own again, under a lease.
async fn until_own(world: &World, server: &Server) -> Result<(), Failure> {
    let start = Instant::now();
    let mut raw = world.raw().await;
    loop {
        let found = match entry(&mut raw, world, &server.name).await {
            Ok((value, lease)) if lease != 0 && value["Addr"] == *server.address => return Ok(()),
            Ok((value, lease)) => format!("{value} with the lease {lease:x}"),
            Err(error) => error.to_string(),
        };
        expect(start.elapsed() < SOON, || format!("the entry is not written again within {SOON:?}: {found}"))?;
        sleep(Duration::from_millis(5)).await;
    }
}

/// Reads an entry and its lease, 0 if it has none.
async fn entry(raw: &mut Raw, world: &World, id: &str) -> Result<(Value, i64), Failure> {
    let key = world.key(id);
    let (value, lease) = raw.entry(&key).await.ok_or_else(|| format!("there is no key {key}"))?;
    Ok((serde_json::from_slice(&value)?, lease))
}

/// The restored entry serves, once the other server has left.
async fn is_complete(
    world: &World,
    pairing: Pairing,
    mut client: Client,
    mut stays: Server,
    name: &str,
) -> Result<(), Failure> {
    if pairing.client.spreads() {
        client.answered_by(&["stays", name]).await?;
    }
    let left = stays.stop().await?;
    client.answered_by(&[name]).await?;
    world.ledger.note_time("other left after", left, client.last_answer("stays"));
    client.stop_unfailed().await
}

const SOON: Duration = Duration::from_secs(15);
