//! Tests that measure time. `scripts/test` runs them after all others and fewer at a time, because
//! on a busy machine they would measure the others.

mod own_entries;
