use std::{mem, sync::Arc};

use discovery_core::Instance;
use http::{Extensions, HeaderName, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::{
    balance::Picked,
    connection::Sender,
    endpoint::Endpoint,
    response::ResponseBody,
    served::{ServedBy, Tried},
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

impl Attempt {
    pub(crate) fn new(picked: Picked<Target>, deadline: Option<Instant>) -> Self {
        let tick = picked.endpoint.signals.tick();
        Self { picked, deadline, tick }
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

    /// Takes the response's headers: what they say of the endpoint, and what the caller gets. `extensions` are the request's,
    /// which have done their work; their allocation serves again.
    pub(crate) fn finish(
        mut self,
        mut response: Response<Incoming>,
        mut extensions: Extensions,
    ) -> Result<Response<ResponseBody>, (Status, Self)> {
        self.picked.answer();
        // A server that fails before its first message sends all in one: there is no body that could carry who served.
        let failed = response.headers().get(&GRPC_STATUS).filter(|code| *code != "0");
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
        if let Some(status) = failed {
            return Err((status, self));
        }
        extensions.clear();
        if !response.extensions().is_empty() {
            extensions.extend(mem::take(response.extensions_mut()));
        }
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

/// A status whose source says who was tried.
pub(crate) fn with_tried(mut status: Status, tried: Tried) -> Status {
    status.set_source(Arc::new(tried));
    status
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// After so many sweeps without an answer a call that its caller gives up counts against the endpoint.
const PATIENCE: u32 = 2;
