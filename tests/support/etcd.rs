mod grpc_proxy;
mod peers;
mod saved;

use std::{
    env,
    ffi::OsString,
    fmt, fs,
    io::{Read, Write},
    mem,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tempfile::TempDir;

use self::peers::Peers;
use crate::{Authority, Flaw, Raw, port::Port};

pub use self::{grpc_proxy::GrpcProxy, saved::Saved};

/// A cluster of real etcd processes, on free ports and in a temporary folder. Killed and cleaned up
/// on drop.
///
/// The program is `$ETCD`, or `etcd` from the `PATH`. If there is none, the test fails with
/// instructions: a test that skips itself is a test that nobody runs.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    /// The ports of replaced members: nobody may answer there in their place.
    former: Mutex<Vec<Ports>>,
    peers: Option<Peers>,
    authority: Option<Authority>,
    flags: Vec<String>,
    folder: TempDir,
}

/// How a cluster is set up before it starts.
#[derive(Clone, Debug)]
pub struct Setup {
    members: usize,
    peers_through_proxies: bool,
    tls: Option<Flaw>,
    client_certificates: bool,
    json_web_tokens: bool,
    flags: Vec<String>,
}

#[derive(Debug)]
struct Member {
    ports: Mutex<Ports>,
    /// Whether the member was added to a running cluster.
    is_late: AtomicBool,
    process: Mutex<Option<Process>>,
}

/// The ports of a member.
#[derive(Clone, Debug)]
struct Ports {
    client: Port,
    peer: Port,
    metrics: Port,
}

/// One running process; killed on drop.
struct Process(Child);

impl Etcd {
    /// Starts a cluster of one member and waits until it answers.
    pub async fn start() -> Self {
        Setup::default().start().await
    }

    /// Starts a cluster of this many members and waits until all answer.
    pub async fn start_members(count: usize) -> Self {
        Setup::default().members(count).start().await
    }

    /// Returns the setup of a cluster of one member, to be changed before it starts.
    pub fn setup() -> Setup {
        Setup::default()
    }

    /// Prepares a cluster of one member without starting it, so that its address is known before it
    /// listens.
    pub fn absent() -> Self {
        Setup::default().prepare()
    }

    /// Returns the members' addresses, `host:port`.
    pub fn members(&self) -> Vec<String> {
        (0..self.members.len()).map(|place| format!("127.0.0.1:{}", self.ports(place).client)).collect()
    }

    /// Returns the address of the first member.
    pub fn address(&self) -> String {
        self.members().remove(0)
    }

    /// Returns the authority that signed the members' certificates, in a cluster [with
    /// TLS](Setup::tls).
    pub fn authority(&self) -> &Authority {
        self.authority.as_ref().expect("the cluster was set up with tls")
    }

    /// Connects a separate client for what tests do by hand. With client certificates it is the
    /// user `root`.
    pub async fn raw(&self) -> Raw {
        Raw::connect_over(self.authority.as_ref(), &self.members(), None).await
    }

    /// Like [`raw`](Self::raw), authenticated as a user.
    pub async fn raw_as(&self, user: &str, password: &str) -> Raw {
        Raw::connect_over(self.authority.as_ref(), &self.members(), Some((user, password))).await
    }

    /// Starts a stopped or killed member on its former ports and data, and waits until it answers.
    pub async fn restart(&self, place: usize) {
        self.run(place);
        self.ready(place).await;
    }

    /// Starts what [`absent`](Self::absent) prepared, and waits until it answers.
    pub async fn appear(&self) {
        self.restart(0).await;
    }

    /// Kills a member: SIGKILL.
    pub fn kill(&self, place: usize) {
        self.process(place).take();
    }

    /// Stops a member gracefully: SIGTERM.
    pub fn stop(&self, place: usize) {
        if let Some(mut process) = self.process(place).take() {
            process.signal("TERM");
            process.0.wait().expect("the process was started here");
        }
    }

    /// Freezes a member; its connections stay open: SIGSTOP.
    pub fn pause(&self, place: usize) {
        self.process(place).as_ref().expect("the member runs").signal("STOP");
    }

    /// Wakes a frozen member: SIGCONT.
    pub fn resume(&self, place: usize) {
        self.process(place).as_ref().expect("the member runs").signal("CONT");
    }

