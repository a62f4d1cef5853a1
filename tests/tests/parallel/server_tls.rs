//! A registered server behind TLS.

use std::{
    io,
    time::{Duration, Instant},
};

use discovery_memory::MemoryBackend;
use discovery_tonic::server::{RegisteredServer, Stage};
use greeter::{GreetManyRequest, GreetRequest, Greeter, GreeterClient};
use support::{Authority, Flaw, eventually};
use tokio::{io::AsyncReadExt, net::TcpStream, runtime::Handle, time::timeout};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity, Server, ServerTlsConfig};

/// Calls over TLS are aborted at the shutdown timeout like any other, a client that never completes
/// its handshake is dropped, and nothing of either is left.
#[tokio::test]
async fn a_server_behind_tls_aborts_calls_at_its_shutdown_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::in_folder(folder.path());
    let own = authority.server(Flaw::None);
    let short = Duration::from_millis(300);
    let server = RegisteredServer::builder(MemoryBackend::new(), "greeter".parse().unwrap())
        .drain_time(short)
        .shutdown_timeout(short)
        .bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let address = server.local_addr().unwrap();
    let handle = server.handle();
    let before = tasks();
    let router = Server::builder()
        .tls_config(ServerTlsConfig::new().identity(Identity::from_pem(own.cert, own.key)))
        .unwrap()
        .add_service(Greeter::new("tls").into_service());
    let task = tokio::spawn(server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)));
    timeout(SOON, handle.reached(Stage::Serving)).await.unwrap();

    let trusts = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.pem())).domain_name("localhost");
    let channel = Channel::from_shared(format!("https://{address}")).unwrap().tls_config(trusts).unwrap();
    let mut client = GreeterClient::new(channel.connect().await.unwrap());
    client.greet(GreetRequest::default()).await.unwrap();
    let many = GreetManyRequest { count: 2, interval_ms: 600_000, ..GreetManyRequest::default() };
    let mut answers = client.greet_many(many).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    let mut silent = TcpStream::connect(address).await.unwrap();

    let start = Instant::now();
    handle.stop();
    let stopped = timeout(SOON, task).await.unwrap().unwrap().unwrap();
    println!("ended {:?} after the order, {} cut", start.elapsed(), stopped.aborted_connections);
    assert!((2 * short..SOON).contains(&start.elapsed()));
    // A client that has not completed its handshake was dropped with the listener.
    assert_eq!(stopped.aborted_connections, 1);
    assert!(timeout(SOON, answers.message()).await.unwrap().is_err());
    let ended = timeout(SOON, silent.read_u8()).await.unwrap().unwrap_err();
    assert!(matches!(ended.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset), "{ended}");
    drop((client, answers));
    eventually("no task is left", SOON, async || tasks() <= before).await;
}

/// Returns how many tasks this runtime has, including the test's own.
fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

const SOON: Duration = Duration::from_secs(20);
