//! The versions that meet in a generation.

use std::{path::PathBuf, sync::Arc};

use tokio::process::Command;

use crate::{Named, failure::Failure, ledger::Ledger, process::Process};

/// Returns the versions of Go, its libraries and etcd, as one line.
pub(crate) async fn of(generation: &Named) -> Result<String, Failure> {
    let mut peer = Command::new(&generation.peer);
    peer.arg("version");
    let version = Process::start("peer version", peer, &Arc::new(Ledger::new()))?.event("version").await?;
    let default = || std::env::var_os("ETCD").map_or_else(|| PathBuf::from("etcd"), PathBuf::from);
    let etcd = generation.etcd.clone().unwrap_or_else(default);
    let output = Command::new(&etcd).arg("--version").output().await;
    let output = output.map_err(|error| format!("{} cannot be run: {error}", etcd.display()))?;
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let etcd = output.lines().find_map(|line| line.strip_prefix("etcd Version: ")).unwrap_or("of unknown version");
    Ok(format!(
        "{}, grpc-go {}, etcd's client {}, on etcd {etcd}",
        version.text("go"),
        version.text("grpc"),
        version.text("etcd")
    ))
}
