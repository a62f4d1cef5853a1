//! The `user-agent` header of requests.

use http::{HeaderMap, HeaderValue, header::USER_AGENT};

/// The channel's user agent, which is appended to that of the request.
#[derive(Clone, Debug)]
pub(crate) struct UserAgent(pub(crate) HeaderValue);

impl UserAgent {
    pub(super) fn append_to(&self, headers: &mut HeaderMap) {
        if let Some(own) = headers.insert(USER_AGENT, self.0.clone()) {
            let all = [own.as_bytes(), b" ", self.0.as_bytes()].concat();
            let all = HeaderValue::from_bytes(&all).expect("two header values and a space make a header value");
            headers.insert(USER_AGENT, all);
        }
    }
}
