use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::{GreetManyRequest, GreetReply, GreetRequest, GreeterServer, generated::greeter_server};

/// A greeter with a name, which it puts into every answer.
#[derive(Clone, Debug)]
pub struct Greeter {
    name: Arc<str>,
    calls: Arc<AtomicU64>,
}

type Replies = Pin<Box<dyn Stream<Item = Result<GreetReply, Status>> + Send>>;

impl Greeter {
    /// Creates a greeter with this name.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), calls: Arc::default() }
    }

    /// Returns how many calls have reached it, counted as they begin.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Returns the greeter as a tonic service.
    pub fn into_service(self) -> GreeterServer<Self> {
        GreeterServer::new(self)
    }

    fn reply(&self, request: &GreetRequest) -> GreetReply {
        let message = format!("hello {}, this is {}", request.name, self.name);
        GreetReply { message, server: self.name.to_string(), payload: request.payload.clone() }
    }

    fn count(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }
}

#[tonic::async_trait]
impl greeter_server::Greeter for Greeter {
    type GreetManyStream = Replies;
    type ChatStream = Replies;

    async fn greet(&self, request: Request<GreetRequest>) -> Result<Response<GreetReply>, Status> {
        self.count();
        let request = request.into_inner();
        if request.delay_ms > 0 {
            tokio::time::sleep(Duration::from_millis(request.delay_ms.into())).await;
        }
        Ok(Response::new(self.reply(&request)))
    }

    async fn greet_many(&self, request: Request<GreetManyRequest>) -> Result<Response<Replies>, Status> {
        self.count();
        let GreetManyRequest { name, count, interval_ms } = request.into_inner();
        let reply = self.reply(&GreetRequest { name, ..GreetRequest::default() });
        let replies = tokio_stream::iter(0..count).then(move |n| {
            let reply = reply.clone();
            async move {
                if n > 0 {
                    tokio::time::sleep(Duration::from_millis(interval_ms.into())).await;
                }
                Ok(reply)
            }
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn greet_all(&self, request: Request<Streaming<GreetRequest>>) -> Result<Response<GreetReply>, Status> {
        self.count();
        let mut requests = request.into_inner();
        let mut names = Vec::new();
        while let Some(request) = requests.message().await? {
            names.push(request.name);
        }
        Ok(Response::new(self.reply(&GreetRequest { name: names.join(", "), ..GreetRequest::default() })))
    }

    async fn chat(&self, request: Request<Streaming<GreetRequest>>) -> Result<Response<Replies>, Status> {
        self.count();
        let greeter = self.clone();
        let replies = request.into_inner().map(move |request| request.map(|request| greeter.reply(&request)));
        Ok(Response::new(Box::pin(replies)))
    }
}
