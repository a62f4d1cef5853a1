//! IPv6 addresses and names, written by one language and dialled by the other.

use std::net::{Ipv6Addr, TcpListener};

use crate::{
    failure::{Failure, expect},
    pairing::Pairing,
    server::{Server, ServerSetup},
    world::World,
};

pub(super) async fn play(world: World, pairing: Pairing) -> Result<(), Failure> {
    let named = ServerSetup { host: Some("localhost"), ..ServerSetup::default() };
    let mut named = Server::start(&world, pairing.server, "named", named).await?;
    is_at(&named, "localhost:")?;
    let mut client = world.client(pairing.client).await?;
    client.answered_by(&["named"]).await?;

    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        world.ledger.note("[::1] skipped: this machine has no IPv6");
        return client.stop_unfailed().await;
    }
    let v6 = ServerSetup { listen: "[::1]:0", ..ServerSetup::default() };
    let v6 = Server::start(&world, pairing.server, "v6", v6).await?;
    is_at(&v6, "[::1]:")?;
    named.stop().await?;
    client.answered_by(&["v6"]).await?;
    client.stop_unfailed().await
}

fn is_at(server: &Server, host: &str) -> Result<(), Failure> {
    expect(server.address.starts_with(host), || format!("the address is {} instead of {host}PORT", server.address))
}
