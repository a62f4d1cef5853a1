//! Channels with TLS: what they accept and refuse, what they read, and how files are rotated.

mod files;
mod handshakes;
mod rotation;

use std::net::SocketAddr;

use discovery_core::{FixedResolver, Instance};
use discovery_tonic::{BalancedChannel, ChannelBuilder, ChannelTls};
use greeter::{GreetRequest, Greeter, GreeterClient};
use support::{Certificate, eventually, scene::SOON};
use tokio::{net::TcpListener, task::AbortHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Status,
    transport::{self, Identity, Server, ServerTlsConfig},
};

/// A greeter behind TLS, until it is dropped.
struct TlsServer {
    address: SocketAddr,
    task: AbortHandle,
}

impl TlsServer {
    /// Starts a server with this certificate. If it is given authorities, in PEM, it requires a
    /// certificate of its clients.
    async fn start(own: &Certificate, client_authorities: Option<&str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Server::builder()
            .tls_config(server_tls(own, client_authorities))
            .unwrap()
            .add_service(Greeter::new("tls").into_service());
        let task = tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, task: task.abort_handle() }
    }

    fn instance(&self) -> Instance {
        Instance::new(self.address.try_into().unwrap())
    }

    fn channel(&self) -> ChannelBuilder {
        BalancedChannel::builder(FixedResolver::new([self.instance()]), "greeter".parse().unwrap())
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn server_tls(own: &Certificate, client_authorities: Option<&str>) -> ServerTlsConfig {
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(&own.cert, &own.key));
    match client_authorities {
        Some(pem) => tls.client_ca_root(transport::Certificate::from_pem(pem)),
        None => tls,
    }
}

async fn greet(channel: &BalancedChannel) -> Result<String, Status> {
    let reply = GreeterClient::new(channel.clone()).greet(GreetRequest::default()).await?;
    Ok(reply.into_inner().server)
}

/// Returns the error of the only endpoint, once its table shows this text. The text of a refusal by
/// the server may take several attempts, because its alert can get lost.
async fn refusal(channel: &BalancedChannel, expected: &str) -> String {
    let mut seen = String::new();
    let shown = async || {
        seen = channel.endpoints().to_string();
        seen.contains(expected)
    };
    eventually(expected, SOON, shown).await;
    seen
}

fn trusting(pem: &str) -> ChannelTls {
    ChannelTls::new().ca(pem)
}
