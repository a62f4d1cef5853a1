//! Support for the tests that cross crates: real etcd processes, an etcd that misbehaves on demand,
//! a network that fails on demand, and the [`scene`].
//!
//! Only the scene is specific to `discovery`. Anyone who tests against etcd may copy the files of
//! [`Etcd`], [`Fake`] and [`Proxy`].

mod certificates;
pub mod entry;
mod etcd;
mod fake;
mod follower;
pub mod greeters;
pub mod load;
mod log;
mod port;
mod programs;
mod proxy;
mod raw;
pub mod scene;

pub use certificates::{Authority, Certificate, Flaw};
pub use etcd::{Etcd, GrpcProxy, Saved, Setup};
pub use fake::{Before, Fake, Method};
pub use follower::{Follower, Told};
pub use log::Log;
pub use programs::programs;
pub use proxy::{Fault, Proxy, SynHole};
pub use raw::Raw;

use std::time::{Duration, Instant};

/// Waits until a condition holds and returns how long that took. Fails the test after `bound`.
pub async fn eventually(what: &str, bound: Duration, mut holds: impl AsyncFnMut() -> bool) -> Duration {
    let start = Instant::now();
    loop {
        if holds().await {
            return start.elapsed();
        }
        assert!(start.elapsed() < bound, "not within {bound:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
