//! The gateway: HTTP for browsers, gRPC to the services; and what an operator looks at.

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};
use discovery::BalancedChannel;
use metrics_exporter_prometheus::PrometheusHandle;
use shop::{BoxError, InventoryClient, OrdersClient, PlaceRequest, Settings, StockRequest};
use tokio::net::TcpListener;
use tonic::{Code, Status};

#[derive(Clone)]
struct Gateway {
    orders: BalancedChannel,
    inventory: BalancedChannel,
    metrics: PrometheusHandle,
}

/// What a browser gets instead of an answer.
type Failure = (StatusCode, String);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    shop::log_to_stderr()?;
    let settings = Settings::from_env()?;
    let metrics = shop::record_metrics()?; // before the channels are built
    let backend = discovery::open(&settings.registry)?;
    let gateway = Gateway {
        orders: shop::channel(&settings, backend.clone(), "orders")?,
        inventory: shop::channel(&settings, backend, "inventory")?,
        metrics,
    };
    let routes = Router::new()
        .route("/orders", post(place))
        .route("/stock/{item}", get(stock))
        .route("/ready", get(ready))
        .route("/endpoints", get(endpoints))
        .route("/metrics", get(render))
        .with_state(gateway);
    let listener = TcpListener::bind(settings.listen).await?;
    println!("gateway listens at http://{}", listener.local_addr()?);
    axum::serve(listener, routes).with_graceful_shutdown(shop::stop_signal()).await?;
    Ok(())
}

/// Orders the item that is the body of the request.
async fn place(State(gateway): State<Gateway>, item: String) -> Result<String, Failure> {
    let order_id = format!("{:016x}", fastrand::u64(..));
    let request = PlaceRequest { order_id: order_id.clone(), item };
    let reply = OrdersClient::new(gateway.orders).place(request).await.map_err(failure)?;
    Ok(format!("order {order_id}: reserved by {}\n", reply.into_inner().reserved_by))
}

async fn stock(State(gateway): State<Gateway>, Path(item): Path<String>) -> Result<String, Failure> {
    let reply = InventoryClient::new(gateway.inventory).stock(StockRequest { item }).await.map_err(failure)?;
    Ok(format!("{} pieces\n", reply.into_inner().pieces))
}

/// For a load balancer: whether calls can be served.
async fn ready(State(gateway): State<Gateway>) -> Result<&'static str, Failure> {
    if [&gateway.orders, &gateway.inventory].iter().all(|channel| channel.status().ready > 0) {
        return Ok("ready\n");
    }
    Err((StatusCode::SERVICE_UNAVAILABLE, endpoints(State(gateway)).await))
}

async fn endpoints(State(gateway): State<Gateway>) -> String {
    format!("orders\n{}\n\ninventory\n{}\n", gateway.orders.endpoints(), gateway.inventory.endpoints())
}

async fn render(State(gateway): State<Gateway>) -> String {
    gateway.metrics.render()
}

fn failure(status: Status) -> Failure {
    shop::log_failure(&status);
    let code = match status.code() {
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_GATEWAY,
    };
    (code, format!("{}\n", status.message()))
}
