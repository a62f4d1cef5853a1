//! The etcd backend of `discovery`.
//!
//! [`EtcdBackend`] is a [`Registry`](discovery_core::Registry) and a
//! [`Resolver`](discovery_core::Resolver) on an etcd cluster. It works with etcd 3.4 and later.
//! Building this crate needs `protoc`, for etcd-client.
//!
//! ## Entries
//!
//! Each instance is one key under a lease. The default layout, [`EtcdNaming`], is the format of
//! etcd's own Go client, so Go programs find Rust servers and vice versa:
//!
//! ```text
//! payments/10.0.7.4:50051 → {"Op":0,"Addr":"10.0.7.4:50051","Metadata":null}
//! ```
//!
//! [`Plain`] and [`ToadOcr`] are other layouts, and [`Layout`] is the trait for your own.
//!
//! ## Watching
//!
//! - A service is read by a linearizable list at one revision, and watched from that same revision
//!   on. What the watch repeats of the list is dropped. Starting one revision later could lose a
//!   removal: some etcd releases skip one if a watch begins right after a compacted revision.
//! - All watches of a handle, those of services and those of its own entries, share one stream. A
//!   second stream exists only for a while: when a service has much to catch up with, when the
//!   token of the first is too old for the next watch, when the handle moves to another member, or
//!   when an answer is too large to decode and its watch must be found.
//! - Watch ids may be chosen by the server, so watching works behind etcd's own grpc-proxy.
//!
//! ## Noticing an outage
//!
//! - While something is watched, the handle checks that the member is alive, with one small read
//!   after another on the connection of the stream. The next read follows a sixth of the
//!   [ttl](EtcdConfig::ttl) after the last answer, and after 3.75 s at most.
//! - Such a read may take a quarter of the ttl, and so may each page of the list that follows an
//!   unanswered one; both at most 3.75 s. Watchers therefore get a `Lost` within two thirds of the
//!   ttl, and after 11.25 s at most.
//! - A stream can get stuck or leave out a change without breaking, so watches are audited. Every
//!   tenth of the [audit interval](EtcdConfig::audit_interval), which is 1 min by default, the
//!   handle asks etcd for the number of a service's keys and the newest of them. Once per ttl, it
//!   reads each of its own entries. One transaction holds at most 128 of these reads.
//!
//! ## Members
//!
//! - One member is asked at a time, and every call has a timeout. If the member fails, another one
//!   is asked, chosen at random.
//! - An answer counts as the cluster's only if its code and its whole text are known to be etcd's.
//!   Any other refusal counts against the member that gave it.
//! - After an overload or a timeout, one other member is asked at most, and the next attempt waits
//!   for the full backoff.
//! - While no member is healthy, one caller at a time checks whether one is back, however many
//!   registrations wait for it.
//! - At most 128 reads and writes of entries are in flight at once.
//! - Once per [audit interval](EtcdConfig::audit_interval), a handle chooses its member again, so
//!   that a rolling restart of etcd does not leave all handles on one member.
//! - Members that are replaced at new addresses are found
//!   [if enabled](EtcdConfig::discover_members).
//!
//! ## Registrations
//!
//! - All registrations of a handle share one lease, unless the layout makes it
//!   [part of the entry](Capabilities::with_leases_in_entries). Each then has its own.
//! - A registration is restored automatically after the loss of its lease, its key, the server or
//!   the server's data. The lease identifies the owner of an entry, so restoring or removing an
//!   entry never touches that of another owner.
//! - A write that was never answered may still be applied after its registration has ended. Such
//!   keys (the latest 256 per handle) are watched until the handle's lease ends, and removed if
//!   they appear.
//!
//! ## Clocks
//!
//! - Time is measured by monotonic clocks, here and for leases in etcd, so setting a wall clock has
//!   no effect. Tokens and certificates depend on wall clocks.
//! - A process that was suspended treats its lease as lost when it wakes, before it does anything
//!   else. If the whole host was suspended, its monotonic clock may have stood still. The loss then
//!   shows in etcd's answer to the next renewal, or in the watch of the entry.
//!
//! ## Trust
//!
//! Limit in etcd itself what can go wrong in the registry; this crate cannot. Give resolvers read
//! access to their prefix only, and registrars read and write access to their services. Whoever may
//! write a service's prefix decides where its clients connect.
//!
#![doc = include_str!("access.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod audit_interval;
mod backend;
mod client;
mod cluster;
mod config;
mod layout;
mod lease;
mod pace;
mod registry;
mod retry_delays;
mod watch;
mod watcher;

pub use backend::EtcdBackend;
pub use config::{EtcdConfig, EtcdTls};
#[cfg(feature = "conformance")]
pub use layout::check_layout;
pub use layout::{Capabilities, Decoded, EtcdNaming, Layout, Plain, Tail, ToadOcr, Written};
#[cfg(fuzzing)]
#[doc(hidden)]
pub use watch::fuzz_watch;
