use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use discovery_core::Instance;
use http::{HeaderName, Request, Response};
use hyper::{body::Incoming, client::conn::TrySendError};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::status;
use crate::{
    balance::Picked,
    connection::{
        end::{End, h2_error},
        request_body::RequestBody,
    },
    endpoint::Endpoint,
    error::BoxError,
    published::target::Target,
    wakeups::SWEEP,
};

/// What becomes of a request: a response that began, or an error, perhaps with the request.
pub(crate) type Answer = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>;

/// A request at an endpoint; counted there until its drop.
#[derive(Debug)]
pub(crate) struct Attempt {
    picked: Picked<Target>,
    deadline: Option<Instant>,
    tick: u32,
    evidence: Evidence,
}

/// What the end of an attempt says of its endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Evidence {
    /// That it waited in vain, if it did; since when, where the endpoint has to answer something
    /// first.
    Waiting { since: Option<Instant> },
    /// Nothing, since the call was expected to be slow.
    Slow,
    /// Nothing more: it was answered, or has been counted.
    Taken,
}

/// The error of a call that was lost with its connection. Its source is why that ended, which the
/// connection's own task may find out a moment later than the call.
#[derive(Debug)]
struct LostConnection {
    error: hyper::Error,
    end: Arc<End>,
}

impl Attempt {
    /// Sends a request to where it was picked for; the answer resolves at the response's headers.
    /// One that is expected to be slow says nothing of the endpoint while it waits.
    pub(crate) fn send(
        mut picked: Picked<Target>,
        mut request: Request<RequestBody>,
        deadline: Option<Instant>,
        expects_slow: bool,
    ) -> (Self, impl Future<Output = Answer> + use<>) {
        picked.origin.apply_to(&mut request);
        let answer = picked.sender.send(request);
        picked.sent();
        let mut evidence = Evidence::Waiting { since: None };
        if expects_slow {
            picked.take_answer();
            evidence = Evidence::Slow;
        } else if picked.load().is_limited() {
            evidence = Evidence::Waiting { since: Some(Instant::now()) };
        }
        let tick = picked.endpoint.wakeups.tick();
        (Self { picked, deadline, tick, evidence }, answer)
    }

    pub(crate) fn instance(&self) -> &Arc<Instance> {
        &self.picked.instance
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.picked.endpoint
    }

    /// Takes the connection out of the picks at once: it said that it takes no more.
    pub(crate) fn close_connection(&self) {
        self.picked.load().close();
        self.picked.endpoint.recheck();
    }

    /// The code and text for what the connection failed, and whether that was the peer's doing.
    pub(crate) fn loss(&self, error: &hyper::Error) -> (Code, &'static str, bool) {
        if self.picked.load().is_cut() { status::CUT } else { status::from_connection(error) }
    }

    /// The error of a call as the source of its status: with the connection's end, where the call
    /// was lost with it.
    pub(crate) fn cause(&self, error: hyper::Error) -> BoxError {
        match h2_error(&error) {
            Some(of_call) if of_call.is_reset() || of_call.is_go_away() => error.into(),
            _ => LostConnection { error, end: Arc::clone(self.picked.sender.end()) }.into(),
        }
    }

    /// The connection's end, where the call was lost with it and the reason is not known yet: the
    /// error waits for it.
    pub(crate) fn missing_end(&self, answer: &Answer) -> Option<impl Future<Output = ()> + Send + use<>> {
        self.missing_end_of_body(answer.as_ref().err()?.error())
    }

    /// The same for the error of a response's body.
    pub(crate) fn missing_end_of_body(&self, error: &hyper::Error) -> Option<impl Future<Output = ()> + Send + use<>> {
        let end = self.picked.sender.end();
        end.is_missing(error).then(|| Arc::clone(end).known())
    }

    /// Counts the attempt as lost without an answer.
    pub(crate) fn fail(self) {
        self.endpoint().lost(self.picked.load());
        self.discard();
    }

    /// Counts the attempt as refused or ended by the peer, which is an answer of a kind.
    pub(crate) fn reject(mut self, code: Code) {
        self.answered_with(code);
    }

    /// Ends the attempt without counting it against the endpoint.
    pub(crate) fn discard(mut self) {
        self.evidence = Evidence::Taken;
    }

    /// Counts the response as given up by its caller before its end.
    pub(crate) fn abandon(&self) {
        self.picked.load().abandon();
    }

    /// Counts an answer with this code; the message is still to come where it is `OK`.
    fn answered_with(&mut self, code: Code) {
        self.evidence = Evidence::Taken;
        let is_failing = self.endpoint().tally.is_failing(code);
        // The connection first: the pool may look at once.
        if is_failing {
            self.picked.take_answer();
        } else {
            self.picked.answer();
        }
        let endpoint = self.endpoint();
        endpoint.tally.answered();
        if is_failing {
            endpoint.failed(code, self.picked.load());
        } else if code != Code::Ok {
            endpoint.tally.succeeded();
        }
    }

    /// Counts how a response ended that had begun.
    pub(crate) fn ended_with(&self, code: Code) {
        let endpoint = self.endpoint();
        if endpoint.tally.is_failing(code) {
            endpoint.failed(code, self.picked.load());
        } else {
            endpoint.tally.succeeded();
        }
    }

    /// Whether the server ends the call because of its deadline, as tonic's does: that it could not
    /// answer in time.
    fn is_given_up(&self, status: &Status) -> bool {
        matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded)
            && self.deadline.is_some_and(|deadline| Instant::now() + SWEEP >= deadline)
    }

    /// Takes what the response's headers say of the endpoint, and the status of a call that failed
    /// with them.
    pub(crate) fn finish(mut self, response: &Response<Incoming>) -> Result<Self, (Status, Self)> {
        // A server that fails before its first message sends all in one: there is no body that
        // could carry who served.
        let code = response.headers().get(&GRPC_STATUS);
        let failed = match code {
            Some(code) if code == "0" => {
                self.endpoint().tally.succeeded();
                None
            }
            Some(_) => Status::from_header_map(response.headers()),
            None => status::from_http(response.status()),
        };
        let Some(status) = failed else {
            self.answered_with(Code::Ok);
            return Ok(self);
        };
        // Then it is as if the server had said nothing.
        if !self.is_given_up(&status) {
            self.answered_with(status.code());
        }
        Err((status, self))
    }
}

impl fmt::Display for LostConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the call was lost with its connection")
    }
}

impl StdError for LostConnection {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self.end.reason() {
            Some(reason) => Some(&**reason),
            None => Some(&self.error),
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        match self.evidence {
            Evidence::Taken => {}
            Evidence::Slow => self.abandon(),
            Evidence::Waiting { since } => {
                let has_waited = since.is_some_and(|since| since.elapsed() >= SHORT);
                if has_waited || self.picked.endpoint.wakeups.tick() != self.tick {
                    self.picked.endpoint.given_up(self.picked.load());
                }
            }
        }
    }
}

/// A single request that is given up earlier says nothing of its endpoint.
const SHORT: Duration = Duration::from_millis(10);
pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
