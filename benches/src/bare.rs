//! The limit of what a client can cost: the same generated client over nothing but hyper's HTTP/2 connections.

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

/// One connection, and where its requests say that they go.
#[derive(Clone, Debug)]
pub struct Bare {
    /// Where requests enter.
    pub sender: SendRequest<Body>,
    authority: Authority,
}

/// Connections that take turns, without any look at them.
#[derive(Clone, Debug)]
pub struct Turns(Arc<(Vec<Bare>, AtomicUsize)>);

impl Bare {
    /// Connects and shakes hands.
    ///
    /// # Errors
    ///
    /// Where the server is not there.
    pub async fn connect(address: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, authority: address.to_string().parse()? })
    }

    /// What every client has to do to a request of generated code before hyper takes it: name origin and user agent.
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
    /// Connects to all, which take turns from the first on.
    ///
    /// # Errors
    ///
    /// Where a server is not there.
    pub async fn connect(addresses: &[SocketAddr]) -> Result<Self, Failure> {
        let mut connections = Vec::new();
        for address in addresses {
            connections.push(Bare::connect(*address).await?);
        }
        Ok(Self(Arc::new((connections, AtomicUsize::new(0)))))
    }

    /// What a generated client calls over. A function instead of a type: hyper's future has no
    /// name, and boxing it would cost what is not hyper's.
    pub fn transport(self) -> impl Transport {
        service_fn(move |request| {
            let bare = self.next();
            bare.sender.clone().send_request(bare.prepare(request))
        })
    }

    /// The connection whose turn it is.
    fn next(&self) -> &Bare {
        let (connections, turn) = &*self.0;
        &connections[turn.fetch_add(1, Ordering::Relaxed) % connections.len()]
    }
}
