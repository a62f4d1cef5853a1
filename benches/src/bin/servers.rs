//! `servers <kind>...`: serves on loopback ports, prints their addresses, and ends with its
//! standard input. Each input line is a number and a kind, which that server has from then on.

use std::{
    convert::Infallible,
    future::{Ready, pending, ready},
    net::SocketAddr,
    task::{Context, Poll},
    time::Duration,
};

use benches::{Failure, machine, messages::Messages, servers::Kind, traffic};
use futures::future::BoxFuture;
use greeter::{Greeter, GreeterServer};
use http::{Request, Response};
use tokio::{
    io::{AsyncBufReadExt, BufReader, stdin},
    net::TcpSocket,
    sync::watch,
    time::sleep,
};
use tonic::{
    Code, Status,
    body::Body,
    server::NamedService,
    transport::{Server, server::TcpIncoming},
};
use tower::Service;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    machine::allow_files()?;
    let mut kinds = Vec::new();
    for kind in std::env::args().skip(1) {
        let kind = watch::Sender::new(kind.parse()?);
        println!("{}", serve(&kind)?);
        kinds.push(kind);
    }
    // The parent process holds the other end, so this ends however the parent ends.
    let mut lines = BufReader::new(stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let (number, kind) = line.split_once(' ').ok_or("a line is a number and a kind")?;
        kinds.get(number.parse::<usize>()?).ok_or("there is no such server")?.send_replace(kind.parse()?);
    }
    Ok(())
}

fn serve(kind: &watch::Sender<Kind>) -> Result<SocketAddr, Failure> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, 1], 0).into())?;
    let address = socket.local_addr()?;
    if *kind.borrow() == Kind::Refusing {
        // Bound, so that nobody else gets the port, but not listening.
        std::mem::forget(socket);
        return Ok(address);
    }
    let listener = socket.listen(1024)?;
    if *kind.borrow() == Kind::Silent {
        // The kernel completes connections for a listener that never accepts.
        std::mem::forget(listener);
        return Ok(address);
    }
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let name = address.to_string();
    let greeter = Greeter::new(&name).into_service().max_decoding_message_size(traffic::DECODED);
    let service = Moody { greeter, messages: Messages::new(&name), kind: kind.subscribe() };
    let streams = match *kind.borrow() {
        Kind::Limited(streams) => Some(streams),
        _ => None,
    };
    let server = Server::builder().max_concurrent_streams(streams).add_service(service);
    tokio::spawn(server.serve_with_incoming(incoming));
    Ok(address)
}

/// A greeter that behaves according to its kind at the time of the call.
#[derive(Clone)]
struct Moody {
    greeter: GreeterServer<Greeter>,
    messages: Messages,
    kind: watch::Receiver<Kind>,
}

impl NamedService for Moody {
    const NAME: &str = GreeterServer::<Greeter>::NAME;
}

impl Service<Request<Body>> for Moody {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = match request.uri().path() {
            Messages::PATH => Box::pin(self.messages.clone().answer(request)),
            _ => self.greeter.call(request),
        };
        match *self.kind.borrow() {
            Kind::Failing(code) => Box::pin(failed(code)),
            Kind::Hung => Box::pin(pending()),
            Kind::Late => Box::pin(after(LATE, answer)),
            Kind::Slow => Box::pin(after(SLOW, answer)),
            _ => answer,
        }
    }
}

fn failed(code: Code) -> Ready<Result<Response<Body>, Infallible>> {
    ready(Ok(Status::new(code, "on demand").into_http()))
}

async fn after<F: Future>(time: Duration, answer: F) -> F::Output {
    sleep(time).await;
    answer.await
}

/// How long a slow server takes for a call.
const SLOW: Duration = Duration::from_secs(2);
/// When a late server sends its headers.
const LATE: Duration = Duration::from_secs(5);
