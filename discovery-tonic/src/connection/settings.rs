use std::{borrow::Cow, ops::RangeInclusive, time::Duration};

use discovery_core::{Error, ErrorKind};
use http::{
    Uri,
    uri::{PathAndQuery, Scheme},
};
#[cfg(feature = "tls")]
use rustls::pki_types::ServerName;

use super::origin::Origin;

/// The connection settings of an endpoint, as returned by the hook of
/// [`ChannelBuilder::endpoint_settings`](crate::ChannelBuilder::endpoint_settings).
///
/// Setters reject invalid values, but the hook cannot return an error. Build the settings first,
/// and let the hook return clones.
///
/// ```
/// use std::time::Duration;
/// use discovery_tonic::EndpointSettings;
///
/// // For endpoints behind a load balancer that forgets idle connections.
/// let settings = EndpointSettings::default()
///     .connect_timeout(Duration::from_secs(3))?
///     .http2_keep_alive_interval(Duration::from_secs(30))?
///     .max_connection_age(Duration::from_secs(3600))?;
/// # Ok::<(), discovery_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct EndpointSettings {
    pub(crate) origin: Option<Origin>,
    #[cfg(feature = "tls")]
    pub(crate) server_name: Option<ServerName<'static>>,
    pub(crate) concurrency_limit: Option<u32>,
    pub(crate) connect_timeout: Duration,
    pub(crate) http2_keep_alive_interval: Option<Duration>,
    pub(crate) keep_alive_timeout: Duration,
    pub(crate) max_connection_age: Option<Duration>,
    pub(crate) initial_stream_window_size: u32,
    pub(crate) initial_connection_window_size: u32,
    pub(crate) http2_max_header_list_size: u32,
}

