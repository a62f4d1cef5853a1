//! The etcd backend of `discovery`.
//!
//! [`EtcdBackend`] is a [`Registry`](discovery_core::Registry) and a [`Resolver`](discovery_core::Resolver) on an etcd cluster:
//!
//! - Each instance is one key under a lease, by default in the format of etcd's own Go client ([`EtcdNaming`]), so that Go
//!   programs find Rust servers and the other way round:
//!   `payments/10.0.7.4:50051` → `{"Op":0,"Addr":"10.0.7.4:50051","Metadata":null}`.
//! - A service is read by a linearizable list at one revision and a watch from there, which is told what the list has once more and
//!   drops it: some releases lose a removal where a watch begins right after a compacted revision.
//! - All that a handle watches, services and entries of its own, shares one stream; another one
//!   stands beside it for a while where a service has much to catch up with, where a token is too
//!   old for the next watch, or where the handle moves to another member. It takes the ids that the
//!   server gives, so that it works behind etcd's own grpc-proxy.
//! - While something is watched, one small read after the other asks on the connection of that
//!   stream whether the member lives: a sixth of the [ttl](EtcdConfig::ttl) after the last
//!   answer, and at least every 3.75 s. It may take a quarter of the ttl, as may each page of the
//!   list that follows where there is no answer. So watchers get a `Lost` within two
//!   thirds of the ttl, after 11.25 s at most.
//! - A stream may be stuck, or leave something out, all the same. So once in a tenth of the
//!   [audit](EtcdConfig::audit_interval), a minute by default, etcd is asked for the number of
//!   a service's keys and the newest of them, and once per ttl for each entry of the handle's own,
//!   in transactions of at most 128 reads.
//! - One member is asked at a time, every call under a timeout. Where it fails, another one is
//!   asked, at random. An answer is the cluster's only if its code and its whole text are known to
//!   be; any other refusal counts for the member that gave it. Overload and timeouts go to one
//!   other member at most, and take the whole backoff.
//! - While no member is well, one caller at a time finds out whether one is back, however many
//!   registrations wait for it. At most 128 reads and writes of entries are on their way at once.
//! - Once per [audit](EtcdConfig::audit_interval) a handle chooses its member anew, so that a
//!   rolling restart of etcd does not leave all handles on one member. Members that are replaced at
//!   new addresses are found [if asked for](EtcdConfig::discover_members).
//! - Registrations heal by themselves: after the loss of the lease, of the key, of the server, or of its data. The owner of an
//!   entry is told by its lease, so that nobody's healing or cleaning up touches another's entry.
//! - An entry whose write was not answered is watched also after its registration was taken back, until the handle's lease ends,
//!   since the write may still be done, and then is undone: of those a handle watches the latest 256.
//! - Time is counted by monotonic clocks, here and for leases in etcd, so that setting a wall clock moves nothing. A process that was
//!   suspended takes its lease as lost on waking, before it does anything else; where the whole host was, whose monotonic clock may
//!   have stood still, etcd's answer to the next renewal tells, or the watch of the entry. Tokens and certificates go by wall clocks.
//!
//! It speaks to etcd 3.4 and later. Building this crate needs `protoc`, for etcd-client.
//!
//! What may go wrong in the registry is limited there, not here: give resolvers read access to their prefix alone, and registrars
//! read and write access to their services. Whoever may write a service's prefix decides where its clients connect.
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
pub use layout::{EtcdNaming, Layout};
#[cfg(fuzzing)]
#[doc(hidden)]
pub use watch::fuzz_watch;
