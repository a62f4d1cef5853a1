use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Version, uri::PathAndQuery};

use super::retry::{PREVIOUS, Repeats};
use crate::connection::request_body::RequestBody;

/// A copy of a request whose body is kept. The headers are pairs, because a map costs more and is
/// nearly never needed.
pub(super) struct ReplayRequest {
    method: Method,
    path: PathAndQuery,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Option<Bytes>,
}

impl ReplayRequest {
    pub(super) fn from_request(request: &Request<RequestBody>) -> Option<Self> {
        let RequestBody::Kept(body) = request.body() else { return None };
        // The iterator cannot tell its length.
        let mut headers = Vec::with_capacity(request.headers().len());
        headers.extend(request.headers().iter().map(|(name, value)| (name.clone(), value.clone())));
        let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        Some(Self { method: request.method().clone(), path, headers, body: body.clone() })
    }

    /// The request once more, which says how often the policy has repeated it.
    pub(super) fn request(&self, repeats: Option<&Repeats>) -> Request<RequestBody> {
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

    /// Whether there is a message to send.
    pub(super) fn has_body(&self) -> bool {
        self.body.is_some()
    }
}
