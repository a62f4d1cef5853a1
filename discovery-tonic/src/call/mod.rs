//! The path of one call, from the request to the end of its response.
//!
//! In the order in which a call meets them:
//!
//! - [`shared`] is what all calls of a channel share: the published set, the user agent, the
//!   retries.
//! - [`request_limit`] limits how many there are at a time. [`deadline`] reads the deadline of the
//!   call, [`user_agent`] adds the channel's name, [`replay`] keeps a copy of the request.
//! - [`first_attempt`] is the future of nearly all calls: an endpoint was ready, and the request is
//!   on its way to it. The rare cases go through [`Call::send_after`] instead: [`wait`] waits for
//!   an endpoint if none is ready, and a loop makes one attempt after another.
//! - [`attempt`] is one request at one endpoint, and what its end shows about that endpoint. The
//!   user's hook, the [`observer`], sees each.
//! - [`Call::on_outcome`] decides what follows: [`status`] classifies whether the request was
//!   processed, and [`retry`] decides whether the policy repeats it.
//! - [`response`] is the body that the caller reads, which holds the attempt until its end;
//!   [`served`] names the instance that answered.

mod attempt;
mod deadline;
mod first_attempt;
pub(crate) mod observer;
mod replay;
pub(crate) mod request_limit;
pub(crate) mod response;
pub(crate) mod retry;
pub(crate) mod served;
pub(crate) mod shared;
mod status;
pub(crate) mod user_agent;
mod wait;

use std::{mem, sync::Arc, time::Duration};

use discovery_core::InstanceId;
use futures::future::BoxFuture;
use http::{Extensions, Request, Response, Version};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};

use crate::{
    connection::{end::h2_error, request_body::RequestBody},
    error::{BoxError, with_cause},
    metrics::Event,
};
use attempt::{Answer, Attempt};
use observer::Observed;
use replay::ReplayRequest;
use request_limit::Place;
use response::ResponseBody;
use retry::{Failure, Repeats};
use served::{ServedBy, Tried, with_tried};
use shared::Shared;
use status::Outcome;

/// The state of a call beyond a single attempt: what is needed to retry it.
pub(crate) struct Call {
    protocol: Protocol,
    /// The copy to send again; `None` if the channel's budget is used up.
    replay: Option<ReplayRequest>,
    /// The extensions of the request; the response reuses the map.
    extensions: Extensions,
    pub(crate) deadline: Option<Instant>,
    /// How many attempts have begun.
    attempts: u32,
    refusals: u32,
    /// `None` if no policy repeats the call.
    repeats: Option<Repeats>,
    /// The instances that the request was sent to.
    tried: Vec<InstanceId>,
    /// `None` if the channel does not limit its calls.
    place: Option<Place>,
}

/// What the requests of a call are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Protocol {
    Grpc,
    /// Ordinary HTTP: every response is a success for the caller.
    Http,
}

/// What follows an attempt.
pub(crate) enum Next {
    /// Send the request again after a wait.
    Again(Request<RequestBody>, Duration),
    End(Result<Response<ResponseBody>, Status>),
}

/// Makes a call wait for an endpoint when it would otherwise fail at once: an extension of the
/// request.
///
/// The call still ends at its deadline or, without one, after the channel's [wait
/// timeout](crate::ChannelBuilder::wait_timeout).
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

/// Declares that a call may wait long for its answer: an extension of the request.
///
/// The wait of such a call is no sign of a hung endpoint. The mark is for long polls, and for
/// streams whose server sends nothing before the first event, if other calls of the channel are
/// answered soon. Without the mark such calls are safe too: an endpoint is ejected only if a new
/// connection to it and several single calls there are not answered while the other endpoints
/// answer.
///
/// ```
/// use discovery_tonic::ExpectSlow;
///
/// let mut request = tonic::Request::new(());
/// request.extensions_mut().insert(ExpectSlow);
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "a mark that users write")]
pub struct ExpectSlow;

