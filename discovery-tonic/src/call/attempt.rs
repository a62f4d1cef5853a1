//! One attempt of a call: a request at one endpoint, and what it reveals about that endpoint.

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use discovery_core::Instance;
use http::{HeaderName, Request, Response};
use hyper::{body::Incoming, client::conn::TrySendError};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::{
    observer::{AttemptOutcome, Observed},
    status,
};
use crate::{
    balance::Picked,
    connection::{
        end::{End, h2_error},
        request_body::RequestBody,
    },
    endpoint::Endpoint,
    error::BoxError,
    metrics::{Outcome, attempt::Timer},
    published::target::Target,
    wakeups::SWEEP,
};

/// The answer to a request: a response that began, or an error that may hand the request back.
pub(crate) type Answer = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>;

/// A request at an endpoint, counted there as in flight until this is dropped.
#[derive(Debug)]
pub(crate) struct Attempt {
    picked: Picked<Target>,
    deadline: Option<Instant>,
    tick: u32,
    evidence: Evidence,
    timer: Timer,
    observed: Observed,
}

/// What the end of an attempt will show about its endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Evidence {
    /// That a caller waited in vain, if it waits long enough. `since` is set if the endpoint must
    /// answer a first request.
    Waiting { since: Option<Instant> },
    /// Nothing, since the call was expected to be slow.
    Slow,
    /// Nothing more: the attempt was answered or has been counted.
    Taken,
    /// Nothing more, and neither will the end of its response: it began with a failure.
    Failed,
}

/// The error of a call that was lost with its connection. Its source is the reason why the
/// connection ended, which the connection's own task may learn a moment later than the call.
#[derive(Debug)]
struct LostConnection {
    error: hyper::Error,
    end: Arc<End>,
}

impl Attempt {
    /// Sends a request to the picked target; the returned future resolves with the response's
    /// headers. If `expects_slow`, waiting for the answer shows nothing about the endpoint.
    pub(crate) fn send(
        mut picked: Picked<Target>,
        mut request: Request<RequestBody>,
        deadline: Option<Instant>,
        expects_slow: bool,
        observed: Observed,
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
        let timer = Timer::start(&picked.endpoint.metrics);
        (Self { picked, deadline, tick, evidence, timer, observed }, answer)
    }

    pub(crate) fn instance(&self) -> &Arc<Instance> {
        &self.picked.instance
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.picked.endpoint
    }

    /// Stops picks of this connection at once: it accepts no new requests.
    pub(crate) fn close_connection(&self) {
        self.picked.load().close();
        self.picked.endpoint.recheck();
    }

    /// Returns the code and message for an error of the connection, and whether the peer caused it.
    pub(crate) fn loss(&self, error: &hyper::Error) -> (Code, &'static str, bool) {
        if self.picked.load().is_cut() { status::CUT } else { status::from_connection(error) }
    }

    /// Turns the error of a call into the source of its status. If the call was lost with its
    /// connection, the source includes why the connection ended.
    pub(crate) fn cause(&self, error: hyper::Error) -> BoxError {
        match h2_error(&error) {
            Some(of_call) if of_call.is_reset() || of_call.is_go_away() => error.into(),
            _ => LostConnection { error, end: Arc::clone(self.picked.sender.end()) }.into(),
        }
    }

    /// Returns a future of the connection's end if the call was lost with it and the reason is not
    /// known yet: the error must wait for it.
    pub(crate) fn missing_end(&self, answer: &Answer) -> Option<impl Future<Output = ()> + Send + use<>> {
        self.missing_end_of_body(answer.as_ref().err()?.error())
    }

    /// Same as [`missing_end`](Self::missing_end) for an error of the response body.
    pub(crate) fn missing_end_of_body(&self, error: &hyper::Error) -> Option<impl Future<Output = ()> + Send + use<>> {
        let end = self.picked.sender.end();
        end.is_missing(error).then(|| Arc::clone(end).known())
    }

    /// Counts the attempt as lost without an answer.
    pub(crate) fn fail(self, code: Code) {
        self.endpoint().lost(self.picked.load());
        self.discard(code);
    }

