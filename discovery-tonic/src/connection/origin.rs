use std::mem;

use http::{
    Request, Uri,
    uri::{self, Authority, PathAndQuery, Scheme},
};

/// The scheme and the authority of requests.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) scheme: Scheme,
    pub(crate) authority: Authority,
}

impl Origin {
    /// Sets the scheme and the authority of a request.
    pub(crate) fn apply_to<B>(&self, request: &mut Request<B>) {
        let path = mem::take(request.uri_mut()).into_parts().path_and_query;
        let mut parts = uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        *request.uri_mut() = Uri::from_parts(parts).expect("scheme, authority and path make a URI");
    }
}
