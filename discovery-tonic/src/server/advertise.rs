use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use discovery_core::{Address, Error, ErrorKind};

/// Where others reach a listener.
///
/// One that is bound to the unspecified address has the address of the interface that the default route goes through.
pub(super) fn address(bound: SocketAddr) -> Result<Address, Error> {
    let ip = if bound.ip().is_unspecified() { outgoing(bound.ip())? } else { bound.ip() };
    SocketAddr::new(ip, bound.port()).try_into()
}

/// Connecting a datagram socket sends nothing, but makes the system choose the address to send from. The target is of the blocks
/// kept for documentation (RFC 5737, RFC 3849), to which nothing but the default route leads.
fn outgoing(unspecified: IpAddr) -> Result<IpAddr, Error> {
    let target = match unspecified {
        IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 9)),
        IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9)),
    };
    let found = UdpSocket::bind((unspecified, 0)).and_then(|socket| {
        socket.connect(target)?;
        socket.local_addr()
    });
    let found = found.map_err(|error| {
        let message = "no route leads out, so the address to register is unknown; say it with `advertise`";
        Error::new(ErrorKind::Unavailable, message).because(error)
    });
    found.map(|address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_address_is_advertised_as_it_is() {
        for bound in ["127.0.0.1:50051", "[::1]:50051", "10.1.2.3:80"] {
            assert_eq!(address(bound.parse().unwrap()).unwrap().to_string(), bound);
        }
    }

    #[test]
    fn the_unspecified_address_is_never_advertised() {
        for bound in ["0.0.0.0:50051", "[::]:50051"] {
            match address(bound.parse().unwrap()) {
                Ok(address) => {
                    let address = address.socket_addr().unwrap();
                    assert!(!address.ip().is_unspecified() && address.port() == 50051, "{address}");
                }
                // A machine without a route.
                Err(error) => assert!(error.to_string().contains("`advertise`"), "{error}"),
            }
        }
    }
}
