//! Tests that measure time. `scripts/test` runs them after all others: on a machine that is too
//! busy, healthy servers look hung.

mod deployment;
mod diagnosis;