impl Call {
    /// Splits a request from tonic into what the call keeps and what it sends.
    pub(crate) fn new(
        shared: &Shared,
        mut request: Request<tonic::body::Body>,
        protocol: Protocol,
    ) -> Result<(Self, Request<RequestBody>), Status> {
        let place = match &shared.request_limit {
            None => None,
            Some(limit) => Some(limit.enter().ok_or_else(|| {
                shared.published.wakeups.metrics.count(Event::Failure);
                let most = limit.most();
                let service = &shared.published.service;
                let message = format!("{most} calls of {service} are in flight, the limit of the channel");
                with_tried(Status::unavailable(message), Tried::new(Vec::new(), None))
            })?),
        };
        let deadline = match protocol {
            Protocol::Grpc => {
                let deadline = deadline::from_headers(request.headers());
                shared.user_agent.append_to(request.headers_mut());
                match (deadline, shared.timeout) {
                    (None, Some(timeout)) => Some(deadline::set(request.headers_mut(), timeout)),
                    _ => deadline,
                }
            }
            Protocol::Http => shared.timeout.map(|timeout| Instant::now() + timeout),
        };
        *request.version_mut() = Version::HTTP_2;
        let extensions = mem::take(request.extensions_mut());
        let repeats = shared.retries.as_ref().and_then(|retries| retries.begin(&extensions));
        let (parts, body) = request.into_parts();
        let body = RequestBody::new(body).map_err(|status| {
            shared.published.wakeups.metrics.count(Event::Failure);
            with_tried(status, Tried::new(Vec::new(), None))
        })?;
        let request = Request::from_parts(parts, body);
        let replay = ReplayRequest::from_request(&request, &shared.replay_budget);
        Ok((
            Self {
                protocol,
                replay,
                extensions,
                deadline,
                attempts: 0,
                refusals: 0,
                repeats,
                tried: Vec::new(),
                place,
            },
            request,
        ))
    }

    /// Whether waiting for its answer shows nothing about the endpoint.
    pub(crate) fn expects_slow(&self) -> bool {
        self.extensions.get::<ExpectSlow>().is_some()
    }

    /// Returns what the hook of the channel sees of an attempt that begins now.
    fn observe(&mut self, shared: &Shared) -> Observed {
        self.attempts += 1;
        Observed::begin(shared.attempt_hook.as_ref(), self.attempts)
    }

    /// Returns when an attempt that starts now must be answered.
    pub(crate) fn attempt_end(&self, shared: &Shared) -> Option<Instant> {
        let is_repeatable = self.replay.as_ref().is_some_and(ReplayRequest::is_whole);
        let repeatable = shared.retries.as_ref().zip(self.repeats.as_ref()).filter(|_| is_repeatable);
        let end = repeatable.and_then(|(retries, repeats)| retries.attempt_end(repeats));
        end.into_iter().chain(self.deadline).min()
    }

