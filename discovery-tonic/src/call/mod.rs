pub(crate) mod attempt;
pub(crate) mod deadline;
pub(crate) mod first_attempt;
pub(crate) mod response;
pub(crate) mod retry;
pub(crate) mod served;
pub(crate) mod status;

use std::{mem, sync::Arc, time::Duration};

use bytes::Bytes;
use discovery_core::InstanceId;
use futures::future::BoxFuture;
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version, header::USER_AGENT,
    uri::PathAndQuery,
};
use hyper::{body::Incoming, client::conn::TrySendError};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Status;

use crate::{
    channel::Shared,
    connection::request_body::RequestBody,
    error::{BoxError, report},
    metrics::Event,
    published::Board,
};
use attempt::{Attempt, with_tried};
use response::ResponseBody;
use retry::{Failure, PREVIOUS, Repeats};
use served::Tried;
use status::Outcome;

/// What a call keeps besides its request: all that further attempts need.
pub(crate) struct Call {
    /// What it takes to send the request again; `None` where the body streams.
    spare: Option<Spare>,
    /// The request's, until the response takes them.
    pub(crate) extensions: Extensions,
    pub(crate) deadline: Option<Instant>,
    refusals: u32,
    /// `None` where no policy repeats it.
    repeats: Option<Repeats>,
    /// The instances that it was sent to.
    tried: Vec<InstanceId>,
}

/// What becomes of a call after an attempt.
pub(crate) enum Next {
    /// The request goes out again after a wait.
    Again(Request<RequestBody>, Duration),
    End(Result<Response<ResponseBody>, Status>),
}

/// A copy of a request whose body is kept. The headers are pairs, because a map costs more and is nearly never needed.
struct Spare {
    method: Method,
    path: PathAndQuery,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Option<Bytes>,
}

/// Makes a call wait for an endpoint where it would fail at once: an extension of the request.
///
/// It still ends at its deadline, or after the channel's limit of waiting.
///
/// ```
/// use discovery_tonic::WaitForReady;
///
/// let mut request = tonic::Request::new(());
/// request.extensions_mut().insert(WaitForReady);
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "a mark that users write")]
pub struct WaitForReady;

impl Call {
    /// Takes a request from tonic: what the call keeps, and what it sends.
    pub(crate) fn new(
        board: &Board,
        mut request: Request<tonic::body::Body>,
    ) -> Result<(Self, Request<RequestBody>), Status> {
        let deadline = deadline::of(request.headers());
        board.agent.sign(request.headers_mut());
        *request.version_mut() = Version::HTTP_2;
        let extensions = mem::take(request.extensions_mut());
        let repeats = board.retries.as_ref().and_then(|retries| retries.begin(&extensions));
        let (parts, body) = request.into_parts();
        let request = Request::from_parts(parts, RequestBody::new(body)?);
        let spare = Spare::of(&request);
        Ok((Self { spare, extensions, deadline, refusals: 0, repeats, tried: Vec::new() }, request))
    }

    /// When the attempt that begins now has to be answered.
    pub(crate) fn attempt_end(&self, board: &Board) -> Option<Instant> {
        let repeatable = board.retries.as_ref().zip(self.repeats.as_ref()).filter(|_| self.spare.is_some());
        let end = repeatable.and_then(|(retries, repeats)| retries.attempt_end(repeats));
        end.into_iter().chain(self.deadline).min()
    }

