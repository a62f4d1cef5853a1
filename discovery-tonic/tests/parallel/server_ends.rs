//! How servers end, over real sockets.
#![cfg(feature = "server")]

use std::{
    io,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use crate::support::{
    eventually, registry,
    running::{LONG, Running, SHORT, SOON, builder, connect, registered},
    service,
};
use async_trait::async_trait;
use bytes::Bytes;
use discovery_core::{
    Claim, Error, ErrorKind, Instance, Registration, Registry, ServiceName, Status,
    backend::{RegistrationBackend, StatusWriter},
};
use discovery_memory::MemoryBackend;
use discovery_tonic::server::{RegisteredServer, ServerHandle, Stage};
use futures::StreamExt;
use greeter::{GreetManyRequest, GreetRequest, Greeter};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Handle,
    sync::oneshot,
    time::timeout,
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_prost::prost::Message;

#[tokio::test]
async fn calls_in_flight_may_finish_within_the_limit() {
    let backend = MemoryBackend::new();
    let server = Running::serving(builder(&backend).shutdown_timeout(LONG)).await;
    let call = server.slow_call(3 * SHORT).await;
    for _ in 0..3 {
        server.handle.stop();
    }
    assert_eq!(server.ended().await.unwrap().aborted_connections, 0);
    call.await.unwrap().unwrap();
}

#[tokio::test]
async fn calls_that_outlast_the_limit_are_aborted() {
    let backend = MemoryBackend::new();
    let server = Running::serving(builder(&backend)).await;
    let call = server.slow_call(LONG).await;
    let start = Instant::now();
    server.handle.stop();
    assert_eq!(server.ended().await.unwrap().aborted_connections, 1);
    assert!((2 * SHORT..SOON).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert!(timeout(SOON, call).await.unwrap().unwrap().is_err());
}

#[tokio::test]
async fn a_server_can_be_stopped_at_once() {
    for stage in [Stage::Draining, Stage::Finishing] {
        let backend = MemoryBackend::new();
        let drain = if stage == Stage::Draining { LONG } else { Duration::ZERO };
        let server = Running::serving(builder(&backend).drain_time(drain).shutdown_timeout(LONG)).await;
        let call = server.slow_call(LONG).await;
        server.handle.stop();
        server.handle.reached(stage).await;
        server.handle.stop_now();
        assert_eq!(server.ended().await.unwrap().aborted_connections, 1, "{stage:?}");
        assert_eq!(registered(&backend).await, 0);
        assert!(timeout(SOON, call).await.unwrap().unwrap().is_err());
    }
}

#[tokio::test]
async fn a_dropped_server_aborts_its_calls_and_deregisters() {
    let backend = MemoryBackend::new();
    let server = Running::serving(builder(&backend)).await;
    let call = server.slow_call(LONG).await;
    server.task.abort();
    timeout(SOON, server.handle.reached(Stage::Stopped)).await.unwrap();
    assert_eq!(registered(&backend).await, 0, "it has stopped only once it has deregistered");
    assert!(TcpStream::connect(server.address).await.is_err(), "and once the port is closed");
    assert!(matches!(server.handle.statuses().current(), Status::Deregistered { .. }));
    assert!(timeout(SOON, call).await.unwrap().unwrap().is_err());
    // The handle keeps nothing of the server alive.
    let error = server.handle.update(|instance| instance).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn a_server_that_ends_by_itself_deregisters_and_reports_it() {
    let backend = MemoryBackend::new();
    let server = builder(&backend).bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (fail, failed) = oneshot::channel::<()>();
    let handle = server.handle();
    let task = tokio::spawn(server.serve(|incoming, _| async move {
        let _incoming = incoming;
        failed.await.unwrap();
        Err(io::Error::other("a fault of the server"))
    }));
    handle.reached(Stage::Serving).await;
    fail.send(()).unwrap();
    let error = task.await.unwrap().unwrap_err();
    let report = error.report().to_string();
    assert!(report.contains("ended by itself") && report.ends_with("a fault of the server"), "{report}");
    assert_eq!(registered(&backend).await, 0);
}

/// A server that is dropped before it serves, or whose closure panics, has stopped as well.
#[tokio::test]
async fn handles_notice_the_end_of_a_server_that_never_served() {
    let backend = MemoryBackend::new();
    let bind = async || builder(&backend).bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let dropped = bind().await;
    let panics = bind().await;
    let handles = [dropped.handle(), panics.handle()];
    let addresses = [dropped.local_addr().unwrap(), panics.local_addr().unwrap()];
    drop(dropped);
    let panicked = tokio::spawn(panics.serve(|_, _| -> std::future::Ready<io::Result<()>> { panic!("on purpose") }));
    assert!(panicked.await.unwrap_err().is_panic());
    for (handle, address) in handles.iter().zip(addresses) {
        timeout(SOON, handle.reached(Stage::Stopped)).await.unwrap();
        assert!(matches!(handle.statuses().current(), Status::Deregistered { .. }));
        assert_eq!(handle.update(|instance| instance).await.unwrap_err().kind(), ErrorKind::Closed);
        assert!(TcpStream::connect(address).await.is_err(), "the port is closed");
    }
}

/// The number of tasks of this runtime, including the test's own.
fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// However a server ends, no task and no connection of it is left, not even of a client that does
/// not close its own.
#[tokio::test]
async fn a_server_leaves_nothing_however_it_ends() {
    type End = fn(&Running);
    let ends: [(&str, End); 4] = [
        ("gracefully", |server| server.handle.stop()),
        ("now", |server| server.handle.stop_now()),
        ("gracefully, then now", |server| {
            server.handle.stop();
            server.handle.stop_now();
        }),
        ("abort", |server| server.task.abort()),
    ];
    for (name, end) in ends {
        let backend = MemoryBackend::new();
        let before = tasks();
        let server = Running::serving(builder(&backend)).await;
        let call = server.slow_call(LONG).await;
        let mut client = server.client().await;
        let unary = tokio::spawn(async move {
            let request = GreetRequest { delay_ms: u32::MAX, ..GreetRequest::default() };
            client.greet(request).await
        });
        eventually("both calls have begun", || server.greeter.calls() == 2).await;
        let mut idle = TcpStream::connect(server.address).await.unwrap();
        let _used = server.client().await.greet(GreetRequest::default()).await.unwrap();
        end(&server);
        let handle = server.handle.clone();
        timeout(SOON, handle.reached(Stage::Stopped)).await.unwrap();
        assert_eq!(registered(&backend).await, 0, "{name}");
        assert!(timeout(SOON, call).await.unwrap().unwrap().is_err(), "{name}");
        assert!(timeout(SOON, unary).await.unwrap().unwrap().is_err(), "{name}");
        // Only the server closes this connection: the client reads what was sent, then the end.
        let _ = timeout(SOON, idle.read_to_end(&mut Vec::new())).await.expect(name);
        drop(server);
        eventually(name, || tasks() <= before).await;
    }
}

/// Connections that another kind of server leaves open when it ends by itself are aborted.
#[tokio::test]
async fn connections_of_a_server_that_ended_by_itself_are_aborted() {
    let backend = MemoryBackend::new();
    let before = tasks();
    let server = builder(&backend).bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let mut client = TcpStream::connect(server.local_addr().unwrap()).await.unwrap();
    let serve = server.serve(move |mut incoming, _| async move {
        let mut connection = incoming.next().await.unwrap()?;
        tokio::spawn(async move { connection.read_u8().await });
        Err::<(), _>(io::Error::other("a fault of the server"))
    });
    assert!(timeout(SOON, serve).await.unwrap().is_err());
    let _ = timeout(SOON, client.read_to_end(&mut Vec::new())).await.expect("its connection ends");
    eventually("no task is left", || tasks() <= before).await;
}

/// A connection that waits for its peer is aborted, whether it reads or writes.
#[tokio::test]
async fn a_connection_is_aborted_while_it_waits_to_read_or_to_write() {
    for waits in ["read", "write", "write_vectored"] {
        let backend = MemoryBackend::new();
        let server = builder(&backend).drain_time(Duration::ZERO).bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let handle = server.handle();
        let silent = TcpStream::connect(server.local_addr().unwrap()).await.unwrap();
        let (tell, told) = oneshot::channel();
        let serve = server.serve(move |mut incoming, _| async move {
            let mut connection = incoming.next().await.unwrap()?;
            let zeros = [0; 1 << 16];
            let error = loop {
                let result = match waits {
                    "read" => connection.read_u8().await.map(usize::from),
                    "write" => connection.write(&zeros).await,
                    _ => connection.write_vectored(&[io::IoSlice::new(&zeros)]).await,
                };
                if let Err(error) = result {
                    break error;
                }
            };
            tell.send(error).unwrap();
            Ok::<_, io::Error>(())
        });
        let task = tokio::spawn(serve);
        handle.reached(Stage::Serving).await;
        handle.stop();
        assert_eq!(timeout(SOON, task).await.unwrap().unwrap().unwrap().aborted_connections, 1);
        let error = told.await.expect(waits);
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted, "{waits}");
        drop(silent);
    }
}

/// A client grants the server an unlimited window and stops reading, so that the server's
/// connection waits for something that never comes.
#[tokio::test]
async fn the_connection_of_a_client_that_does_not_read_is_aborted() {
    let backend = MemoryBackend::new();
    let server = Running::serving(builder(&backend)).await;
    let before = tasks();
    let socket = TcpStream::connect(server.address).await.unwrap();
    let mut client = h2::client::Builder::new();
    client.initial_window_size(1 << 30).initial_connection_window_size(1 << 30);
    let (client, mut connection) = client.handshake::<_, Bytes>(socket).await.unwrap();
    let request = http::Request::post(format!("http://{}/greeter.v1.Greeter/GreetMany", server.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    // Far more than the system's buffers hold.
    let many = GreetManyRequest { name: "x".repeat(1 << 16), count: 10_000, ..GreetManyRequest::default() };
    let many = many.encode_to_vec();
    let mut body = vec![0];
    body.extend_from_slice(&u32::try_from(many.len()).unwrap().to_be_bytes());
    body.extend_from_slice(&many);
    let call = async {
        let mut client = client.ready().await.unwrap();
        let (response, mut stream) = client.send_request(request.body(()).unwrap(), false).unwrap();
        stream.send_data(body.into(), true).unwrap();
        response.await.unwrap()
    };
    let response = tokio::select! {
        response = call => response,
        _ = &mut connection => panic!("the connection ended"),
    };
    assert_eq!(response.status(), 200);

    server.handle.stop();
    assert_eq!(server.ended().await.unwrap().aborted_connections, 1);
    // The server's tasks end although the client has neither read nor closed.
    eventually("its connection ends", || tasks() < before).await;
    drop((response, connection));
}

/// Health checks do not end by themselves: the channel closes its own, and the others are aborted.
#[tokio::test]
async fn open_health_checks_do_not_keep_a_server_from_stopping() {
    for foreign in [false, true] {
        let backend = MemoryBackend::new();
        let (reporter, health) = tonic_health::server::health_reporter();
        let limit = if foreign { SHORT } else { LONG };
        let server = builder(&backend).shutdown_timeout(limit).health_reporter(reporter, [""; 0]);
        let server = server.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = server.local_addr().unwrap();
        let handle = server.handle();
        let greeter = Greeter::new("one").into_service();
        let router = tonic::transport::Server::builder().add_service(health).add_service(greeter);
        let task = tokio::spawn(server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)));
        handle.reached(Stage::Serving).await;

        // Its endpoint stays in the set.
        let channel = crate::support::builder(&registry([address])).health_check("").build().unwrap();
        crate::support::greet(&channel, Some(SOON)).await.unwrap();
        let mut watching = None;
        if foreign {
            let mut client = HealthClient::new(connect(address).await);
            let mut answers = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
            answers.message().await.unwrap().unwrap();
            watching = Some(answers);
        }
        let start = Instant::now();
        handle.stop();
        let stopped = timeout(SOON, task).await.unwrap().unwrap().unwrap();
        println!("ended {:?} after it was asked to stop, {} aborted", start.elapsed(), stopped.aborted_connections);
        match watching {
            // The channel's check may be among them.
            Some(mut answers) => {
                assert!(stopped.aborted_connections >= 1);
                while let Ok(Some(_)) = timeout(SOON, answers.message()).await.unwrap() {}
            }
            None => assert_eq!(stopped.aborted_connections, 0),
        }
    }
}

/// A registry that registers, then hangs.
#[derive(Debug, Default)]
struct Hanging {
    handle: OnceLock<ServerHandle>,
    /// The server's stage when its registration was released.
    released: OnceLock<Stage>,
}

#[derive(Debug)]
struct Hung(Arc<Hanging>);

#[async_trait]
impl Registry for Hung {
    async fn register_with(&self, service: &ServiceName, one: Instance, _: Claim) -> Result<Registration, Error> {
        let status = StatusWriter::new(Status::registered());
        Ok(Registration::new(service.clone(), Arc::new(one), &status, Self(Arc::clone(&self.0))))
    }
}

#[async_trait]
impl RegistrationBackend for Hung {
    async fn update(&self, _: Arc<Instance>) -> Result<(), Error> {
        std::future::pending().await
    }

    async fn deregister(&self) -> Result<(), Error> {
        std::future::pending().await
    }

    fn release(&self) {
        self.0.released.set(self.0.handle.get().unwrap().stage()).unwrap();
    }
}

/// A backend that breaks its promise to answer does not delay a server that is aborted or stopped
/// at once, nor does an update under way.
#[tokio::test]
async fn a_registry_that_hangs_does_not_keep_a_server_from_stopping() {
    for end in ["abort", "by itself", "now"] {
        let registry = Arc::new(Hanging::default());
        let builder = RegisteredServer::builder(Hung(Arc::clone(&registry)), service());
        let server = builder.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let handle = server.handle();
        registry.handle.set(handle.clone()).unwrap();
        let (fail, failed) = oneshot::channel::<()>();
        let task = tokio::spawn(server.serve(|incoming, goaway| async move {
            let _incoming = incoming;
            tokio::select! {
                _ = failed => {}
                () = goaway => {}
            }
            Ok::<_, io::Error>(())
        }));
        handle.reached(Stage::Serving).await;
        let (begun, begins) = oneshot::channel();
        let updater = handle.clone();
        let update = tokio::spawn(async move {
            let update = updater.update(|instance| {
                begun.send(()).unwrap();
                instance
            });
            update.await
        });
        begins.await.unwrap();
        let mut fail = Some(fail);
        match end {
            "abort" => task.abort(),
            "by itself" => drop(fail.take()),
            _ => handle.stop(),
        }
        let error = timeout(SOON, update).await.expect(end).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed, "{end}");
        if end != "abort" {
            assert!(timeout(SHORT, handle.reached(Stage::Stopped)).await.is_err(), "it waits for the registry");
            handle.stop_now();
        }
        timeout(SOON, handle.reached(Stage::Stopped)).await.expect(end);
        eventually("the registration is released", || registry.released.get().is_some()).await;
    }
}

/// Observes a server when its future is dropped.
struct Dropped(ServerHandle, Arc<OnceLock<Stage>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.1.set(self.0.stage()).unwrap();
    }
}

/// A caller that has waited for the last stage finds nothing left of the server.
#[tokio::test]
async fn an_aborted_server_reports_its_last_stage_after_everything_else() {
    let registry = Arc::new(Hanging::default());
    let dropped = Arc::new(OnceLock::new());
    let builder = RegisteredServer::builder(Hung(Arc::clone(&registry)), service());
    let server = builder.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let handle = server.handle();
    registry.handle.set(handle.clone()).unwrap();
    let serves = Dropped(handle.clone(), Arc::clone(&dropped));
    let task = tokio::spawn(server.serve(|incoming, goaway| async move {
        let _kept = (incoming, serves);
        goaway.await;
        Ok::<_, io::Error>(())
    }));
    handle.reached(Stage::Serving).await;
    task.abort();
    timeout(SOON, handle.reached(Stage::Stopped)).await.unwrap();
    assert_eq!((dropped.get(), registry.released.get()), (Some(&Stage::Serving), Some(&Stage::Serving)));
}
