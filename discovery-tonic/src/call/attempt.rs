use std::{mem, sync::Arc};

use discovery_core::{Instance, InstanceId};
use http::{
    Extensions, HeaderName, Request, Response, Uri,
    uri::{self, Authority, PathAndQuery, Scheme},
};
use hyper::{body::Incoming, client::conn::TrySendError};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::{
    response::ResponseBody,
    served::{ServedBy, Tried},
    status,
};
use crate::{
    balance::Picked,
    connection::{Sender, request_body::RequestBody},
    endpoint::Endpoint,
    signals::SWEEP,
};

/// What the pool publishes of a ready endpoint, for each of its connections.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) instance: Arc<Instance>,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) origin: (Scheme, Authority),
    pub(crate) sender: Sender,
}

/// A request at an endpoint; counted there until its drop.
#[derive(Debug)]
pub(crate) struct Attempt {
    picked: Picked<Target>,
    deadline: Option<Instant>,
    tick: u32,
}

impl Attempt {
    /// Sends a request to where it was picked for; the answer resolves at the response's headers.
    pub(crate) fn send(
        mut picked: Picked<Target>,
        mut request: Request<RequestBody>,
        deadline: Option<Instant>,
    ) -> (Self, impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + use<>) {
        aim(&mut request, &picked.origin);
        let answer = picked.sender.send(request);
        picked.sent();
        let tick = picked.endpoint.signals.tick();
        (Self { picked, deadline, tick }, answer)
    }

    pub(crate) fn instance(&self) -> &Arc<Instance> {
        &self.picked.instance
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.picked.endpoint
    }

    /// Takes the connection out of the picks at once: it said that it takes no more.
    pub(crate) fn retire(&self) {
        self.picked.load().close();
        self.picked.endpoint.look();
    }

    /// Counts the attempt as failed without an answer, once.
    pub(crate) fn lose(self) {
        self.endpoint().lost(self.tick, self.picked.load());
        self.forgive();
    }

    /// Ends the attempt without counting it against the endpoint.
    pub(crate) fn forgive(self) {
        drop(self.forgiven());
    }

    /// Its end says nothing of the endpoint any more.
    fn forgiven(mut self) -> Self {
        (self.deadline, self.tick) = (None, self.endpoint().signals.tick());
        self
    }

    fn answered(&mut self) {
        self.picked.answer();
        self.endpoint().answered();
    }

    /// Whether the server ends the call because of its deadline, as tonic's does: that it could not answer in time.
    fn is_given_up(&self, status: &Status) -> bool {
        matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded)
            && self.deadline.is_some_and(|deadline| Instant::now() + SWEEP >= deadline)
    }

    /// Gives the attempt up, because no answer came in time.
    pub(crate) fn expire(mut self) {
        self.deadline = Some(Instant::now());
    }

    /// Takes the response's headers: what they say of the endpoint, and what the caller gets.
    ///
    /// Only a response takes what the call keeps: the request's `extensions`, which have done their work and whose allocation serves
    /// again, and the instances that were `tried` before.
    pub(crate) fn finish(
        mut self,
        mut response: Response<Incoming>,
        extensions: &mut Extensions,
        tried: &mut Vec<InstanceId>,
    ) -> Result<Response<ResponseBody>, (Status, Self)> {
        // A server that fails before its first message sends all in one: there is no body that could carry who served.
        let code = response.headers().get(&GRPC_STATUS);
        let failed = match code {
            Some(code) if code == "0" => {
                self.endpoint().succeeded();
                None
            }
            Some(_) => Status::from_header_map(response.headers()),
            None => status::of_http(response.status()),
        };
        if let Some(status) = failed {
            if self.is_given_up(&status) {
                self.endpoint().lost(self.tick, self.picked.load());
                return Err((status, self.forgiven()));
            }
            self.answered();
            if status.code() == Code::Unavailable {
                self.endpoint().failed();
            } else {
                self.endpoint().succeeded();
            }
            return Err((status, self));
        }
        self.answered();
        let mut extensions = mem::take(extensions);
        extensions.clear();
        if !response.extensions().is_empty() {
            extensions.extend(mem::take(response.extensions_mut()));
        }
        let before: Option<Arc<[InstanceId]>> = (!tried.is_empty()).then(|| mem::take(tried).into());
        extensions.insert(ServedBy { instance: Arc::clone(self.instance()), before: before.clone() });
        *response.extensions_mut() = extensions;
        let deadline = self.deadline;
        Ok(response.map(|body| ResponseBody::new(body, deadline, self, before)))
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.picked.is_answered() {
            return;
        }
        let sweeps = self.picked.endpoint.signals.tick().wrapping_sub(self.tick);
        if sweeps > PATIENCE || self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.endpoint().lost(self.tick, self.picked.load());
        }
    }
}

/// Addresses a request to an origin.
pub(crate) fn aim(request: &mut Request<RequestBody>, (scheme, authority): &(Scheme, Authority)) {
    let path = mem::take(request.uri_mut()).into_parts().path_and_query;
    let mut parts = uri::Parts::default();
    parts.scheme = Some(scheme.clone());
    parts.authority = Some(authority.clone());
    parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    *request.uri_mut() = Uri::from_parts(parts).expect("scheme, authority and path make a URI");
}

/// A status whose source says who was tried.
pub(crate) fn with_tried(mut status: Status, tried: Tried) -> Status {
    status.set_source(Arc::new(tried));
    status
}

pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// After so many sweeps without an answer a call that its caller gives up counts against the endpoint.
const PATIENCE: u32 = 2;
