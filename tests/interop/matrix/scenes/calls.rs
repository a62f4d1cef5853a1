//! gRPC's four kinds of calls.

use crate::{
    failure::{Failure, expect},
    pairing::Pairing,
    world::World,
};

pub(super) async fn play(world: World, pairing: Pairing) -> Result<(), Failure> {
    let _server = world.server(pairing.server, "only").await?;
    let mut client = world.client(pairing.client).await?;
    client.calls(100).await?;
    client.stop_unfailed().await?;
    for kind in ["unary", "server_stream", "client_stream", "bidi"] {
        let count = client.total.by_kind.get(kind).copied().unwrap_or_default();
        expect(count >= 20, || format!("only {count} calls are of the kind {kind}"))?;
    }
    Ok(())
}
