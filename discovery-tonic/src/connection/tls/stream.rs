//! The byte stream of a connection after its TLS handshake.

use std::{
    error::Error as StdError,
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use hyper_util::rt::TokioIo;
use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::credentials::Presented;
use crate::connection::wire::Io;

/// A byte stream over TLS whose errors explain a refused client certificate.
///
/// With TLS 1.3 the handshake of the client ends before the server has looked at its certificate,
/// so a refusal is an alert on the first read. It may even get lost, if the system discards it with
/// the connection that the server closed.
pub(super) struct TlsStream {
    io: tokio_rustls::client::TlsStream<TokioIo<Box<dyn Io>>>,
    presented: Option<Arc<Presented>>,
    /// Whether the server has sent anything, and so has accepted the client.
    is_accepted: bool,
}

/// A server closed the connection because of the client's certificate, or may have. The text holds
/// the cause, because h2 keeps only the text of an I/O error.
#[derive(Debug)]
struct Refused(String);

impl TlsStream {
    pub(super) fn new(
        stream: tokio_rustls::client::TlsStream<TokioIo<Box<dyn Io>>>,
        presented: Option<Arc<Presented>>,
    ) -> Self {
        Self { io: stream, presented, is_accepted: false }
    }

    /// Adds which certificate was presented to the error of a server that refused it.
    pub(super) fn explain(error: io::Error, presented: Option<&Presented>) -> io::Error {
        let alert = error.get_ref().and_then(|error| error.downcast_ref()).and_then(alert);
        if alert.is_some_and(|alert| is_refusal(&alert)) {
            return Refused::error("the server refused the channel's TLS", presented, Some(&error));
        }
        match error.get_ref().and_then(|error| error.downcast_ref()) {
            Some(rustls::Error::InvalidMessage(_)) => {
                io::Error::new(error.kind(), format!("the server does not seem to speak TLS: {error}"))
            }
            _ => error,
        }
    }

    /// The end of a connection on which nothing was received.
    fn explain_early_end(&self, error: Option<io::Error>) -> io::Error {
        let what = "the server closed the connection right after the TLS handshake, perhaps because of the channel's certificate";
        Refused::error(what, self.presented.as_deref(), error.as_ref())
    }
}

impl Refused {
    fn error(what: &str, presented: Option<&Presented>, cause: Option<&io::Error>) -> io::Error {
        let presented = match presented {
            Some(Presented { source, certificate }) => format!("it presented {source:?} ({certificate})"),
            None => "it presented no certificate".to_owned(),
        };
        let kind = cause.map_or(io::ErrorKind::UnexpectedEof, io::Error::kind);
        let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
        io::Error::new(kind, Self(format!("{what}; {presented}{cause}")))
    }
}

fn alert(error: &rustls::Error) -> Option<AlertDescription> {
    match error {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

/// Whether a server sends this alert because of the client's certificate. A missing one is
/// `HandshakeFailure` in TLS 1.2, and `BadCertificate` from servers in Go.
fn is_refusal(alert: &AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::AccessDenied
            | Alert::BadCertificate
            | Alert::CertificateExpired
            | Alert::CertificateRequired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::DecryptError
            | Alert::HandshakeFailure
            | Alert::NoCertificate
            | Alert::UnknownCA
            | Alert::UnsupportedCertificate
    )
}

impl AsyncRead for TlsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.io).poll_read(context, buffer));
        if self.is_accepted {
            return Poll::Ready(read);
        }
        Poll::Ready(match read {
            Ok(()) if buffer.filled().len() > before || buffer.remaining() == 0 => {
                self.is_accepted = true;
                Ok(())
            }
            Ok(()) => Err(self.explain_early_end(None)),
            Err(error) if is_end(&error) => Err(self.explain_early_end(Some(error))),
            Err(error) => Err(Self::explain(error, self.presented.as_deref())),
        })
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// Whether the connection ended, in one of the ways in which a closed one ends.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::BrokenPipe | Kind::ConnectionAborted | Kind::ConnectionReset | Kind::UnexpectedEof)
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Refused {}
