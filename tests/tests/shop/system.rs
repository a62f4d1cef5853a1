//! The processes of the shop, their certificates and their etcd.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use support::{Authority, Etcd, Flaw, eventually, load::Call, programs};
use tempfile::TempDir;
use tokio::{process::Child, time::timeout};
use tonic::Status;

use crate::http::http;

/// An etcd, and a folder for the certificates and the output of the processes around it.
pub(crate) struct Shop {
    pub(crate) etcd: Etcd,
    pub(crate) authority: Authority,
    parameters: &'static str,
    connection_age: &'static str,
    /// How many processes were started.
    started: AtomicUsize,
    folder: TempDir,
}

/// A process of the shop, and the files with what it prints and logs. Killed on drop.
pub(crate) struct Program {
    name: String,
    child: Child,
    output: PathBuf,
    log: PathBuf,
}

/// The gateway, at its address.
pub(crate) struct Gateway {
    pub(crate) program: Program,
    pub(crate) address: SocketAddr,
}

impl Shop {
    /// Prepares a shop around this etcd, whose URL has these parameters. Connections live for this
    /// long.
    pub(crate) fn around(etcd: Etcd, parameters: &'static str, connection_age: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = folder.path().join("authority");
        fs::create_dir(&authority).unwrap();
        let authority = Authority::in_folder(authority);
        let shop = Self { etcd, authority, parameters, connection_age, started: AtomicUsize::new(0), folder };
        for program in PROGRAMS {
            shop.issue(program, &shop.authority, Flaw::None);
            shop.trust(program, shop.authority.pem());
        }
        shop
    }

    /// Gives a program another certificate of this authority.
    pub(crate) fn issue(&self, program: &str, authority: &Authority, flaw: Flaw) {
        let certificate = authority.program(program, flaw);
        let folder = self.tls(program);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("key.pem"), certificate.key).unwrap();
        fs::write(folder.join("cert.pem"), certificate.cert).unwrap();
    }

    /// Makes a program trust these authorities.
    pub(crate) fn trust(&self, program: &str, authorities: &str) {
        fs::write(self.tls(program).join("ca.pem"), authorities).unwrap();
    }

    /// Starts a program with further variables in its environment.
    pub(crate) fn start(&self, program: &str, instance: &str, further: &[(&str, &str)]) -> Program {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let output = self.folder.path().join(format!("{instance}.{number}.out"));
        let log = self.folder.path().join(format!("{instance}.{number}.log"));
        let child = tokio::process::Command::new(programs().join(program))
            .env("SHOP_REGISTRY", format!("etcd://{}/shop?{}", self.etcd.address(), self.parameters))
            .env("SHOP_TLS", self.tls(program))
            .env("SHOP_INSTANCE", instance)
            .env("SHOP_DRAIN", "500ms")
            .env("SHOP_CONNECTION_AGE", self.connection_age)
            .env("SHOP_RATE", "25")
            .env_remove("RUST_LOG")
            .envs(further.iter().copied())
            .stdin(Stdio::null())
            .stdout(File::create(&output).unwrap())
            .stderr(File::create(&log).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Program { name: instance.to_owned(), child, output, log }
    }

    /// Starts the gateway, and waits until it listens.
    pub(crate) async fn start_gateway(&self) -> Gateway {
        let program = self.start("gateway", "gateway", &[]);
        program.printed("gateway listens at http://").await;
        let printed = program.output();
        let address = printed.trim().rsplit('/').next().unwrap().parse().unwrap();
        Gateway { program, address }
    }

    fn tls(&self, program: &str) -> PathBuf {
        self.folder.path().join("tls").join(program)
    }
}

impl Program {
    /// Everything that it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Everything that it has printed.
    pub(crate) fn output(&self) -> String {
        fs::read_to_string(&self.output).unwrap()
    }

    /// Returns the lines of its log that contain all of these texts.
    pub(crate) fn logged(&self, texts: &[&str]) -> Vec<String> {
        let log = self.log();
        log.lines().filter(|line| texts.iter().all(|text| line.contains(text))).map(str::to_owned).collect()
    }

    /// Waits until it prints this.
    pub(crate) async fn printed(&self, text: &str) {
        let what = format!("{} prints {text}", self.name);
        eventually(&what, LIMIT, async || self.output().lines().any(|line| line.contains(text))).await;
    }

    /// Waits until a server is registered.
    pub(crate) async fn serves(&self) {
        let what = format!("{} serves", self.name);
        eventually(&what, LIMIT, async || !self.logged(&["server stage", "stage=Serving"]).is_empty()).await;
    }

    /// Sends a signal, such as `STOP`.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &pid]).status().unwrap().success());
    }

    /// Stops it by SIGTERM, waits for its end, and returns what it printed.
    pub(crate) async fn stop(mut self) -> String {
        self.signal("TERM");
        let status = timeout(LIMIT, self.child.wait()).await.unwrap().unwrap();
        assert!(status.success(), "{}: {status}\n{}", self.name, self.log());
        self.output()
    }
}

impl Gateway {
    /// Makes a GET request, which must succeed.
    pub(crate) async fn get(&self, path: &str) -> String {
        http(self.address, "GET", path, "").await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Returns the call of a browser, which orders, and asks for the stock every fourth time.
    pub(crate) fn calls(&self) -> Call {
        let address = self.address;
        Box::new(move |number| {
            Box::pin(async move {
                let answer = match number % 4 {
                    0 => http(address, "GET", "/stock/book", "").await,
                    _ => http(address, "POST", "/orders", "book").await,
                };
                answer.map(drop).map_err(Status::unknown)
            })
        })
    }

    /// Waits until this many servers of a service take calls, and the registry is followed.
    pub(crate) async fn has_ready(&self, service: &str, servers: usize) {
        let ready = async || {
            let table = self.table(service).await;
            let rows = table.lines().filter(|row| row.contains("  ready  ") && !row.contains(" for "));
            rows.count() == servers && table.trim().ends_with("registry: in contact")
        };
        eventually(&format!("{servers} {service} are ready"), LIMIT, ready).await;
    }

    /// Returns the table of a service.
    pub(crate) async fn table(&self, service: &str) -> String {
        let tables = self.get("/endpoints").await;
        let table = tables.split("\n\n").find_map(|table| table.strip_prefix(&format!("{service}\n")));
        table.unwrap_or_else(|| panic!("no {service} in {tables}")).to_owned()
    }

    /// Returns the value of a metric, whose name includes its labels.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let page = self.get("/metrics").await;
        page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }
}

pub(crate) const PROGRAMS: [&str; 4] = ["orders", "inventory", "gateway", "worker"];
/// Longer than anything that works takes on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
