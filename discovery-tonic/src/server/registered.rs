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
/// It listens from when it is built. Dropped, or with the future of [`serve`](Self::serve) dropped, it is cut off, and deregisters
/// without waiting.
#[must_use = "it serves once `serve` is awaited"]
pub struct RegisteredServer {
    listener: TcpListener,
    instance: Instance,
    /// There from the beginning, so that handles hear of the end of a server that never served.
    life: Lifecycle,
}

/// How a server ended that was told to.
///
/// ```
/// # async fn example(server: discovery_tonic::server::RegisteredServer) -> Result<(), discovery_core::Error> {
/// use greeter::Greeter;
/// use tonic::transport::Server;
///
/// let router = Server::builder().add_service(Greeter::new("one").into_service());
/// let stopped = server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)).await?;
/// if stopped.aborted_connections > 0 {
///     println!("{} connections had calls that outlasted the limit", stopped.aborted_connections);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Stopped {
    /// How many connections were cut, because what was on them outlasted the limit, or because it was told to stop now.
    pub aborted_connections: usize,
}

impl RegisteredServer {
    /// Starts to build a server that is registered under `service` while it serves.
    pub fn builder(registry: impl Registry, service: ServiceName) -> ServerBuilder {
        ServerBuilder::new(registry, service)
    }

    pub(super) fn new(config: ServerConfig, listener: TcpListener, instance: Instance) -> Self {
        let life = Lifecycle::new(config, instance.clone());
        Self { listener, instance, life }
    }

    /// The instance as it was built; what [`ServerHandle::update`] changes later does not show here.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Where it listens, with the port that it really got.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](ErrorKind::Unavailable), where the system does not say.
    pub fn local_addr(&self) -> Result<SocketAddr, Error> {
        let address = self.listener.local_addr();
        address.map_err(|error| Error::new(ErrorKind::Unavailable, "the listener has no address").with_source(error))
    }

    /// A hand on the server while it runs: to stop it, to change its weight, to see how far it is.
    pub fn handle(&self) -> ServerHandle {
        self.life.handle.clone()
    }

    /// Runs the server through its life, and returns once it has stopped.
    ///
    /// `serve` is given the connections and the signal that ends them: what tonic's `serve_with_incoming_shutdown` takes, so that any
    /// router, layer and setting of tonic's can be used.
    ///
    /// ```no_run
    /// # async fn example(server: discovery_tonic::server::RegisteredServer) -> Result<(), discovery_core::Error> {
    /// use greeter::Greeter;
    /// use tonic::transport::Server;
    ///
    /// let router = Server::builder().add_service(Greeter::new("one").into_service());
    /// server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// What the registry answers where trying again is of no use, as [`PermissionDenied`](ErrorKind::PermissionDenied), or
    /// [`Conflict`](ErrorKind::Conflict) by the [claim](ServerBuilder::claim); the server has stopped in order then.
    /// [`Unavailable`](ErrorKind::Unavailable), with the cause, where `serve` ended by itself, or where the system lets nobody listen for
    /// signals.
    ///
    /// # Cancel safety
    ///
    /// Dropped half-way, connections are cut, and the registration is asked to end without waiting.
    pub async fn serve<F, E>(self, serve: impl FnOnce(Incoming, GoAway) -> F) -> Result<Stopped, Error>
    where
        F: Future<Output = Result<(), E>>,
        E: Into<BoxError>,
    {
        let shutdown = self.life.handle.shutdown.clone();
        let service = self.life.config.service.clone();
        let on_signals = self.life.config.stop_on_signals;
        let signals = async { if on_signals { shutdown.follow_signals().await } else { std::future::pending().await } };
        let result = tokio::select! {
            // Listening before anybody can have heard of the server.
            biased;
            error = signals => {
                let message = "the system lets nobody listen for the signals that stop a process";
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
        // First, and so dropped last: the server is done once nothing of it is left.
        let life = self.life;
        let connections = Connections::default();
        let _cut = connections.cut_on_drop();
        let (tell, told) = oneshot::channel::<()>();
        // A sender that is gone means the same.
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
        // Nobody listens where it ended at this moment.
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
            // Each ends by itself now. What goes on all the same is dropped.
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
        shown.field("service", &self.life.config.service).field("instance", &self.instance).finish_non_exhaustive()
    }
}

/// How long the server's future may take to end once all its connections are cut.
pub(super) const LAST: Duration = Duration::from_secs(1);
