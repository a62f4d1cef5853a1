use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU16,
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, name::excerpt};

/// The address at which an instance listens: a host and a port.
///
/// An address is written `10.0.7.4:50051`, `[2001:db8::7]:50051` or `payments-7.internal:50051`.
///
/// The registry is not trusted, so whatever could lead a client astray is refused: port 0;
/// unspecified, multicast, broadcast and link-local addresses, including 169.254.169.254, where
/// clouds serve the credentials of their machines, also in the usual IPv6 spellings; zone ids,
/// schemes, paths, user info and socket files. Loopback and private addresses are allowed.
///
/// A DNS name is resolved when a client connects; this type does not check what it resolves to. The
/// name may end in a dot, which keeps resolvers from appending their search domains, as in
/// `etcd-0.etcd.default.svc.cluster.local.:2379`. The dot is part of the address;
/// [`without_trailing_dot`](Self::without_trailing_dot) removes it.
///
/// ```
/// use discovery_core::{Address, Host};
///
/// let address: Address = "[2001:db8::7]:50051".parse()?;
/// assert_eq!(address.port(), 50051);
/// assert!(matches!(address.host(), Host::Ip(_)));
///
/// let error = "http://payments:50051".parse::<Address>().unwrap_err();
/// assert!(error.to_string().contains("host:port"));
/// # Ok::<(), discovery_core::Error>(())
/// ```
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Address {
    host: Host,
    port: NonZeroU16,
}

/// The host of an [`Address`].
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[expect(clippy::exhaustive_enums, reason = "an address has a number or a name; a connector must handle both")]
pub enum Host {
    /// A DNS name in lower case, of at most 253 bytes not counting a trailing dot.
    Dns(Arc<str>),
    /// An IPv4 or IPv6 address.
    Ip(IpAddr),
}

impl Address {
    /// Returns the host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Returns the port, which is never 0.
    pub fn port(&self) -> u16 {
        self.port.get()
    }

