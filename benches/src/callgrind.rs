//! Counts instructions and allocations of a driver per operation, both from one run of callgrind.

use std::{
    collections::HashSet,
    env, fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::Failure;

/// The cost of one operation.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "two numbers")]
pub struct Cost {
    /// Instructions of the driver's process, without the kernel.
    pub instructions: f64,
    /// Calls to the system's allocator, reallocations included.
    pub allocations: f64,
}

/// Runs `<driver> <arguments> <operations>` twice and divides the difference, so that start,
/// connecting and warm-up cancel out.
///
/// # Errors
///
/// If valgrind is missing or the driver fails.
pub fn cost_per_operation(name: &str, arguments: &[String]) -> Result<Cost, Failure> {
    let few = run(name, arguments, FEW)?;
    let many = run(name, arguments, MANY)?;
    let per_operation = |few: u64, many: u64| (many as f64 - few as f64) / (MANY - FEW) as f64;
    let cost = Cost { instructions: per_operation(few.0, many.0), allocations: per_operation(few.1, many.1) };
    eprintln!(
        "{name} {}: {:.0} instructions, {:.1} allocations",
        label(arguments),
        cost.instructions,
        cost.allocations
    );
    Ok(cost)
}

/// Returns the path of a binary of this package, next to the running one.
///
/// # Errors
///
/// If it was not built.
pub fn driver(name: &str) -> Result<PathBuf, Failure> {
    let path = env::current_exe()?.with_file_name(name);
    if path.exists() { Ok(path) } else { Err(format!("{} is missing: build the whole package", path.display()).into()) }
}

/// Returns the folder for tables and profiles: `bench` in the target directory.
///
/// # Errors
///
/// If it cannot be created.
pub fn folder() -> Result<PathBuf, Failure> {
    let profile = env::current_exe()?;
    let target = profile.ancestors().nth(2).ok_or("the running binary is in no target directory")?;
    let folder = target.join("bench");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Returns the instructions and allocations of a whole run.
fn run(name: &str, arguments: &[String], operations: u64) -> Result<(u64, u64), Failure> {
    let output = folder()?.join(format!("{name}-{}-{operations}.callgrind", label(arguments)));
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--quiet"]).arg(format!("--callgrind-out-file={}", output.display()));
    command.arg(driver(name)?).args(arguments).arg(operations.to_string());
    let status = command.stdin(Stdio::null()).status().map_err(|error| format!("valgrind did not start: {error}"))?;
    if !status.success() {
        return Err(format!("{command:?} failed: {status}").into());
    }
    parse(&fs::read_to_string(output)?)
}

/// Parses callgrind's format: `calls=` follows the `cfn=` that it counts, and a name is spelled out
/// only at its first use.
fn parse(profile: &str) -> Result<(u64, u64), Failure> {
    let mut instructions = 0;
    let mut allocations = 0;
    let mut allocators = HashSet::new();
    let mut allocates = false;
    for line in profile.lines() {
        let (key, value) = line.split_once(['=', ':']).unwrap_or((line, ""));
        if key == "fn" || key == "cfn" {
            let (id, function) = value.split_once(' ').unwrap_or((value, ""));
            if ALLOCATORS.contains(&function) {
                allocators.insert(id.to_owned());
            }
            allocates = key == "cfn" && allocators.contains(id);
        } else if key == "calls" && allocates {
            allocations += value.split(' ').next().unwrap_or_default().parse::<u64>()?;
        } else if key == "totals" {
            instructions = value.trim().parse()?;
        }
    }
    Ok((instructions, allocations))
}

/// Distinguishes runs by everything but the addresses.
fn label(arguments: &[String]) -> String {
    arguments.iter().filter(|one| !one.contains(':')).map(String::as_str).collect::<Vec<_>>().join("-")
}

const FEW: u64 = 2_000;
const MANY: u64 = 22_000;
const ALLOCATORS: [&str; 5] = ["aligned_alloc", "calloc", "malloc", "posix_memalign", "realloc"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_allocators_are_counted_by_name_and_by_number() {
        let profile = "fn=(1) main\ncfn=(2) malloc\ncalls=3 0\n1 30\ncfn=(3) free\ncalls=3 0\n1 9\nfn=(2)\n1 30\n\
            fn=(4) other\ncfn=(2)\ncalls=2 0\n1 20\ntotals: 1234\n";
        assert_eq!(parse(profile).unwrap(), (1234, 5));
    }
}
