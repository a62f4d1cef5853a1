//! A process that reads commands from stdin and prints events to stdout, one per line: `peer`, or
//! this program itself. Killed on drop.

use std::{process::Stdio, sync::Arc, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{Instant, timeout_at},
};

use crate::{failure::Failure, ledger::Ledger};

/// A running process and the events that nobody has waited for yet.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    events: UnboundedReceiver<Event>,
    passed: Vec<Event>,
    ledger: Arc<Ledger>,
}

/// One line of stdout.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Event {
    pub(crate) event: String,
    pub(crate) at_unix_ns: u64,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

impl Process {
    /// Starts a process; its lines go to the ledger.
    pub(crate) fn start(name: &str, mut command: Command, ledger: &Arc<Ledger>) -> Result<Self, Failure> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| format!("{name} cannot be started: {error}"))?;
        let (send, events) = unbounded_channel();
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(read(stdout, name.to_owned(), Arc::clone(ledger), Some(send)));
        }
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(read(stderr, stderr_of(name), Arc::clone(ledger), None));
        }
        let stdin = child.stdin.take();
        Ok(Self { name: name.to_owned(), child, stdin, events, passed: Vec::new(), ledger: Arc::clone(ledger) })
    }

    /// Writes one line to its stdin.
    pub(crate) async fn send(&mut self, line: &str) -> Result<(), Failure> {
        let written = match &mut self.stdin {
            Some(stdin) => stdin.write_all(format!("{line}\n").as_bytes()).await,
            None => Ok(()),
        };
        match written {
            Ok(()) => Ok(()),
            Err(_) => Err(self.ended().await),
        }
    }

    /// Waits for an event of this name.
    pub(crate) async fn event(&mut self, name: &str) -> Result<Event, Failure> {
        self.event_where(name, |_| true).await
    }

    /// Waits for an event of this name that is meant, among those that nobody has waited for. Fails
    /// once the process reports an error or ends.
    pub(crate) async fn event_where(
        &mut self,
        name: &str,
        is_meant: impl Fn(&Event) -> bool,
    ) -> Result<Event, Failure> {
        let is_meant = |event: &Event| event.event == name && is_meant(event);
        if let Some(error) = self.passed.iter().find(|event| event.event == "error") {
            return Err(self.reported(error));
        }
        if let Some(place) = self.passed.iter().position(is_meant) {
            return Ok(self.passed.remove(place));
        }
        let deadline = Instant::now() + SOON;
        loop {
            match timeout_at(deadline, self.events.recv()).await {
                Ok(Some(event)) if is_meant(&event) => return Ok(event),
                Ok(Some(event)) if event.event == "error" => return Err(self.reported(&event)),
                Ok(Some(event)) => self.passed.push(event),
                Ok(None) => return Err(self.ended().await),
                Err(_) => return Err(format!("{} did not report `{name}` within {SOON:?}", self.name).into()),
            }
        }
    }

    /// Forgets the events so far, so that the next one is later than now.
    pub(crate) fn forget(&mut self, name: &str) {
        while let Ok(event) = self.events.try_recv() {
            self.passed.push(event);
        }
        self.passed.retain(|event| event.event != name);
    }

    /// Sends SIGKILL, and waits until the process has ended and its connections with it.
    pub(crate) async fn kill(&mut self) -> Result<(), Failure> {
        Ok(self.child.kill().await?)
    }

    /// Returns the error that the process has reported.
    fn reported(&self, event: &Event) -> Failure {
        format!("{}: {}", self.name, event.text("message")).into()
    }

    /// Returns the reason why nothing more comes from the process.
    async fn ended(&mut self) -> Failure {
        let status = match timeout_at(Instant::now() + SOON, self.child.wait()).await {
            Ok(Ok(status)) => format!("{} ended by itself: {status}", self.name),
            _ => format!("{} closed its stdout", self.name),
        };
        match self.ledger.panic_of(&stderr_of(&self.name)) {
            Some(panic) => format!("{status}: {panic}").into(),
            None => status.into(),
        }
    }
}

impl Event {
    /// Returns a field that is text; empty if there is none.
    pub(crate) fn text(&self, field: &str) -> &str {
        self.fields.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns all fields as one value.
    pub(crate) fn into<T: DeserializeOwned>(self) -> Result<T, Failure> {
        Ok(serde_json::from_value(Value::Object(self.fields))?)
    }
}

async fn read(
    output: impl AsyncRead + Unpin,
    name: String,
    ledger: Arc<Ledger>,
    events: Option<UnboundedSender<Event>>,
) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        ledger.line(&name, &line);
        let Some(events) = &events else { continue };
        if let Ok(event) = serde_json::from_str(&line) {
            // The scene may be over.
            let _ = events.send(event);
        }
    }
}

fn stderr_of(name: &str) -> String {
    format!("{name} (stderr)")
}

/// Longer than anything that works takes.
const SOON: Duration = Duration::from_secs(15);
