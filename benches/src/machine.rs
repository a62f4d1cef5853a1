//! The machine of a measurement, and what the drivers need from it.

use std::{fs, process::Command, thread::available_parallelism};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Failure;

/// Returns the processor, kernel and tools in one line.
#[must_use]
pub fn describe() -> String {
    let processor = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(": ")?.1.to_owned())
    });
    let processor = processor.unwrap_or_else(|| "unknown processor".to_owned());
    let cores = available_parallelism().map_or(1, usize::from);
    let tools = [("uname", "-sr"), ("rustc", "-V"), ("valgrind", "--version")].map(|(tool, flag)| output(tool, flag));
    format!("{processor}, {cores} cores; {}", tools.join("; "))
}

/// Raises this process's limit of open files to the maximum, for thousands of connections.
///
/// # Errors
///
/// If the system refuses.
pub fn allow_files() -> Result<(), Failure> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

fn output(tool: &str, flag: &str) -> String {
    let output = Command::new(tool).arg(flag).output();
    output.map_or_else(|_| format!("no {tool}"), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
