use std::{fmt, sync::Arc};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http2::SendRequest},
};

use super::{end::End, origin::Origin, request_body::RequestBody};
use crate::balance::Load;

/// A connection that takes requests.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    /// The origin of its requests.
    pub(crate) origin: Origin,
    pub(crate) sender: Sender,
    pub(crate) load: Arc<Load>,
    pub(crate) health: Health,
}

/// Hands requests to a connection.
#[derive(Clone)]
pub(crate) struct Sender {
    requests: SendRequest<RequestBody>,
    end: Arc<End>,
}

/// The health that a peer reports (`grpc.health.v1`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Health {
    NotServing,
    Serving,
    /// The peer has not reported yet.
    Unknown,
}

impl Sender {
    pub(super) fn new(requests: SendRequest<RequestBody>, end: Arc<End>) -> Self {
        Self { requests, end }
    }

    /// Sends a request; resolves when the response's headers arrive.
    pub(crate) fn send(
        &self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + use<> {
        self.requests.clone().try_send_request(request)
    }

    /// How the connection ended.
    pub(crate) fn end(&self) -> &Arc<End> {
        &self.end
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}
