// A registered tonic server, and a client whose channel balances over all servers of the service.
//
//     cargo run --example channel --features memory,server

use discovery::{BalancedChannel, MemoryBackend, RegisteredServer, channel::ServedBy};
use greeter::{GreetRequest, Greeter, GreeterClient};
use tonic::transport::Server;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let backend = MemoryBackend::new();

    for name in ["payments-1", "payments-2"] {
        let router = Server::builder().add_service(Greeter::new(name).into_service());
        let server =
            RegisteredServer::builder(backend.clone(), "payments".parse()?).bind("127.0.0.1:0".parse()?).await?;
        tokio::spawn(server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)));
    }

    // The first call waits until a server is found and connected.
    let channel = BalancedChannel::new(backend, "payments".parse()?)?;
    let mut payments = GreeterClient::new(channel.clone());
    for _ in 0..4 {
        let response = payments.greet(GreetRequest::default()).await?;
        let served_by = response.extensions().get::<ServedBy>().ok_or("every response has it")?;
        println!("{} answered at {}", response.get_ref().server, served_by.instance().address());
    }
    println!("{}", channel.endpoints());
    Ok(())
}
