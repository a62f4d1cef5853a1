//! TLS as a client: the current credentials, and the handshake of one connection.

use std::{
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError},
    thread,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use discovery_core::{Address, Error, ErrorKind, Host};
use hyper_util::rt::TokioIo;
use rustls::{
    CertificateError, DigitallySignedStruct, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use tracing::{Span, info, warn};

use super::{
    certificate::Certificate,
    config::ChannelTls,
    credentials::{Credentials, H2},
    files::Contents,
    stream::TlsStream,
};
use crate::{connection::wire::Io, error::BoxError};

/// The TLS of a channel.
pub(crate) struct TlsClient {
    config: ChannelTls,
    server_name: Option<ServerName<'static>>,
    native_roots: Vec<CertificateDer<'static>>,
    credentials: ArcSwap<Credentials>,
    /// Locked by the attempt that reads the files. Others continue with what is known.
    files: Mutex<Files>,
}

/// The files when they were last read.
struct Files {
    contents: Contents,
    read: Instant,
    /// Why they cannot be used, as it was logged.
    unusable: Option<String>,
}

impl TlsClient {
    /// Reads all files and checks their contents. Blocks.
    pub(crate) fn load(config: ChannelTls) -> Result<Self, Error> {
        let server_name = config.server_name.as_deref().map(server_name).transpose()?;
        let native_roots =
            if config.authorities.is_empty() || config.native_roots { native_roots()? } else { Vec::new() };
        let contents = Contents::read(&config)?;
        let credentials = Credentials::new(&config, &contents, &native_roots)?;
        let files = Files { contents, read: Instant::now(), unusable: None };
        Ok(Self {
            config,
            server_name,
            native_roots,
            credentials: ArcSwap::from_pointee(credentials),
            files: Mutex::new(files),
        })
    }

    /// The name that the certificate of an instance must have: the one of its own settings, that of
    /// the channel, the host of the origin, or that of its address.
    pub(crate) fn name_for(
        &self,
        own: Option<&ServerName<'static>>,
        origin: Option<&str>,
        address: &Address,
    ) -> Result<ServerName<'static>, Error> {
        if let Some(name) = own.or(self.server_name.as_ref()) {
            return Ok(name.clone());
        }
        match origin {
            Some(host) => server_name(host.trim_start_matches('[').trim_end_matches(']')),
            None => match address.without_trailing_dot().host() {
                Host::Dns(name) => server_name(name),
                Host::Ip(ip) => Ok(ServerName::IpAddress((*ip).into())),
            },
        }
    }

    /// Whether the name of an instance is set, rather than that of its address.
    pub(crate) fn has_name(&self, own: Option<&ServerName<'static>>) -> bool {
        own.or(self.server_name.as_ref()).is_some()
    }

    /// Shakes hands with a server that must have this name.
    pub(crate) async fn shake_hands(
        self: &Arc<Self>,
        io: Box<dyn Io>,
        name: ServerName<'static>,
    ) -> Result<Box<dyn Io>, BoxError> {
        self.refresh().await;
        let credentials = self.credentials.load_full();
        let seen = Arc::new(OnceLock::new());
        let mut config = credentials.config.clone();
        let verifier = Witness { verifier: Arc::clone(&credentials.verifier), seen: Arc::clone(&seen) };
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        let connector = TlsConnector::from(Arc::new(config));
        let connected = connector.connect(name.clone(), TokioIo::new(io)).await;
        let presented = credentials.presented.clone();
        let stream = connected.map_err(|error| match bad_certificate(&error) {
            Some(reason) => refused(&name, reason, seen.get()),
            None => {
                let cause = TlsStream::explain(error, presented.as_deref());
                Error::new(ErrorKind::Unavailable, "the TLS handshake failed").with_source(cause).into()
            }
        })?;
        if stream.get_ref().1.alpn_protocol() != Some(H2) {
            let message = "the server did not agree to HTTP/2 in the TLS handshake (ALPN h2)";
            return Err(Error::new(ErrorKind::Unavailable, message).into());
        }
        Ok(Box::new(TokioIo::new(TlsStream::new(stream, presented))))
    }

    /// Reads the files again, unless that was done less than a second ago or is being done now.
    async fn refresh(self: &Arc<Self>) {
        if self.files().is_none_or(|files| files.read.elapsed() < REREAD) {
            return;
        }
        let refreshed = Arc::clone(self);
        let span = Span::current();
        let (done, ended) = oneshot::channel();
        // A thread of its own rather than one of the runtime's: if the file system hangs, the
        // runtime could not shut down.
        thread::spawn(move || {
            span.in_scope(|| refreshed.read_again());
            let _ = done.send(());
        });
        // An error means that the thread panicked, and the former files stay in use.
        let _ = ended.await;
    }

    /// Returns the files, unless they are being read now. A subscriber that panicked while they
    /// were locked has changed nothing about them.
    fn files(&self) -> Option<MutexGuard<'_, Files>> {
        match self.files.try_lock() {
            Ok(files) => Some(files),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn read_again(&self) {
        let Some(mut files) = self.files() else { return };
        if files.read.elapsed() < REREAD {
            return;
        }
        files.read = Instant::now();
        let changed = Contents::read(&self.config).and_then(|contents| {
            if contents == files.contents {
                return Ok(false);
            }
            let credentials = Credentials::new(&self.config, &contents, &self.native_roots)?;
            self.credentials.store(Arc::new(credentials));
            files.contents = contents;
            Ok(true)
        });
        match changed {
            Ok(changed) => {
                files.unusable = None;
                if changed {
                    info!("the TLS files changed, new connections use them");
                }
            }
            Err(error) => {
                let error = error.report().to_string();
                if files.unusable.as_ref() != Some(&error) {
                    warn!(error, "the TLS files cannot be used, the former ones stay in use");
                    files.unusable = Some(error);
                }
            }
        }
    }
}

impl fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsClient").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Verifies as rustls does, and remembers the certificate for the error.
#[derive(Debug)]
struct Witness {
    verifier: Arc<WebPkiServerVerifier>,
    seen: Arc<OnceLock<Certificate>>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.verifier.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        if verified.is_err() {
            self.seen.get_or_init(|| Certificate::new(end_entity.clone()));
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Parses the name of a server: a host name or an IP address.
pub(crate) fn server_name(name: &str) -> Result<ServerName<'static>, Error> {
    ServerName::try_from(name.to_owned()).map_err(|_| {
        let message = format!("invalid server name {name:?}: allowed are a host name and an IP address");
        Error::new(ErrorKind::InvalidInput, message)
    })
}

fn native_roots() -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = rustls_native_certs::load_native_certs();
    if !found.certs.is_empty() {
        return Ok(found.certs);
    }
    let message =
        "the system has no certificate authorities; install them (on Debian ca-certificates) or set `ca_file`";
    let error = Error::new(ErrorKind::InvalidInput, message);
    Err(match found.errors.into_iter().next() {
        Some(cause) => error.with_source(cause),
        None => error,
    })
}

/// Why rustls refused the server's certificate, if it did.
fn bad_certificate(error: &io::Error) -> Option<&CertificateError> {
    match error.get_ref()?.downcast_ref()? {
        rustls::Error::InvalidCertificate(reason) => Some(reason),
        _ => None,
    }
}

fn refused(name: &ServerName<'_>, reason: &CertificateError, certificate: Option<&Certificate>) -> BoxError {
    use CertificateError as Reason;
    let why = match reason {
        Reason::Expired | Reason::ExpiredContext { .. } => "it has expired".to_owned(),
        Reason::NotValidYet | Reason::NotValidYetContext { .. } => "it is not valid yet".to_owned(),
        Reason::NotValidForName | Reason::NotValidForNameContext { .. } => {
            format!("it is not valid for the name {}", name.to_str())
        }
        Reason::UnknownIssuer => "no trusted authority has signed it".to_owned(),
        // rustls' text, which has no source of its own.
        other => other.to_string(),
    };
    let certificate = certificate.map(|certificate| format!(" ({certificate})")).unwrap_or_default();
    Error::new(ErrorKind::Unavailable, format!("the server's certificate is refused: {why}{certificate}")).into()
}

/// The shortest time between two readings of the files.
const REREAD: Duration = Duration::from_secs(1);
