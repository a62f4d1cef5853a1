//! The workers of a handle.

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
    /// Notified when the last worker ends.
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

    /// Removes a worker that wants to end; `false` if a command has arrived meanwhile.
    pub(super) fn retire(&self, key: &str, commands: &mut mpsc::UnboundedReceiver<Command>) -> bool {
        let mut workers = self.lock();
        // A claim is sent under this lock, so it is either seen here or starts another worker.
        // Other commands may be lost: a worker ends only without an owner, so they belong to
        // registrations that have already ended.
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

    /// Records whether an entry is watched only for an unanswered write. If there are too many of
    /// these, the oldest is given up.
    pub(super) fn doubt(&self, key: &str, is_in_doubt: bool) {
        let mut workers = self.lock();
        if !is_in_doubt {
            return workers.doubts.leave(key);
        }
        if let Some(commands) = workers.doubts.enter(key).and_then(|oldest| workers.by_key.get(&oldest)) {
            // A worker that ended with its runtime watches nothing.
            let _ = commands.send(Command::Forget);
        }
    }

    /// Waits until there are no workers.
    pub(super) async fn emptied(&self) {
        loop {
            // Enabled before the check, so that a worker that ends in between is not missed.
            let notified = self.empty.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            {
                let mut workers = self.lock();
                // Workers that ended with their runtime never call `retire`.
                workers.by_key.retain(|_, commands| !commands.is_closed());
                if workers.by_key.is_empty() {
                    return;
                }
            }
            notified.await;
        }
    }
}
