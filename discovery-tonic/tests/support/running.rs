//! Servers that register.

use std::{net::SocketAddr, time::Duration};

use discovery_core::{Error, Instance, Resolver, Weight};
use discovery_memory::MemoryBackend;
use discovery_tonic::server::{RegisteredServer, ServerBuilder, ServerHandle, Stage, Stopped};
use greeter::{GreetManyRequest, Greeter, GreeterClient};
use tokio::{task::JoinHandle, time::timeout};
use tonic::{Status, transport::Channel};

use super::service;

/// What tests always wait for.
pub const SHORT: Duration = Duration::from_millis(300);
/// What should happen at once happens within this, even on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);
/// What no test waits for.
pub const LONG: Duration = Duration::from_secs(600);

/// A running server, and what tests need of it.
pub struct Running {
    pub address: SocketAddr,
    pub greeter: Greeter,
    pub handle: ServerHandle,
    pub task: JoinHandle<Result<Stopped, Error>>,
}

impl Running {
    pub async fn start(builder: ServerBuilder) -> Self {
        let server = builder.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = server.local_addr().unwrap();
        let handle = server.handle();
        assert_eq!(server.instance().address().socket_addr(), Some(address));
        let greeter = Greeter::new("one");
        let router = tonic::transport::Server::builder().add_service(greeter.clone().into_service());
        let serve = server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway));
        Self { address, greeter, handle, task: tokio::spawn(serve) }
    }

    pub async fn serving(builder: ServerBuilder) -> Self {
        let server = Self::start(builder).await;
        timeout(SOON, server.handle.reached(Stage::Serving)).await.unwrap();
        server
    }

    pub async fn client(&self) -> GreeterClient<Channel> {
        GreeterClient::new(connect(self.address).await)
    }

    pub async fn slow_call(&self, time: Duration) -> JoinHandle<Result<(), Status>> {
        slow_call(self.address, time).await
    }

    pub async fn ended(self) -> Result<Stopped, Error> {
        timeout(SOON, self.task).await.expect("the server ends").unwrap()
    }
}

/// Makes a call that the server answers after this time. It has begun once this returns.
pub async fn slow_call(address: SocketAddr, time: Duration) -> JoinHandle<Result<(), Status>> {
    let mut client = GreeterClient::new(connect(address).await);
    let interval_ms = time.as_millis().try_into().unwrap();
    let request = GreetManyRequest { count: 2, interval_ms, ..GreetManyRequest::default() };
    let mut answers = client.greet_many(request).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    tokio::spawn(async move {
        while answers.message().await?.is_some() {}
        Ok(())
    })
}

pub async fn connect(address: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

pub fn builder(backend: &MemoryBackend) -> ServerBuilder {
    RegisteredServer::builder(backend.clone(), service()).drain_time(SHORT).shutdown_timeout(SHORT)
}

pub async fn registered(backend: &MemoryBackend) -> usize {
    backend.list(&service()).await.unwrap().len()
}

/// Returns the weights under which a service is registered.
pub async fn weights(backend: &MemoryBackend, service: &str) -> Vec<u16> {
    let set = backend.list(&service.parse().unwrap()).await.unwrap();
    set.iter().map(|instance| instance.weight().value()).collect()
}

/// Waits until a service is registered with these weights.
pub async fn until_weights(backend: &MemoryBackend, service: &str, expected: &[u16]) {
    let reached = async {
        while weights(backend, service).await != expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let reached = timeout(SOON, reached).await;
    reached.unwrap_or_else(|_| panic!("the weights of {service} never became {expected:?}"));
}

pub fn weight(weight: u16) -> impl FnOnce(Instance) -> Instance + Send {
    move |instance| instance.with_weight(Weight::new(weight).unwrap())
}
