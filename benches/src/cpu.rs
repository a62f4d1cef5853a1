//! Processor time, which does not depend on what else the machine does.

use std::{fs, time::Duration};

use rustix::{
    param::clock_ticks_per_second,
    time::{ClockId, clock_gettime},
};

use crate::Failure;

/// Returns the processor time that this process has used, over all its threads, including the
/// kernel's share.
#[must_use]
pub fn process() -> Duration {
    read(ClockId::ProcessCPUTime)
}

/// Returns the processor time that this thread has used.
#[must_use]
pub fn thread() -> Duration {
    read(ClockId::ThreadCPUTime)
}

/// Returns the processor time that another process has used, over all its threads, including the
/// kernel's share, to a hundredth of a second.
///
/// # Errors
///
/// If there is no such process.
pub fn of(pid: u32) -> Result<Duration, Failure> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    Ok(Duration::from_secs_f64(
        ticks(&stat).ok_or("no processor time in /proc")? as f64 / clock_ticks_per_second() as f64,
    ))
}

/// Returns the ticks in user mode and in the kernel. The second field of the line, the program's
/// name in brackets, may contain anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_ascii_whitespace().skip(11);
    let user: u64 = times.next()?.parse().ok()?;
    let kernel: u64 = times.next()?.parse().ok()?;
    Some(user + kernel)
}

fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).try_into().expect("processor time is not negative")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_a_process_are_found_behind_its_name() {
        let line = "17 (a (b) 1) S 1 2 3 4 5 6 7 8 9 10 140 60 1 1 20 0 9 0 1";
        assert_eq!(ticks(line), Some(200));
        assert_eq!(ticks("17 (a) S 1"), None);
        assert!(of(std::process::id()).is_ok());
        assert!(of(0).is_err());
    }
}
