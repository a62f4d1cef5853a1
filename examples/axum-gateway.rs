// An HTTP gateway: axum handlers share one balanced channel.
//
//     cargo run --example axum-gateway --features memory,server

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use discovery::{BalancedChannel, MemoryBackend, RegisteredServer};
use greeter::{GreetRequest, Greeter, GreeterClient};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::transport::Server;

async fn greet(
    State(mut greeter): State<GreeterClient<BalancedChannel>>,
    Path(name): Path<String>,
) -> Result<String, (StatusCode, String)> {
    let response = greeter.greet(GreetRequest { name, ..GreetRequest::default() }).await;
    let response = response.map_err(|status| (StatusCode::BAD_GATEWAY, status.message().to_owned()))?;
    Ok(response.into_inner().message)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let backend = MemoryBackend::new();
    let router = Server::builder().add_service(Greeter::new("one").into_service());
    let server = RegisteredServer::builder(backend.clone(), "greeter".parse()?).bind("127.0.0.1:0".parse()?).await?;
    tokio::spawn(server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)));

    let greeter = GreeterClient::new(BalancedChannel::new(backend, "greeter".parse()?)?);
    let gateway = Router::new().route("/greet/{name}", get(greet)).with_state(greeter);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let mut browser = tokio::net::TcpStream::connect(listener.local_addr()?).await?;
    tokio::spawn(axum::serve(listener, gateway).into_future());

    browser.write_all(b"GET /greet/Ann HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n").await?;
    let mut page = String::new();
    browser.read_to_string(&mut page).await?;
    println!("{page}");
    Ok(())
}
