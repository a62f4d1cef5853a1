use std::{fmt, path::PathBuf};

use discovery_core::{Error, ErrorKind};

use super::settings::invalid;

/// Whom to trust and as whom to appear where members are reached over TLS.
///
/// A certificate authority is needed: members' certificates are signed by the cluster's own one as a rule, so the system's are
/// not trusted unless their file is named (on Debian `/etc/ssl/certs/ca-certificates.crt`). A certificate and its key are
/// needed where etcd runs with `--client-cert-auth`; its common name is the user then, unless credentials are given. All are
/// PEM, either in memory or in a file.
///
/// Files are read by [`EtcdBackend::new`](crate::EtcdBackend::new), which fails where
/// something is wrong with them. They are read anew once they have changed, which is looked at with
/// calls, at most once a second; calls then go over a connection that was made with them. Where
/// they cannot be used then, the former ones are. Reading them blocks the thread for a moment.
///
/// It needs the cargo feature `tls`. Without it all of this can be filled in, and is refused with
/// [`Unsupported`](ErrorKind::Unsupported) when it is checked.
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

/// Where a PEM is.
#[derive(Clone)]
pub(crate) enum Pem {
    File(PathBuf),
    Text(#[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "it is refused then"))] Vec<u8>),
}

impl EtcdTls {
    /// Nothing trusted yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the certificates of the authorities that may have signed the members' certificates.
    #[must_use]
    pub fn ca(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca = Some(Pem::Text(pem.into()));
        self
    }

    /// Sets the file with the certificates of the authorities that may have signed the members' certificates.
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca = Some(Pem::File(path.into()));
        self
    }

    /// Sets the certificate to appear with, followed by those that lead to its authority, if any.
    #[must_use]
    pub fn cert(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.cert = Some(Pem::Text(pem.into()));
        self
    }

    /// Sets the file with the certificate to appear with.
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

    /// Sets the name that the members' certificates must be for; by default it is each member's own host.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Checks what can be checked without reading anything.
    pub(super) fn check(&self) -> Result<(), Error> {
        if [&self.ca, &self.cert, &self.key].into_iter().flatten().any(Pem::is_misplaced) {
            return Err(invalid("invalid TLS: what should be the path of a file is what such a file says"));
        }
        if self.ca.is_none() {
            return Err(invalid(
                "invalid TLS: `ca_file` names nobody to trust; allowed is a PEM file, such as /etc/ssl/certs/ca-certificates.crt for the system's authorities",
            ));
        }
        if self.cert.is_some() != self.key.is_some() {
            return Err(invalid("invalid TLS: `cert_file` and `key_file` belong together; one of them is missing"));
        }
        if !cfg!(feature = "tls") {
            let message = "this program was built without TLS for etcd; enable the cargo feature `etcd-tls` of `discovery`, which is `tls` of `discovery-etcd`";
            return Err(Error::new(ErrorKind::Unsupported, message).with_operation("configure etcd"));
        }
        Ok(())
    }
}

impl Pem {
    /// Whether somebody took the file's content for its path: it may be a key, and is not shown.
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
    /// Prints where it is: what it says may be a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) if !self.is_misplaced() => write!(f, "{path:?}"),
            Self::File(_) => f.write_str("(not a path)"),
            Self::Text(_) => f.write_str("(in memory)"),
        }
    }
}
