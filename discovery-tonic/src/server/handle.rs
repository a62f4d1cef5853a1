use std::sync::Weak;

use discovery_core::{
    Error, ErrorKind, Instance, Registration, ServiceName, Status, StatusReceiver, backend::StatusWriter,
};
use tokio::sync::{Mutex, watch};

use super::shutdown::{Shutdown, ShutdownKind};

/// A hand on a server that runs: cheap to clone, and of no effect on how long it does.
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
/// let running = tokio::spawn(server.serve(|incoming, goaway| greeter.serve_with_incoming_shutdown(incoming, goaway)));
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

/// How far a server is in its life; a later stage is greater, and none comes twice.
///
/// ```
/// # async fn example(handle: discovery_tonic::server::ServerHandle) {
/// use discovery_tonic::server::Stage;
///
/// // Said to a load balancer of another kind.
/// let takes_new_calls = handle.stage() <= Stage::Draining;
/// // Work in the background had better end before the process does.
/// handle.reached(Stage::Draining).await;
/// # }
/// ```
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Stage {
    /// It accepts connections, and is not in the registry yet.
    Starting,
    /// It is registered, or heals its registration.
    Serving,
    /// It leaves the registry, and serves on while callers hear of that.
    Draining,
    /// It takes no new calls and finishes those in flight.
    Finishing,
    /// It is done.
    Stopped,
}

/// What a server has in the registry.
#[derive(Debug)]
pub(super) enum Entry {
    /// It shall be registered like this.
    Planned(Instance),
    Registered(Registration),
    /// It has left.
    Left,
}

impl ServerHandle {
    pub(super) fn new(service: ServiceName, entry: Weak<Mutex<Entry>>) -> Self {
        let status = Status::lost(Error::new(ErrorKind::Unavailable, "the server has not registered yet"));
        let stage = watch::Sender::new(Stage::Starting);
        let status = StatusWriter::new(status);
        Self { service, entry, shutdown: Shutdown::new(), stage, status }
    }

    /// Asks the server to stop in order, as the [module](super) says. Asked again, by whomever, it stays at that.
    pub fn stop(&self) {
        self.shutdown.give(ShutdownKind::Stop);
    }

    /// Asks the server to stop at once: what is in flight is cut.
    ///
    /// Where it has not left the registry yet, that is asked for without waiting.
    pub fn stop_now(&self) {
        self.shutdown.give(ShutdownKind::StopNow);
    }

    /// How far the server is.
    pub fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Waits until the server is so far, or further.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn reached(&self, stage: Stage) {
        let reached = self.stage.subscribe().wait_for(|now| *now >= stage).await.map(drop);
        reached.expect("the sender lives in `self`");
    }

    /// How the registration stands, and from now on: before it is written [`Lost`](Status::Lost), since the server was built and with
    /// what the registry answered last, if it was asked; then as the [`Registration`] has it; once it has ended
    /// [`Deregistered`](Status::Deregistered), and a registration that was [`Superseded`](Status::Superseded) so for ever.
    ///
    /// A server whose registration is lost or superseded serves on. One that had better not can be told to stop:
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

    /// Changes weight and metadata while the server runs, without a moment of absence.
    ///
    /// Before the server is registered it changes what is going to be registered. While the registration is lost it fails with a
    /// retryable error, but is written as soon as the registration heals.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for another id or address; [`Closed`](ErrorKind::Closed) once the server leaves
    /// the registry; else those of [`Registration::update`].
    ///
    /// # Cancel safety
    ///
    /// That of [`Registration::update`].
    pub async fn update(&self, change: impl FnOnce(Instance) -> Instance + Send) -> Result<(), Error> {
        self.change(change).await.map_err(|error| error.with_operation("update").with_service(&self.service))
    }

    async fn change(&self, change: impl FnOnce(Instance) -> Instance + Send) -> Result<(), Error> {
        let entry = self.entry.upgrade().ok_or_else(left)?;
        match &mut *entry.lock().await {
            Entry::Planned(instance) => {
                let after = change(instance.clone());
                if (after.id(), after.address()) != (instance.id(), instance.address()) {
                    let message = "an update may change weight and metadata, nothing else";
                    return Err(Error::new(ErrorKind::InvalidInput, message));
                }
                *instance = after;
                Ok(())
            }
            Entry::Registered(registration) => tokio::select! {
                biased;
                // It must not keep the server from leaving, nor write once that has begun.
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
