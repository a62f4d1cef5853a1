//! The bodies of the fuzz targets: what must hold of any input.
//!
//! Each panics where it does not. The fuzzers in `fuzz_targets/` run them with what libFuzzer comes up with, the tests of the
//! project with the committed corpus and mutations of it. The body of the target `watch` stands in the etcd crate, since what
//! it is about is not public.

mod state;
mod text;

pub use state::state;
pub use text::{address, key, name, url, value};
