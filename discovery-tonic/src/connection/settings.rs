use std::{borrow::Cow, ops::RangeInclusive, time::Duration};

use discovery_core::{Address, Error, ErrorKind};
use http::{
    Uri,
    uri::{Authority, PathAndQuery, Scheme},
};

use super::origin::Origin;

/// How one endpoint is connected: what the hook of [`ChannelBuilder::endpoint_settings`](crate::ChannelBuilder::endpoint_settings)
/// returns.
///
/// Setters reject invalid values, so that a hook cannot fail because of them: build the settings
/// first, and let the hook hand out clones.
///
/// ```
/// use std::time::Duration;
/// use discovery_tonic::EndpointSettings;
///
/// // A client that is connected through a load balancer, which forgets idle connections.
/// let settings = EndpointSettings::default()
///     .connect_timeout(Duration::from_secs(3))?
///     .http2_keep_alive_interval(Duration::from_secs(30))?
///     .max_connection_age(Duration::from_secs(3600))?;
/// # Ok::<(), discovery_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct EndpointSettings {
    pub(crate) origin: Option<Origin>,
    pub(crate) connect_timeout: Duration,
    pub(crate) http2_keep_alive_interval: Option<Duration>,
    pub(crate) keep_alive_timeout: Duration,
    pub(crate) max_connection_age: Option<Duration>,
    pub(crate) initial_stream_window_size: u32,
    pub(crate) initial_connection_window_size: u32,
    pub(crate) http2_max_header_list_size: u32,
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
                // A port that is no number, or too large, is none to the parser.
                let rest = authority.as_str().strip_prefix(authority.host())?;
                if authority.host().is_empty()
                    || !(rest.is_empty() || authority.port_u16().is_some_and(|port| port > 0))
                {
                    return None;
                }
                Some(Origin { scheme: http?, authority })
            } else {
                None
            }
        };
        self.origin = Some(parse().ok_or_else(|| {
            invalid("invalid origin: allowed is http or https with a host, such as https://payments.internal")
        })?);
        Ok(self)
    }

    /// How long each step of connecting may take; by default 1 s.
    ///
    /// The steps are to look up the address' name, to connect to one of the addresses found, and to
    /// wait for the peer's HTTP/2 SETTINGS. The default connector tries the next address 250 ms
    /// after the previous one, or as soon as that one fails, up to 16 of a name. A custom connector
    /// has this long in total.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) outside 1 ms to 1 h.
    pub fn connect_timeout(mut self, timeout: Duration) -> Result<Self, Error> {
        self.connect_timeout = within("connect timeout", timeout, Duration::from_millis(1)..=HOUR)?;
        Ok(self)
    }

    /// Pings the peer at this interval while calls are in flight; `None`, the default, sends no
    /// pings.
    ///
    /// Servers may punish frequent pings: grpc-go's default enforcement allows one every 5 minutes.
    /// Where a peer ends a connection with `ENHANCE_YOUR_CALM`, the interval of its endpoint
    /// doubles, as in gRFC A8, whatever the reason's text.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) outside 10 ms to 1 day.
    pub fn http2_keep_alive_interval(mut self, interval: impl Into<Option<Duration>>) -> Result<Self, Error> {
        let checked = |interval| within("keep-alive interval", interval, PINGS);
        self.http2_keep_alive_interval = interval.into().map(checked).transpose()?;
        Ok(self)
    }

    /// Drops the connection if a ping is not answered within this time; by default 20 s, as in
    /// tonic.
    ///
    /// Without a [keep-alive interval](Self::http2_keep_alive_interval) it has no effect.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) outside 10 ms to 1 day.
    pub fn keep_alive_timeout(mut self, timeout: Duration) -> Result<Self, Error> {
        self.keep_alive_timeout = within("keep-alive timeout", timeout, PINGS)?;
        Ok(self)
    }

    /// Replaces each connection at this age, a tenth more or less, so that new ones follow a name
    /// whose address moved, or spread anew behind a load balancer; by default never.
    ///
    /// The new one is made first, so that no call waits for it or fails; while it cannot be made
    /// the old one serves on. What is on the old one may end within the channel's [drain
    /// limit](crate::ChannelBuilder::drain_timeout).
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) outside 1 s to 10 years.
    pub fn max_connection_age(mut self, age: impl Into<Option<Duration>>) -> Result<Self, Error> {
        let allowed = Duration::from_secs(1)..=FAR;
        self.max_connection_age = age.into().map(|age| within("max connection age", age, allowed)).transpose()?;
        Ok(self)
    }

    /// The HTTP/2 flow-control window of a stream, in bytes: how much a peer may send that nobody
    /// has read yet; by default 2 MiB, as in hyper.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) outside 1 to 2,147,483,647 (RFC 9113, section
    /// 6.9.1).
    pub fn initial_stream_window_size(mut self, bytes: u32) -> Result<Self, Error> {
        self.initial_stream_window_size = window("stream", bytes)?;
        Ok(self)
    }

    /// The HTTP/2 flow-control window of a connection, in bytes; by default the maximum.
    ///
    /// So a stream that nobody reads costs its own window, and no other call: 40 of them took 85 to
    /// 101 MiB. With messages below 256 bytes it costs more, up to ten times the window. A smaller
    /// window of the connection bounds that for all streams together, at a price: once it is used
    /// up, the other calls of the connection wait for the readers, and at half as many bytes in
    /// small messages h2's guard against peers that send mostly overhead ends the connection.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) outside 1 to 2,147,483,647 (RFC 9113, section
    /// 6.9.1).
    pub fn initial_connection_window_size(mut self, bytes: u32) -> Result<Self, Error> {
        self.initial_connection_window_size = window("connection", bytes)?;
        Ok(self)
    }

    /// How large the headers, or the trailers, of a response may be together, in bytes; by default
    /// 16 MiB, as in grpc-go. A response whose headers are larger fails with `INTERNAL`, which
    /// does not count against the endpoint; larger trailers are truncated.
    ///
    /// It is the size after decompression, with 32 bytes for each header (RFC 9113, section 6.5.2).
    /// Far above the limit, from a quarter more as it is sent or four times as much decoded, the
    /// connection ends with all calls on it: lower it with care.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) outside 1 KiB to 1 GiB.
    pub fn http2_max_header_list_size(mut self, bytes: u32) -> Result<Self, Error> {
        if !(1 << 10..=1 << 30).contains(&bytes) {
            return Err(invalid(format!("invalid size of headers {bytes}: allowed are 1 KiB to 1 GiB")));
        }
        self.http2_max_header_list_size = bytes;
        Ok(self)
    }

    /// Doubles the keep-alive interval this many times, up to a day.
    pub(crate) fn slow_pings(&mut self, doublings: u32) {
        let factor = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
        let slowed = |interval: Duration| interval.saturating_mul(factor).min(24 * HOUR);
        self.http2_keep_alive_interval = self.http2_keep_alive_interval.map(slowed);
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
            http2_keep_alive_interval: None,
            keep_alive_timeout: Duration::from_secs(20),
            max_connection_age: None,
            initial_stream_window_size: 2 << 20,
            initial_connection_window_size: MAX_WINDOW,
            http2_max_header_list_size: 16 << 20,
        }
    }
}

