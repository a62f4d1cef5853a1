//! The handle to a running server, and the stages of its life.

use std::sync::Weak;

use discovery_core::{
    Error, ErrorKind, Instance, Registration, ServiceName, Status, StatusReceiver, backend::StatusWriter,
};
use tokio::sync::{Mutex, watch};

use super::shutdown::{Shutdown, ShutdownKind};

/// A handle to a server. It is cheap to clone, and does not keep the server running.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use discovery_core::{Resolver, Weight};
/// use discovery_memory::MemoryBackend;
/// use discovery_tonic::server::{RegisteredServer, Stage};
/// use greeter::Greeter;
/// use tonic::transport::Server;
///
/// let backend = MemoryBackend::new();
/// let service = "greeter".parse()?;
/// let server = RegisteredServer::builder(backend.clone(), "greeter".parse()?)
///     .drain_time(std::time::Duration::from_millis(10))
///     .bind("127.0.0.1:0".parse()?)
///     .await?;
/// let handle = server.handle();
/// let greeter = Server::builder().add_service(Greeter::new("one").into_service());
/// let running = tokio::spawn(
///     server.serve(|incoming, goaway| greeter.serve_with_incoming_shutdown(incoming, goaway)),
/// );
///
/// handle.reached(Stage::Serving).await;
/// let less = Weight::new(10)?;
/// handle.update(|instance| instance.with_weight(less)).await?;
/// assert_eq!(backend.list(&service).await?.iter().next().unwrap().weight(), less);
///
/// handle.stop();
/// let stopped = running.await??;
/// assert_eq!((stopped.aborted_connections, handle.stage()), (0, Stage::Stopped));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ServerHandle {
    service: ServiceName,
    entry: Weak<Mutex<Entry>>,
    pub(super) shutdown: Shutdown,
    pub(super) stage: watch::Sender<Stage>,
    pub(super) status: StatusWriter,
}

/// The stage that a server has reached. A later stage is greater, and no stage comes twice.
///
/// ```
/// # async fn example(handle: discovery_tonic::server::ServerHandle) {
/// use discovery_tonic::server::Stage;
///
/// // The answer to the health check of another load balancer.
/// let takes_new_calls = handle.stage() <= Stage::Draining;
/// // Finish background work before the process ends.
/// handle.reached(Stage::Draining).await;
/// # }
/// ```
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Stage {
    /// It accepts connections, and is not in the registry yet.
    Starting,
    /// It has registered. If the registration is lost, it is being restored.
    Serving,
    /// It leaves the registry, and keeps serving while clients notice.
    Draining,
    /// It takes no new calls, and finishes those in flight.
    Finishing,
    /// It has stopped.
    Stopped,
}

/// What a server has in the registry.
#[derive(Debug)]
pub(super) enum Entry {
    /// Not registered yet; will be registered like this.
    Planned(Instance),
    Registered(Registration),
    /// It has left the registry.
    Left,
}

impl ServerHandle {
    pub(super) fn new(service: ServiceName, entry: Weak<Mutex<Entry>>) -> Self {
        let status = Status::lost(Error::new(ErrorKind::Unavailable, "the server has not registered yet"));
        let stage = watch::Sender::new(Stage::Starting);
        let status = StatusWriter::new(status);
        Self { service, entry, shutdown: Shutdown::new(), stage, status }
    }

    /// Asks the server to stop gracefully, as described for the [module](super). Further requests
    /// have no effect.
    pub fn stop(&self) {
        self.shutdown.give(ShutdownKind::Stop);
    }

    /// Asks the server to stop at once: requests in flight are cut.
    ///
    /// If the server has not left the registry yet, its removal is requested without waiting.
    pub fn stop_now(&self) {
        self.shutdown.give(ShutdownKind::StopNow);
    }

    /// Returns the stage that the server has reached.
    pub fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Waits until the server has reached this stage or a later one.
    ///
    /// # Cancel safety
    ///
    /// Dropped before completion, it has no effect: it only waits.
    pub async fn reached(&self, stage: Stage) {
        let reached = self.stage.subscribe().wait_for(|now| *now >= stage).await.map(drop);
        reached.expect("the sender lives in `self`");
    }

    /// Follows the status of the registration: first [`Lost`](Status::Lost) since the server was
    /// built, with the registry's last error if there was one; once it is written, that of the
    /// [`Registration`]; finally [`Deregistered`](Status::Deregistered) or
    /// [`Superseded`](Status::Superseded).
    ///
    /// A server whose registration is lost or superseded keeps serving. To stop it instead:
    ///
    /// ```
    /// # fn example(server: discovery_tonic::server::RegisteredServer) {
    /// use discovery_core::Status;
    ///
    /// let handle = server.handle();
    /// tokio::spawn(async move {
    ///     let mut statuses = handle.statuses();
    ///     while let Some(status) = statuses.changed().await {
    ///         if let Status::Superseded { .. } = status {
    ///             handle.stop();
    ///         }
    ///     }
    /// });
    /// # }
    /// ```
    pub fn statuses(&self) -> StatusReceiver {
        self.status.statuses()
    }

    /// Changes weight and metadata while the server runs, without removing the entry.
    ///
    /// Before the server is registered, this changes what will be registered. While the
    /// registration is lost, it fails with a retryable error, but the change is written as soon as
    /// the registration is restored.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for another id or address;
    /// [`Closed`](ErrorKind::Closed) once the server leaves the registry; otherwise the same errors
    /// as [`Registration::update`].
    ///
    /// # Cancel safety
    ///
    /// Same as [`Registration::update`].
    pub async fn update(&self, change: impl FnOnce(Instance) -> Instance + Send) -> Result<(), Error> {
        self.change(change).await.map_err(|error| error.with_operation("update").with_service(&self.service))
    }

    async fn change(&self, change: impl FnOnce(Instance) -> Instance + Send) -> Result<(), Error> {
        let entry = self.entry.upgrade().ok_or_else(left)?;
        match &mut *entry.lock().await {
            Entry::Planned(instance) => {
                let after = change(instance.clone());
                if (after.id(), after.address()) != (instance.id(), instance.address()) {
                    let message = "an update may change only weight and metadata";
                    return Err(Error::new(ErrorKind::InvalidInput, message));
                }
                *instance = after;
                Ok(())
            }
            Entry::Registered(registration) => tokio::select! {
                biased;
                // The update must not keep the server from leaving, nor write once it leaves.
                () = self.shutdown.given(ShutdownKind::Stop) => Err(left()),
                result = registration.update(change) => result,
            },
            Entry::Left => Err(left()),
        }
    }
}

pub(super) fn left() -> Error {
    Error::new(ErrorKind::Closed, "the server has left the registry")
}
