//! A server in its own process, in Go or Rust.

use crate::{
    failure::Failure,
    pairing::Side,
    process::{Event, Process},
    rust::serve::ServeOptions,
    world::{Layout, World},
};

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) side: Side,
    /// Its name in its answers.
    pub(crate) name: String,
    /// Its address as registered.
    pub(crate) address: String,
    /// When etcd had acknowledged its entry.
    pub(crate) registered_ns: u64,
    pub(crate) process: Process,
}

/// How a server is started.
#[derive(Clone, Debug)]
pub(crate) struct ServerSetup {
    /// By default the name, or the address where the layout has no other ids.
    pub(crate) id: Option<String>,
    pub(crate) listen: &'static str,
    /// The host to register with the listener's port, by default the listener's.
    pub(crate) host: Option<&'static str>,
}

impl Default for ServerSetup {
    fn default() -> Self {
        Self { id: None, listen: "127.0.0.1:0", host: None }
    }
}

impl Server {
    /// Starts a server and waits until it is registered.
    pub(crate) async fn start(world: &World, side: Side, name: &str, setup: ServerSetup) -> Result<Self, Failure> {
        let id = setup.id.or_else(|| (world.layout == Layout::Naming).then(|| name.to_owned()));
        let command = match side {
            Side::Go => {
                let mut peer = world.peer("serve");
                peer.args(["--name", name, "--listen", setup.listen, "--ttl", &format!("{}s", world.ttl.as_secs())]);
                peer.args(id.iter().flat_map(|id| ["--id", id]));
                peer.args(setup.host.iter().flat_map(|host| ["--advertise".to_owned(), format!("{host}:0")]));
                peer
            }
            Side::Rust => {
                let options = ServeOptions {
                    registry: world.url(),
                    service: world.service.clone(),
                    name: name.to_owned(),
                    id,
                    listen: setup.listen.to_owned(),
                    host: setup.host.map(str::to_owned),
                    drain_ms: DRAIN_MS,
                };
                World::rust("serve", serde_json::to_string(&options)?)?
            }
        };
        let mut process = Process::start(&format!("{side} server {name}"), command, &world.ledger)?;
        let registered = process.event("registered").await?;
        let address = registered.text("address").to_owned();
        Ok(Self { side, name: name.to_owned(), address, registered_ns: registered.at_unix_ns, process })
    }

    /// Sends a command and waits for its answer.
    pub(crate) async fn ask(&mut self, command: &str, answer: &str) -> Result<Event, Failure> {
        self.process.forget(answer);
        self.process.send(command).await?;
        self.process.event(answer).await
    }

    /// Stops gracefully: it deregisters, and ends once the calls in flight have completed. Returns
    /// when etcd had acknowledged that its entry is gone.
    pub(crate) async fn stop(&mut self) -> Result<u64, Failure> {
        let left = self.leave().await?;
        self.process.event("stopped").await?;
        Ok(left)
    }

    /// Begins to stop gracefully, and waits only until its entry is gone.
    pub(crate) async fn leave(&mut self) -> Result<u64, Failure> {
        Ok(self.ask("stop", "deregistered").await?.at_unix_ns)
    }

    /// Stops a server that is no longer registered.
    pub(crate) async fn stop_unregistered(&mut self) -> Result<(), Failure> {
        self.ask("stop", "stopped").await.map(drop)
    }

    /// Sends SIGKILL, and waits until the process has ended.
    pub(crate) async fn kill(&mut self) -> Result<(), Failure> {
        self.process.kill().await
    }
}

/// How long a Rust server serves on after it has deregistered.
const DRAIN_MS: u64 = 500;
