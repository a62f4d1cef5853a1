//! Servers in processes of their own: how they react to signals, and to a system that refuses
//! resources.
#![cfg(feature = "server")]

mod support;

use std::{env, fs, net::SocketAddr, process::Stdio, time::Duration};

use discovery_memory::MemoryBackend;
use discovery_tonic::server::Stage;
use greeter::{GreetRequest, Greeter, GreeterClient};
use support::{
    eventually,
    running::{self, LONG, SHORT, SOON, builder, connect},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
    time::{sleep, timeout},
};

/// A server in a process of its own, and its output.
struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    address: SocketAddr,
}

impl Process {
    async fn start(asked: &str) -> Self {
        let arguments = ["--exact", "a_server_as_a_process", "--nocapture"];
        let mut child = Command::new("sh")
            .args(["-c", &format!("ulimit -n {DESCRIPTORS}; exec \"$0\" \"$@\"")])
            .arg(env::current_exe().unwrap())
            .args(arguments)
            .env(AS_SERVER, asked)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut process = Self { child, lines, address: ([0; 4], 0).into() };
        process.address = process.says("listens at ").await.parse().unwrap();
        process.says("Serving").await;
        process
    }

    /// Waits for a line that contains this, and returns the rest of the line.
    async fn says(&mut self, what: &str) -> String {
        let says = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if let Some((_, rest)) = line.split_once(what) {
                    return rest.to_owned();
                }
            }
            panic!("it ended without printing {what:?}")
        };
        timeout(SOON, says).await.expect(what)
    }

    fn id(&self) -> u32 {
        self.child.id().unwrap()
    }

    async fn signal(&self, name: &str) {
        let kill = Command::new("kill").args([format!("-{name}"), self.id().to_string()]).status();
        assert!(kill.await.unwrap().success());
    }

    /// Waits until it has stopped gracefully, and returns how many connections it aborted.
    async fn cut(mut self) -> usize {
        let cut = self.says("cut ").await.parse().unwrap();
        assert!(timeout(SOON, self.child.wait()).await.unwrap().unwrap().success());
        cut
    }
}

/// The server that [`Process`] runs. It is not a test otherwise.
#[tokio::test]
async fn a_server_as_a_process() {
    let Some(asked) = env::var_os(AS_SERVER) else { return };
    let builder = builder(&MemoryBackend::new()).shutdown_timeout(LONG).stop_on_signals();
    let server = builder.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    println!("\nlistens at {}", server.local_addr().unwrap());
    let handle = server.handle();
    let greeter = Greeter::new("process");
    let router = tonic::transport::Server::builder().add_service(greeter.clone().into_service());
    tokio::spawn(async move {
        handle.reached(Stage::Serving).await;
        println!("\nServing");
        if asked == STOPS {
            eventually("it is called", || greeter.calls() > 0).await;
            handle.stop();
            println!("\nasked to stop");
        }
        handle.reached(Stage::Finishing).await;
        println!("\nFinishing");
    });
    let stopped = server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)).await.unwrap();
    println!("\ncut {}", stopped.aborted_connections);
}

#[tokio::test]
async fn a_first_signal_stops_a_server_gracefully() {
    // The last server has begun to stop by itself before the signal, which must not abort its
    // calls: the sender did not know.
    for (signal, asked) in [("TERM", SERVES), ("INT", SERVES), ("TERM", STOPS)] {
        let mut process = Process::start(asked).await;
        let call = running::slow_call(process.address, 5 * SHORT).await;
        if asked == STOPS {
            process.says("asked to stop").await;
        }
        process.signal(signal).await;
        assert_eq!(process.cut().await, 0, "{signal}");
        call.await.unwrap().expect("the call in flight finishes");
    }
}

/// As when a process is signalled and then its group.
#[tokio::test]
async fn two_simultaneous_signals_count_as_one() {
    let process = Process::start(SERVES).await;
    let call = running::slow_call(process.address, Duration::from_secs(2)).await;
    let both = format!("kill -TERM {0}; kill -INT {0}", process.id());
    assert!(Command::new("sh").args(["-c", &both]).status().await.unwrap().success());
    assert_eq!(process.cut().await, 0);
    assert!(timeout(SOON, call).await.unwrap().unwrap().is_ok());
}

#[tokio::test]
async fn a_second_signal_stops_a_server_at_once() {
    for (first, second) in [("TERM", "TERM"), ("INT", "TERM"), ("INT", "INT")] {
        let mut process = Process::start(SERVES).await;
        let call = running::slow_call(process.address, LONG).await;
        process.signal(first).await;
        process.says("Finishing").await;
        assert!(!call.is_finished());
        process.signal(second).await;
        assert_eq!(process.cut().await, 1, "{first}, {second}");
        assert!(timeout(SOON, call).await.unwrap().unwrap().is_err());
    }
}

/// Without free descriptors it waits without using the processor, keeps serving its clients, and
/// accepts others as soon as it can.
#[tokio::test]
async fn a_server_without_free_descriptors_continues() {
    let process = Process::start(SERVES).await;
    let mut client = GreeterClient::new(connect(process.address).await);
    client.greet(GreetRequest::default()).await.unwrap();
    let mut crowd = Vec::new();
    for _ in 0..2 * DESCRIPTORS {
        crowd.push(TcpStream::connect(process.address).await.unwrap());
    }
    // The parent process may have left it some with higher numbers.
    let open = |number: usize| fs::symlink_metadata(format!("/proc/{}/fd/{number}", process.id())).is_ok();
    eventually("all descriptors are open", || (0..DESCRIPTORS).all(open)).await;

    let before = cpu_time(process.id());
    sleep(Duration::from_secs(1)).await;
    let busy = cpu_time(process.id()) - before;
    println!("busy for {busy:?} of the second in which it could open nothing");
    assert!(busy < Duration::from_millis(200), "{busy:?}");
    client.greet(GreetRequest::default()).await.unwrap();

    drop(crowd);
    let mut another = GreeterClient::new(connect(process.address).await);
    timeout(SOON, another.greet(GreetRequest::default())).await.unwrap().unwrap();
    drop((client, another));
    process.signal("TERM").await;
    assert_eq!(process.cut().await, 0);
}

/// The processor time that a process has used, from the system's ticks of 10 ms.
fn cpu_time(id: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    // The name, which may contain spaces, is in parentheses.
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(10 * ticks)
}

const AS_SERVER: &str = "DISCOVERY_TEST_RUN_A_SERVER";
const SERVES: &str = "serves";
/// Begins to stop once it is called.
const STOPS: &str = "stops";
const DESCRIPTORS: usize = 64;
