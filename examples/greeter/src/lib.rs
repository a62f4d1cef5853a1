//! The gRPC service that the examples, tests and benchmarks call.
//!
//! `greeter.v1.rs` is generated from `proto/greeter.proto` and committed, so that only the etcd
//! backend needs `protoc` to build. A test in the `tests` package compares the two.

#[allow(
    clippy::all,
    clippy::allow_attributes_without_reason,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    elided_lifetimes_in_paths,
    unnameable_types,
    reason = "generated"
)]
mod generated {
    include!("greeter.v1.rs");
}
mod server;

pub use generated::{
    GreetManyRequest, GreetReply, GreetRequest, greeter_client::GreeterClient, greeter_server::GreeterServer,
};
pub use server::Greeter;
