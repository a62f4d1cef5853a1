//! The bodies of the fuzz targets: what must hold for any input.
//!
//! Each panics if it does not hold. The fuzzers in `fuzz_targets/` run them on inputs from
//! libFuzzer; the tests of the project run them on the committed corpus and mutations of it. The
//! body of the target `watch` is in the etcd crate, because what it tests is not public.

mod state;
mod text;

pub use state::state;
pub use text::{address, key, name, url, value};
