//! Real Go programs and our servers and clients in one real etcd: a matrix of scenes, each of which
//! asserts a promise. `make interop` builds the Go programs and runs it.
//!
//! ```text
//! interop bookworm=PEER trixie=PEER,ETCD
//! ```
//!
//! `PEER` is the Go program of a generation, and `ETCD` the etcd on which its scenes run, by
//! default the one in `PATH`. It prints a table and fails if a promise is broken.

mod client;
mod failure;
mod generation;
mod ledger;
mod pairing;
mod process;
mod report;
mod row;
mod rust;
mod scenes;
mod server;
mod versions;
mod watcher;
mod world;

use std::{
    env,
    path::PathBuf,
    process::{ExitCode, Stdio},
    time::Instant,
};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    task::JoinSet,
};

use crate::{failure::Failure, row::Row};

/// A generation as the command line names it.
#[derive(Clone, Debug)]
struct Named {
    name: String,
    peer: PathBuf,
    etcd: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        // This program plays all parts but those of the Go programs.
        ["serve", options] => rust::run(options, rust::serve::serve).await.map(|()| true),
        ["call", options] => rust::run(options, rust::call::call).await.map(|()| true),
        ["generation", name, peer] => generation::play(name, peer.into()).await.map(|()| true),
        _ => match arguments.iter().map(|argument| Named::parse(argument)).collect::<Option<Vec<_>>>() {
            Some(generations) if !generations.is_empty() => matrix(generations).await,
            _ => Err(USAGE.into()),
        },
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("interop: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Plays the scenes of all generations at the same time and prints the table. Returns whether all
/// promises hold.
async fn matrix(generations: Vec<Named>) -> Result<bool, Failure> {
    let start = Instant::now();
    for generation in &generations {
        println!("{}: {}", generation.name, versions::of(generation).await?);
    }
    let mut playing = JoinSet::new();
    for (place, generation) in generations.into_iter().enumerate() {
        playing.spawn(async move { (place, generation.play().await) });
    }
    let mut played = playing.join_all().await;
    played.sort_by_key(|(place, _)| *place);
    let mut rows = Vec::new();
    for (_, mut generation) in played {
        generation.sort_by(|a: &Row, b| (&a.scene, &a.direction).cmp(&(&b.scene, &b.direction)));
        rows.extend(generation);
    }
    println!();
    row::print(&rows);
    let broken = rows.iter().filter(|row| row.broken.is_some()).count();
    println!("\n{} scenes in {:.0?}, {broken} of them broken", rows.len(), start.elapsed());
    Ok(broken == 0)
}

impl Named {
    /// Parses `NAME=PEER` or `NAME=PEER,ETCD`.
    fn parse(argument: &str) -> Option<Self> {
        let (name, paths) = argument.split_once('=')?;
        let (peer, etcd) = paths.split_once(',').map_or((paths, None), |(peer, etcd)| (peer, Some(etcd)));
        Some(Self { name: name.to_owned(), peer: peer.into(), etcd: etcd.map(PathBuf::from) })
    }

    /// Plays the scenes. If they end early, that is another broken row.
    async fn play(self) -> Vec<Row> {
        let mut rows = Vec::new();
        if let Err(error) = self.play_into(&mut rows).await {
            rows.push(Row::of_all_scenes(&self.name, &error));
        }
        rows
    }

    /// Plays the scenes in a process of their own, because etcd is named by the environment.
    async fn play_into(&self, rows: &mut Vec<Row>) -> Result<(), Failure> {
        let mut command = Command::new(env::current_exe()?);
        command.arg("generation").arg(&self.name).arg(&self.peer).stdout(Stdio::piped()).kill_on_drop(true);
        if let Some(etcd) = &self.etcd {
            command.env("ETCD", etcd);
        }
        let mut child = command.spawn()?;
        if let Some(stdout) = child.stdout.take() {
            let mut lines = BufReader::new(stdout).lines();
            while let Some(line) = lines.next_line().await? {
                let row: Row = serde_json::from_str(&line)?;
                let result = if row.broken.is_some() { "BROKEN" } else { "ok" };
                eprintln!("{}: {}, {}: {result}", row.generation, row.scene, row.direction);
                rows.push(row);
            }
        }
        let status = child.wait().await?;
        if status.success() { Ok(()) } else { Err(format!("the scenes ended early: {status}").into()) }
    }
}

const USAGE: &str = "usage: interop bookworm=PEER[,ETCD] [trixie=PEER[,ETCD]]; scripts/interop-go prints the paths";
