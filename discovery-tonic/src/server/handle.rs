//! The handle to a running server, and the stages of its life.

use std::sync::Weak;

use discovery_core::{Error, Instance, ServiceName, Status, StatusReceiver, backend::StatusWriter};
use tokio::sync::{Mutex, watch};

use super::{
    entries::{Entries, left, not_registered},
    shutdown::{Shutdown, ShutdownKind},
};

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
    entries: Weak<Mutex<Entries>>,
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
    /// It accepts connections, and is not in the registry yet, or not under all of its services.
    Starting,
    /// It has registered, or found that the backend does not support that
    /// ([`register_if_supported`](super::ServerBuilder::register_if_supported)). If a registration
    /// is lost, it is being restored.
    Serving,
    /// It leaves the registry, and keeps serving while clients notice.
    Draining,
    /// It takes no new calls, and finishes those in flight.
    Finishing,
    /// It has stopped.
    Stopped,
}

impl ServerHandle {
    /// `service` is named by errors that concern all services.
    pub(super) fn new(service: ServiceName, entries: Weak<Mutex<Entries>>) -> Self {
        let status = StatusWriter::new(Status::lost(not_registered()));
        let stage = watch::Sender::new(Stage::Starting);
        Self { service, entries, shutdown: Shutdown::new(), stage, status }
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
    /// [`Registration`](discovery_core::Registration); finally
    /// [`Deregistered`](Status::Deregistered) or [`Superseded`](Status::Superseded).
    ///
    /// A server that is registered under [several services](super::ServerBuilder::also) has the
    /// status of the worst of these registrations:
    ///
    /// 1. `Superseded` once one is, finally: the server will not be registered under all again.
    /// 2. `Deregistered` once the server has left, or once the backend was closed.
    /// 3. `Lost` while one is, since the first of them was. The error is that of a lost one, and if
    ///    possible one that is not retryable.
    /// 4. `Registered` while all are, since the last of them was.
    ///
    /// While the server has left the registry because it is
    /// [not serving](super::ServerBuilder::when_not_serving), the status is `Lost`.
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

    /// Changes weight and metadata while the server runs, without removing the entry; under several
    /// services all entries, at the same time.
    ///
    /// Before the server is registered, and while it has left because it is
    /// [not serving](super::ServerBuilder::when_not_serving), this changes what will be registered.
    /// While a registration is lost, it fails with a retryable error, but the change is written as
    /// soon as the registration is restored. `change` gets the instance as it is wanted, so its
    /// weight is not the 0 of a server that is not serving. The update waits for another one, and
    /// for changes of the entries that follow the health.
    ///
    /// # Errors
    ///
    /// - [`InvalidInput`](discovery_core::ErrorKind::InvalidInput) for another id or address.
    /// - [`Closed`](discovery_core::ErrorKind::Closed) once the server leaves the registry.
    /// - [`Unsupported`](discovery_core::ErrorKind::Unsupported) if it serves without being
    ///   registered.
    /// - Otherwise the same errors as
    ///   [`Registration::update`](discovery_core::Registration::update).
    ///
    /// Under several services it is the error of the first that has one, in the order of the
    /// builder, and the entries of the others may have been changed. Repeat the update to make all
    /// entries the same again: after an error that is not retryable, it starts from the former
    /// values. Only a service under which the server is superseded is left out.
    ///
    /// # Cancel safety
    ///
    /// Dropped before completion, the change continues in the background, and a later update starts
    /// from it.
    pub async fn update(&self, change: impl FnOnce(Instance) -> Instance + Send) -> Result<(), Error> {
        self.change(change).await.map_err(|error| error.with_operation("update").with_service(&self.service))
    }

    async fn change(&self, change: impl FnOnce(Instance) -> Instance + Send) -> Result<(), Error> {
        let entries = self.entries.upgrade().ok_or_else(left)?;
        let mut entries = entries.lock().await;
        tokio::select! {
            biased;
            // The update must not keep the server from leaving, nor write once it leaves.
            () = self.shutdown.given(ShutdownKind::Stop) => Err(left()),
            result = entries.update(change) => result,
        }
    }
}
