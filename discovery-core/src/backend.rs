//! What only authors of backends need.
//!
//! A backend implements [`Registry`](crate::Registry) if it can be written to, and [`Source`]: one
//! attempt at following a service. [`Recovered`] turns a source into a
//! [`Resolver`](crate::Resolver) that retries, shares one upstream watch among all subscribers, and
//! keeps the laws of [`Update`](crate::Update).

pub use crate::{
    recover::{Recovered, Recovery},
    registration::RegistrationBackend,
    source::{BadEntry, DroppedLabels, Entry, Feed, Live, Source},
    status::StatusWriter,
};
