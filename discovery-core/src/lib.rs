//! The traits and types of `discovery`: which instances serve a service, as a stream of updates.
//!
//! - [`Registry`] registers an [`Instance`] and returns a [`Registration`], which lasts as long as
//!   its handle; [`RegistryExt`] adds a registration that does not wait for the registry.
//! - [`Resolver`] lists the instances of a service, or watches them as a stream of [`Update`]s;
//!   [`ResolverExt`] adds a [`View`] of the current set.
//! - [`Backend`] is both. Backends live in their own crates; [`FixedResolver`] needs none.
//!
//! Authors of backends implement [`Registry`] and [`Source`](backend::Source), one attempt at
//! following a service. [`Recovered`](backend::Recovered) turns a source into a resolver that
//! recovers, shares its watches and keeps the laws. The feature `conformance` adds a test of each
//! law.
//!
//! This crate knows no registry and no transport.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod address;
pub mod backend;
mod backoff;
mod error;
mod fixed;
mod fold;
mod instance;
mod keep;
mod name;
mod outage;
mod queue;
mod recover;
mod registration;
mod registry;
mod reject;
mod resolver;
mod share;
mod skipped;
pub mod snapshot;
mod source;
mod status;
mod update;
mod view;

#[cfg(feature = "conformance")]
pub mod conformance;

pub use address::{Address, Host};
pub use backoff::{Backoff, Delays};
pub use error::{Error, ErrorKind};
pub use fixed::FixedResolver;
pub use instance::{Instance, Metadata, Weight};
pub use keep::RegistryExt;
pub use name::{InstanceId, ServiceName};
pub use registration::Registration;
pub use registry::{Backend, Claim, Registry};
pub use resolver::{Resolver, ResolverExt};
pub use skipped::SkippedEntries;
pub use snapshot::Snapshot;
pub use status::{Status, StatusReceiver};
pub use update::{Change, Update, UpdateStream};
pub use view::View;