    /// Kills all members, removes all data, starts the members again on the same ports and waits
    /// until they answer.
    pub async fn wipe(&self) {
        for place in 0..self.members.len() {
            self.kill(place);
            let _ = fs::remove_dir_all(self.data(place));
            // The cluster that they joined no longer exists.
            self.members[place].is_late.store(false, Ordering::Relaxed);
        }
        for place in 0..self.members.len() {
            self.run(place);
        }
        for place in 0..self.members.len() {
            self.ready(place).await;
        }
    }

    /// Removes a member from the cluster and puts another in its place, without data and, if
    /// `elsewhere`, on other ports. The others must have a majority meanwhile.
    pub async fn replace(&self, place: usize, elsewhere: bool) {
        let mut others = self.members();
        others.remove(place);
        let mut raw = Raw::connect_over(self.authority.as_ref(), &others, None).await;
        self.replace_through(&mut raw, place, elsewhere).await;
    }

    /// Like [`replace`](Self::replace), through a client that may change members.
    pub async fn replace_through(&self, raw: &mut Raw, place: usize, elsewhere: bool) {
        raw.remove_member(&self.name(place)).await;
        self.kill(place);
        let _ = fs::remove_dir_all(self.data(place));
        if elsewhere {
            let mut ports = self.members[place].ports.lock().unwrap_or_else(PoisonError::into_inner);
            let former = mem::replace(&mut *ports, Ports::reserve());
            self.former.lock().unwrap_or_else(PoisonError::into_inner).push(former);
        }
        self.members[place].is_late.store(true, Ordering::Relaxed);
        raw.add_member(&format!("http://{}", self.peer(place))).await;
        self.restart(place).await;
    }

    /// Cuts a member off from its peers in both directions, in a cluster [with proxies between its
    /// members](Setup::peers_through_proxies). Clients still reach it.
    pub fn isolate(&self, place: usize) {
        self.peers().isolate(place, &self.id(place));
    }

    /// Undoes every [`isolate`](Self::isolate).
    pub fn heal(&self) {
        self.peers().heal();
    }

    /// Returns the process id of a member.
    pub fn pid(&self, place: usize) -> u32 {
        self.process(place).as_ref().expect("the member runs").0.id()
    }

    /// Returns whether a member answers and reports that it leads.
    pub fn leads(&self, place: usize) -> bool {
        self.metric(place, "etcd_server_is_leader") == Some(1.0)
    }

    /// Returns the first member that reports that it leads.
    pub fn leader(&self) -> Option<usize> {
        (0..self.members.len()).find(|place| self.leads(*place))
    }

    /// Copies the data of a stopped member.
    pub fn save(&self, place: usize) -> Saved {
        assert!(self.process(place).is_none(), "the member must be stopped, or its data would change");
        Saved::of(&self.data(place))
    }

    /// Restores the data of a stopped member.
    pub fn restore(&self, place: usize, saved: &Saved) {
        assert!(self.process(place).is_none(), "the member must be stopped, or its data would change");
        saved.restore(&self.data(place));
    }

