//! Three Go servers and three Rust servers behind a client of each language.

use std::time::Duration;

use crate::{
    client::{Client, ClientSetup},
    failure::{Failure, expect},
    pairing::{Caller, Side},
    server::Server,
    world::World,
};

pub(super) async fn play(world: World) -> Result<(), Failure> {
    let world = World { ttl: Duration::from_secs(2), ..world };
    let mut servers = Vec::new();
    for number in 1..=3 {
        for side in SIDES {
            servers.push(world.server(side, &format!("{side}-{number}")).await?);
        }
    }
    let setup = ClientSetup { concurrency: CONCURRENCY, interval_ms: 5, ..ClientSetup::default() };
    let mut clients =
        [Client::start(&world, Caller::Rust, setup).await?, Client::start(&world, Caller::RoundRobin, setup).await?];
    for client in &mut clients {
        client.answered_by(&names(&servers)).await?;
    }
    for client in &mut clients {
        shares_are_even(&world, client, servers.len()).await?;
    }

    let killed = [take(&mut servers, Side::Go)?, take(&mut servers, Side::Rust)?];
    for mut server in killed {
        server.kill().await?;
    }
    let mut failed = Vec::new();
    for client in &mut clients {
        client.answered_by(&names(&servers)).await?;
        client.calls(50).await?;
        // Each caller may have had a call in flight at each kill.
        expect(client.total.failed <= 2 * CONCURRENCY as u64, || format!("{}: {}", client.caller, client.total))?;
        failed.push(client.total.failed);
    }
    world.watcher()?.until("the end of the killed servers' entries", |set| set.len() == servers.len()).await?;

    for side in SIDES {
        let mut old = take(&mut servers, side)?;
        servers.push(world.server(side, &format!("{side}-new")).await?);
        old.stop().await?;
    }
    for (client, failed) in clients.iter_mut().zip(failed) {
        client.answered_by(&names(&servers)).await?;
        client.stop().await?;
        expect(client.total.failed == failed, || {
            format!("{}: calls failed that were not in flight at a kill: {}", client.caller, client.total)
        })?;
    }
    Ok(())
}

/// Each server gets the same share of the calls, up to a quarter.
async fn shares_are_even(world: &World, client: &mut Client, servers: usize) -> Result<(), Failure> {
    client.report().await?;
    let report = client.calls(250 * servers as u64).await?;
    let mean = report.calls as f64 / servers as f64;
    let deviation = |calls: &u64| (*calls as f64 / mean - 1.0).abs();
    let most = report.by_server.values().map(deviation).fold(0.0, f64::max);
    world.ledger.note(format!("shares of {} within {:.0} %", client.caller, most * 100.0));
    expect(report.by_server.len() == servers && most <= 0.25, || {
        format!("{}: the shares are uneven: {report}", client.caller)
    })
}

fn names(servers: &[Server]) -> Vec<&str> {
    servers.iter().map(|server| server.name.as_str()).collect()
}

/// Takes the first server of a side.
fn take(servers: &mut Vec<Server>, side: Side) -> Result<Server, Failure> {
    let place = servers.iter().position(|server| server.side == side).ok_or("there is none of this side")?;
    Ok(servers.remove(place))
}

const SIDES: [Side; 2] = [Side::Go, Side::Rust];
const CONCURRENCY: usize = 4;