    /// Returns the address as a socket address, or `None` if the host is a DNS name.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Dns(_) => None,
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port())),
        }
    }

    /// Returns the address without the dot at the end of a DNS name, as certificates, ids and
    /// HTTP's `:authority` spell it.
    ///
    /// ```
    /// use discovery_core::Address;
    ///
    /// let address: Address = "payments.default.svc.cluster.local.:50051".parse()?;
    /// assert_eq!(
    ///     address.without_trailing_dot().to_string(),
    ///     "payments.default.svc.cluster.local:50051",
    /// );
    /// # Ok::<(), discovery_core::Error>(())
    /// ```
    #[must_use]
    pub fn without_trailing_dot(&self) -> Self {
        match &self.host {
            Host::Dns(name) if name.ends_with('.') => {
                Self { host: Host::Dns(name.trim_end_matches('.').into()), port: self.port }
            }
            _ => self.clone(),
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`], with what is wrong and what is allowed.
    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).map_err(|problem| invalid(text, problem))
    }
}

impl TryFrom<SocketAddr> for Address {
    type Error = Error;

    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] for port 0 and for the ranges that [`Address`] refuses. A server
    /// bound to `0.0.0.0`, for example, must not offer that address but one that others can reach.
    fn try_from(address: SocketAddr) -> Result<Self, Error> {
        let port = NonZeroU16::new(address.port()).ok_or(Problem::Port);
        let host = check_range(address.ip()).map(Host::Ip);
        host.and_then(|host| Ok(Self { host, port: port? })).map_err(|problem| invalid(&address.to_string(), problem))
    }
}

impl TryFrom<String> for Address {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Dns(name) => write!(f, "{name}:{}", self.port),
            Host::Ip(ip) => SocketAddr::new(*ip, self.port()).fmt(f),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("it is longer than {MAX_BYTES} bytes")]
    TooLong,
    #[error("it has no port")]
    NoPort,
    #[error("the port is not a number from 1 to 65535")]
    Port,
    #[error("the host is empty")]
    NoHost,
    #[error("it begins with a scheme, which is chosen by the client")]
    Scheme,
    #[error("the host is neither an IP address nor a DNS name")]
    Host,
    #[error("an IPv6 address must be in brackets and without a zone")]
    Brackets,
    #[error("{0} addresses are refused")]
    Range(&'static str),
}

fn invalid(text: &str, problem: Problem) -> Error {
    let text = excerpt(text);
    Error::new(
        ErrorKind::InvalidInput,
        format!(
            "invalid address {text}: {problem}; allowed is host:port, such as 10.0.7.4:50051, [2001:db8::7]:50051 or name.example:50051"
        ),
    )
}

fn parse(text: &str) -> Result<Address, Problem> {
    if text.len() > MAX_BYTES {
        return Err(Problem::TooLong);
    }
    if text.contains("://") {
        return Err(Problem::Scheme);
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (ip, rest) = rest.split_once(']').ok_or(Problem::Brackets)?;
            let ip: Ipv6Addr = ip.parse().map_err(|_| Problem::Brackets)?;
            let port = rest.strip_prefix(':').ok_or(Problem::NoPort)?;
            (Host::Ip(check_range(ip.into())?), port)
        }
        None => {
            let (host, port) = text.rsplit_once(':').ok_or(Problem::NoPort)?;
            (parse_host(host)?, port)
        }
    };
    // `parse` alone would accept "+80".
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let port = if digits { port.parse().ok() } else { None };
    Ok(Address { host, port: port.ok_or(Problem::Port)? })
}

fn parse_host(host: &str) -> Result<Host, Problem> {
    if host.is_empty() {
        return Err(Problem::NoHost);
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        return match ip {
            IpAddr::V4(_) => Ok(Host::Ip(check_range(ip)?)),
            IpAddr::V6(_) => Err(Problem::Brackets),
        };
    }
    let is_label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    // The system's resolver would read a numeric last label as an IPv4 address in one of its old
    // spellings ("127.1", "0x7f.1", "2130706433"), which bypasses the check of the range.
    let is_number = |label: &str| {
        let hex = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
        label.bytes().all(|byte| byte.is_ascii_digit())
            || hex.is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    let last = name.rsplit('.').next().unwrap_or(name);
    if name.len() > MAX_HOST_BYTES || !name.split('.').all(is_label) || is_number(last) {
        return Err(Problem::Host);
    }
    Ok(Host::Dns(host.to_ascii_lowercase().into()))
}

/// Refuses ranges in which no instance can be reached, and to which whoever writes to the registry
/// could misdirect clients.
fn check_range(ip: IpAddr) -> Result<IpAddr, Problem> {
    let refused = match embedded(ip).unwrap_or(ip) {
        ip if ip.is_unspecified() => Some("unspecified"),
        ip if ip.is_multicast() => Some("multicast"),
        IpAddr::V4(ip) if ip.is_broadcast() => Some("broadcast"),
        IpAddr::V4(ip) if ip.is_link_local() => Some("link-local"),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Some("link-local"),
        _ => None,
    };
    refused.map_or(Ok(ip), |range| Err(Problem::Range(range)))
}

/// Returns the IPv4 address to which an IPv6 address leads: IPv4-mapped or compatible (RFC 4291),
/// translated (RFC 2765), through NAT64 with one of its standard prefixes (RFC 6052, RFC 8215), or
/// 6to4 (RFC 3056). Other NAT64 prefixes are known only to their network.
fn embedded(ip: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(ip) = ip else { return None };
    let (high, low) = match ip.segments() {
        // The unspecified and the loopback address embed no IPv4 address.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => return None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0 | 1, 0, 0, 0, high, low] => (high, low),
        [0x2002, high, low, ..] => (high, low),
        _ => return None,
    };
    Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)).into())
}

const MAX_HOST_BYTES: usize = 253;
/// The longest host, a trailing dot, a colon and five digits.
const MAX_BYTES: usize = MAX_HOST_BYTES + 7;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_are_printed_as_they_are_read() {
        for (text, printed) in [
            ("10.0.7.4:50051", "10.0.7.4:50051"),
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("[::1]:65535", "[::1]:65535"),
            ("[2001:DB8:0::7]:80", "[2001:db8::7]:80"),
            ("Payments-7.internal:80", "payments-7.internal:80"),
            ("localhost:80", "localhost:80"),
            ("LOCALHOST.:80", "localhost.:80"),
            ("etcd-0.etcd.default.svc.cluster.local.:2379", "etcd-0.etcd.default.svc.cluster.local.:2379"),
            (
                &format!("{}.:80", ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".")),
                &format!("{}.:80", ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".")),
            ),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), printed);
            assert_eq!(printed.parse::<Address>().unwrap(), address);
        }
    }

    #[test]
    fn an_invalid_address_is_an_error_that_names_what_is_allowed() {
        for (text, problem) in [
            ("", "no port"),
            ("host", "no port"),
            ("host:", "the port"),
            ("host:0", "the port"),
            ("host:99999", "the port"),
            ("host:-1", "the port"),
            ("host:+80", "the port"),
            (":80", "the host is empty"),
            ("[::1", "brackets"),
            ("[::1]", "no port"),
            ("[fe80::1%eth0]:80", "brackets"),
            ("::1:80", "brackets"),
            ("unix:/x", "the port"),
            ("http://h:1", "a scheme"),
            ("https://h", "a scheme"),
            ("dns:///h:1", "a scheme"),
            (".:80", "the host"),
            ("h..:80", "the host"),
            (".h:80", "the host"),
            ("127.0.0.1.:80", "the host"),
            ("169.254.169.254.:80", "the host"),
            ("0xa9fea9fe.:80", "the host"),
            ("user@h:1", "the host"),
            ("h/p:1", "the host"),
            ("a b:1", "the host"),
            ("-a.b:1", "the host"),
            ("127.1:80", "the host"),
            ("2852039166:80", "the host"),
            ("0xa9fea9fe:80", "the host"),
            ("0.0.0.0:80", "unspecified"),
            ("[::]:80", "unspecified"),
            ("169.254.169.254:80", "link-local"),
            ("[::ffff:169.254.169.254]:80", "link-local"),
            ("[::169.254.169.254]:80", "link-local"),
            ("[64:ff9b::a9fe:a9fe]:80", "link-local"),
            ("[2002:a9fe:a9fe::1]:80", "link-local"),
            ("[64:ff9b:1::a9fe:a9fe]:80", "link-local"),
            ("[::ffff:0:a9fe:a9fe]:80", "link-local"),
            ("[64:ff9b::]:80", "unspecified"),
            ("[fe80::1]:80", "link-local"),
            ("224.0.0.1:80", "multicast"),
            ("[ff02::1]:80", "multicast"),
            ("255.255.255.255:80", "broadcast"),
            (&format!("{}:80", "a".repeat(300)), "longer than"),
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            let printed = error.to_string();
            assert!(printed.contains(problem), "{text}: {printed}");
            assert!(printed.contains("allowed is host:port"), "{printed}");
        }
    }

    #[test]
    fn a_trailing_dot_is_part_of_the_address_and_can_be_removed() {
        let (rooted, plain): (Address, Address) = ("h.example.:80".parse().unwrap(), "h.example:80".parse().unwrap());
        assert!(rooted != plain && matches!(rooted.host(), Host::Dns(name) if &**name == "h.example."));
        assert_eq!(rooted.without_trailing_dot(), plain);
        assert_eq!(plain.without_trailing_dot(), plain);
        let ip: Address = "10.0.0.1:80".parse().unwrap();
        assert_eq!(ip.without_trailing_dot(), ip);
    }

    #[test]
    fn a_bound_address_is_checked_too() {
        let bound: SocketAddr = "0.0.0.0:80".parse().unwrap();
        assert!(Address::try_from(bound).unwrap_err().to_string().contains("unspecified"));
        let bound: SocketAddr = "127.0.0.1:0".parse().unwrap();
        assert!(Address::try_from(bound).unwrap_err().to_string().contains("the port"));
    }

    proptest! {
        #[test]
        fn any_text_is_an_address_that_survives_printing_or_an_error(text in "[a-c0-9.:/@\\[\\]%x-]{0,24}|.{0,40}") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
            }
        }
    }
}
