//! The line protocol of `peer`: commands on stdin, events as JSON objects on stdout.

use std::{
    io::{self, BufRead, Write},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// One line of stdin: a word, and the rest of the line.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) word: String,
    pub(super) rest: String,
}

/// Prints one event, with the time at which it is printed.
pub(super) fn emit(event: &str, mut fields: Value) {
    // Locked before the time is taken, so that times never decrease from line to line.
    let mut stdout = io::stdout().lock();
    fields["event"] = json!(event);
    fields["at_unix_ns"] = json!(unix_ns());
    // If nobody reads any more, the end of stdin follows.
    let _ = writeln!(stdout, "{fields}");
}

/// Delivers the lines of stdin. Its end means `stop`.
pub(super) fn commands() -> UnboundedReceiver<Command> {
    let (send, commands) = unbounded_channel();
    // A thread of its own, because tokio's stdin would keep the process from ending.
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            let line = line.trim();
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            if send.send(Command { word: word.to_owned(), rest: rest.trim().to_owned() }).is_err() {
                return;
            }
        }
    });
    commands
}

/// Answers a command that cannot be carried out.
pub(super) fn refuse(command: &Command, reason: &str) {
    emit("error", json!({ "command": command.word, "message": reason }));
}

/// Returns the time as other processes see it too.
#[expect(clippy::disallowed_methods, reason = "`Instant` means nothing in another process")]
pub(super) fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
