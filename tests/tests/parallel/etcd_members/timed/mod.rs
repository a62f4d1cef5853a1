//! Tests that measure time or shares. `scripts/test` runs them after all others and fewer at a
//! time, because on a busy machine they would measure the others.

mod outage;
mod overload;
mod spread;