    /// Counts the attempt as refused or ended by the peer, which is a kind of answer.
    pub(crate) fn reject(mut self, code: Code) {
        self.record(AttemptOutcome::Failed(code));
        self.answered_with(code);
    }

    /// Ends the attempt without counting it against the endpoint.
    pub(crate) fn discard(mut self, code: Code) {
        self.record(AttemptOutcome::Failed(code));
        self.evidence = Evidence::Taken;
    }

    /// Ends the attempt, which was not answered in time.
    pub(crate) fn expire(mut self) {
        self.record(AttemptOutcome::Failed(Code::DeadlineExceeded));
    }

    /// Counts the response as abandoned by its caller before its end.
    pub(crate) fn abandon(&self) {
        self.picked.load().abandon();
    }

    /// Counts an answer with this code; if it is `OK`, the message is still to come.
    fn answered_with(&mut self, code: Code) {
        self.evidence = Evidence::Taken;
        let is_failing = self.endpoint().tally.is_failing(code);
        // Update the connection first: the pool may look at it at once.
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

    /// Records how the attempt turned out, for the metrics and for the user's hook. Only the first
    /// outcome counts.
    fn record(&mut self, outcome: AttemptOutcome) {
        let endpoint = &self.picked.endpoint;
        let counted = match outcome {
            AttemptOutcome::Responded => Outcome::Ok,
            AttemptOutcome::Failed(_) => Outcome::Failed,
            AttemptOutcome::Cancelled => Outcome::Cancelled,
        };
        self.timer.stop(&endpoint.wakeups.metrics, &endpoint.metrics, counted);
        self.observed.end(&self.picked.instance, outcome);
    }

    /// Counts how a response that had begun has ended.
    pub(crate) fn ended_with(&self, code: Code) {
        if self.evidence == Evidence::Failed {
            return;
        }
        let endpoint = self.endpoint();
        if endpoint.tally.is_failing(code) {
            endpoint.failed(code, self.picked.load());
        } else {
            endpoint.tally.succeeded();
        }
    }

    /// Whether the server, such as tonic's, ended the call because of its deadline. That only shows
    /// that it could not answer in time.
    fn is_given_up(&self, status: &Status) -> bool {
        matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded)
            && self.deadline.is_some_and(|deadline| Instant::now() + SWEEP >= deadline)
    }

    /// Counts what the headers of an ordinary HTTP response show about the endpoint.
    pub(crate) fn finish_http(mut self, response: &Response<Incoming>) -> Self {
        match status::of_server_error(response.status()) {
            None => {
                self.record(AttemptOutcome::Responded);
                self.answered_with(Code::Ok);
                self.endpoint().tally.succeeded();
            }
            Some(code) => {
                self.record(AttemptOutcome::Failed(code));
                self.answered_with(code);
                // The body describes the failure; that it arrives is no success.
                self.evidence = Evidence::Failed;
            }
        }
        self
    }

    /// Counts what the response's headers show about the endpoint, and returns the status of a call
    /// that failed with them.
    pub(crate) fn finish(mut self, response: &Response<Incoming>) -> Result<Self, (Status, Self)> {
        // A server that fails before its first message sends a Trailers-Only response: the status
        // is in the headers, and there is no body.
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
            self.record(AttemptOutcome::Responded);
            self.answered_with(Code::Ok);
            return Ok(self);
        };
        self.record(AttemptOutcome::Failed(status.code()));
        // A call that ended at its deadline counts as unanswered.
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
        self.record(AttemptOutcome::Cancelled);
        self.picked.endpoint.metrics.ended();
        match self.evidence {
            Evidence::Failed | Evidence::Taken => {}
            Evidence::Slow => self.abandon(),
            Evidence::Waiting { since } => {
                // An impatient caller counts only if it waited over a sweep, or for `SHORT` if the
                // endpoint must answer a first request.
                let has_waited = since.is_some_and(|since| since.elapsed() >= SHORT);
                if has_waited || self.picked.endpoint.wakeups.tick() != self.tick {
                    self.picked.endpoint.given_up(self.picked.load());
                }
            }
        }
    }
}

/// A single request that is abandoned sooner shows nothing about its endpoint.
const SHORT: Duration = Duration::from_millis(10);
pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
