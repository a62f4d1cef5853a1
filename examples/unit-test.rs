//! A test of code that calls a service: the same channel, on the memory backend.
//!
//! ```sh
//! cargo run --example unit-test --features memory,server
//! ```

use discovery::{BalancedChannel, MemoryBackend, RegisteredServer};
use greeter::{GreetRequest, Greeter, GreeterClient};
use tonic::{Code, Status, transport::Server};

/// The code to test. In production its channel resolves through etcd.
async fn greeting(channel: BalancedChannel, name: &str) -> Result<String, Status> {
    let request = GreetRequest { name: name.to_owned(), ..GreetRequest::default() };
    Ok(GreeterClient::new(channel).greet(request).await?.into_inner().message)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let backend = MemoryBackend::new();
    let channel = BalancedChannel::new(backend.clone(), "greeter".parse()?)?;
    assert_eq!(greeting(channel.clone(), "Ann").await.unwrap_err().code(), Code::Unavailable, "there is no server yet");

    let router = Server::builder().add_service(Greeter::new("one").into_service());
    let server = RegisteredServer::builder(backend.clone(), "greeter".parse()?).bind("127.0.0.1:0".parse()?).await?;
    tokio::spawn(server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)));
    channel.wait_until_ready(std::time::Duration::from_secs(5)).await?;
    assert_eq!(greeting(channel.clone(), "Ann").await?, "hello Ann, this is one");

    // The registry is down: calls still work. `backend.restore()` brings it back.
    backend.interrupt();
    assert_eq!(greeting(channel, "Ann").await?, "hello Ann, this is one");
    println!("passed");
    Ok(())
}
