//! Etcd restarts under load: no call fails, and all registrations come back.

use std::{sync::Arc, time::Duration};

use support::Etcd;
use tokio::{
    task::{block_in_place, spawn_blocking},
    time::sleep,
};

use crate::{
    failure::Failure,
    pairing::{Caller, Side},
    server::Server,
    world::World,
};

pub(super) async fn etcd_restarts(world: World) -> Result<(), Failure> {
    let etcd = Arc::new(Etcd::start().await);
    let world = World { etcd: etcd.address(), ..world };
    let go = World { service: format!("{}-go", world.service), ..world.clone() };
    let rust = World { service: format!("{}-rust", world.service), ..world.clone() };
    let mut servers = Vec::new();
    for name in ["one", "two"] {
        servers.push(go.server(Side::Go, name).await?);
        servers.push(rust.server(Side::Rust, name).await?);
    }
    let mut clients =
        [go.client(Caller::Rust).await?, rust.client(Caller::RoundRobin).await?, rust.client(Caller::PickFirst).await?];
    for client in &mut clients {
        client.calls(20).await?;
    }

    // Another thread waits, because the other scenes go on.
    let stopping = Arc::clone(&etcd);
    spawn_blocking(move || stopping.stop(0)).await?;
    sleep(Duration::from_secs(2)).await;
    etcd.restart(0).await;

    for world in [&go, &rust] {
        world.watcher()?.until("both servers", |set| set.len() == 2).await?;
    }
    // Longer than the leases, so that what has not come back is gone.
    sleep(world.ttl + Duration::from_secs(1)).await;
    for world in [&go, &rust] {
        world.watcher()?.until("both servers, after a lease's time", |set| set.len() == 2).await?;
    }
    // Those who followed the services before follow them still.
    let new = [go.server(Side::Go, "new").await?, rust.server(Side::Rust, "new").await?];
    for client in clients.iter_mut().filter(|client| client.caller.spreads()) {
        let seen = client.seen("new").await?;
        let registered = if client.caller == Caller::Rust { &new[0] } else { &new[1] };
        world.ledger.note_time(&format!("new seen by {} after", client.caller), registered.registered_ns, seen);
    }
    for client in &mut clients {
        client.stop_unfailed().await?;
    }
    drop::<Vec<Server>>(servers);
    // Its drop waits for the process.
    block_in_place(|| drop(etcd));
    Ok(())
}
