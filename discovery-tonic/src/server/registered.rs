//! A server with its listener, and the order in which it starts and stops.

use std::{fmt, future::Future, net::SocketAddr, pin::pin, time::Duration};

use discovery_core::{Error, ErrorKind, Instance, Registry, ServiceName};
use tokio::{
    net::TcpListener,
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{
    ServerBuilder,
    config::ServerConfig,
    handle::{ServerHandle, Stage},
    incoming::{Connections, Incoming},
    lifecycle::Lifecycle,
    shutdown::{GoAway, ShutdownKind},
};
use crate::error::BoxError;

/// A server that is registered while it serves; see the [module](super).
///
/// It listens as soon as it is built. Dropping it, or the future of [`serve`](Self::serve), cuts
/// its connections and requests the removal of its registration without waiting.
#[must_use = "it serves once `serve` is awaited"]
pub struct RegisteredServer {
    listener: TcpListener,
    instance: Instance,
    /// Exists from the beginning, so that handles learn of the end of a server that never served.
    life: Lifecycle,
}

/// The result of a server that was asked to stop.
///
/// ```
/// # use discovery_tonic::server::RegisteredServer;
/// # async fn example(server: RegisteredServer) -> Result<(), discovery_core::Error> {
/// use greeter::Greeter;
/// use tonic::transport::Server;
///
/// let router = Server::builder().add_service(Greeter::new("one").into_service());
/// let stopped = server
///     .serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway))
///     .await?;
/// if stopped.aborted_connections > 0 {
///     println!("{} connections outlasted the shutdown timeout", stopped.aborted_connections);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Stopped {
    /// The number of connections that were cut, because their requests outlasted the shutdown
    /// timeout or because the server was asked to stop at once.
    pub aborted_connections: usize,
}

impl RegisteredServer {
    /// Returns a builder of a server that is registered under `service` while it serves.
    pub fn builder(registry: impl Registry, service: ServiceName) -> ServerBuilder {
        ServerBuilder::new(registry, service)
    }

    pub(super) fn new(config: ServerConfig, listener: TcpListener, instance: Instance) -> Self {
        let life = Lifecycle::new(config, instance.clone());
        Self { listener, instance, life }
    }

    /// Returns the instance as it was built. Later changes by [`ServerHandle::update`] do not show
    /// here.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Returns the address that the server listens at, with the actual port.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](ErrorKind::Unavailable) if the system does not return an address.
    pub fn local_addr(&self) -> Result<SocketAddr, Error> {
        let address = self.listener.local_addr();
        address.map_err(|error| Error::new(ErrorKind::Unavailable, "the listener has no address").with_source(error))
    }

    /// Returns a handle to stop the server, to change its weight, and to follow its stage.
    pub fn handle(&self) -> ServerHandle {
        self.life.handle.clone()
    }

    /// Runs the server from start to stop, and returns once it has stopped.
    ///
    /// `serve` receives the connections and the signal that ends them: the arguments of tonic's
    /// `serve_with_incoming_shutdown`, so that any router, layer and setting of tonic can be used.
    ///
    /// ```no_run
    /// # use discovery_tonic::server::RegisteredServer;
    /// # async fn example(server: RegisteredServer) -> Result<(), discovery_core::Error> {
    /// use greeter::Greeter;
    /// use tonic::transport::Server;
    ///
    /// let router = Server::builder().add_service(Greeter::new("one").into_service());
    /// server
    ///     .serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway))
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// - The error of the registry if it is final, such as
    ///   [`PermissionDenied`](ErrorKind::PermissionDenied), or [`Conflict`](ErrorKind::Conflict)
    ///   according to the [claim](ServerBuilder::claim). The server has then stopped gracefully.
    /// - [`Unavailable`](ErrorKind::Unavailable), with the cause, if `serve` ended by itself, or if
    ///   the system does not let the process listen for signals.
    ///
    /// # Cancel safety
    ///
    /// Dropped before completion, connections are cut, and the removal of the registration is
    /// requested without waiting.
    pub async fn serve<F, E>(self, serve: impl FnOnce(Incoming, GoAway) -> F) -> Result<Stopped, Error>
    where
        F: Future<Output = Result<(), E>>,
        E: Into<BoxError>,
    {
        let shutdown = self.life.handle.shutdown.clone();
        let service = self.life.config.services.first().clone();
        let on_signals = self.life.config.stop_on_signals;
        let signals = async { if on_signals { shutdown.follow_signals().await } else { std::future::pending().await } };
        let result = tokio::select! {
            // Polled first, so that the process listens for signals before anyone can learn of the
            // server.
            biased;
            error = signals => {
                let message = "cannot listen for the signals that stop a process";
                Err(Error::new(ErrorKind::Unavailable, message).with_source(error))
            }
            result = self.run(serve) => result,
        };
        result.map_err(|error| error.with_operation("serve").with_service(&service))
    }

    async fn run<F, E>(self, serve: impl FnOnce(Incoming, GoAway) -> F) -> Result<Stopped, Error>
    where
        F: Future<Output = Result<(), E>>,
        E: Into<BoxError>,
    {
        // Declared first, and so dropped last: the handles report the server as stopped only once
        // nothing of it is left.
        let life = self.life;
        let connections = Connections::default();
        let _cut = connections.cut_on_drop();
        let (tell, told) = oneshot::channel::<()>();
        // A dropped sender means the same.
        let told = GoAway::new(async { told.await.unwrap_or_default() });
        let mut serving = pin!(serve(Incoming::new(self.listener, connections.clone()), told));

        let left = tokio::select! {
            ended = &mut serving => {
                life.leave_at_once().await;
                return Err(by_itself(ended.err().map(Into::into)));
            }
            left = life.until_left() => left,
        };
        life.enter(Stage::Finishing);
        // Fails if the server ended just now, which does not matter.
        let _ = tell.send(());
        let ended = tokio::select! {
            ended = &mut serving => Some(ended),
            () = sleep(life.config.shutdown_timeout) => None,
            () = life.handle.shutdown.given(ShutdownKind::StopNow) => None,
        };
        let mut aborted_connections = 0;
        if ended.is_none() {
            aborted_connections = connections.open();
            connections.cut();
            // Each connection ends by itself now. Whatever still runs after that is dropped.
            let _ = timeout(LAST, serving).await;
        }
        left?;
        match ended {
            Some(Err(error)) => Err(by_itself(Some(error.into()))),
            Some(Ok(())) | None => Ok(Stopped { aborted_connections }),
        }
    }
}

fn by_itself(cause: Option<BoxError>) -> Error {
    let error = Error::new(ErrorKind::Unavailable, "the server ended by itself");
    match cause {
        Some(cause) => error.with_source(cause),
        None => error,
    }
}

impl fmt::Debug for RegisteredServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("RegisteredServer");
        shown.field("services", &self.life.config.services).field("instance", &self.instance).finish_non_exhaustive()
    }
}

/// How long the server's future may take to end once all its connections are cut.
pub(super) const LAST: Duration = Duration::from_secs(1);
