use std::{mem, sync::Arc};

use discovery_core::{Instance, InstanceId};
use http::{
    Extensions, HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::USER_AGENT,
    uri::{self, PathAndQuery},
};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};

use crate::{
    WaitForReady,
    balance::Picked,
    board::Board,
    body::RequestBody,
    connection::{Failure, Sender},
    connector::BoxError,
    deadline,
    endpoint::Endpoint,
    response::ResponseBody,
    served::{ServedBy, Tried},
    status::{self, Outcome},
};

/// What the pool publishes of a ready endpoint.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) instance: Arc<Instance>,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) sender: Sender,
}

/// A request at an endpoint; counted there until its drop.
#[derive(Debug)]
pub(crate) struct Attempt {
    picked: Picked<Target>,
    deadline: Option<Instant>,
    tick: u32,
}

/// The instances that a call was sent to. The first one, which nearly always is the only one, needs no allocation.
#[derive(Debug, Default)]
struct Trail {
    current: Option<InstanceId>,
    former: Vec<InstanceId>,
}

/// What a call sends, as often as it has to.
struct Outgoing {
    method: Method,
    path: PathAndQuery,
    headers: HeaderMap,
    body: RequestBody,
}

/// One call: its attempts under its deadline. `first` is what the channel's own picker found.
pub(crate) async fn run(
    board: &Board,
    first: Option<Picked<Target>>,
    request: Request<tonic::body::Body>,
) -> Result<Response<ResponseBody>, Status> {
    let deadline = deadline::of(request.headers());
    let mut trail = Trail::default();
    match deadline {
        None => attempts(board, first, request, None, &mut trail).await,
        Some(end) => match timeout_at(end, attempts(board, first, request, deadline, &mut trail)).await {
            Ok(result) => result,
            Err(_) => Err(status::deadline_exceeded(trail.tried(None))),
        },
    }
}

async fn attempts(
    board: &Board,
    mut next: Option<Picked<Target>>,
    request: Request<tonic::body::Body>,
    deadline: Option<Instant>,
    trail: &mut Trail,
) -> Result<Response<ResponseBody>, Status> {
    let (parts, body) = request.into_parts();
    let wait = parts.extensions.get::<WaitForReady>().is_some();
    let mut outgoing = Outgoing {
        method: parts.method,
        path: parts.uri.into_parts().path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/")),
        headers: parts.headers,
        body: RequestBody::new(body)?,
    };
    board.agent.sign(&mut outgoing.headers);
    let mut refusals = 0;
    loop {
        let picked = match next.take() {
            Some(picked) => picked,
            None => match board.wait_for_endpoint(wait, trail.all()).await {
                Ok(picked) => picked,
                Err((message, cause)) => {
                    let mut status = Status::unavailable(message);
                    status.set_source(Arc::new(trail.tried(cause.map(Into::into))));
                    return Err(status);
                }
            },
        };
        let attempt = Attempt { tick: picked.endpoint.signals.tick(), picked, deadline };
        trail.step(attempt.instance().id());
        let again = outgoing.body.again().map(|body| (outgoing.headers.clone(), body));
        let (method, path) = (outgoing.method.clone(), outgoing.path.clone());
        let failure = match attempt.picked.sender.send(outgoing.into_request(&attempt.picked.endpoint.origin)).await {
            Ok(response) => return attempt.finish(response, parts.extensions, trail),
            Err(failure) => failure,
        };
        let error = match failure {
            Failure { request: Some(request), .. } => {
                attempt.retire();
                outgoing = Outgoing::of(request, path);
                trail.unsent();
                continue;
            }
            Failure { error, request: None } => error,
        };
        let outcome = status::outcome(&error);
        let repeat = match outcome {
            Outcome::Ambiguous => false,
            Outcome::Refused => {
                refusals += 1;
                refusals <= MAX_REFUSALS
            }
            Outcome::Unsent => true,
        };
        match again {
            Some((headers, body)) if repeat => {
                if status::h2_error(&error).is_some_and(h2::Error::is_go_away) {
                    attempt.retire();
                }
                outgoing = Outgoing { method, path, headers, body };
                if let Some(deadline) = deadline {
                    deadline::rewrite(&mut outgoing.headers, deadline);
                }
            }
            _ => {
                attempt.endpoint().failed();
                let (code, message) = status::of_connection(&error);
                let mut status = Status::new(code, message);
                status.set_source(Arc::new(trail.tried(Some(error.into()))));
                return Err(status);
            }
        }
    }
}

