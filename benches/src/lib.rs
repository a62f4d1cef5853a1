//! The benchmarks of discovery, with their peers in the same run.
//!
//! `make bench` runs the `benches` binary, which starts [servers](servers::Servers) in a separate
//! process, counts the instructions of small drivers (`src/bin`) with [callgrind], and prints one
//! [table]. Only what holds on any machine is judged: ratios of counts, of processor times and of
//! alternating times, and lost or slow calls.

pub mod arrivals;
pub mod bare;
pub mod caller;
pub mod callgrind;
pub mod clients;
pub mod copies;
pub mod cpu;
pub mod entries;
pub mod figures;
pub mod load;
pub mod machine;
pub mod messages;
pub mod metrics;
pub mod report;
pub mod rounds;
pub mod servers;
pub mod table;
pub mod traffic;

/// The error that ends a benchmark early.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
