//! What the programs of the shop share. Each program is a file in `bin/`; the README shows how to
//! run them.
//!
//! `shop.v1.rs` is generated from `proto/shop.proto` and committed. A test in the `tests` package
//! compares the two.

mod channel;
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
    include!("shop.v1.rs");
}
mod log;
mod metrics;
mod settings;
mod stop;
mod tls;

pub use channel::{channel, until_ready};
pub use generated::{
    PlaceReply, PlaceRequest, ReserveReply, ReserveRequest, StockReply, StockRequest,
    inventory_client::InventoryClient,
    inventory_server::{Inventory, InventoryServer},
    orders_client::OrdersClient,
    orders_server::{Orders, OrdersServer},
};
pub use log::{log_failure, log_to_stderr};
pub use metrics::{record_metrics, serve_metrics};
pub use settings::Settings;
pub use stop::stop_signal;
pub use tls::server;

/// Any error of a program.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
