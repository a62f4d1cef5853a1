//! One bad answer, one bad member, an overload or a rotation takes no handle down.

mod authentication;
mod outage;
mod overload;
mod refusals;
mod repairs;
mod rotation;
mod spread;
mod versions;

use std::time::Duration;

use support::{Fault, Proxy};
use tokio::time::sleep;

/// Ends the connections that there are.
async fn cut(proxy: &Proxy) {
    proxy.set(Fault::Reset);
    sleep(Duration::from_millis(50)).await;
    proxy.set(Fault::None);
}
