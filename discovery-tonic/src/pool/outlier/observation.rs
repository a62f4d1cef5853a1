use tokio::time::Instant;

use crate::endpoint::{check::Checked, tally::Totals};

/// What is known of an endpoint when it is observed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observation {
    pub(crate) now: Instant,
    /// It is made by a sweep. Waiting is counted in sweeps.
    pub(crate) is_sweep: bool,
    pub(crate) is_connected: bool,
    /// Requests that have not been answered yet.
    pub(crate) waiting: u32,
    /// Consecutive calls that were lost, or answered with `UNAVAILABLE`.
    pub(crate) failures: u32,
    pub(crate) totals: Totals,
    /// How many requests it gets before its first answer; `None` if there is no limit, or once it
    /// has answered.
    pub(crate) cold: Option<u32>,
    pub(crate) tickets: Tickets,
    pub(crate) check: Checked,
}

/// The state of the requests that an endpoint may get before it answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Tickets {
    Unlimited,
    /// Some are left.
    Left,
    /// None is left, and requests wait for answers.
    Taken,
    /// None is left, and no request waits.
    Gone,
}
