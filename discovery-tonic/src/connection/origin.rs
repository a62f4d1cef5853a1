use std::mem;

use discovery_core::Address;
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
    /// The origin of an instance that has no other: its address.
    pub(crate) fn of(scheme: Scheme, address: &Address) -> Self {
        let address = address.without_trailing_dot().to_string();
        Self { scheme, authority: Authority::try_from(address).expect("an address is a host and a port") }
    }

    /// The origin of a server with this TLS name.
    #[cfg(feature = "tls")]
    pub(crate) fn named(name: &rustls::pki_types::ServerName<'_>) -> Self {
        use rustls::pki_types::{IpAddr, ServerName};

        let host = match name {
            ServerName::IpAddress(IpAddr::V6(_)) => format!("[{}]", name.to_str()),
            _ => name.to_str().into_owned(),
        };
        Self { scheme: Scheme::HTTPS, authority: Authority::try_from(host).expect("a TLS name is a host") }
    }

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
