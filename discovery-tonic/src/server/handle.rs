use std::sync::Weak;

use discovery_core::{Error, ErrorKind, Instance, Registration, ServiceName};
use tokio::sync::{Mutex, watch};

use super::orders::{Order, Orders};

/// A hand on a server that runs: cheap to clone, and of no effect on how long it does.
#[derive(Clone, Debug)]
pub struct ServerHandle {
    service: ServiceName,
    entry: Weak<Mutex<Entry>>,
    pub(super) orders: Orders,
    pub(super) stage: watch::Sender<Stage>,
}

/// How far a server is in its life.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Stage {
    /// It accepts connections, and is not in the registry yet.
    Starting,
    /// It is registered, or heals its registration.
    Serving,
    /// It left the registry and serves on while callers hear of that.
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
        Self { service, entry, orders: Orders::new(), stage: watch::Sender::new(Stage::Starting) }
    }

    /// Asks the server to stop in order, as the [module](super) says. Asked again, by whomever, it stays at that.
    pub fn stop(&self) {
        self.orders.give(Order::Stop);
    }

    /// Asks the server to stop at once: what is in flight is cut.
    ///
    /// Where it has not left the registry yet, that is asked for without waiting.
    pub fn stop_now(&self) {
        self.orders.give(Order::StopNow);
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

    /// Changes weight and metadata while the server runs, without a moment of absence.
    ///
    /// Before the server is registered it changes what is going to be registered.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for another id or address; [`Closed`](ErrorKind::Closed) once the server has left
    /// the registry; else those of [`Registration::update`].
    ///
    /// # Cancel safety
    ///
    /// That of [`Registration::update`].
    pub async fn update(&self, change: impl FnOnce(Instance) -> Instance + Send) -> Result<(), Error> {
        let error = |kind, message: &'static str| Error::new(kind, message).during("update").for_service(&self.service);
        let left = || error(ErrorKind::Closed, "the server has left the registry");
        let entry = self.entry.upgrade().ok_or_else(left)?;
        match &mut *entry.lock().await {
            Entry::Planned(instance) => {
                let after = change(instance.clone());
                if (after.id(), after.address()) != (instance.id(), instance.address()) {
                    return Err(error(
                        ErrorKind::InvalidInput,
                        "an update may change weight and metadata, nothing else",
                    ));
                }
                *instance = after;
                Ok(())
            }
            Entry::Registered(registration) => tokio::select! {
                result = registration.update(change) => result,
                // It must not keep the server from leaving.
                () = self.orders.given(Order::Stop) => Err(left()),
            },
            Entry::Left => Err(left()),
        }
    }
}
