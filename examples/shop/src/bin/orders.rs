//! The orders: a server that registers itself, and a client of the inventory.

use discovery::{BalancedChannel, RegisteredServer};
use shop::{BoxError, InventoryClient, Orders, OrdersServer, PlaceReply, PlaceRequest, ReserveRequest, Settings};
use tonic::{Code, Request, Response, Status, async_trait};

struct Desk {
    inventory: InventoryClient<BalancedChannel>,
    /// For trying out what callers notice of a server that fails.
    fault: Option<Code>,
}

#[async_trait]
impl Orders for Desk {
    async fn place(&self, request: Request<PlaceRequest>) -> Result<Response<PlaceReply>, Status> {
        if let Some(code) = self.fault {
            return Err(Status::new(code, "the database is down"));
        }
        let PlaceRequest { order_id, item } = request.into_inner();
        let reserved = self.inventory.clone().reserve(ReserveRequest { order_id, item }).await?.into_inner();
        Ok(Response::new(PlaceReply { reserved_by: reserved.reserved_by }))
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    shop::log_to_stderr()?;
    let settings = Settings::from_env()?;
    let metrics = shop::record_metrics()?; // before the server is built
    if let Some(address) = settings.metrics {
        shop::serve_metrics(metrics, address).await?;
    }
    let fault = std::env::var("SHOP_FAULT").ok().map(|code| code.parse::<i32>()).transpose()?.map(Code::from);
    // One backend per process, for its channels and its registration.
    let backend = discovery::open(&settings.registry)?;
    let inventory = shop::channel(&settings, backend.clone(), "inventory")?;
    let (reporter, checks) = tonic_health::server::health_reporter();
    let desk = Desk { inventory: InventoryClient::new(inventory.clone()), fault };
    let router = shop::server(&settings)?.add_service(checks).add_service(OrdersServer::new(desk));
    let server = RegisteredServer::builder(backend, "orders".parse()?)
        .register_if_supported() // so that it also runs on a fixed:// registry
        .instance(settings.naming())
        .ready(shop::until_ready(inventory)) // no calls before it can serve them
        .health_reporter(reporter, ["shop.v1.Orders"])
        .drain_time(settings.drain)
        .stop_on_signals()
        .bind(settings.listen)
        .await?;
    server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)).await?;
    Ok(())
}
