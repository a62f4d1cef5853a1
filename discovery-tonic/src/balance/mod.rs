//! How an endpoint is picked: the published set, the policies, and the picker that both the channel
//! and simulations use.
//!
//! A pick loads an immutable set. It takes no lock, reads no clock and involves no central task.

// `policy` is the interface, which `power_of_two` and `round_robin` implement with the random
// numbers of `rng` and the weighted sampling of `alias`. `balancer` publishes the set and picks
// from it, `load` counts the requests of each candidate, and `wait_queue` has the calls that found
// no capacity.
mod alias;
mod balancer;
mod load;
mod policy;
mod power_of_two;
mod rng;
mod round_robin;
mod wait_queue;

pub(crate) use balancer::{Balancer, BalancerHandle, Candidate, Picked};
pub(crate) use load::{Load, UNLIMITED};
pub use policy::{Candidates, Policy};
pub use power_of_two::PowerOfTwo;
pub use rng::Rng;
pub use round_robin::RoundRobin;
pub(crate) use wait_queue::WaitQueue;

/// What the benchmarks measure. This is not part of the API and may change in any release.
#[doc(hidden)]
pub mod internal {
    pub use super::{
        balancer::{Balancer, BalancerHandle, Candidate, Picked},
        load::Load,
    };
}
