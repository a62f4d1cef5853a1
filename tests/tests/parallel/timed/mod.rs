//! Tests that measure time or shares. `scripts/test` runs them after all others and fewer at a
//! time, because on a busy machine they would measure the others.

mod etcd_hostile;
mod etcd_hostile_registrar;
mod etcd_watcher;
