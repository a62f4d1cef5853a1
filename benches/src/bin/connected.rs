//! `connected <instances>`: prints the cost of a channel with this many connected endpoints, in
//! memory, at a few calls a second.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use benches::{Failure, caller::Caller, clients, cpu, load::steady};
use discovery_core::{FixedResolver, Instance};
use discovery_tonic::{BalancedChannel, EndpointState};
use futures::stream::unfold;
use greeter::Greeter;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{DuplexStream, duplex},
    sync::mpsc::{UnboundedSender, unbounded_channel},
    time::{sleep, timeout},
};
use tonic::transport::Server;
use tower::service_fn;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [count] = &arguments[..] else { return Err("connected <instances>".into()) };
    let count = count.parse()?;
    let (opened, accepted) = unbounded_channel::<DuplexStream>();
    let incoming = unfold(accepted, async |mut accepted| Some((Ok::<_, io::Error>(accepted.recv().await?), accepted)));
    tokio::spawn(Server::builder().add_service(Greeter::new("here").into_service()).serve_with_incoming(incoming));

    for (how, slow_start) in [("", Duration::ZERO), (", with slow start", FOR_EVER)] {
        let channel = channel(count, slow_start, opened.clone())?;
        timeout(Duration::from_secs(120), async {
            while channel.endpoints().iter().filter(|one| one.state == EndpointState::Ready).count() < count {
                sleep(Duration::from_millis(100)).await;
            }
        })
        .await?;
        let caller = Caller::new(channel, None);
        // The first sweeps judge endpoints that have just connected.
        steady(&caller, RATE, Duration::default, sleep(WHILE / 5)).await;
        let start = Instant::now();
        let before = cpu::process();
        let (calls, ()) = steady(&caller, RATE, Duration::default, sleep(WHILE)).await;
        let share = (cpu::process() - before).as_secs_f64() / start.elapsed().as_secs_f64();
        if calls.iter().any(|call| call.failed()) {
            return Err("a call failed".into());
        }
        println!("percent of a core{how} {:.2}", share * 100.0);
    }
    Ok(())
}

fn channel(
    count: usize,
    slow_start: Duration,
    opened: UnboundedSender<DuplexStream>,
) -> Result<BalancedChannel, Failure> {
    let connector = service_fn(move |_: Uri| {
        let (near, far) = duplex(64 << 10);
        let open = opened.send(far).map(|()| TokioIo::new(near)).map_err(|_| "the server is gone");
        std::future::ready(open)
    });
    let mut instances = Vec::new();
    for n in 0..count {
        let address = SocketAddr::from((Ipv4Addr::from_bits(0x0a00_0001 + u32::try_from(n)?), 50051));
        instances.push(Instance::new(address.try_into()?));
    }
    let builder = BalancedChannel::builder(FixedResolver::new(instances), clients::service());
    Ok(builder.connector(connector).slow_start(slow_start).build()?)
}

/// Calls a second.
const RATE: u32 = 5;
const WHILE: Duration = Duration::from_secs(10);
/// No slow start ends during the measurement.
const FOR_EVER: Duration = Duration::from_secs(3600);
