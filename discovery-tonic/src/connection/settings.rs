use std::time::Duration;

use discovery_core::{Address, Error, ErrorKind};
use http::{
    Uri,
    uri::{Authority, PathAndQuery, Scheme},
};

use super::origin::Origin;

/// How one endpoint is connected: what the hook of [`Builder::endpoint`](crate::Builder::endpoint)
/// returns.
///
/// ```
/// use std::time::Duration;
/// use discovery_tonic::EndpointSettings;
///
/// // A client that is connected through a load balancer, which forgets idle connections.
/// let settings = EndpointSettings::default()
///     .connect_timeout(Duration::from_secs(3))
///     .ping(Duration::from_secs(30), Duration::from_secs(10))
///     .age(Duration::from_secs(3600));
/// ```
#[derive(Clone, Debug)]
pub struct EndpointSettings {
    pub(crate) origin: Option<Origin>,
    pub(crate) connect_timeout: Duration,
    pub(crate) ping: Option<(Duration, Duration)>,
    pub(crate) age: Option<Duration>,
    pub(crate) stream_window: u32,
    pub(crate) connection_window: u32,
}

impl EndpointSettings {
    /// The scheme and the `:authority` that requests carry, such as `https://payments.internal`; by
    /// default `http` and the instance's address. The connector is handed the instance's address
    /// with this scheme in any case.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) where scheme or authority is missing, or a path is
    /// given.
    pub fn origin(mut self, origin: &str) -> Result<Self, Error> {
        let parse = || {
            let parts = origin.parse::<Uri>().ok()?.into_parts();
            let bare = parts.path_and_query.is_none_or(|path| path == PathAndQuery::from_static("/"));
            let http = parts.scheme.filter(|scheme| [Scheme::HTTP, Scheme::HTTPS].contains(scheme));
            if bare {
                let authority = parts.authority.filter(|authority| !authority.as_str().contains('@'))?;
                Some(Origin { scheme: http?, authority })
            } else {
                None
            }
        };
        self.origin = Some(parse().ok_or_else(|| {
            let message = "invalid origin: allowed is http or https with a host, such as https://payments.internal";
            Error::new(ErrorKind::InvalidInput, message)
        })?);
        Ok(self)
    }

    /// How long connecting may take, up to the peer's HTTP/2 SETTINGS; by default 1 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Pings the peer at this interval while calls are in flight, and drops the connection where no
    /// answer comes within `timeout`; off by default, because servers may punish frequent pings
    /// (grpc-go: more often than every 5 minutes).
    #[must_use]
    pub fn ping(mut self, interval: Duration, timeout: Duration) -> Self {
        self.ping = Some((interval, timeout));
        self
    }

    /// Replaces each connection at this age, a tenth more or less, so that new ones follow a name
    /// whose address moved, or spread anew behind a load balancer; at least 1 s, by default never.
    ///
    /// The new one is made first, so that no call waits for it or fails; while it cannot be made
    /// the old one serves on. What is on the old one may end within the channel's [drain
    /// limit](crate::Builder::drain).
    #[must_use]
    pub fn age(mut self, limit: Duration) -> Self {
        self.age = Some(limit.clamp(Duration::from_secs(1), FAR));
        self
    }

    /// The HTTP/2 flow-control windows in bytes, of a stream and of the connection; by default 2
    /// MiB and 5 MiB, hyper's.
    #[must_use]
    pub fn windows(mut self, stream: u32, connection: u32) -> Self {
        (self.stream_window, self.connection_window) = (stream, connection);
        self
    }

    /// Where the requests to an instance say that they go.
    pub(crate) fn origin_of(&self, address: &Address) -> Origin {
        let plain = || Origin { scheme: Scheme::HTTP, authority: authority(&address.without_trailing_dot()) };
        self.origin.clone().unwrap_or_else(plain)
    }

    /// What the connector is asked for.
    pub(crate) fn target(&self, address: &Address) -> Uri {
        let scheme = self.origin.as_ref().map_or(Scheme::HTTP, |origin| origin.scheme.clone());
        let uri = Uri::builder().scheme(scheme).authority(authority(address)).path_and_query("/");
        uri.build().expect("scheme, authority and path make a URI")
    }
}

fn authority(address: &Address) -> Authority {
    Authority::try_from(address.to_string()).expect("an address is a host and a port")
}

impl Default for EndpointSettings {
    fn default() -> Self {
        Self {
            origin: None,
            connect_timeout: Duration::from_secs(1),
            ping: None,
            age: None,
            stream_window: 2 << 20,
            connection_window: 5 << 20,
        }
    }
}

/// What is added to an instant, which cannot take everything that a duration can say.
pub(crate) const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_and_a_host() {
        for origin in ["https://payments.internal", "http://h:1", "https://h/"] {
            EndpointSettings::default().origin(origin).unwrap();
        }
        for origin in ["", "payments", "ftp://h", "https://", "https://h/path", "https://u:p@h"] {
            let error = EndpointSettings::default().origin(origin).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{origin}");
        }
    }
    #[test]
    fn a_trailing_dot_is_for_resolving_alone() {
        let (settings, address) = (EndpointSettings::default(), "payments.default.svc.:80".parse().unwrap());
        assert_eq!(settings.target(&address).authority().unwrap().as_str(), "payments.default.svc.:80");
        assert_eq!(settings.origin_of(&address).authority.as_str(), "payments.default.svc:80");
    }
}
