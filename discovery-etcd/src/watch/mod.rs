//! Services, as the handle's [`watcher`](crate::watcher) and lists of them show them.
//!
//! A service is listed in pages at one revision, and watched from there. [`cursor`] makes atomic
//! steps of what the watch tells, [`tally`] compares them with audits.

mod cursor;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod list;
mod range;
mod rounds;
mod source;
mod tally;

#[cfg(fuzzing)]
pub use fuzz::fuzz_watch;
pub(crate) use list::DeeperLog;
pub(crate) use source::{EtcdSource, closed_error};