impl EndpointSettings {
    /// Sets the scheme and the `:authority` of requests, such as `https://payments.internal`. The
    /// default is `http` and the instance's address; over TLS it is `https` and the
    /// [name of the server](crate::ChannelTls#the-servers-name).
    ///
    /// A custom connector is always given the instance's address, with this scheme, or with `http`
    /// if the channel adds the TLS.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) if the scheme is neither `http` nor `https`, if
    /// there is no host, or if there is anything but a scheme, a host and a port.
    pub fn origin(mut self, origin: &str) -> Result<Self, Error> {
        let parse = || {
            let parts = origin.parse::<Uri>().ok()?.into_parts();
            let bare = parts.path_and_query.is_none_or(|path| path == PathAndQuery::from_static("/"));
            let http = parts.scheme.filter(|scheme| [Scheme::HTTP, Scheme::HTTPS].contains(scheme));
            if bare {
                let authority = parts.authority.filter(|authority| !authority.as_str().contains('@'))?;
                // The parser ignores a port that is too large or not a number.
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
            invalid("invalid origin: allowed are http or https and a host, such as https://payments.internal")
        })?);
        Ok(self)
    }

    /// Sets the name that the server's certificate must have, for a channel with
    /// [TLS](crate::ChannelTls): a host name or an IP address; default that of the channel. See
    /// [the server's name](crate::ChannelTls#the-servers-name).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), discovery_core::Error> {
    /// # use discovery_core::FixedResolver;
    /// use discovery_tonic::{BalancedChannel, EndpointSettings};
    ///
    /// // Each instance has a certificate for `<id>.orders.internal`.
    /// # let resolver = FixedResolver::new([]);
    /// let builder = BalancedChannel::builder(resolver, "orders".parse()?);
    /// let builder = builder.endpoint_settings(|instance| {
    ///     let name = format!("{}.orders.internal", instance.id());
    ///     // The name of the channel stays in place for an id that is no host name.
    ///     let settings = EndpointSettings::default().server_name(&name);
    ///     settings.unwrap_or_default()
    /// });
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) if it is neither a host name nor an IP address.
    #[cfg(feature = "tls")]
    pub fn server_name(mut self, name: &str) -> Result<Self, Error> {
        self.server_name = Some(super::tls::client::server_name(name)?);
        Ok(self)
    }

    /// Sets how long each step of connecting may take; default 1 s.
    ///
    /// The steps are resolving a name, connecting to one of the resulting addresses, the TLS
    /// handshake if there is one, and waiting for the peer's HTTP/2 SETTINGS. The default connector
    /// tries up to 16 addresses of a name, each 250 ms after the previous one or as soon as that
    /// one fails. A custom connector has this long for resolving and connecting together.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) outside 1 ms to 1 h.
    pub fn connect_timeout(mut self, timeout: Duration) -> Result<Self, Error> {
        self.connect_timeout = within("connect timeout", timeout, Duration::from_millis(1)..=HOUR)?;
        Ok(self)
    }

    /// Limits the calls in flight on each connection of the endpoint; default `None`, what the peer
    /// allows. A call is in flight until its response has ended.
    ///
    /// The lower of this and the peer's stream limit counts. Calls go to other endpoints first; if
    /// all are full, they wait in order of arrival, within their deadlines. The name is that of
    /// tonic's `Endpoint`.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for 0, and for more than 4,294,967,295.
    pub fn concurrency_limit(mut self, limit: impl Into<Option<usize>>) -> Result<Self, Error> {
        let checked = |limit: usize| match u32::try_from(limit) {
            Ok(limit) if limit > 0 => Ok(limit),
            _ => Err(invalid(format!("invalid concurrency limit {limit}: allowed are 1 to {}", u32::MAX))),
        };
        self.concurrency_limit = limit.into().map(checked).transpose()?;
        Ok(self)
    }

    /// Sets the interval of pings to the peer while calls are in flight; default `None`, no pings.
    ///
    /// Servers may punish frequent pings: grpc-go's default enforcement allows one every 5 minutes.
    /// If a peer ends a connection with `ENHANCE_YOUR_CALM`, with any text, the interval of its
    /// endpoint doubles, as in gRFC A8.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) outside 10 ms to 1 day.
    pub fn http2_keep_alive_interval(mut self, interval: impl Into<Option<Duration>>) -> Result<Self, Error> {
        let checked = |interval| within("keep-alive interval", interval, PINGS);
        self.http2_keep_alive_interval = interval.into().map(checked).transpose()?;
        Ok(self)
    }

    /// Sets how long a ping may stay unanswered before the connection is dropped; default 20 s, as
    /// in tonic.
    ///
    /// It has no effect without a [keep-alive interval](Self::http2_keep_alive_interval).
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) outside 10 ms to 1 day.
    pub fn keep_alive_timeout(mut self, timeout: Duration) -> Result<Self, Error> {
        self.keep_alive_timeout = within("keep-alive timeout", timeout, PINGS)?;
        Ok(self)
    }

    /// Sets the age at which a connection is replaced, varied by up to a tenth; default `None`,
    /// never.
    ///
    /// New connections follow a name whose address has changed, and are spread again by a load
    /// balancer.
    ///
    /// The new connection is opened first, so that no call waits or fails; the old one keeps
    /// serving until then. Calls on the old connection may finish within the channel's [drain
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

    /// Sets the HTTP/2 flow-control window of a stream, in bytes; default 2 MiB, as in hyper. It
    /// limits how much a peer may send that has not been read yet.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) outside 1 to 2,147,483,647 (RFC 9113, section
    /// 6.9.1).
    pub fn initial_stream_window_size(mut self, bytes: u32) -> Result<Self, Error> {
        self.initial_stream_window_size = window("stream", bytes)?;
        Ok(self)
    }

    /// Sets the HTTP/2 flow-control window of a connection, in bytes; default 2,147,483,647, the
    /// maximum.
    ///
    /// With the maximum, a stream that is not read uses up its own window and blocks no other call:
    /// 40 of them took 85 to 101 MiB. With messages below 256 bytes they take more, up to ten times
    /// the window. A smaller window of the connection limits the memory of all streams together, at
    /// a price: once it is used up, the other calls of the connection wait for the readers. If the
    /// messages are small, h2's guard against peers that send mostly overhead ends the connection
    /// at half as many bytes.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) outside 1 to 2,147,483,647 (RFC 9113, section
    /// 6.9.1).
    pub fn initial_connection_window_size(mut self, bytes: u32) -> Result<Self, Error> {
        self.initial_connection_window_size = window("connection", bytes)?;
        Ok(self)
    }

    /// Sets the maximum total size of the headers, or of the trailers, of a response, in bytes;
    /// default 16 MiB, as in grpc-go. A response with larger headers fails with `INTERNAL`, which
    /// does not count against the endpoint; larger trailers are truncated.
    ///
    /// The size is taken after decompression, plus 32 bytes for each header (RFC 9113, section
    /// 6.5.2). Lower it with care: far above the limit, from 1.25 times as much as sent or four
    /// times as much as decoded, the connection ends with all its calls.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) outside 1 KiB to 1 GiB.
    pub fn http2_max_header_list_size(mut self, bytes: u32) -> Result<Self, Error> {
        if !(1 << 10..=1 << 30).contains(&bytes) {
            return Err(invalid(format!("invalid header list size {bytes}: allowed are 1 KiB to 1 GiB")));
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
}

impl Default for EndpointSettings {
    fn default() -> Self {
        Self {
            origin: None,
            #[cfg(feature = "tls")]
            server_name: None,
            concurrency_limit: None,
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
        return Err(invalid(format!("invalid {of} window {bytes}: allowed are 1 to {MAX_WINDOW} bytes")));
    }
    Ok(bytes)
}

fn invalid(message: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

const HOUR: Duration = Duration::from_secs(3600);
/// The allowed intervals and timeouts of pings.
const PINGS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(24 * 3600);
const MAX_WINDOW: u32 = (1 << 31) - 1;
/// The longest duration that is added to an instant, which would overflow with larger ones.
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
    fn a_concurrency_limit_allows_at_least_one_call() {
        let limited = |limit: Option<usize>| EndpointSettings::default().concurrency_limit(limit);
        assert_eq!(limited(Some(1)).unwrap().concurrency_limit, Some(1));
        assert_eq!(limited(None).unwrap().concurrency_limit, None);
        for limit in [0, usize::MAX] {
            let error = limited(Some(limit)).unwrap_err();
            assert!(error.to_string().contains("allowed are 1 to 4294967295"), "{error}");
        }
    }

    #[test]
    fn values_out_of_bounds_are_rejected_with_the_allowed_range() {
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
}
