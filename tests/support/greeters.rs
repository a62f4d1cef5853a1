//! Greeter servers, each in its own process and registered in etcd.

use std::{
    collections::HashSet,
    env,
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use discovery_core::{Instance, Resolver, ServiceName};
use discovery_etcd::{EtcdBackend, EtcdConfig};
use discovery_tonic::server::RegisteredServer;
use greeter::{Greeter, GreeterServer};
use tokio::{process::Child, time::timeout};
use tonic::{Request, service::Interceptor, transport::Server};

use crate::eventually;

/// A greeter in its own process; killed on drop.
#[derive(Debug)]
pub struct GreeterProcess {
    child: Child,
    /// The instance as registered.
    pub instance: Instance,
}

/// How greeters are started.
#[derive(Clone, Debug)]
pub struct Greeters {
    /// The members of etcd.
    pub members: Vec<String>,
    /// How long a registration outlives its process.
    pub ttl: Duration,
    /// How long they keep serving after they have deregistered.
    pub drain: Duration,
    /// The file in which they record the calls that they execute.
    pub executed: Option<PathBuf>,
}

/// The numbers of the calls that the servers began to execute, in one file that all of them append
/// to.
#[derive(Clone, Debug)]
pub struct Executed(PathBuf);

/// Returns the name of the greeters' service.
pub fn service() -> ServiceName {
    "greeter".parse().expect("a valid name")
}

impl Greeters {
    /// Returns a backend on the same etcd.
    pub fn backend(&self) -> EtcdBackend {
        let config = EtcdConfig::new(self.members.iter().cloned()).ttl(self.ttl);
        EtcdBackend::new(config).expect("the configuration is valid")
    }

    /// Starts a greeter and waits until it is registered. The test binary must have a test
    /// `a_greeter_as_a_process` that calls only [`serve_child_process`].
    pub async fn start(&self) -> GreeterProcess {
        let backend = self.backend();
        let list = async || backend.list(&service()).await.expect("etcd answers");
        let before = list().await;
        let mut command = tokio::process::Command::new(env::current_exe().expect("a path"));
        command
            .args(["--exact", "a_greeter_as_a_process"])
            .env(MEMBERS, self.members.join(","))
            .env(TTL, self.ttl.as_millis().to_string())
            .env(DRAIN, self.drain.as_millis().to_string())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        if let Some(path) = &self.executed {
            command.env(EXECUTED, path);
        }
        let child = command.spawn().expect("the test's own binary starts");
        let mut new = None;
        let is_there = async || {
            new = list().await.iter().find(|one| before.get(one.id().as_str()).is_none()).map(|one| (**one).clone());
            new.is_some()
        };
        eventually("it is registered", Duration::from_secs(30), is_there).await;
        GreeterProcess { child, instance: new.expect("it is there") }
    }
}

impl GreeterProcess {
    /// Sends SIGKILL and does not wait.
    pub fn kill(&mut self) {
        self.child.start_kill().expect("it was started here");
    }

    /// Sends SIGTERM and waits until the process has ended gracefully.
    pub async fn stop(mut self) {
        let id = self.child.id().expect("it was not waited for").to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().expect("kill is there").success());
        let ended = timeout(Duration::from_secs(60), self.child.wait()).await.expect("it ends");
        assert!(ended.expect("it was started here").success());
    }
}

/// Runs a process of [`Greeters`] until it is stopped. Returns at once in any other process.
pub async fn serve_child_process() {
    let (Ok(members), Ok(ttl), Ok(drain)) = (env::var(MEMBERS), env::var(TTL), env::var(DRAIN)) else { return };
    let time = |text: String| Duration::from_millis(text.parse().expect("milliseconds"));
    let members = members.split(',').map(str::to_owned).collect();
    let greeters = Greeters { members, ttl: time(ttl), drain: time(drain), executed: None };
    let server = RegisteredServer::builder(greeters.backend(), service())
        .drain_time(greeters.drain)
        .stop_on_signals()
        .bind("127.0.0.1:0".parse().expect("an address"))
        .await
        .expect("a free port");
    let note = env::var_os(EXECUTED).map(|path| Executed(path.into()).interceptor());
    let note = move |request: Request<()>| match &note {
        Some(note) => note.clone().call(request),
        None => Ok(request),
    };
    let router = Server::builder().add_service(GreeterServer::with_interceptor(Greeter::new("process"), note));
    server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)).await.expect("it serves");
}

impl Executed {
    /// Names a new file in a folder.
    pub fn within(folder: &Path) -> Self {
        Self(folder.join("executed"))
    }

    /// Returns the path of the file.
    pub fn path(&self) -> PathBuf {
        self.0.clone()
    }

    /// Records a call's number before the call is executed. Eight bytes in one write never
    /// interleave.
    pub fn interceptor(&self) -> impl Interceptor + Clone + Send + Sync + use<> {
        let path = self.path();
        move |request: Request<()>| {
            let number = request.metadata().get("number").expect("every call has one").to_str().expect("a number");
            let number: u64 = number.parse().expect("a number");
            let mut file = OpenOptions::new().create(true).append(true).open(&path).expect("the test's own folder");
            file.write_all(&number.to_be_bytes()).expect("it is written");
            Ok(request)
        }
    }

    /// Returns all numbers so far.
    pub fn numbers(&self) -> HashSet<u64> {
        let bytes = fs::read(&self.0).unwrap_or_default();
        bytes.as_chunks().0.iter().map(|number| u64::from_be_bytes(*number)).collect()
    }
}

const MEMBERS: &str = "GREETER_MEMBERS";
const TTL: &str = "GREETER_TTL_MS";
const DRAIN: &str = "GREETER_DRAIN_MS";
const EXECUTED: &str = "GREETER_EXECUTED";
