//! Keys below a prefix.

use crate::{
    client::{Client, ClientSetup},
    failure::{Failure, expect},
    pairing::{Caller, Pairing, Side},
    world::World,
};

/// With a prefix, a Go client names the service as its `:authority`.
pub(super) async fn play(world: World, pairing: Pairing) -> Result<(), Failure> {
    let world = World { prefix: PREFIX, ..world };
    let _server = world.server(pairing.server, "only").await?;
    let setup = ClientSetup { authority: Some("greeter"), ..ClientSetup::default() };
    let mut client = Client::start(&world, pairing.client, setup).await?;
    client.calls(50).await?;
    client.stop_unfailed().await
}

/// Without that, grpc-go sends the escaped path, such as `prod%2Fgreeter`, which is no authority to
/// Rust's HTTP/2: it resets the stream.
pub(super) async fn without_authority(world: World) -> Result<(), Failure> {
    let world = World { prefix: PREFIX, ..world };
    let _server = world.server(Side::Rust, "only").await?;
    let mut client = world.client(Caller::RoundRobin).await?;
    let report = client.calls(20).await?;
    expect(report.by_server.is_empty(), || {
        "it works now: remove this scene, and the advice to set an authority from the documentation".to_owned()
    })?;
    let is_known = |error: &String| error.contains("PROTOCOL_ERROR") || error.starts_with("Internal");
    expect(report.errors.keys().all(is_known), || format!("it fails otherwise than known: {report}"))?;
    let error = report.errors.keys().next().cloned().unwrap_or_default();
    world.ledger.note(format!("fails as known: {error}"));
    client.stop().await
}

/// A dot instead of the slash needs no authority.
pub(super) async fn in_the_name(world: World) -> Result<(), Failure> {
    let world = World { service: format!("{PREFIX}.{}", world.service), ..world };
    let _server = world.server(Side::Rust, "only").await?;
    let mut client = world.client(Caller::RoundRobin).await?;
    client.calls(50).await?;
    client.stop_unfailed().await
}

const PREFIX: &str = "prod";
