//! The examples as a user runs them: programs that are started, read and stopped.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use support::programs;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout},
    time::timeout,
};

/// A running example and what it has printed.
struct Program {
    name: String,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    printed: Vec<String>,
}

impl Program {
    fn start(example: &str, arguments: &[&str]) -> Self {
        let mut command = tokio::process::Command::new(programs().join("examples").join(example));
        let mut child = command.args(arguments).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let name = [&[example], arguments].concat().join(" ");
        Self { name, child, lines, printed: Vec::new() }
    }

    /// Reads up to a line that satisfies `wanted`.
    async fn line(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let found = timeout(LIMIT, async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                self.printed.push(line.clone());
                if wanted(&line) {
                    return Some(line);
                }
            }
            None
        });
        let found = found.await.unwrap_or_default();
        found.unwrap_or_else(|| panic!("{} did not print {what}, but:\n{}", self.name, self.printed.join("\n")))
    }

    fn terminate(&self) {
        let pid = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }

    /// Waits until the program ends successfully and returns everything that it printed.
    async fn end(mut self) -> Vec<String> {
        let status = timeout(LIMIT, async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                self.printed.push(line);
            }
            self.child.wait().await.unwrap()
        });
        let good = status.await.is_ok_and(|status| status.success());
        assert!(good, "{} did not end well:\n{}", self.name, self.printed.join("\n"));
        self.printed
    }
}

/// Asserts that the quickstart, which checks its own counts, has run to its end and printed them.
fn assert_quickstart(printed: &[String]) {
    let tallies: Vec<&String> = printed.iter().filter(|line| line.contains(" calls, ")).collect();
    assert_eq!(tallies.len(), 4, "{printed:#?}");
    for (phase, tally) in tallies.iter().enumerate() {
        // The third phase is the kill, which fails the requests in flight there.
        assert!(phase == 2 || tally.contains(" 0 failed"), "{printed:#?}");
    }
    for (phase, serving) in [(0, vec![1, 2, 3, 4]), (1, vec![1, 2, 3, 4]), (2, vec![1, 3, 4]), (3, vec![1, 4])] {
        for server in 1..=4 {
            let answered = tallies[phase].contains(&format!("greeter-{server} "));
            assert_eq!(answered, serving.contains(&server), "greeter-{server} in phase {phase}: {printed:#?}");
        }
    }
}

#[tokio::test]
async fn quickstart_on_memory() {
    assert_quickstart(&Program::start("quickstart", &[]).end().await);
}

#[tokio::test]
async fn quickstart_on_etcd() {
    let etcd = support::Etcd::start().await;
    let registry = format!("etcd://{}/quickstart?ttl=2s", etcd.address());
    assert_quickstart(&Program::start("quickstart", &["--registry", &registry]).end().await);
}

#[tokio::test]
async fn each_example_runs_to_its_end() {
    for (example, line) in [
        ("attempt-spans", "Attempt.greeter.v1.Greeter/Greet of "),
        ("axum-gateway", "hello Ann, this is one"),
        ("backend", "address: payments.internal:50051"),
        ("channel", "  ready  "),
        ("register", "registered again"),
        ("retry-and-health", "this is one"),
        ("tls", "this is one"),
        ("unit-test", "passed"),
        ("watch", "1 instance, stale since None"),
    ] {
        let printed = Program::start(example, &[]).end().await;
        assert!(printed.iter().any(|printed| printed.contains(line)), "{example}: {printed:#?}");
    }
}

#[tokio::test]
async fn a_fleet_is_replaced_under_load() {
    let printed =
        Program::start("rolling-deploy", &["--servers", "3", "--rounds", "1", "--drain", "300ms"]).end().await;
    let total = printed.last().unwrap();
    assert!(total.ends_with(" calls, 0 failed"), "{printed:#?}");
    // One line per second, which ends with the number of ready servers by age.
    let head = printed.iter().position(|line| line.contains("endpoints that are ready")).expect("it has a head");
    let seconds: Vec<_> = printed[head + 1..].iter().take_while(|line| !line.is_empty()).collect();
    assert!(seconds.len() >= 2 && seconds.last().unwrap().ends_with(" 6"), "{printed:#?}");
}

#[tokio::test]
async fn servers_come_and_go_under_a_client() {
    let etcd = support::Etcd::start().await;
    let registry = format!("etcd://{}/greeters?ttl=5s", etcd.address());
    let start_server = |name| Program::start("greeter-server", &["--registry", &registry, name]);

    let mut one = start_server("one");
    let serves = one.line("its address", |line| line.starts_with("one serves greeter at ")).await;
    let address = serves.rsplit(' ').next().unwrap();

    let mut client = Program::start("greeter-client", &["--registry", &registry]);
    client.line("the first server", |line| line.starts_with(&format!("+ {address} "))).await;
    client.line("answers of the first", |line| line.contains("answered by [one ")).await;

    let two = start_server("two");
    client.line("the second server", |line| line.starts_with("+ ")).await;
    client.line("answers of both", |line| line.contains("[one ") && line.contains(", two ")).await;

    one.terminate();
    client.line("that the first is gone", |line| line == format!("- {address}")).await;
    one.line("its end", |line| line == "one stopped").await;
    one.end().await;
    client.line("answers of the second alone", |line| line.contains("answered by [two ")).await;

    client.terminate();
    let printed = client.end().await;
    let total = printed.last().unwrap();
    assert!(total.starts_with("in all: ") && total.contains(" calls, 0 failed; "), "{printed:#?}");
    two.terminate();
    two.end().await;
}

/// Enough to start, connect and let a lease expire on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
