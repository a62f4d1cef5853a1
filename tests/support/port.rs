use std::{
    fmt,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    ops::Range,
    sync::Arc,
};

/// A TCP port of 127.0.0.1 that belongs to a test, even while its server is down.
///
/// Other tests leave it alone, because the UDP port of the same number is bound while a clone of
/// this lives. Nothing else gets it by chance, because systems choose higher ports for connections
/// and for servers that ask for any port.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    number: u16,
    _reserved: Arc<UdpSocket>,
}

impl Port {
    pub(crate) fn reserve() -> Self {
        std::iter::repeat_with(|| fastrand::u16(RANGE)).take(1000).find_map(Self::try_reserve).expect("a free port")
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    fn try_reserve(number: u16) -> Option<Self> {
        let reserved = UdpSocket::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
        // Something that is no test may listen there.
        TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
        Some(Self { number, _reserved: Arc::new(reserved) })
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number.fmt(f)
    }
}

/// Below 32,768, where Linux begins with the ports that it chooses.
const RANGE: Range<u16> = 10_000..32_768;