fn within(name: &str, value: Duration, allowed: RangeInclusive<Duration>) -> Result<Duration, Error> {
    if !allowed.contains(&value) {
        let (least, most) = allowed.into_inner();
        return Err(invalid(format!("invalid {name} {value:?}: allowed are {least:?} to {most:?}")));
    }
    Ok(value)
}

fn window(of: &str, bytes: u32) -> Result<u32, Error> {
    if !(1..=MAX_WINDOW).contains(&bytes) {
        return Err(invalid(format!("invalid window of a {of} {bytes}: allowed are 1 to {MAX_WINDOW} bytes")));
    }
    Ok(bytes)
}

fn invalid(message: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

const HOUR: Duration = Duration::from_secs(3600);
/// The intervals and timeouts of pings that are allowed.
const PINGS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(24 * 3600);
const MAX_WINDOW: u32 = (1 << 31) - 1;
/// What is added to an instant, which cannot take everything that a duration can say.
pub(crate) const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_and_a_host() {
        for origin in ["https://payments.internal", "http://h:1", "https://h/", "https://[::1]:443"] {
            EndpointSettings::default().origin(origin).unwrap();
        }
        for origin in [
            "",
            "payments",
            "ftp://h",
            "https://",
            "https://h/path",
            "https://u:p@h",
            "https://h:99999",
            "https://h:port",
            "https://:443",
            "https://h:",
            "https://h:0",
        ] {
            let error = EndpointSettings::default().origin(origin).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{origin}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_is_allowed() {
        let zero = Duration::ZERO;
        let ever = Duration::MAX;
        let second = Duration::from_secs(1);
        type Set<T> = fn(EndpointSettings, T) -> Result<EndpointSettings, Error>;
        let durations: [(&str, Set<Duration>); 4] = [
            ("connect timeout", EndpointSettings::connect_timeout),
            ("keep-alive interval", EndpointSettings::http2_keep_alive_interval),
            ("keep-alive timeout", EndpointSettings::keep_alive_timeout),
            ("max connection age", EndpointSettings::max_connection_age),
        ];
        for (name, set) in durations {
            set(EndpointSettings::default(), second).unwrap();
            for value in [zero, Duration::from_nanos(1), ever, ever - second] {
                let error = set(EndpointSettings::default(), value).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                let text = error.to_string();
                assert!(text.contains(name) && text.contains("allowed are"), "{text}");
            }
        }
        let sizes: [Set<u32>; 3] = [
            EndpointSettings::initial_stream_window_size,
            EndpointSettings::initial_connection_window_size,
            EndpointSettings::http2_max_header_list_size,
        ];
        for set in sizes {
            set(EndpointSettings::default(), 1 << 20).unwrap();
            for value in [0, 1 << 31, u32::MAX] {
                let error = set(EndpointSettings::default(), value).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                assert!(error.to_string().contains("allowed are"), "{error}");
            }
        }
    }

    #[test]
    fn a_trailing_dot_is_for_resolving_alone() {
        let settings = EndpointSettings::default();
        let address = "payments.default.svc.:80".parse().unwrap();
        assert_eq!(settings.target(&address).authority().unwrap().as_str(), "payments.default.svc.:80");
        assert_eq!(settings.origin_of(&address).authority.as_str(), "payments.default.svc:80");
    }
}