    /// Waits, then for an endpoint, and goes on from there; all within the deadline.
    pub(crate) fn go_on(
        mut self,
        shared: Arc<Shared>,
        request: Request<RequestBody>,
        wait: Duration,
    ) -> BoxFuture<'static, Result<Response<ResponseBody>, Status>> {
        Box::pin(async move {
            let Some(end) = self.deadline else { return self.attempts(&shared.board, request, wait).await };
            match timeout_at(end, self.attempts(&shared.board, request, wait)).await {
                Ok(result) => result,
                Err(_) => Err(self.fail(&shared.board, status::deadline_exceeded(), None)),
            }
        })
    }

    async fn attempts(
        &mut self,
        board: &Board,
        mut request: Request<RequestBody>,
        mut wait: Duration,
    ) -> Result<Response<ResponseBody>, Status> {
        let wait_for_ready = self.extensions.get::<WaitForReady>().is_some();
        // What is left for all waits for an endpoint together; where the call has a deadline, that ends them.
        let mut left = self.deadline.is_none().then_some(board.wait);
        loop {
            if !wait.is_zero() {
                sleep(wait).await;
            }
            let begun = Instant::now();
            let limit = left.map(|left| begun + left);
            let picked = match board.wait_for_endpoint(wait_for_ready, limit, self.deadline, &self.tried).await {
                Ok(picked) => picked,
                Err((message, cause)) => {
                    // A status is all that many callers look at, so it tells the cause too.
                    let told = cause.as_ref().map(|cause| format!("{message}: {}", report(cause)));
                    return Err(self.fail(board, Status::unavailable(told.unwrap_or(message)), cause.map(Into::into)));
                }
            };
            left = left.map(|left| left.saturating_sub(begun.elapsed()));
            if let Some(deadline) = self.deadline {
                deadline::rewrite(request.headers_mut(), deadline);
            }
            let (attempt, answer) = Attempt::send(picked, request, self.deadline);
            // Noted before the wait, at whose deadline this future is dropped.
            self.tried.push(attempt.instance().id().clone());
            let answer = match self.attempt_end(board) {
                Some(end) => timeout_at(end, answer).await.ok(),
                None => Some(answer.await),
            };
            self.tried.pop();
            let next = match answer {
                Some(answer) => self.settle(board, attempt, answer),
                None => self.expire(board, attempt),
            };
            match next {
                Next::Again(again, pause) => (request, wait) = (again, pause),
                Next::End(result) => return result,
            }
        }
    }

    /// Takes the answer to an attempt.
    pub(crate) fn settle(
        &mut self,
        board: &Board,
        attempt: Attempt,
        answer: Result<Response<Incoming>, TrySendError<Request<RequestBody>>>,
    ) -> Next {
        let mut error = match answer {
            Ok(response) => return self.take(board, attempt, response),
            Err(error) => error,
        };
        if let Some(request) = error.take_message() {
            attempt.retire();
            attempt.forgive();
            board.signals.metrics.count(Event::Retry);
            return Next::Again(request, Duration::ZERO);
        }
        self.tried.push(attempt.instance().id().clone());
        let error = error.into_error();
        let outcome = status::outcome(&error);
        let unprocessed = match outcome {
            Outcome::Ambiguous => false,
            Outcome::Refused => {
                self.refusals += 1;
                self.refusals <= MAX_REFUSALS
            }
            Outcome::Unsent => self.spare.as_ref().is_some_and(|spare| spare.body.is_some()),
        };
        if let Some(spare) = self.spare.as_ref().filter(|_| unprocessed) {
            if outcome == Outcome::Unsent || status::h2_error(&error).is_some_and(h2::Error::is_go_away) {
                attempt.retire();
                attempt.forgive();
            } else {
                attempt.lose();
            }
            board.signals.metrics.count(Event::Retry);
            return Next::Again(spare.request(self.repeats.as_ref()), Duration::ZERO);
        }
        let (code, message, of_peer) = status::of_connection(&error);
        if of_peer {
            attempt.lose();
        } else {
            attempt.forgive();
        }
        self.repeat(board, Status::new(code, message), Some(error.into()), false)
    }

    fn take(&mut self, board: &Board, attempt: Attempt, response: Response<Incoming>) -> Next {
        match attempt.finish(response, &mut self.extensions, &mut self.tried) {
            Ok(response) => Next::End(Ok(response)),
            Err((status, attempt)) => {
                self.tried.push(attempt.instance().id().clone());
                drop(attempt);
                self.repeat(board, status, None, false)
            }
        }
    }

    /// Takes note that no answer came in time: the attempt's, or the call's.
    pub(crate) fn expire(&mut self, board: &Board, attempt: Attempt) -> Next {
        self.tried.push(attempt.instance().id().clone());
        attempt.expire();
        let is_over = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let status = if is_over { status::deadline_exceeded() } else { status::attempt_too_long() };
        self.repeat(board, status, None, true)
    }

    /// Repeats a call that failed, where a policy says so.
    fn repeat(&mut self, board: &Board, status: Status, cause: Option<BoxError>, slow: bool) -> Next {
        if let (Some(retries), Some(repeats), Some(spare)) = (&board.retries, &mut self.repeats, &self.spare) {
            let failure = if slow { Failure::Slow } else { Failure::Status(&status) };
            if let Some(wait) = retries.next(repeats, failure, self.deadline) {
                board.signals.metrics.count(Event::Repeat);
                return Next::Again(spare.request(Some(repeats)), wait);
            }
        }
        Next::End(Err(self.fail(board, status, cause)))
    }

    fn fail(&mut self, board: &Board, status: Status, cause: Option<BoxError>) -> Status {
        board.signals.metrics.count(Event::Failure);
        with_tried(status, Tried::new(mem::take(&mut self.tried), cause))
    }
}

impl Spare {
    fn of(request: &Request<RequestBody>) -> Option<Self> {
        let RequestBody::Kept(body) = request.body() else { return None };
        // The iterator cannot tell its length.
        let mut headers = Vec::with_capacity(request.headers().len());
        headers.extend(request.headers().iter().map(|(name, value)| (name.clone(), value.clone())));
        let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        Some(Self { method: request.method().clone(), path, headers, body: body.clone() })
    }

    /// The request once more, which says how often the policy has repeated it.
    fn request(&self, repeats: Option<&Repeats>) -> Request<RequestBody> {
        let mut request = Request::new(RequestBody::Kept(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.path.clone().into();
        *request.version_mut() = Version::HTTP_2;
        let headers = request.headers_mut();
        for (name, value) in &self.headers {
            headers.append(name, value.clone());
        }
        if let Some(repeats) = repeats.filter(|repeats| repeats.done() > 0) {
            headers.insert(PREVIOUS, repeats.done().into());
        }
        request
    }
}

/// What the channel calls itself, after whatever the request says of its own.
#[derive(Clone, Debug)]
pub(crate) struct Agent(pub(crate) HeaderValue);

impl Agent {
    fn sign(&self, headers: &mut HeaderMap) {
        if let Some(own) = headers.insert(USER_AGENT, self.0.clone()) {
            let all = [own.as_bytes(), b" ", self.0.as_bytes()].concat();
            let all = HeaderValue::from_bytes(&all).expect("two header values and a space make a header value");
            headers.insert(USER_AGENT, all);
        }
    }
}

/// gRFC A6 allows one transparent retry of what the peer refused; a rolling restart may lead from one leaving server to the next.
const MAX_REFUSALS: u32 = 3;
