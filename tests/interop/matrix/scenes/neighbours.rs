//! A service whose name begins with the name of another.

use crate::{
    failure::{Failure, expect},
    pairing::{Caller, Side},
    world::World,
};

/// A Rust client of `order` never calls a server of `order-history`.
pub(super) async fn to_rust(world: World) -> Result<(), Failure> {
    let neighbour = World { service: format!("{}-history", world.service), ..world.clone() };
    let _server = world.server(Side::Go, "order").await?;
    let _other = neighbour.server(Side::Go, "history").await?;
    let mut client = world.client(Caller::Rust).await?;
    client.calls(50).await?;
    client.stop_unfailed().await?;
    expect(client.total.is_from(&["order"]), || format!("{}: {}", client.caller, client.total))
}

/// A Go client with etcd's library 3.4 does, because that follows all keys that begin with the
/// target, without a slash after it. Later ones do not.
pub(super) async fn to_go(world: World) -> Result<(), Failure> {
    let neighbour = World { service: format!("{}-history", world.service), ..world.clone() };
    let _server = world.server(Side::Rust, "order").await?;
    let _other = neighbour.server(Side::Rust, "history").await?;
    let mut client = world.client(Caller::RoundRobin).await?;
    client.calls(50).await?;
    client.stop_unfailed().await?;
    if world.generation != "bookworm" {
        return expect(client.total.is_from(&["order"]), || format!("{}: {}", client.caller, client.total));
    }
    expect(client.total.is_from(&["history", "order"]), || {
        format!(
            "it does not call the other one now: expect that here, and remove the documentation's warning. {}",
            client.total
        )
    })?;
    world.ledger.note("calls both, as known");
    Ok(())
}
