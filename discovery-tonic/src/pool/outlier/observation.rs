use tokio::time::Instant;

use crate::endpoint::{check::Checked, tally::Totals};

/// What a look finds at an endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observation {
    pub(crate) now: Instant,
    /// It belongs to a sweep, of which each counts as much waiting.
    pub(crate) is_sweep: bool,
    pub(crate) is_connected: bool,
    /// Requests that wait for an answer.
    pub(crate) waiting: u32,
    /// Calls in a row that were lost, or answered with `UNAVAILABLE`.
    pub(crate) failures: u32,
    pub(crate) totals: Totals,
    /// How many requests it gets before its first answer; `None` where there is no limit, or once
    /// it has answered.
    pub(crate) cold: Option<u32>,
    pub(crate) tickets: Tickets,
    pub(crate) check: Checked,
}

/// What has become of the requests that an endpoint is allowed before it answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Tickets {
    Unlimited,
    /// There are some left.
    Left,
    /// There are none left, and requests wait for their answers.
    Taken,
    /// There are none left, and nothing waits.
    Gone,
}
