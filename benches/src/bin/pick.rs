//! `pick <balancer> <candidates> <operations>`: ready, call and completion over an endpoint that
//! does nothing.

use std::{
    convert::Infallible,
    future::{Future, Ready, poll_fn, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use benches::Failure;
use discovery_core::Weight;
use discovery_tonic::balance::{
    PowerOfTwo,
    internal::{Balancer, BalancerHandle, Candidate, Load, Picked},
};
use tower::{
    Service,
    balance::p2c::Balance,
    buffer::Buffer,
    discover::ServiceList,
    load::{CompleteOnResponse, PeakEwma, PendingRequests},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [balancer, candidates, operations] = &arguments[..] else {
        return Err("pick <balancer> <candidates> <operations>".into());
    };
    let count = candidates.parse()?;
    let operations = operations.parse()?;
    match balancer.as_str() {
        "ours" => drive(&mut ours(count), operations).await,
        "ours-cloned" => drive_clones(&ours(count), operations).await,
        "in-flight" => drive(&mut in_flight(count), operations).await,
        "ewma" => drive(&mut ewma(count), operations).await,
        "buffer" => drive(&mut Buffer::new(ewma(count), BUFFER), operations).await,
        "buffer-cloned" => drive_clones(&Buffer::new(ewma(count), BUFFER), operations).await,
        other => Err(format!("no balancer: {other}").into()),
    }
}

async fn drive<S: Service<(), Error: Into<Failure>>>(service: &mut S, operations: usize) -> Result<(), Failure> {
    for _ in 0..WARM_UP + operations {
        poll_fn(|context| service.poll_ready(context)).await.map_err(Into::into)?;
        service.call(()).await.map_err(Into::into)?;
    }
    Ok(())
}

/// Uses a clone for each call, as the handlers of a server do.
async fn drive_clones<S: Service<(), Error: Into<Failure>> + Clone>(
    service: &S,
    operations: usize,
) -> Result<(), Failure> {
    for _ in 0..WARM_UP + operations {
        let mut service = service.clone();
        poll_fn(|context| service.poll_ready(context)).await.map_err(Into::into)?;
        service.call(()).await.map_err(Into::into)?;
    }
    Ok(())
}

fn ours(count: usize) -> Picking {
    let balancer = Balancer::new(PowerOfTwo::default());
    balancer.publish((0..count).map(|_| Candidate::new(NoOp, Weight::default(), Arc::new(Load::default()))));
    Picking(balancer.handle())
}

fn in_flight(count: usize) -> Balance<ServiceList<Vec<PendingRequests<NoOp>>>, ()> {
    let services: Vec<_> = (0..count).map(|_| PendingRequests::new(NoOp, CompleteOnResponse::default())).collect();
    Balance::new(ServiceList::new::<()>(services))
}

fn ewma(count: usize) -> Balance<ServiceList<Vec<PeakEwma<NoOp>>>, ()> {
    let rtt = Duration::from_millis(30);
    let decay = Duration::from_secs(10).as_nanos() as f64;
    let services = (0..count).map(|_| PeakEwma::new(NoOp, rtt, decay, CompleteOnResponse::default()));
    Balance::new(ServiceList::new::<()>(services.collect::<Vec<_>>()))
}

/// An endpoint that does nothing.
#[derive(Clone, Copy, Debug)]
struct NoOp;

/// The picker as the channel uses it: pick, send, record the answer, release.
#[derive(Clone, Debug)]
struct Picking(BalancerHandle<NoOp>);

struct Counted {
    picked: Picked<NoOp>,
    answer: Ready<Result<(), Infallible>>,
}

impl Service<()> for NoOp {
    type Response = ();
    type Error = Infallible;
    type Future = Ready<Result<(), Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        ready(Ok(()))
    }
}

impl Service<()> for Picking {
    type Response = ();
    type Error = Infallible;
    type Future = Counted;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Counted {
        let picked = self.0.pick(true).expect("the candidates have no limits");
        let answer = { *picked }.call(());
        Counted { picked, answer }
    }
}

impl Future for Counted {
    type Output = Result<(), Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = Pin::new(&mut self.answer).poll(context);
        if answer.is_ready() {
            self.picked.answer();
        }
        answer
    }
}

const WARM_UP: usize = 500;
const BUFFER: usize = 1024;
