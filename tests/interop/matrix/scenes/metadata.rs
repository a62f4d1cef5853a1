//! Weight and metadata change while clients call.

use discovery::{Instance, Snapshot};
use serde_json::json;

use crate::{
    failure::Failure,
    pairing::{Caller, Pairing, Side},
    world::World,
};

/// Rust writes what Go's library must be able to read: the Go client neither panics nor fails a
/// call.
pub(super) async fn by_rust(world: World, pairing: Pairing) -> Result<(), Failure> {
    let mut changes = world.server(Side::Rust, "changes").await?;
    let mut client = world.client(pairing.client).await?;
    client.answered_by(&["changes"]).await?;
    for description in [
        json!({ "weight": 200, "metadata": {} }),
        json!({ "weight": 200, "metadata": { "zone": "a<b>&\"\n\u{2028}ü" } }),
        json!({ "weight": 100, "metadata": { "zone": "b", "version": "7" } }),
        json!({ "weight": 0, "metadata": {} }),
        json!({ "weight": 100, "metadata": {} }),
    ] {
        changes.ask(&format!("update {description}"), "updated").await?;
        client.calls(10).await?;
    }
    // A client that starts now reads the last value rather than follows the changes.
    changes.ask(&format!("update {}", json!({ "weight": 7, "metadata": { "zone": "c" } })), "updated").await?;
    let mut late = world.client(pairing.client).await?;
    late.answered_by(&["changes"]).await?;
    late.stop_unfailed().await?;
    client.stop_unfailed().await
}

/// Go writes each form that its programs use, and a Rust watcher reads the weight from it.
pub(super) async fn by_go(world: World) -> Result<(), Failure> {
    let mut watcher = world.watcher()?;
    let mut changes = world.server(Side::Go, "changes").await?;
    let mut client = world.client(Caller::Rust).await?;
    client.answered_by(&["changes"]).await?;
    let text = |object: serde_json::Value| json!(object.to_string());
    for (metadata, weight, zone) in [
        (json!({ "weight": 40, "zone": "a" }), 40, Some("a")),
        (json!({ "weight": "60" }), 60, None),
        (text(json!({ "weight": 80, "zone": "b" })), 80, Some("b")),
        (text(json!({ "weight": "20", "zone": "c" })), 20, Some("c")),
        (json!({ "zone": "d" }), 100, Some("d")),
    ] {
        changes.ask(&format!("metadata {metadata}"), "updated").await?;
        let is_read = |one: &Instance| one.weight().value() == weight && one.metadata().get("zone") == zone;
        let is_seen = |set: &Snapshot| set.get("changes").is_some_and(|one| is_read(one));
        watcher.until(&format!("the weight {weight} and the zone {zone:?} of {metadata}"), is_seen).await?;
        client.calls(10).await?;
    }
    client.stop_unfailed().await
}
