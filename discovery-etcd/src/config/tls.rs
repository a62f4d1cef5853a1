//! Which certificates to trust and which one to present.

use std::{fmt, path::PathBuf};

use discovery_core::{Error, ErrorKind};

use super::settings::invalid;

/// The TLS options of the connections to etcd: which authorities to trust, and which certificate to
/// present.
///
/// A certificate authority is required. The system's authorities are not trusted unless their file
/// is named (on Debian `/etc/ssl/certs/ca-certificates.crt`), because the members' certificates are
/// usually signed by the cluster's own authority. A certificate and its key are required if etcd
/// runs with `--client-cert-auth`; its common name is then the user, unless credentials are given.
/// All three are PEM, in memory or in a file.
///
/// [`EtcdBackend::new`](crate::EtcdBackend::new) reads the files and fails if it cannot use them.
/// Afterwards calls read them again, at most once a second. Once a file has changed, calls use a
/// new connection that is made with the new files; if those cannot be used, the former ones stay in
/// use. Reading blocks the thread briefly. Each must be a regular file of at most 1 MiB.
///
/// This needs the Cargo feature `tls`. Without it the options can be set, but checking the
/// configuration fails with [`Unsupported`](ErrorKind::Unsupported).
///
/// ```no_run
/// # async fn example() -> Result<(), discovery_core::Error> {
/// use discovery_etcd::{EtcdBackend, EtcdConfig, EtcdTls};
///
/// let tls = EtcdTls::new()
///     .ca_file("/etc/etcd/ca.pem")
///     .cert_file("/etc/payments/etcd.pem")
///     .key_file("/etc/payments/etcd.key");
/// let backend = EtcdBackend::new(EtcdConfig::new(["etcd-1.internal:2379"]).tls(tls))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct EtcdTls {
    pub(crate) ca: Option<Pem>,
    pub(crate) cert: Option<Pem>,
    pub(crate) key: Option<Pem>,
    pub(crate) server_name: Option<String>,
}

/// A PEM in memory, or the path of its file.
#[derive(Clone)]
pub(crate) enum Pem {
    File(PathBuf),
    Text(#[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "TLS is refused without the feature"))] Vec<u8>),
}

impl EtcdTls {
    /// Creates options that trust nobody yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the certificates of the authorities to trust.
    #[must_use]
    pub fn ca(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca = Some(Pem::Text(pem.into()));
        self
    }

    /// Sets the file with the certificates of the authorities to trust.
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca = Some(Pem::File(path.into()));
        self
    }

    /// Sets the certificate to present, followed by the intermediate certificates, if any.
    #[must_use]
    pub fn cert(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.cert = Some(Pem::Text(pem.into()));
        self
    }

    /// Sets the file with the certificate to present and its intermediate certificates.
    #[must_use]
    pub fn cert_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.cert = Some(Pem::File(path.into()));
        self
    }

    /// Sets the certificate's private key: PKCS #8, PKCS #1 or SEC 1, not encrypted.
    #[must_use]
    pub fn key(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.key = Some(Pem::Text(pem.into()));
        self
    }

    /// Sets the file with the certificate's private key.
    #[must_use]
    pub fn key_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.key = Some(Pem::File(path.into()));
        self
    }

    /// Sets the name for which the members' certificates must be valid; default each member's host.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Checks everything except the contents of files.
    pub(super) fn check(&self) -> Result<(), Error> {
        if [&self.ca, &self.cert, &self.key].into_iter().flatten().any(Pem::is_misplaced) {
            return Err(invalid("invalid TLS: the path of a file is expected, but a PEM is given"));
        }
        if self.ca.is_none() {
            return Err(invalid(
                "invalid TLS: `ca_file` is missing; allowed is a PEM file with the authorities to trust, such as /etc/ssl/certs/ca-certificates.crt for the system's authorities",
            ));
        }
        if self.cert.is_some() != self.key.is_some() {
            return Err(invalid("invalid TLS: only one of `cert_file` and `key_file` is given; both are required"));
        }
        if !cfg!(feature = "tls") {
            let message = "this program was built without TLS for etcd; enable the cargo feature `etcd-tls` of `discovery`, which is `tls` of `discovery-etcd`";
            return Err(Error::new(ErrorKind::Unsupported, message).with_operation("configure etcd"));
        }
        Ok(())
    }
}

impl Pem {
    /// Whether the path is in fact the content of a file. It may be a key, so it must not be shown.
    fn is_misplaced(&self) -> bool {
        match self {
            Self::File(path) => path.to_string_lossy().contains("-----BEGIN"),
            Self::Text(_) => false,
        }
    }
}

impl fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdTls")
            .field("ca", &self.ca)
            .field("cert", &self.cert)
            .field("key", &self.key)
            .field("server_name", &self.server_name)
            .finish()
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
