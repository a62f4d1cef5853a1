//! Calls at a steady rate over any channel, and their outcome.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use discovery_core::{InstanceId, Resolver, ServiceName, Snapshot};
use futures::{StreamExt, future::BoxFuture};
use greeter::{GreetManyRequest, GreetRequest, GreeterClient};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval},
};
use tonic::{
    Request, Status,
    body::Body,
    client::GrpcService,
    codegen::{Body as HttpBody, Bytes, StdError},
    metadata::MetadataValue,
    transport::{Channel, Endpoint, channel::Change},
};

/// Makes one call of a client, given the call's number, which travels as the metadata `number`.
pub type Call = Box<dyn Fn(u64) -> BoxFuture<'static, Result<(), Status>> + Send>;

/// A steady rate of calls, independent of how earlier calls fare. At most 200 run at once, so that
/// a machine that is too slow falls behind instead of failing them all.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Outcome>,
}

/// The outcome of the calls of a [`Load`].
#[derive(Debug, Default)]
pub struct Outcome {
    /// How many calls were made.
    pub calls: u64,
    /// The calls that failed.
    pub failed: Vec<Failed>,
}

/// A call that failed.
#[derive(Debug)]
pub struct Failed {
    /// Its number.
    pub number: u64,
    /// When it began.
    pub begun: Instant,
    /// The status it ended with.
    pub status: Status,
}

impl Load {
    /// Starts to call this many times a second, with numbers from `first` on.
    pub fn start(first: u64, per_second: u32, call: Call) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut outcome = Outcome::default();
            let mut calls = JoinSet::new();
            let mut ticks = interval(Duration::from_secs(1) / per_second);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            while !stopped.load(Ordering::Relaxed) {
                ticks.tick().await;
                let number = first + outcome.calls;
                let one = call(number);
                outcome.calls += 1;
                // The call begins when its task runs; until then it is not in flight.
                calls.spawn(async move { (number, Instant::now(), one.await) });
                while let Some(ended) = calls.try_join_next() {
                    outcome.count(ended.expect("calls do not panic"));
                }
                while calls.len() >= MOST {
                    let ended = calls.join_next().await.expect("there are many");
                    outcome.count(ended.expect("calls do not panic"));
                }
            }
            while let Some(ended) = calls.join_next().await {
                outcome.count(ended.expect("calls do not panic"));
            }
            outcome
        });
        Self { stop, task }
    }

    /// Stops calling and waits for the calls in flight.
    pub async fn stop(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the load does not panic")
    }
}

impl Outcome {
    fn count(&mut self, (number, begun, result): (u64, Instant, Result<(), Status>)) {
        self.failed.extend(result.err().map(|status| Failed { number, begun, status }));
    }
}

/// Alternates calls that take 10 ms with streams of five answers in 80 ms.
pub fn unary_and_streaming<C>(channel: C) -> Call
where
    C: GrpcService<Body, Future: Send, Error: Into<StdError>> + Clone + Send + Sync + 'static,
    C::ResponseBody: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send,
{
    let unary = unary(channel.clone(), Duration::from_millis(10));
    let client = GreeterClient::new(channel);
    Box::new(move |number| {
        if number % 2 == 0 {
            return unary(number);
        }
        let mut client = client.clone();
        Box::pin(async move {
            let request = GreetManyRequest { count: 5, interval_ms: 20, ..GreetManyRequest::default() };
            let mut answers = client.greet_many(numbered(request, number)).await?.into_inner();
            while answers.message().await?.is_some() {}
            Ok(())
        })
    })
}

/// Makes calls that take this long.
pub fn unary<C>(channel: C, time: Duration) -> Call
where
    C: GrpcService<Body, Future: Send, Error: Into<StdError>> + Clone + Send + Sync + 'static,
    C::ResponseBody: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send,
{
    let client = GreeterClient::new(channel);
    let delay_ms = u32::try_from(time.as_millis()).expect("calls are short");
    Box::new(move |number| {
        let mut client = client.clone();
        let request = numbered(GreetRequest { delay_ms, ..GreetRequest::default() }, number);
        Box::pin(async move { client.greet(request).await.map(drop) })
    })
}

fn numbered<T>(message: T, number: u64) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("number", MetadataValue::from(number));
    request.set_timeout(Duration::from_secs(10));
    request
}

/// Returns tonic's own balancer, fed by a resolver, once it knows the first set.
pub async fn tonic_channel(resolver: &dyn Resolver, service: &ServiceName) -> Channel {
    let (channel, changes) = Channel::balance_channel::<InstanceId>(1024);
    let mut updates = resolver.watch(service).expect("there is a runtime");
    let mut set = Snapshot::default();
    let (first, filled) = tokio::sync::oneshot::channel();
    let mut first = Some(first);
    tokio::spawn(async move {
        while let Some(update) = updates.next().await {
            let next = set.after(&update);
            let change = set.diff(&next);
            for instance in change.upserts() {
                let endpoint = Endpoint::from_shared(format!("http://{}", instance.address())).expect("a URI");
                if changes.send(Change::Insert(instance.id().clone(), endpoint)).await.is_err() {
                    return;
                }
            }
            for id in change.removes() {
                if changes.send(Change::Remove(id.clone())).await.is_err() {
                    return;
                }
            }
            set = next;
            first.take().map(|first| first.send(()));
        }
    });
    filled.await.expect("the task goes on");
    channel
}

const MOST: usize = 200;
