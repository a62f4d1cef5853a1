//! `servers <kind>...`: serves on loopback ports, prints their addresses, and ends with its standard input.

use std::net::SocketAddr;

use benches::{Failure, servers::Kind};
use greeter::Greeter;
use tokio::{
    io::{AsyncReadExt, stdin},
    net::{TcpListener, TcpSocket, TcpStream},
};
use tonic::transport::{Server, server::TcpIncoming};

#[tokio::main]
async fn main() -> Result<(), Failure> {
    for kind in std::env::args().skip(1) {
        println!("{}", serve(kind.parse()?)?);
    }
    // Whoever started the servers holds the other end, however it ends itself.
    stdin().read_to_end(&mut Vec::new()).await?;
    Ok(())
}

fn serve(kind: Kind) -> Result<SocketAddr, Failure> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, 1], 0).into())?;
    let address = socket.local_addr()?;
    if kind == Kind::Refusing {
        // Bound, so that nobody else gets the port, but not listening.
        std::mem::forget(socket);
        return Ok(address);
    }
    let listener = socket.listen(1024)?;
    match kind {
        Kind::Hung => drop(tokio::spawn(hang(listener))),
        // The kernel accepts for a listener that nobody asks.
        Kind::Silent => std::mem::forget(listener),
        _ => {
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            let service = Greeter::new(&address.to_string()).into_service();
            drop(tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming)));
        }
    }
    Ok(address)
}

async fn hang(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(keep(stream));
    }
}

/// Speaks HTTP/2 and keeps all requests unanswered; dropping one would reset it.
async fn keep(stream: TcpStream) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(stream).await?;
    let mut kept = Vec::new();
    while let Some(request) = connection.accept().await {
        kept.push(request?);
    }
    Ok(())
}
