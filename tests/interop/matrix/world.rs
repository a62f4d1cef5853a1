//! Where a scene takes place: an etcd, a service of its own in it, and how its entries are written.

use std::{env, ffi::OsStr, path::PathBuf, sync::Arc, time::Duration};

use discovery::{Backend, ServiceName};
use support::Raw;
use tokio::process::Command;

use crate::{
    client::{Client, ClientSetup},
    failure::Failure,
    ledger::Ledger,
    pairing::{Caller, Side},
    process::Process,
    server::{Server, ServerSetup},
    watcher::Watcher,
};

/// How entries are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Layout {
    /// The founding article's: the key `<PSM>/<IP>`, and a value that repeats both.
    Article,
    /// That of etcd's own naming library.
    Naming,
    /// The address alone.
    Plain,
}

/// The surroundings of one scene. Clones share everything.
#[derive(Clone, Debug)]
pub(crate) struct World {
    /// Debian's release with whose libraries `peer` is built.
    pub(crate) generation: String,
    /// The path of `peer`.
    pub(crate) peer: PathBuf,
    /// The address of etcd.
    pub(crate) etcd: String,
    pub(crate) layout: Layout,
    /// The namespace of the keys; empty if there is none.
    pub(crate) prefix: &'static str,
    /// The service, without the prefix.
    pub(crate) service: String,
    /// How long the entry of a killed server stays.
    pub(crate) ttl: Duration,
    pub(crate) ledger: Arc<Ledger>,
}

impl World {
    /// Starts a server and waits until it is registered.
    pub(crate) async fn server(&self, side: Side, name: &str) -> Result<Server, Failure> {
        Server::start(self, side, name, ServerSetup::default()).await
    }

    /// Starts a client of the servers that are registered.
    pub(crate) async fn client(&self, caller: Caller) -> Result<Client, Failure> {
        Client::start(self, caller, ClientSetup::default()).await
    }

    /// Follows the service as a Rust program does.
    pub(crate) fn watcher(&self) -> Result<Watcher, Failure> {
        Watcher::of(self.backend()?, &self.service_name()?)
    }

    pub(crate) fn backend(&self) -> Result<Arc<dyn Backend>, Failure> {
        Ok(discovery::open(&self.url())?)
    }

    pub(crate) fn service_name(&self) -> Result<ServiceName, Failure> {
        Ok(self.service.parse()?)
    }

    /// Connects to etcd, to read keys as they are.
    pub(crate) async fn raw(&self) -> Raw {
        Raw::connect(std::slice::from_ref(&self.etcd)).await
    }

    /// Returns the registry as a Rust program names it.
    pub(crate) fn url(&self) -> String {
        let layout = match self.layout {
            Layout::Article => "&layout=toadocr",
            Layout::Naming => "",
            Layout::Plain => "&layout=plain",
        };
        format!("etcd://{}/{}?ttl={}s{layout}", self.etcd, self.prefix, self.ttl.as_secs())
    }

    /// Returns the service as Go programs name it: the whole path of its keys.
    pub(crate) fn path(&self) -> String {
        let prefix = if self.prefix.is_empty() { String::new() } else { format!("{}/", self.prefix) };
        format!("{prefix}{}", self.service)
    }

    /// Returns the key of an instance.
    pub(crate) fn key(&self, id: &str) -> String {
        format!("{}/{id}", self.path())
    }

    /// Changes an entry from Go without a lease, as an administrator would: `put` or `delete`.
    /// Returns when etcd acknowledged it.
    pub(crate) async fn administer(&self, command: &str, arguments: &[&str]) -> Result<u64, Failure> {
        let mut peer = self.peer(command);
        peer.args(arguments);
        Ok(Process::start(&format!("peer {command}"), peer, &self.ledger)?.event(command).await?.at_unix_ns)
    }

    /// Returns a command of the Go program, on this service.
    pub(crate) fn peer(&self, command: &str) -> Command {
        let mut peer = Command::new(&self.peer);
        let layout = match self.layout {
            Layout::Article => "article",
            Layout::Naming => "naming",
            Layout::Plain => "plain",
        };
        peer.args([command, "--registry", &self.etcd, "--layout", layout, "--service", &self.path()]);
        peer
    }

    /// Returns this program as a Rust server or client.
    pub(crate) fn rust(command: &str, options: impl AsRef<OsStr>) -> Result<Command, Failure> {
        let mut own = Command::new(env::current_exe()?);
        own.arg(command).arg(options);
        Ok(own)
    }
}
