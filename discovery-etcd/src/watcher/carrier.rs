//! Reads one stream of watches, and sends the requests on it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use discovery_core::{Error, ErrorKind};
use futures::channel::mpsc::UnboundedSender;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    ids::{Ids, Placed},
    keys::Keys,
    subscription::{Ended, Notice, Shared},
};
use crate::client::{Canceled, Event, Failure, Message, Reason, WatchAnswers, WatchRequest, WatchRequests};

/// The task of one stream, which passes messages on to the watches.
///
/// Each stream has a task of its own, so that a service that is catching up does not delay the
/// others.
#[derive(Debug)]
pub(super) struct Carrier {
    pub(super) stream: u64,
    pub(super) ids: Ids,
    /// Keyed by turn.
    pub(super) watches: HashMap<u64, Carried>,
    /// Ids to cancel.
    pub(super) unwanted: Vec<i64>,
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    pub(super) reports: mpsc::UnboundedSender<Report>,
    /// How long the server may take to answer a request for a watch.
    pub(super) patience: Duration,
}

/// A command for the task of a stream.
#[derive(Debug)]
pub(super) enum Command {
    Ask { turn: u64, carried: Carried },
    Leave { turn: u64 },
}

/// What a stream reports to the handle's watcher.
#[derive(Debug)]
pub(super) enum Report {
    Created { stream: u64, number: u64, turn: u64 },
    Refused { stream: u64, number: u64, failure: Failure },
    Broken { stream: u64, failure: Failure },
}

/// A watch, as its stream knows it.
#[derive(Clone, Debug)]
pub(super) struct Carried {
    pub(super) number: u64,
    pub(super) shared: Arc<Shared>,
    pub(super) notices: UnboundedSender<Notice>,
}

/// A request to send.
#[derive(Clone, Debug)]
enum Outgoing {
    Watch(WatchRequest),
    Cancel(i64),
}

impl Carrier {
    /// Runs until the stream ends, or nobody can send commands any more.
    pub(super) async fn run(mut self, mut requests: WatchRequests, mut answers: WatchAnswers) {
        if let Some(failure) = self.carry(&mut requests, &mut answers).await {
            // The watcher may be gone.
            let _ = self.reports.send(Report::Broken { stream: self.stream, failure });
        }
    }

    /// Returns why the stream failed; `None` if it is no longer wanted.
    async fn carry(&mut self, requests: &mut WatchRequests, answers: &mut WatchAnswers) -> Option<Failure> {
        let mut last_answer = Instant::now();
        let mut last_message = last_answer;
        loop {
            let outgoing = self.outgoing();
            // Events in between may delay the answer, but only up to a limit.
            let overdue = (last_message + self.patience).min(last_answer + BUSY * self.patience);
            tokio::select! {
                biased;
                command = self.commands.recv() => self.take(command?),
                message = answers.next() => {
                    last_message = Instant::now();
                    match message {
                        Ok(message) => {
                            if message.created {
                                last_answer = last_message;
                            }
                            self.pass(message);
                        }
                        Err(failure) => return Some(failure),
                    }
                }
                // Keep reading while the request queue is full: otherwise both sides would block.
                sent = send(requests, outgoing.clone()), if outgoing.is_some() => {
                    if let Err(failure) = sent {
                        return Some(failure);
                    }
                    if !self.ids.is_asking() {
                        last_answer = Instant::now();
                        last_message = last_answer;
                    }
                    self.sent(outgoing.expect("a request was sent"));
                }
                () = sleep_until(overdue), if self.ids.is_asking() => return Some(unanswered()),
            }
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Ask { turn, carried } => {
                self.watches.insert(turn, carried);
                self.ids.add(turn);
            }
            Command::Leave { turn } => {
                self.watches.remove(&turn);
                self.unwanted.extend(self.ids.leave(turn));
            }
        }
    }

    fn outgoing(&self) -> Option<Outgoing> {
        if let Some(id) = self.unwanted.last() {
            return Some(Outgoing::Cancel(*id));
        }
        let turn = self.ids.next()?;
        let carried = self.watches.get(&turn).expect("every requested watch is carried");
        Some(Outgoing::Watch(carried.request(turn)))
    }

    fn sent(&mut self, outgoing: Outgoing) {
        match outgoing {
            Outgoing::Cancel(_) => drop(self.unwanted.pop()),
            Outgoing::Watch(_) => self.ids.sent(),
        }
    }

    /// Passes a message on to its watch.
    fn pass(&mut self, mut message: Message) {
        match self.ids.place(&message) {
            Placed::Nobody => {}
            Placed::Unwanted(id) => self.unwanted.push(id),
            Placed::Created(turn) => {
                let Some(carried) = self.watches.get(&turn) else { return };
                let stream = self.stream;
                let number = carried.number;
                carried.tell(Notice::Created { stream, turn, cluster: message.cluster });
                let _ = self.reports.send(Report::Created { stream, number, turn });
            }
            Placed::Refused(turn) => {
                let Some(carried) = self.watches.remove(&turn) else { return };
                let failure = match message.canceled {
                    Some(Canceled::Failed(failure)) => failure,
                    Some(Canceled::Compacted) | None => compacted(),
                };
                let _ = self.reports.send(Report::Refused { stream: self.stream, number: carried.number, failure });
            }
            Placed::Canceled(turn) => {
                let Some(carried) = self.watches.remove(&turn) else { return };
                let ended = match message.canceled {
                    Some(Canceled::Failed(failure)) => Ended::Broken(failure.error),
                    Some(Canceled::Compacted) | None => Ended::Compacted,
                };
                carried.tell(Notice::Canceled { turn, ended });
            }
            Placed::Event(turn) => {
                let Some(carried) = self.watches.get(&turn) else { return };
                let is_empty = message.events.is_empty();
                message.events.retain(|event| *event == Event::Unknown || carried.keys().contains(event.key()));
                if message.events.is_empty() && !is_empty && !message.fragment {
                    return;
                }
                carried.tell(Notice::Message { turn, message });
            }
        }
    }
}

impl Carried {
    pub(super) fn keys(&self) -> &Keys {
        self.shared.keys()
    }

    /// Requests the changes from the last known revision on, that revision included. If history is
    /// compacted up to the first unknown change, some releases accept a watch from that change and
    /// leave out a removal. They refuse only a watch from an earlier revision.
    pub(super) fn request(&self, turn: u64) -> WatchRequest {
        WatchRequest {
            from: self.keys().from().to_vec(),
            to: self.keys().to().to_vec(),
            revision: self.shared.known().max(1),
            id: Ids::chosen(turn),
        }
    }

    pub(super) fn tell(&self, notice: Notice) {
        // The watch may have been dropped.
        let _ = self.notices.unbounded_send(notice);
    }
}

/// Sends a request, if there is one. Cancel safe: it is either sent or not.
async fn send(requests: &mut WatchRequests, outgoing: Option<Outgoing>) -> Result<(), Failure> {
    match outgoing {
        None => Ok(()),
        Some(Outgoing::Cancel(id)) => requests.cancel(id).await,
        Some(Outgoing::Watch(request)) => requests.watch(request).await,
    }
}

/// The limit on a request's wait on a busy stream, as a multiple of the patience.
const BUSY: u32 = 4;

fn unanswered() -> Failure {
    let error = Error::new(ErrorKind::DeadlineExceeded, "etcd did not answer a request for a watch");
    Failure::new(Reason::TimedOut, error.with_operation("watch"))
}

fn compacted() -> Failure {
    let error = Error::new(ErrorKind::Unavailable, "the requested history is compacted");
    Failure::new(Reason::Compacted, error.with_operation("watch"))
}