    /// Waits for `wait`, then for an endpoint, and continues from there, all within the deadline.
    pub(crate) fn send_after(
        mut self,
        shared: Arc<Shared>,
        request: Request<RequestBody>,
        wait: Duration,
    ) -> BoxFuture<'static, Result<Response<ResponseBody>, Status>> {
        Box::pin(async move {
            let attempts = async {
                let Some(end) = self.deadline else { return self.attempts(&shared, request, wait).await };
                match timeout_at(end, self.attempts(&shared, request, wait)).await {
                    Ok(result) => result,
                    Err(_) => Err(self.out_of_time(&shared)),
                }
            };
            shared.on_runtime(attempts).await
        })
    }

    async fn attempts(
        &mut self,
        shared: &Arc<Shared>,
        mut request: Request<RequestBody>,
        mut wait: Duration,
    ) -> Result<Response<ResponseBody>, Status> {
        let wait_for_ready = self.extensions.get::<WaitForReady>().is_some();
        // The time left for all waits for an endpoint together. If the call has a deadline, that
        // ends the waits instead.
        let mut left = self.deadline.is_none().then_some(shared.wait);
        loop {
            if !wait.is_zero() {
                shared.pause(wait).await;
            }
            let begun = Instant::now();
            let limit = left.map(|left| begun + left);
            let picked = match shared.wait_for_endpoint(wait_for_ready, limit, self.deadline, &self.tried).await {
                Ok(picked) => picked,
                Err((message, cause)) => {
                    // Many callers look at the status alone, so its message includes the cause.
                    let message = with_cause(message, cause.as_ref());
                    return Err(self.failed(shared, Status::unavailable(message), cause));
                }
            };
            left = left.map(|left| left.saturating_sub(begun.elapsed()));
            if let (Protocol::Grpc, Some(deadline)) = (self.protocol, self.deadline) {
                deadline::rewrite(request.headers_mut(), deadline);
            }
            let observed = self.observe(shared);
            let (attempt, answer) = Attempt::send(picked, request, self.deadline, self.expects_slow(), observed);
            // Recorded before awaiting: at the deadline this future is dropped, and the error must
            // still name the instance.
            self.tried.push(attempt.instance().id().clone());
            let answer = match self.attempt_end(shared) {
                Some(end) => timeout_at(end, answer).await.ok(),
                None => Some(answer.await),
            };
            if let Some(end) = answer.as_ref().and_then(|answer| attempt.missing_end(answer)) {
                end.await;
            }
            self.tried.pop();
            let next = match answer {
                Some(answer) => self.on_outcome(shared, attempt, answer),
                None => self.expire(shared, attempt),
            };
            match next {
                Next::Again(again, pause) => (request, wait) = (again, pause),
                Next::End(result) => return result,
            }
        }
    }

    /// Decides what follows the answer to an attempt.
    pub(crate) fn on_outcome(&mut self, shared: &Arc<Shared>, attempt: Attempt, answer: Answer) -> Next {
        let mut error = match answer {
            Ok(response) => return self.on_response(shared, attempt, response),
            Err(error) => error,
        };
        // hyper handed the request back, so it was never sent.
        if let Some(request) = error.take_message() {
            attempt.close_connection();
            attempt.discard(Code::Unavailable);
            shared.published.wakeups.metrics.count(Event::Retry);
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
            // Without a message the headers are the whole request, and they may have been sent.
            Outcome::Unsent => self.replay.as_ref().is_some_and(ReplayRequest::has_message),
        };
        let again = self.replay.as_ref().filter(|_| unprocessed);
        let counted = self.repeats.as_ref().filter(|_| self.protocol == Protocol::Grpc);
        if let Some(request) = again.and_then(|replay| replay.request(counted)) {
            if outcome == Outcome::Unsent || h2_error(&error).is_some_and(h2::Error::is_go_away) {
                attempt.close_connection();
                attempt.discard(Code::Unavailable);
            } else {
                attempt.reject(Code::Unavailable);
            }
            shared.published.wakeups.metrics.count(Event::Retry);
            return Next::Again(request, Duration::ZERO);
        }
        let (code, message, of_peer) = attempt.loss(&error);
        let is_reset = h2_error(&error).is_some_and(|error| error.is_reset() && error.is_remote());
        let cause = attempt.cause(error);
        match (of_peer, is_reset) {
            (true, true) => attempt.reject(code),
            (true, false) => attempt.fail(code),
            (false, _) => attempt.discard(code),
        }
        self.repeat(shared, Status::new(code, message), Some(cause), false)
    }

    fn on_response(&mut self, shared: &Arc<Shared>, attempt: Attempt, response: Response<Incoming>) -> Next {
        let finished = match self.protocol {
            Protocol::Grpc => attempt.finish(&response),
            Protocol::Http => return Next::End(Ok(self.respond(shared, attempt.finish_http(&response), response))),
        };
        match finished {
            Ok(attempt) => Next::End(Ok(self.respond(shared, attempt, response))),
            Err((status, attempt)) => {
                self.tried.push(attempt.instance().id().clone());
                drop(attempt);
                self.repeat(shared, status, None, false)
            }
        }
    }

    /// Turns hyper's response into the caller's.
    ///
    /// Consumes `extensions`, `tried` and `place` only on success. The request's `extensions` map
    /// is reused for the response to save an allocation.
    fn respond(
        &mut self,
        shared: &Arc<Shared>,
        attempt: Attempt,
        mut response: Response<Incoming>,
    ) -> Response<ResponseBody> {
        let mut extensions = mem::take(&mut self.extensions);
        extensions.clear();
        if let Some(replay) = &self.replay {
            replay.stop_keeping();
        }
        if !response.extensions().is_empty() {
            extensions.extend(mem::take(response.extensions_mut()));
        }
        let before: Option<Arc<[InstanceId]>> = (!self.tried.is_empty()).then(|| mem::take(&mut self.tried).into());
        extensions.insert(ServedBy { instance: Arc::clone(attempt.instance()), before: before.clone() });
        *response.extensions_mut() = extensions;
        let place = self.place.take();
        let is_http = self.protocol == Protocol::Http;
        response.map(|body| ResponseBody::new(shared, body, self.deadline, attempt, before, place, is_http))
    }

    /// Records that no answer arrived in time, neither within the attempt's limit nor before the
    /// call's deadline.
    pub(crate) fn expire(&mut self, shared: &Shared, attempt: Attempt) -> Next {
        self.tried.push(attempt.instance().id().clone());
        attempt.expire();
        let status = if self.is_over() { status::deadline_exceeded() } else { status::attempt_too_long() };
        self.repeat(shared, status, None, true)
    }

    fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Repeats a failed call if the policy allows it.
    fn repeat(&mut self, shared: &Shared, status: Status, cause: Option<BoxError>, slow: bool) -> Next {
        let replay = self.replay.as_ref().filter(|replay| replay.is_whole());
        if let (Some(retries), Some(repeats), Some(replay)) = (&shared.retries, &mut self.repeats, replay) {
            let failure = if slow { Failure::Slow } else { Failure::Status(&status) };
            if let Some(wait) = retries.next(repeats, failure, self.deadline)
                && let Some(request) = replay.request((self.protocol == Protocol::Grpc).then_some(&*repeats))
            {
                shared.published.wakeups.metrics.count(Event::Repeat);
                return Next::Again(request, wait);
            }
        }
        Next::End(Err(self.failed(shared, status, cause)))
    }

    /// Returns the status that the call ends with; at its deadline always `DEADLINE_EXCEEDED`.
    fn failed(&mut self, shared: &Shared, status: Status, cause: Option<BoxError>) -> Status {
        let status = if self.is_over() { status::deadline_exceeded() } else { status };
        self.end(shared, status, cause)
    }

    /// Returns the status of a call whose deadline passed while it waited or was repeated. If it
    /// was sent to no instance, the status explains why there was none.
    fn out_of_time(&mut self, shared: &Shared) -> Status {
        if !self.tried.is_empty() {
            return self.end(shared, status::deadline_exceeded(), None);
        }
        let (message, cause) = shared.published.explain(&shared.published.availability.load(), None);
        let message = with_cause(message, cause.as_ref());
        self.end(shared, status::deadline_exceeded_while_waiting(&message), cause)
    }

    fn end(&mut self, shared: &Shared, status: Status, cause: Option<BoxError>) -> Status {
        shared.published.wakeups.metrics.count(Event::Failure);
        if let Some(replay) = &self.replay {
            replay.stop_keeping();
        }
        with_tried(status, Tried::new(mem::take(&mut self.tried), cause))
    }
}

/// gRFC A6 allows one transparent retry of a refused request. Three, because in a rolling restart
/// one leaving server may follow another.
const MAX_REFUSALS: u32 = 3;
