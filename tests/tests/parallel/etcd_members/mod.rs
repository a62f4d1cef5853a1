//! No single bad answer, bad member, overload or rotation takes a handle down.

mod authentication;
mod refusals;
mod repairs;
mod rotation;
mod timed;
mod versions;

use std::time::Duration;

use support::{Fault, Proxy};
use tokio::time::sleep;

/// Cuts the open connections.
async fn cut(proxy: &Proxy) {
    proxy.set(Fault::Reset);
    sleep(Duration::from_millis(50)).await;
    proxy.set(Fault::None);
}
