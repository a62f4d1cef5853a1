//! The connections of a server, which can be counted and cut.

use std::{
    io, mem,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::{Sleep, sleep},
};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};
use tracing::warn;

/// The connections that a [`RegisteredServer`](super::RegisteredServer) accepts, as tonic's and
/// hyper's servers take them.
///
/// Dropping it closes the listener. If the system refuses to accept a connection, for example
/// because no file descriptor is left, it waits for 100 ms and tries again instead of ending the
/// server.
///
/// It is a stream, so connections can be inspected, counted or refused before the server gets them:
///
/// ```
/// # use discovery_tonic::server::RegisteredServer;
/// # async fn example(server: RegisteredServer) -> Result<(), discovery_core::Error> {
/// use futures::TryStreamExt;
/// use greeter::Greeter;
/// use tonic::transport::Server;
///
/// let router = Server::builder().add_service(Greeter::new("one").into_service());
/// let serve = server.serve(|incoming, goaway| {
///     let incoming = incoming
///         .inspect_ok(|connection| println!("connected: {:?}", connection.peer_addr()));
///     router.serve_with_incoming_shutdown(incoming, goaway)
/// });
/// serve.await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    connections: Connections,
    pause: Option<Pin<Box<Sleep>>>,
    /// Whether the system refused the last time, so that this is logged once.
    refused: bool,
}

/// An accepted connection, which its [`RegisteredServer`](super::RegisteredServer) can cut.
#[derive(Debug)]
pub struct Accepted {
    stream: TcpStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _open: Open,
}

/// All connections of a server.
#[derive(Clone, Debug, Default)]
pub(super) struct Connections {
    open: Arc<AtomicUsize>,
    cut: CancellationToken,
}

/// Counts one connection until it is dropped.
#[derive(Debug)]
struct Open(Arc<AtomicUsize>);

impl Incoming {
    pub(super) fn new(listener: TcpListener, connections: Connections) -> Self {
        Self { listener, connections, pause: None, refused: false }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Accepted>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(pause) = &mut this.pause {
                ready!(pause.as_mut().poll(context));
                this.pause = None;
            }
            match ready!(this.listener.poll_accept(context)) {
                Ok((stream, _)) => {
                    this.refused = false;
                    return Poll::Ready(Some(Ok(this.connections.accept(stream))));
                }
                // The peer closed the connection before it was accepted.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
                Err(error) => {
                    if !mem::replace(&mut this.refused, true) {
                        warn!(%error, "cannot accept connections");
                    }
                    this.pause = Some(Box::pin(sleep(PAUSE)));
                }
            }
        }
    }
}

impl Connections {
    fn accept(&self, stream: TcpStream) -> Accepted {
        // If it cannot be set, calls are slower, but nothing else.
        let _ = stream.set_nodelay(true);
        self.open.fetch_add(1, Ordering::Relaxed);
        // A child token of its own, so that connections do not contend for one lock.
        let cut = Box::pin(self.cut.child_token().cancelled_owned());
        Accepted { stream, cut, _open: Open(Arc::clone(&self.open)) }
    }

    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub(super) fn cut(&self) {
        self.cut.cancel();
    }

    /// Cuts all connections when the guard drops.
    pub(super) fn cut_on_drop(&self) -> DropGuard {
        self.cut.clone().drop_guard()
    }
}

impl Accepted {
    /// Returns the peer's address.
    ///
    /// # Errors
    ///
    /// The error of the system if the connection is gone.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server stopped")),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connected for Accepted {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long to wait after the system refused to accept a connection.
const PAUSE: Duration = Duration::from_millis(100);
