//! Tests that measure time or shares. `scripts/test` runs them after all others and fewer at a
//! time, because on a busy machine they would measure the others.

mod bystanders;
mod capacity;
mod connections;
mod corners;
mod dead_endpoints;
mod failing;
mod retries;
mod slow;

use tokio::sync::{Mutex, MutexGuard};

/// Waits until no other test that keeps a core busy runs in this process.
async fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}
