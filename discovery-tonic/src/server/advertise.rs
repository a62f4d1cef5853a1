//! The address to register for a listener.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use discovery_core::{Address, Error, ErrorKind};

/// Returns the address at which others reach a listener; an IPv6 listener may accept IPv4 as well.
///
/// For the unspecified address it is the address of the interface of the default route.
pub(super) fn address(bound: SocketAddr, takes_ipv4: bool) -> Result<Address, Error> {
    choose(bound, takes_ipv4, outgoing)
}

fn choose(
    bound: SocketAddr,
    takes_ipv4: bool,
    outgoing: impl Fn(IpAddr) -> io::Result<IpAddr>,
) -> Result<Address, Error> {
    let found = |unspecified| {
        let ip = outgoing(unspecified).map_err(no_route)?;
        SocketAddr::new(ip, bound.port()).try_into()
    };
    match bound.ip() {
        ip if !ip.is_unspecified() => bound.try_into(),
        // A host may have IPv6 only on its links: then there is no route, or an address that no
        // other host reaches.
        ip if takes_ipv4 => found(ip).or_else(|error| found(Ipv4Addr::UNSPECIFIED.into()).map_err(|_| error)),
        ip => found(ip),
    }
}

/// Connecting a datagram socket sends nothing, but makes the system choose the source address. The
/// target is in the blocks reserved for documentation (RFC 5737, RFC 3849), to which only the
/// default route leads.
fn outgoing(unspecified: IpAddr) -> io::Result<IpAddr> {
    let target = match unspecified {
        IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 9)),
        IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9)),
    };
    let socket = UdpSocket::bind((unspecified, 0))?;
    socket.connect(target)?;
    Ok(socket.local_addr()?.ip())
}

fn no_route(cause: io::Error) -> Error {
    let message = "no default route, so the address to register is unknown; set it with `advertise`";
    Error::new(ErrorKind::Unavailable, message).with_source(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_address_is_advertised_as_it_is() {
        for bound in ["127.0.0.1:50051", "[::1]:50051", "10.1.2.3:80"] {
            assert_eq!(address(bound.parse().unwrap(), true).unwrap().to_string(), bound);
        }
    }

    #[test]
    fn the_unspecified_address_is_never_advertised() {
        for bound in ["0.0.0.0:50051", "[::]:50051"] {
            match address(bound.parse().unwrap(), false) {
                Ok(address) => {
                    let address = address.socket_addr().unwrap();
                    assert!(!address.ip().is_unspecified() && address.port() == 50051, "{address}");
                }
                // A machine without a default route.
                Err(error) => assert!(error.to_string().contains("`advertise`"), "{error}"),
            }
        }
    }

    #[test]
    fn the_unspecified_address_becomes_that_of_a_route_of_an_accepted_family() {
        let v4 = Some("10.0.0.7");
        let v6 = Some("2001:db8::7");
        let cases = [
            ("0.0.0.0:80", false, v4, v6, Ok("10.0.0.7:80")),
            ("0.0.0.0:80", false, None, v6, Err(ErrorKind::Unavailable)),
            ("[::]:80", true, v4, v6, Ok("[2001:db8::7]:80")),
            ("[::]:80", true, v4, None, Ok("10.0.0.7:80")),
            ("[::]:80", false, v4, None, Err(ErrorKind::Unavailable)),
            ("[::]:80", true, None, None, Err(ErrorKind::Unavailable)),
            ("[::]:80", true, v4, Some("fe80::7"), Ok("10.0.0.7:80")),
            ("[::]:80", false, v4, Some("fe80::7"), Err(ErrorKind::InvalidInput)),
            ("[::]:80", true, None, Some("fe80::7"), Err(ErrorKind::InvalidInput)),
        ];
        for (bound, takes_ipv4, v4, v6, expected) in cases {
            let outgoing = |unspecified: IpAddr| {
                let found = if unspecified.is_ipv4() { v4 } else { v6 };
                found.map(|ip| ip.parse().unwrap()).ok_or_else(|| io::ErrorKind::NetworkUnreachable.into())
            };
            let address = choose(bound.parse().unwrap(), takes_ipv4, outgoing);
            let address = address.map(|address| address.to_string()).map_err(|error| error.kind());
            assert_eq!(address, expected.map(str::to_owned), "{bound} {takes_ipv4} {v4:?} {v6:?}");
        }
    }
}
