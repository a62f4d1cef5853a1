use std::{mem, sync::Arc};

use bytes::Bytes;
use discovery_core::InstanceId;
use futures::future::BoxFuture;
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version, header::USER_AGENT,
    uri::PathAndQuery,
};
use hyper::{body::Incoming, client::conn::TrySendError};
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use crate::{
    attempt::{Attempt, with_tried},
    body::RequestBody,
    channel::Shared,
    connector::BoxError,
    deadline,
    response::ResponseBody,
    served::Tried,
    status::{self, Outcome},
};

/// What a call keeps besides its request: all that further attempts need.
pub(crate) struct Call {
    /// What it takes to send the request again; `None` where the body streams.
    spare: Option<Spare>,
    /// The request's, until the response takes them.
    pub(crate) extensions: Extensions,
    pub(crate) deadline: Option<Instant>,
    refusals: u32,
    /// The instances that it was sent to.
    tried: Vec<InstanceId>,
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
        agent: &Agent,
        mut request: Request<tonic::body::Body>,
    ) -> Result<(Self, Request<RequestBody>), Status> {
        let deadline = deadline::of(request.headers());
        agent.sign(request.headers_mut());
        *request.version_mut() = Version::HTTP_2;
        let extensions = mem::take(request.extensions_mut());
        let (parts, body) = request.into_parts();
        let request = Request::from_parts(parts, RequestBody::new(body)?);
        let spare = Spare::of(&request);
        Ok((Self { spare, extensions, deadline, refusals: 0, tried: Vec::new() }, request))
    }

    /// Waits for an endpoint and goes on from there; all within the deadline.
    pub(crate) fn go_on(
        mut self,
        shared: Arc<Shared>,
        request: Request<RequestBody>,
    ) -> BoxFuture<'static, Result<Response<ResponseBody>, Status>> {
        Box::pin(async move {
            let Some(end) = self.deadline else { return self.attempts(&shared, request).await };
            match timeout_at(end, self.attempts(&shared, request)).await {
                Ok(result) => result,
                Err(_) => Err(self.fail(status::deadline_exceeded(), None)),
            }
        })
    }

    async fn attempts(
        &mut self,
        shared: &Shared,
        mut request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Status> {
        let wait = self.extensions.get::<WaitForReady>().is_some();
        // All waits of the call together; where it has a deadline, that ends them.
        let limit = self.deadline.is_none().then(|| Instant::now() + shared.board.wait);
        loop {
            let picked = match shared.board.wait_for_endpoint(wait, limit, &self.tried).await {
                Ok(picked) => picked,
                Err((message, cause)) => {
                    // A status is all that many callers look at, so it tells the cause too.
                    let told = cause.as_ref().map(|cause| format!("{message}: {}", cause.report()));
                    return Err(self.fail(Status::unavailable(told.unwrap_or(message)), cause.map(Into::into)));
                }
            };
            if let Some(deadline) = self.deadline {
                deadline::rewrite(request.headers_mut(), deadline);
            }
            let (attempt, answer) = Attempt::send(picked, request, self.deadline);
            // Noted before the wait, at whose deadline this future is dropped.
            self.tried.push(attempt.instance().id().clone());
            match answer.await {
                Ok(response) => {
                    self.tried.pop();
                    return self.finish(attempt, response);
                }
                Err(error) => {
                    self.tried.pop();
                    request = self.restore(&attempt, error)?;
                }
            }
        }
    }

    /// Takes the answer to an attempt.
    pub(crate) fn finish(
        &mut self,
        attempt: Attempt,
        response: Response<Incoming>,
    ) -> Result<Response<ResponseBody>, Status> {
        attempt.finish(response, mem::take(&mut self.extensions)).map_err(|(status, attempt)| {
            self.tried.push(attempt.instance().id().clone());
            self.fail(status, None)
        })
    }

    /// Makes the request whole again after a failed attempt, where it provably was not processed.
    pub(crate) fn restore(
        &mut self,
        attempt: &Attempt,
        mut error: TrySendError<Request<RequestBody>>,
    ) -> Result<Request<RequestBody>, Status> {
        if let Some(request) = error.take_message() {
            attempt.retire();
            return Ok(request);
        }
        self.tried.push(attempt.instance().id().clone());
        let error = error.into_error();
        let repeat = match status::outcome(&error) {
            Outcome::Ambiguous => false,
            Outcome::Refused => {
                self.refusals += 1;
                self.refusals <= MAX_REFUSALS
            }
            Outcome::Unsent => true,
        };
        match &self.spare {
            Some(spare) if repeat => {
                if status::h2_error(&error).is_some_and(h2::Error::is_go_away) {
                    attempt.retire();
                } else {
                    attempt.endpoint().failed();
                }
                Ok(spare.request())
            }
            _ => {
                let (code, message, of_peer) = status::of_connection(&error);
                if of_peer {
                    attempt.endpoint().failed();
                }
                Err(self.fail(Status::new(code, message), Some(error.into())))
            }
        }
    }

    /// The end of a call whose deadline passed while `attempt` waited for its answer.
    pub(crate) fn expire(&mut self, attempt: &Attempt) -> Status {
        self.tried.push(attempt.instance().id().clone());
        self.fail(status::deadline_exceeded(), None)
    }

    fn fail(&mut self, status: Status, cause: Option<BoxError>) -> Status {
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

    fn request(&self) -> Request<RequestBody> {
        let mut request = Request::new(RequestBody::Kept(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.path.clone().into();
        *request.version_mut() = Version::HTTP_2;
        let headers = request.headers_mut();
        for (name, value) in &self.headers {
            headers.append(name, value.clone());
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
