use std::{fmt, path::PathBuf};

/// How a channel uses TLS: which authorities it trusts, which certificate it presents, and which
/// name the certificates of the servers must have.
///
/// By default the channel trusts the system's authorities, presents no certificate, and expects the
/// host of the instance's address. Certificates and keys are PEM, in memory or in files.
///
/// [`ChannelBuilder::build`](crate::ChannelBuilder::build) reads the files, and fails if it cannot
/// use them. Before a connection is made, they are read again if a second has passed. Once they
/// have changed, new connections use them; existing connections stay. If the new files cannot be
/// used, for example because they are half written, the former ones stay in use, which is logged. A
/// file of several authorities that was cut between two of them can be used, so replace files by
/// renaming. Each must be a regular file of at most 1 MiB.
/// [`EndpointSettings::max_connection_age`](crate::EndpointSettings::max_connection_age) replaces
/// existing connections too, without failing a call. The system's authorities are read once.
///
/// The server must negotiate HTTP/2 (ALPN `h2`). Each connection makes a full handshake: a resumed
/// one would not look at the certificates, which may have expired or been replaced since.
///
/// ```no_run
/// # use std::{error::Error, sync::Arc};
/// # use discovery_core::Backend;
/// # async fn example(backend: Arc<dyn Backend>) -> Result<(), Box<dyn Error>> {
/// use discovery_tonic::{BalancedChannel, ChannelTls};
///
/// let tls = ChannelTls::new()
///     .ca_file("ca.pem")
///     .identity_files("client.pem", "client.key")
///     .server_name("orders.internal");
/// let channel = BalancedChannel::builder(backend, "orders".parse()?).tls(tls).build()?;
/// # Ok(())
/// # }
/// ```
///
/// # The server's name
///
/// The name that a server's certificate must have is the first of these that is set:
/// [`EndpointSettings::server_name`](crate::EndpointSettings::server_name) for the instance,
/// [`server_name`](Self::server_name), the host of
/// [`EndpointSettings::origin`](crate::EndpointSettings::origin), the host of the instance's
/// address. Nothing that the registry stores changes it, except the address itself.
///
/// Unless an origin is set, requests have this name as their `:authority`.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct ChannelTls {
    pub(super) authorities: Vec<Pem>,
    pub(super) native_roots: bool,
    pub(super) identity: Option<Identity>,
    pub(super) server_name: Option<String>,
}

/// The certificate to present, and its key.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) cert: Pem,
    pub(super) key: Pem,
}

/// A PEM in memory, or the path of its file.
#[derive(Clone, Eq, PartialEq)]
pub(super) enum Pem {
    File(PathBuf),
    Text(Vec<u8>),
}

impl ChannelTls {
    /// Creates the default: the system's authorities, and no certificate to present.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the authorities in this file, instead of the system's. Several calls add up.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.authorities.push(Pem::File(path.into()));
        self
    }

    /// Trusts these authorities, instead of the system's. Several calls add up.
    pub fn ca(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.authorities.push(Pem::Text(pem.into()));
        self
    }

    /// Trusts the system's authorities too, next to those of [`ca_file`](Self::ca_file) and
    /// [`ca`](Self::ca).
    ///
    /// The environment variables `SSL_CERT_FILE` and `SSL_CERT_DIR` name other places for them.
    pub fn with_native_roots(mut self) -> Self {
        self.native_roots = true;
        self
    }

    /// Presents the certificate of this file, followed by its intermediate certificates if there
    /// are any, with this key: PKCS #8, PKCS #1 or SEC 1, not encrypted.
    pub fn identity_files(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.identity = Some(Identity { cert: Pem::File(cert.into()), key: Pem::File(key.into()) });
        self
    }

    /// Presents this certificate with this key, as [`identity_files`](Self::identity_files) does.
    pub fn identity(mut self, cert: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.identity = Some(Identity { cert: Pem::Text(cert.into()), key: Pem::Text(key.into()) });
        self
    }

    /// Sets the name that the servers' certificates must have: a host name or an IP address;
    /// default the host of each instance's address. See [the server's name](#the-servers-name).
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }
}

impl Pem {
    /// Whether the path is in fact the content of a file. It may be a key, so it must not be shown.
    pub(super) fn is_misplaced(&self) -> bool {
        match self {
            Self::File(path) => path.to_string_lossy().contains("-----BEGIN"),
            Self::Text(_) => false,
        }
    }
}

impl fmt::Debug for Pem {
    /// Prints the path or that it is in memory, never the content, which may be a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) if !self.is_misplaced() => write!(f, "{path:?}"),
            Self::File(_) => f.write_str("(not a path)"),
            Self::Text(_) => f.write_str("(in memory)"),
        }
    }
}
