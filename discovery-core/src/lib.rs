//! The traits and types of `discovery`: who serves a service, told as a stream of updates.
//!
//! - [`Registry`] registers an [`Instance`] and hands out a [`Registration`], which lives as long
//!   as its handle; [`RegistryExt`] adds one that does not wait for the registry.
//! - [`Resolver`] lists the instances of a service, or watches them as a stream of [`Update`]s; [`ResolverExt`] adds a
//!   [`View`] that always has the last set at hand.
//! - [`Backend`] is both. Backends are crates of their own; [`FixedResolver`] is the one that needs none.
//!
//! Who writes a backend implements [`Registry`] and [`Source`], one attempt at following a service;
//! [`Recovered`] turns it into a resolver that recovers, shares and keeps the laws. The feature `conformance` holds a test for
//! each law.
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
mod recover;
mod registration;
mod registry;
mod reject;
mod resolver;
mod share;
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
pub use snapshot::Snapshot;
pub use status::{Status, StatusReceiver};
pub use update::{Change, Update, UpdateStream};
pub use view::View;
