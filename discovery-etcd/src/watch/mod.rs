//! Follows services in etcd, with lists and with the handle's [`watcher`](crate::watcher).
//!
//! [`source`] runs one attempt: it reads a service with a [`list`] in pages at one revision, and
//! watches it from there. [`range`] maps its keys to instances. [`cursor`] turns the messages of a
//! watch into atomic steps, [`tally`] compares them with audits, and [`rounds`] limits how fast
//! lists and watches follow each other.

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
