//! A server is killed: only the calls that were in flight may fail.

use std::time::Duration;

use crate::{
    client::{Client, ClientSetup},
    failure::{Failure, expect},
    pairing::Pairing,
    server::Server,
    world::World,
};

pub(super) async fn play(world: World, pairing: Pairing) -> Result<(), Failure> {
    let world = World { ttl: Duration::from_secs(2), ..world };
    let one = world.server(pairing.server, "one").await?;
    let other = world.server(pairing.server, "other").await?;
    let mut watcher = world.watcher()?;
    watcher.until("two instances", |set| set.len() == 2).await?;
    let setup = ClientSetup { concurrency: CONCURRENCY, interval_ms: 5, ..ClientSetup::default() };
    let mut client = Client::start(&world, pairing.client, setup).await?;
    client.wait(pairing.client.calls_of(2)).await?;

    // The one that is called, if only one is.
    let (mut dying, living) = dying_first([one, other], &mut client).await?;
    dying.kill().await?;
    client.answered_by(&[&living.name]).await?;
    client.calls(50).await?;
    let failed = client.total.failed;
    world.ledger.note(format!("at most {CONCURRENCY} in flight at the kill"));
    expect(failed <= CONCURRENCY as u64, || format!("more calls failed than were in flight: {}", client.total))?;

    // The entry is still there, and then it ends with its lease.
    watcher.until("the end of the killed server's entry", |set| set.len() == 1).await?;
    client.calls(50).await?;
    client.stop().await?;
    expect(client.total.failed == failed, || format!("calls failed that began after the kill: {}", client.total))
}

async fn dying_first([one, other]: [Server; 2], client: &mut Client) -> Result<(Server, Server), Failure> {
    let called = client.report().await?.by_server;
    Ok(if called.contains_key(&one.name) { (one, other) } else { (other, one) })
}

const CONCURRENCY: usize = 4;
