//! The inventory: a server that registers itself.

use discovery::RegisteredServer;
use shop::{BoxError, Inventory, InventoryServer, ReserveReply, ReserveRequest, Settings, StockReply, StockRequest};
use tonic::{Request, Response, Status, async_trait};

struct Shelves {
    name: String,
}

#[async_trait]
impl Inventory for Shelves {
    async fn reserve(&self, _: Request<ReserveRequest>) -> Result<Response<ReserveReply>, Status> {
        Ok(Response::new(ReserveReply { reserved_by: self.name.clone() }))
    }

    async fn stock(&self, _: Request<StockRequest>) -> Result<Response<StockReply>, Status> {
        Ok(Response::new(StockReply { pieces: 7 }))
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
    let backend = discovery::open(&settings.registry)?;
    let (reporter, checks) = tonic_health::server::health_reporter();
    let server = RegisteredServer::builder(backend, "inventory".parse()?)
        .register_if_supported() // so that it also runs on a fixed:// registry
        .instance(settings.naming())
        .health_reporter(reporter, ["shop.v1.Inventory"])
        .drain_time(settings.drain)
        .stop_on_signals()
        .bind(settings.listen)
        .await?;
    let shelves = Shelves { name: server.instance().id().to_string() };
    let router = shop::server(&settings)?.add_service(checks).add_service(InventoryServer::new(shelves));
    server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)).await?;
    Ok(())
}
