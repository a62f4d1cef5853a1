//! What was computed, whatever else the machine did meanwhile.

use std::{fs, time::Duration};

use rustix::{
    param::clock_ticks_per_second,
    time::{ClockId, clock_gettime},
};

use crate::Failure;

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

/// The processor time that another process has had, over all its threads, in the kernel too; to a
/// hundredth of a second.
///
/// # Errors
///
/// Where there is no such process.
pub fn of(pid: u32) -> Result<Duration, Failure> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    Ok(Duration::from_secs_f64(
        ticks(&stat).ok_or("no processor time in /proc")? as f64 / clock_ticks_per_second() as f64,
    ))
}

/// The ticks in user mode and in the kernel, of a line whose second field, the program's name in
/// brackets, may hold anything.
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
