use std::{error::Error as StdError, fmt, sync::Arc};

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
    pub(crate) fn send(
        mut picked: Picked<Target>,
        mut request: Request<RequestBody>,
        deadline: Option<Instant>,
    ) -> (Self, impl Future<Output = Answer> + use<>) {
        picked.origin.apply_to(&mut request);
        let answer = picked.sender.send(request);
        picked.sent();
        let tick = picked.endpoint.wakeups.tick();
        (Self { picked, deadline, tick }, answer)
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

    /// Counts the attempt as failed without an answer, once.
    pub(crate) fn fail(self) {
        self.endpoint().lost(self.tick, self.picked.load());
        self.discard();
    }

    /// Ends the attempt without counting it against the endpoint.
    pub(crate) fn discard(self) {
        drop(self.detach());
    }

    /// Its end says nothing of the endpoint any more.
    fn detach(mut self) -> Self {
        (self.deadline, self.tick) = (None, self.endpoint().wakeups.tick());
        self
    }

    /// Counts the response as given up by its caller before its end.
    pub(crate) fn abandon(&self) {
        self.picked.load().abandon();
    }

    fn answered(&mut self) {
        self.picked.answer();
        self.endpoint().tally.answered();
    }

    /// Whether the server ends the call because of its deadline, as tonic's does: that it could not
    /// answer in time.
    fn is_given_up(&self, status: &Status) -> bool {
        matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded)
            && self.deadline.is_some_and(|deadline| Instant::now() + SWEEP >= deadline)
    }

    /// Gives the attempt up, because no answer came in time.
    pub(crate) fn expire(mut self) {
        self.deadline = Some(Instant::now());
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
            self.answered();
            return Ok(self);
        };
        if self.is_given_up(&status) {
            self.endpoint().lost(self.tick, self.picked.load());
            return Err((status, self.detach()));
        }
        self.answered();
        if status.code() == Code::Unavailable {
            self.endpoint().failed();
        } else {
            self.endpoint().tally.succeeded();
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
        if self.picked.is_answered() {
            return;
        }
        let sweeps = self.picked.endpoint.wakeups.tick().wrapping_sub(self.tick);
        if sweeps > PATIENCE || self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.endpoint().lost(self.tick, self.picked.load());
        }
    }
}

pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// After so many sweeps without an answer a call that its caller gives up counts against the
/// endpoint.
const PATIENCE: u32 = 2;
