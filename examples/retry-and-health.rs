// Retries, deadlines and health checks, for a whole channel and for one call.
//
//     cargo run --example retry-and-health --features memory,server

use std::time::Duration;

use discovery::{
    BalancedChannel, MemoryBackend, RegisteredServer,
    channel::{Retry, RetryPolicy, WaitForReady},
};
use greeter::{GreetRequest, Greeter, GreeterClient};
use tonic::{Request, transport::Server};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let backend = MemoryBackend::new();

    // The server reports SERVING once it serves, and NOT_SERVING before it stops.
    let (reporter, health) = tonic_health::server::health_reporter();
    let router = Server::builder().add_service(health).add_service(Greeter::new("one").into_service());
    let server = RegisteredServer::builder(backend.clone(), "greeter".parse()?)
        .health_reporter(reporter, ["greeter.v1.Greeter"])
        .bind("127.0.0.1:0".parse()?)
        .await?;
    tokio::spawn(server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)));

    let channel = BalancedChannel::builder(backend, "greeter".parse()?)
        .retry(RetryPolicy::new(3)?) // repeats calls that failed with UNAVAILABLE, up to 3 attempts
        .health_check("greeter.v1.Greeter") // only endpoints that report SERVING get calls
        .build()?;

    let mut request = Request::new(GreetRequest::default());
    request.set_timeout(Duration::from_secs(2)); // the deadline, retries and waiting included
    request.extensions_mut().insert(WaitForReady); // wait instead of failing when no endpoint is ready
    request.extensions_mut().insert(Retry::Off); // this call must not be repeated
    println!("{}", GreeterClient::new(channel).greet(request).await?.into_inner().message);
    Ok(())
}
