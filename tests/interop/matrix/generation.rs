//! Plays all scenes with the Go program of one generation, on one etcd.

use std::{path::PathBuf, sync::Arc, time::Duration};

use support::Etcd;
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

use crate::{
    failure::Failure,
    ledger::{Ledger, Line},
    row::Row,
    scenes::{self, Scene},
    world::{Layout, World},
};

/// Plays all scenes and prints a row as JSON after each.
pub(crate) async fn play(name: &str, peer: PathBuf) -> Result<(), Failure> {
    let etcd = Etcd::start().await;
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut playing = JoinSet::new();
    for (place, scene) in scenes::all().into_iter().enumerate() {
        let stage = Stage {
            generation: name.to_owned(),
            peer: peer.clone(),
            etcd: etcd.address(),
            // Unique, because the scenes share one etcd. None is the beginning of another, because
            // older Go clients would follow both.
            service: format!("greeter-{place:02}"),
        };
        let permits = Arc::clone(&permits);
        playing.spawn(async move {
            let _permit = permits.acquire_owned().await;
            stage.play(scene).await
        });
    }
    while let Some(row) = playing.join_next().await {
        println!("{}", serde_json::to_string(&row?)?);
    }
    Ok(())
}

struct Stage {
    generation: String,
    peer: PathBuf,
    etcd: String,
    service: String,
}

impl Stage {
    async fn play(self, scene: Scene) -> Row {
        let ledger = Arc::new(Ledger::new());
        let world = World {
            generation: self.generation.clone(),
            peer: self.peer,
            etcd: self.etcd,
            layout: Layout::Naming,
            prefix: "",
            service: self.service,
            ttl: TTL,
            ledger: Arc::clone(&ledger),
        };
        // A task of its own, so that a panic is a broken promise as well.
        let mut playing = JoinSet::new();
        playing.spawn((scene.play)(world));
        let broken = match timeout(LIMIT, playing.join_next()).await {
            Ok(Some(Ok(Ok(())))) | Ok(None) => None,
            Ok(Some(Ok(Err(failure)))) => Some(failure.to_string()),
            Ok(Some(Err(panic))) => Some(panic.to_string()),
            Err(_) => Some(format!("it is not over within {LIMIT:?}")),
        };
        let pages = ledger.pages();
        Row {
            generation: self.generation,
            scene: scene.name.to_owned(),
            direction: scene.direction,
            calls: pages.calls,
            failed: pages.failed,
            time: ledger.time(),
            notes: pages.notes,
            lines: if broken.is_some() { pages.lines.iter().map(Line::to_string).collect() } else { Vec::new() },
            broken,
        }
    }
}

/// How many scenes run at a time. Most of them wait rather than compute.
const AT_ONCE: usize = 6;
/// How long a scene may take.
const LIMIT: Duration = Duration::from_secs(40);
const TTL: Duration = Duration::from_secs(5);