    /// Returns the value of one of a member's metrics; the name includes its labels.
    pub fn metric(&self, place: usize, name: &str) -> Option<f64> {
        let text = http_get(&self.ports(place).metrics, "/metrics")?;
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Returns how many messages a member has received for a gRPC method, such as `LeaseKeepAlive`,
    /// since it started.
    pub fn requests(&self, place: usize, method: &str) -> u64 {
        let text = http_get(&self.ports(place).metrics, "/metrics").expect("the member answers");
        let method = format!("grpc_method=\"{method}\"");
        let is_meant = |line: &&str| line.starts_with("grpc_server_msg_received_total{") && line.contains(&method);
        let count = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
        text.lines().filter(is_meant).filter_map(count).sum::<f64>() as u64
    }

    /// Returns the sum of the lines of a metric that contain this text; 0 if there are none.
    pub fn sum(&self, place: usize, name: &str, text: &str) -> u64 {
        let page = http_get(&self.ports(place).metrics, "/metrics").unwrap_or_default();
        let is_meant = |line: &&str| line.starts_with(name) && line.contains(text);
        let count = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
        page.lines().filter(is_meant).filter_map(count).sum::<f64>() as u64
    }

    fn process(&self, place: usize) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.members[place].process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn peers(&self) -> &Peers {
        self.peers.as_ref().expect("the cluster was set up with peers_through_proxies")
    }

    /// Returns a member's id, as its peers see it.
    fn id(&self, place: usize) -> String {
        let text = http_get(&self.ports(place).metrics, "/metrics").expect("the member answers");
        let id = text.lines().find_map(|line| line.strip_prefix(r#"etcd_server_id{server_id=""#)?.split('"').next());
        id.expect("etcd reports its id as a metric").to_owned()
    }

    fn ports(&self, place: usize) -> Ports {
        self.members[place].ports.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn name(&self, place: usize) -> String {
        format!("m{place}")
    }

    /// Returns the address at which a member's peers reach it.
    fn peer(&self, place: usize) -> String {
        let own = || format!("127.0.0.1:{}", self.ports(place).peer);
        self.peers.as_ref().map_or_else(own, |peers| peers.address(place))
    }

    fn data(&self, place: usize) -> PathBuf {
        self.folder.path().join(format!("m{place}"))
    }

    fn run(&self, place: usize) {
        let ports = self.ports(place);
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        let client = format!("{scheme}://127.0.0.1:{}", ports.client);
        let in_cluster = |place| format!("{}=http://{}", self.name(place), self.peer(place));
        let cluster: Vec<String> = (0..self.members.len()).map(in_cluster).collect();
        let is_late = self.members[place].is_late.load(Ordering::Relaxed);
        let mut command = Command::new(program());
        command
            .args(["--name", &self.name(place)])
            .arg("--data-dir")
            .arg(self.data(place))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            // Health and metrics without TLS, even if clients use TLS.
            .args(["--listen-metrics-urls", &format!("http://127.0.0.1:{}", ports.metrics)])
            .args(["--listen-peer-urls", &format!("http://127.0.0.1:{}", ports.peer)])
            .args(["--initial-advertise-peer-urls", &format!("http://{}", self.peer(place))])
            .args(["--initial-cluster", &cluster.join(",")])
            .args(["--initial-cluster-state", if is_late { "existing" } else { "new" }])
            // The shortest lease is 1.5 election timeouts, rounded up: 2 s.
            .args(["--heartbeat-interval", "50", "--election-timeout", "1000"])
            // Lets tests ping more often than the default of 5 s allows.
            .args(["--grpc-keepalive-min-time", "1s", "--logger", "zap"])
            .args(&self.flags)
            .env_clear()
            .stdin(Stdio::null());
        if has_flag("--unsafe-no-fsync") {
            command.arg("--unsafe-no-fsync");
        }
        if env::var_os("ETCD_LOG").is_none() {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        let child = command.spawn().unwrap_or_else(|error| missing(&error));
        *self.process(place) = Some(Process(child));
    }

    async fn try_ready(&self) -> bool {
        let start = Instant::now();
        while start.elapsed() < START {
            let mut healthy = 0;
            for place in 0..self.members.len() {
                if self.process(place).as_mut().is_none_or(|process| !process.is_running()) {
                    return false;
                }
                healthy += usize::from(is_healthy(&self.ports(place).metrics));
            }
            if healthy == self.members.len() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    async fn ready(&self, place: usize) {
        let start = Instant::now();
        let port = self.ports(place).metrics;
        while !is_healthy(&port) {
            let runs = self.process(place).as_mut().is_some_and(Process::is_running);
            assert!(runs, "etcd exited during startup; set ETCD_LOG=1 to see its messages");
            assert!(start.elapsed() < START, "etcd did not answer within {START:?} of its start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Setup {
    /// Sets how many members the cluster has; default 1.
    #[must_use]
    pub fn members(mut self, count: usize) -> Self {
        self.members = count;
        self
    }

    /// Makes members reach each other through proxies, as [`Etcd::isolate`] requires.
    #[must_use]
    pub fn peers_through_proxies(mut self) -> Self {
        self.peers_through_proxies = true;
        self
    }

    /// Serves clients over TLS, with certificates signed by the cluster's own
    /// [authority](Etcd::authority).
    #[must_use]
    pub fn tls(self) -> Self {
        self.tls_with(Flaw::None)
    }

    /// Serves clients over TLS, with a certificate that may be flawed.
    #[must_use]
    pub fn tls_with(mut self, flaw: Flaw) -> Self {
        self.tls = Some(flaw);
        self
    }

    /// Serves clients over TLS and requires a client certificate signed by the same authority. Its
    /// common name is the user.
    #[must_use]
    pub fn client_certificates(mut self) -> Self {
        self.client_certificates = true;
        self.tls()
    }

    /// Sets how many seconds an unused token of a user is valid.
    #[must_use]
    pub fn token_ttl(self, seconds: u64) -> Self {
        self.flag("--auth-token=simple").flag(format!("--auth-token-ttl={seconds}"))
    }

    /// Makes users' tokens JSON Web Tokens, which every change of users or roles invalidates.
    #[must_use]
    pub fn json_web_tokens(mut self) -> Self {
        self.json_web_tokens = true;
        self
    }

    /// Adds a flag to every member.
    #[must_use]
    pub fn flag(mut self, flag: impl Into<String>) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// Starts the cluster and waits until all members answer.
    pub async fn start(self) -> Etcd {
        // A process that is no test may take a port between finding it free and using it.
        for _ in 0..5 {
            let mut etcd = self.clone().prepare();
            if self.peers_through_proxies {
                etcd.peers = Some(Peers::before((0..self.members).map(|place| etcd.ports(place).peer)).await);
            }
            for place in 0..self.members {
                etcd.run(place);
            }
            if etcd.try_ready().await {
                return etcd;
            }
        }
        panic!("etcd did not start in five attempts; set ETCD_LOG=1 to see its messages");
    }

    fn prepare(self) -> Etcd {
        // In memory if possible: the disk is not under test.
        let shm = Path::new("/dev/shm");
        let folder = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
        let folder = folder.expect("a temporary folder");
        let path = |file: &str| folder.path().join(file).to_str().expect("a path in UTF-8").to_owned();
        let mut flags = self.flags;
        let authority = self.tls.map(|flaw| {
            let authority = Authority::in_folder(folder.path());
            authority.server(flaw);
            flags.extend([format!("--cert-file={}", path("server.pem")), format!("--key-file={}", path("server.key"))]);
            authority
        });
        if self.client_certificates {
            flags.extend(["--client-cert-auth".to_owned(), format!("--trusted-ca-file={}", path("ca.pem"))]);
        }
        if self.json_web_tokens {
            // Signed with a secret shared by all members, so that no RSA key is needed.
            fs::write(path("jwt.key"), "a secret of at least two hundred and fifty-six bits")
                .expect("the folder is there");
            flags.push(format!("--auth-token=jwt,sign-method=HS256,priv-key={},ttl=5m", path("jwt.key")));
        }
        let member = || Member {
            ports: Mutex::new(Ports::reserve()),
            is_late: AtomicBool::new(false),
            process: Mutex::default(),
        };
        let members = std::iter::repeat_with(member).take(self.members).collect();
        Etcd { members, former: Mutex::default(), peers: None, authority, flags, folder }
    }
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            members: 1,
            peers_through_proxies: false,
            tls: None,
            client_certificates: false,
            json_web_tokens: false,
            flags: Vec::new(),
        }
    }
}

impl Ports {
    fn reserve() -> Self {
        Self { client: Port::reserve(), peer: Port::reserve(), metrics: Port::reserve() }
    }
}

impl Process {
    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([format!("-{name}"), self.0.id().to_string()]).status();
        assert!(status.expect("`kill` is there").success(), "the process takes the signal {name}");
        if name == "STOP" {
            self.await_stop();
        }
    }

    /// Waits until the process has stopped, where the system shows it. On a busy machine `kill`
    /// returns earlier, and the process answers a few more requests.
    fn await_stop(&self) {
        let start = Instant::now();
        while let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", self.0.id())) {
            // `<pid> (<name>) <state> …`
            if stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')) {
                return;
            }
            assert!(start.elapsed() < START, "the process does not stop: {stat}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL ends a frozen process as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Process").field(&self.0.id()).finish()
    }
}

fn program() -> OsString {
    env::var_os("ETCD").unwrap_or_else(|| "etcd".into())
}

fn has_flag(flag: &str) -> bool {
    static HELP: OnceLock<String> = OnceLock::new();
    let help = HELP.get_or_init(|| {
        let output = Command::new(program()).arg("--help").output().unwrap_or_else(|error| missing(&error));
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    });
    help.contains(flag)
}

fn missing(error: &std::io::Error) -> ! {
    panic!(
        "these tests need etcd 3.4 or later, and {:?} cannot be run: {error}. Install it (Debian: apt install etcd-server; or \
         https://github.com/etcd-io/etcd/releases), or name the program in the variable ETCD",
        program()
    )
}

fn is_healthy(port: &Port) -> bool {
    http_get(port, "/health").is_some_and(|answer| answer.contains("true"))
}

fn http_get(port: &Port, path: &str) -> Option<String> {
    let mut stream =
        TcpStream::connect_timeout(&([127, 0, 0, 1], port.number()).into(), Duration::from_millis(200)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Generous, because many tests start at once.
const START: Duration = Duration::from_secs(30);