impl Attempt {
    pub(crate) fn instance(&self) -> &Arc<Instance> {
        &self.picked.instance
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.picked.endpoint
    }

    /// Takes the connection out of the picks at once: it said that it takes no more.
    fn retire(&self) {
        self.picked.load().close();
        self.picked.endpoint.look();
    }

    /// Takes the response's headers: what they say of the endpoint, and what the caller gets.
    fn finish(
        mut self,
        mut response: Response<Incoming>,
        mut extensions: Extensions,
        trail: &mut Trail,
    ) -> Result<Response<ResponseBody>, Status> {
        self.picked.answer();
        // A server that fails before its first message sends all in one: there is no body that could carry who served.
        let failed = response.headers().get(GRPC_STATUS).filter(|code| *code != "0");
        let failed = failed.and_then(|_| Status::from_header_map(response.headers()));
        let unavailable = match &failed {
            Some(status) => status.code() == Code::Unavailable,
            None => response.status() != StatusCode::OK,
        };
        if unavailable {
            self.endpoint().failed();
        } else {
            self.endpoint().answered();
        }
        if let Some(mut status) = failed {
            status.set_source(Arc::new(trail.tried(None)));
            return Err(status);
        }
        // The request's extensions have done their work; their allocation serves again.
        extensions.clear();
        extensions.extend(mem::take(response.extensions_mut()));
        extensions.insert(ServedBy(Arc::clone(self.instance())));
        *response.extensions_mut() = extensions;
        let deadline = self.deadline;
        Ok(response.map(|body| ResponseBody::new(body, deadline, self)))
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.picked.is_answered() {
            return;
        }
        let sweeps = self.picked.endpoint.signals.tick().wrapping_sub(self.tick);
        if sweeps > PATIENCE || self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.picked.endpoint.failed();
        }
    }
}

impl Trail {
    fn step(&mut self, id: &InstanceId) {
        self.former.extend(self.current.replace(id.clone()));
    }

    /// The last step did not happen after all.
    fn unsent(&mut self) {
        self.current = None;
    }

    fn all(&mut self) -> &[InstanceId] {
        self.former.extend(self.current.take());
        &self.former
    }

    fn tried(&mut self, cause: Option<BoxError>) -> Tried {
        self.all();
        Tried::new(mem::take(&mut self.former), cause)
    }
}

impl Outgoing {
    fn of(request: Request<RequestBody>, path: PathAndQuery) -> Self {
        let (parts, body) = request.into_parts();
        Self { method: parts.method, path, headers: parts.headers, body }
    }

    fn into_request(self, (scheme, authority): &(uri::Scheme, uri::Authority)) -> Request<RequestBody> {
        let mut parts = uri::Parts::default();
        parts.scheme = Some(scheme.clone());
        parts.authority = Some(authority.clone());
        parts.path_and_query = Some(self.path);
        let mut request = Request::new(self.body);
        *request.method_mut() = self.method;
        *request.uri_mut() = Uri::from_parts(parts).expect("scheme, authority and path make a URI");
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.headers;
        request
    }
}

/// What the channel calls itself, after whatever the request says of its own.
#[derive(Clone, Debug)]
pub(crate) struct Agent(pub(crate) HeaderValue);

impl Agent {
    fn sign(&self, headers: &mut HeaderMap) {
        let signed = match headers.get(USER_AGENT) {
            None => self.0.clone(),
            Some(own) => {
                let all = [own.as_bytes(), b" ", self.0.as_bytes()].concat();
                HeaderValue::from_bytes(&all).expect("two header values and a space make a header value")
            }
        };
        headers.insert(USER_AGENT, signed);
    }
}

const GRPC_STATUS: &str = "grpc-status";
/// gRFC A6 allows one transparent retry of what the peer refused; a rolling restart may lead from one leaving server to the next.
const MAX_REFUSALS: u32 = 3;
/// After so many sweeps without an answer a call that its caller gives up counts against the endpoint.
const PATIENCE: u32 = 2;
