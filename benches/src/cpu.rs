//! What was computed, whatever else the machine did meanwhile.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The processor time that this process has had, over all its threads, in the kernel too.
#[must_use]
pub fn process() -> Duration {
    read(ClockId::ProcessCPUTime)
}

/// The processor time that this thread has had.
#[must_use]
pub fn thread() -> Duration {
    read(ClockId::ThreadCPUTime)
}

fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).try_into().expect("processor time is not negative")
}
