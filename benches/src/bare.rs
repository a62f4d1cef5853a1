//! A lower bound for the cost of a client: the same generated client over bare HTTP/2 connections
//! of hyper.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::{
    HeaderValue, Request, Uri,
    header::USER_AGENT,
    uri::{Authority, Scheme},
};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tonic::body::Body;
use tower::service_fn;

use crate::{Failure, caller::Transport};

/// One connection and the authority of its requests.
#[derive(Clone, Debug)]
pub struct Bare {
    /// The entrance for requests.
    pub sender: SendRequest<Body>,
    authority: Authority,
}

/// Connections that take turns, whatever their state.
#[derive(Clone, Debug)]
pub struct Turns(Arc<(Vec<Bare>, AtomicUsize)>);

impl Bare {
    /// Connects to a server and completes the HTTP/2 handshake.
    ///
    /// # Errors
    ///
    /// If the server cannot be reached.
    pub async fn connect(address: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, authority: address.to_string().parse()? })
    }

    /// Adds what every client has to add to a request of generated code before hyper takes it: the
    /// origin and the user agent.
    #[must_use]
    pub fn prepare(&self, mut request: Request<Body>) -> Request<Body> {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(self.authority.clone());
        *request.uri_mut() = Uri::from_parts(parts).expect("scheme, authority and path make a URI");
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static("bare/1"));
        request
    }
}

impl Turns {
    /// Connects to all addresses. Their turns start with the first.
    ///
    /// # Errors
    ///
    /// If a server cannot be reached.
    pub async fn connect(addresses: &[SocketAddr]) -> Result<Self, Failure> {
        let mut connections = Vec::new();
        for address in addresses {
            connections.push(Bare::connect(*address).await?);
        }
        Ok(Self(Arc::new((connections, AtomicUsize::new(0)))))
    }

    /// Returns the transport of a generated client. This is a function rather than a type because
    /// hyper's future has no name, and boxing it would add a cost that is not hyper's.
    pub fn transport(self) -> impl Transport {
        service_fn(move |request| {
            let bare = self.next();
            bare.sender.clone().send_request(bare.prepare(request))
        })
    }

    /// Returns the connection whose turn it is.
    fn next(&self) -> &Bare {
        let (connections, turn) = &*self.0;
        &connections[turn.fetch_add(1, Ordering::Relaxed) % connections.len()]
    }
}
