//! Service discovery for Rust: register, resolve, and balance tonic clients over the live set.
//!
//! This crate re-exports the others and parses URLs ([`open`]). Each Cargo feature adds one part
//! and changes nothing else:
//!
//! | Feature | Adds | Needs |
//! |---|---|---|
//! | `memory` | `MemoryBackend`, and `memory:` in URLs | |
//! | `etcd` | `EtcdBackend`, and `etcd://` in URLs | `protoc` at build time |
//! | `etcd-tls` | `etcd`, with TLS | `protoc` and a C compiler at build time |
//! | `tonic` | `BalancedChannel` | |
//! | `server` | `RegisteredServer`, and `tonic` | |
//! | `tls` | `ChannelTls`, and `tonic` | a C compiler at build time |
//! | `metrics` | channel metrics, through the `metrics` facade | |
//! | `full` | all of them | `protoc` and a C compiler at build time |
//!
//! Authors of backends depend on the crate `discovery-core`, which has what they need.
//!
//! Examples name the crate that defines an item. With this crate, `discovery_core::X` is
//! `discovery::X`, `discovery_tonic::X` is `discovery::channel::X`, `discovery_tonic::server::X` is
//! `discovery::server::X`, `discovery_memory::X` is `discovery::memory::X`, and
//! `discovery_etcd::X` is `discovery::etcd::X`.
#![cfg_attr(all(feature = "memory", feature = "server"), doc = "")]
#![cfg_attr(all(feature = "memory", feature = "server"), doc = include_str!("front.md"))]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod open;

#[doc(inline)]
pub use discovery_core::{
    Address, Backend, Backoff, Change, Claim, Error, ErrorKind, FixedResolver, Host, Instance, InstanceId, Metadata,
    Registration, Registry, RegistryExt, Resolver, ResolverExt, ServiceName, SkippedEntries, Snapshot, Status,
    StatusReceiver, Update, UpdateStream, View, Weight,
};
pub use open::open;

#[cfg(feature = "etcd")]
pub use discovery_etcd as etcd;
#[cfg(feature = "etcd")]
#[doc(inline)]
pub use discovery_etcd::EtcdBackend;

#[cfg(feature = "memory")]
pub use discovery_memory as memory;
#[cfg(feature = "memory")]
#[doc(inline)]
pub use discovery_memory::MemoryBackend;

#[cfg(feature = "tonic")]
#[doc(inline)]
pub use discovery_tonic::BalancedChannel;
#[cfg(feature = "server")]
#[doc(inline)]
pub use discovery_tonic::server::{self, RegisteredServer};

/// The balanced channel for tonic clients: its settings, its policies, and its request and response
/// extensions.
#[cfg(feature = "tonic")]
pub mod channel {
    #[doc(inline)]
    #[cfg(feature = "tls")]
    pub use discovery_tonic::ChannelTls;
    #[doc(inline)]
    pub use discovery_tonic::{
        AttemptOutcome, AttemptReport, BalancedChannel, ChannelBuilder, ChannelStatus, EndpointSettings, EndpointState,
        EndpointStatus, Endpoints, ExpectSlow, HttpChannel, OutlierDetection, RegistryState, ResponseBody, Retry,
        RetryPolicy, ServedBy, TcpConnection, TcpConnector, Tried, WaitForReady, balance,
    };
}

/// Compiles the code blocks of the README.
#[cfg(all(doctest, feature = "memory", feature = "server"))]
#[doc = include_str!("../README.md")]
struct Readme;
