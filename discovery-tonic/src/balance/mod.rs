//! How an endpoint is picked: the published set, the policies, and the picker that both the channel and simulations use.
//!
//! A pick loads an immutable set and touches no lock, no clock and no central task.

mod alias;
mod draw;
mod load;
mod picker;
mod policy;
mod power_of_two;
mod round_robin;
mod wait_queue;

pub use draw::Draw;
pub use load::Load;
pub(crate) use load::UNLIMITED;
pub use picker::{Candidate, Picked, Picker, Pickers};
pub use policy::{Candidates, Policy};
pub use power_of_two::PowerOfTwo;
pub use round_robin::RoundRobin;
pub(crate) use wait_queue::WaitQueue;
