//! The scenes of the matrix. Each has a service of its own, so that many run at the same time.

mod addresses;
mod calls;
mod deployment;
mod entries;
mod fleet;
mod kill;
mod layouts;
mod metadata;
mod neighbours;
mod outage;
mod prefix;

use std::{fmt, future::Future};

use futures::{FutureExt, future::BoxFuture};

use crate::{
    failure::Failure,
    pairing::{GO_TO_RUST, Pairing, RUST_TO_PICK_FIRST, RUST_TO_ROUND_ROBIN},
    world::World,
};

/// One line of the matrix.
pub(crate) struct Scene {
    pub(crate) name: &'static str,
    /// Which servers are called, and by which clients.
    pub(crate) direction: String,
    pub(crate) play: Box<dyn FnOnce(World) -> BoxFuture<'static, Result<(), Failure>> + Send>,
}

impl Scene {
    fn new<F>(name: &'static str, direction: impl fmt::Display, play: impl FnOnce(World) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        Self { name, direction: direction.to_string(), play: Box::new(|world| play(world).boxed()) }
    }

    /// The same scene for some of the pairings.
    fn of<F>(
        name: &'static str,
        pairings: &'static [Pairing],
        play: fn(World, Pairing) -> F,
    ) -> impl Iterator<Item = Self>
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        pairings.iter().map(move |&pairing| Self::new(name, pairing, move |world| play(world, pairing)))
    }
}

/// Returns all scenes of one generation, the longest first.
pub(crate) fn all() -> Vec<Scene> {
    let single = [
        Scene::new("etcd restarts", "both, all clients", outage::etcd_restarts),
        Scene::new("mixed fleet", "both → Go and Rust", fleet::play),
        Scene::new("the article's layout", "both → Go and Rust", layouts::article),
        Scene::new("plain values", "both → Go and Rust", layouts::plain),
        Scene::new("Go's metadata", GO_TO_RUST, metadata::by_go),
        Scene::new("prefix without --authority", RUST_TO_ROUND_ROBIN, prefix::without_authority),
        Scene::new("order and order-history", GO_TO_RUST, neighbours::to_rust),
        Scene::new("order and order-history", RUST_TO_ROUND_ROBIN, neighbours::to_go),
        Scene::new("prefix in the service's name", RUST_TO_ROUND_ROBIN, prefix::in_the_name),
    ];
    single
        .into_iter()
        .chain(Scene::of("kill -9", &ALL, kill::play))
        .chain(Scene::of("start and graceful stop", &ALL, deployment::start_and_stop))
        .chain(Scene::of("the same key again", &ALL, deployment::same_key))
        .chain(Scene::of("Rust's weight and metadata", &TO_GO, metadata::by_rust))
        .chain(Scene::of("key deleted by Go", &TO_GO, entries::deleted))
        .chain(Scene::of("key overwritten by Go", &TO_GO, entries::overwritten))
        .chain(Scene::of("key taken over by Go", &TO_GO, entries::taken_over))
        .chain(Scene::of("[::1] and localhost", &ALL, addresses::play))
        .chain(Scene::of("prefix", &ALL, prefix::play))
        .chain(Scene::of("four kinds of calls", &ALL, calls::play))
        .collect()
}

const ALL: [Pairing; 3] = [GO_TO_RUST, RUST_TO_ROUND_ROBIN, RUST_TO_PICK_FIRST];
const TO_GO: [Pairing; 2] = [RUST_TO_ROUND_ROBIN, RUST_TO_PICK_FIRST];
