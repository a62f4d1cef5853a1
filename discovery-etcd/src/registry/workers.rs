use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, mpsc};

use super::{entry::Command, in_flight::InFlight, unconfirmed::UnconfirmedWrites};

/// The workers of a handle, by key.
#[derive(Debug, Default)]
pub(super) struct Workers {
    state: Mutex<State>,
    pub(super) in_flight: InFlight,
    /// Woken when the last one goes.
    empty: Notify,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) closed: bool,
    pub(super) by_key: HashMap<String, mpsc::UnboundedSender<Command>>,
    doubts: UnconfirmedWrites,
}

impl Workers {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a worker go, unless it was told something in the meantime.
    pub(super) fn retire(&self, key: &str, commands: &mut mpsc::UnboundedReceiver<Command>) -> bool {
        let mut workers = self.lock();
        // Only what changes the owner counts, and that is sent under this lock or after a claim.
        if !commands.is_empty() {
            return false;
        }
        commands.close();
        workers.by_key.remove(key);
        workers.doubts.leave(key);
        if workers.by_key.is_empty() {
            self.empty.notify_waiters();
        }
        true
    }

    /// Takes whether an entry is there for its doubt alone; the oldest of too many has to go.
    pub(super) fn doubt(&self, key: &str, is_in_doubt: bool) {
        let mut workers = self.lock();
        if !is_in_doubt {
            return workers.doubts.leave(key);
        }
        if let Some(commands) = workers.doubts.enter(key).and_then(|oldest| workers.by_key.get(&oldest)) {
            // One that went with its runtime has gone.
            let _ = commands.send(Command::Forget);
        }
    }

    pub(super) async fn emptied(&self) {
        loop {
            let notified = self.empty.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            {
                let mut workers = self.lock();
                // Those that went with their runtime will not come to retire.
                workers.by_key.retain(|_, commands| !commands.is_closed());
                if workers.by_key.is_empty() {
                    return;
                }
            }
            notified.await;
        }
    }
}
