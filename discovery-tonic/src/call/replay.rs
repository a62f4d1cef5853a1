//! The copy of a request that lets the channel send it again.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Version, uri::PathAndQuery};

use super::retry::{PREVIOUS, Repeats};
use crate::connection::{
    replay_budget::{ReplayBudget, Reservation},
    request_body::RequestBody,
    request_stream::RequestStream,
};

/// A copy of a request whose body is kept, or shared if it streams. The headers are pairs, because
/// a map costs more and is hardly ever needed.
pub(super) struct ReplayRequest {
    method: Method,
    path: PathAndQuery,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: ReplayBody,
}

enum ReplayBody {
    /// The single message, if there is one, and what it takes of the budget.
    Message(Option<Bytes>, #[expect(dead_code, reason = "held, not read")] Option<Reservation>),
    Stream(Arc<RequestStream>),
}

impl ReplayRequest {
    /// Copies a request if the channel's budget allows it.
    pub(super) fn from_request(request: &Request<RequestBody>, budget: &Arc<ReplayBudget>) -> Option<Self> {
        let body = match request.body() {
            RequestBody::Kept(Some(message)) if message.len() > SMALL => {
                let mut reservation = budget.reserve();
                if !reservation.grow(message.len()) {
                    return None;
                }
                ReplayBody::Message(Some(message.clone()), Some(reservation))
            }
            RequestBody::Kept(message) => ReplayBody::Message(message.clone(), None),
            RequestBody::Stream(reader) => {
                reader.stream().keep(budget);
                ReplayBody::Stream(Arc::clone(reader.stream()))
            }
        };
        // Reserved explicitly: the iterator does not know its length.
        let mut headers = Vec::with_capacity(request.headers().len());
        headers.extend(request.headers().iter().map(|(name, value)| (name.clone(), value.clone())));
        let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        Some(Self { method: request.method().clone(), path, headers, body })
    }

    /// Returns the request again, with the number of attempts that the policy made before; `None`
    /// if a part of it is no longer kept.
    pub(super) fn request(&self, repeats: Option<&Repeats>) -> Option<Request<RequestBody>> {
        let body = match &self.body {
            ReplayBody::Message(message, _) => RequestBody::Kept(message.clone()),
            ReplayBody::Stream(stream) => RequestBody::Stream(stream.replay()?),
        };
        let mut request = Request::new(body);
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
        Some(request)
    }

    /// Whether there is a single message to send.
    pub(super) fn has_message(&self) -> bool {
        matches!(self.body, ReplayBody::Message(Some(_), _))
    }

    /// Whether the request does not stream.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.body, ReplayBody::Message(..))
    }

    /// Stops keeping what a streaming request sends: it will not be sent again.
    pub(super) fn stop_keeping(&self) {
        if let ReplayBody::Stream(stream) = &self.body {
            stream.stop_keeping();
        }
    }
}

/// A message of up to this size does not count against the budget, since counting would cost every
/// call; tonic allocates a buffer of this size for each anyway.
const SMALL: usize = 8 << 10;
