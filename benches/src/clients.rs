//! The channels that are compared, over the same servers.

use std::{net::SocketAddr, time::Duration};

use discovery_core::{FixedResolver, Instance};
use discovery_tonic::{BalancedChannel, EndpointState};
use http::Request;
use tokio::time::{sleep, timeout};
use tonic::{
    body::Body,
    transport::{Channel, Endpoint},
};
use tower::{
    Service,
    balance::p2c::Balance,
    buffer::Buffer,
    discover::ServiceList,
    load::{CompleteOnResponse, PeakEwma},
};

use crate::Failure;

/// Ours, just built.
///
/// # Errors
///
/// Outside of a runtime.
pub fn ours(addresses: &[SocketAddr]) -> Result<BalancedChannel, Failure> {
    let instances: Result<Vec<_>, _> =
        addresses.iter().map(|address| Ok(Instance::new((*address).try_into()?))).collect();
    let instances = instances.map_err(|error: discovery_core::Error| error)?;
    Ok(BalancedChannel::new(FixedResolver::new(instances), "greeter".parse()?)?)
}

/// Ours, with all endpoints connected.
///
/// # Errors
///
/// Where an endpoint is not ready within ten seconds.
pub async fn ours_ready(addresses: &[SocketAddr]) -> Result<BalancedChannel, Failure> {
    let channel = ours(addresses)?;
    timeout(Duration::from_secs(10), async {
        while channel.endpoints().iter().filter(|one| one.state == EndpointState::Ready).count() < addresses.len() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await?;
    Ok(channel)
}

/// tonic's balanced channel.
///
/// # Errors
///
/// Where an address makes no URI.
pub fn tonic_balanced(addresses: &[SocketAddr]) -> Result<Channel, Failure> {
    let endpoints: Result<Vec<_>, _> = addresses.iter().map(|address| endpoint(*address)).collect();
    Ok(Channel::balance_list(endpoints?.into_iter()))
}

/// What a user of tower would write: a balancer over tonic's channels by the peak of their latency, behind a buffer to be cloned.
///
/// # Errors
///
/// Where a server is not there.
pub async fn tower_ewma(addresses: &[SocketAddr]) -> Result<Buffered, Failure> {
    let mut channels = Vec::new();
    for address in addresses {
        let channel = tonic_single(*address).await?;
        channels.push(PeakEwma::new(channel, RTT, DECAY.as_nanos() as f64, CompleteOnResponse::default()));
    }
    Ok(Buffer::new(Balance::new(ServiceList::new::<Request<Body>>(channels)), BUFFER))
}

/// tonic's channel to one server.
///
/// # Errors
///
/// Where the server is not there.
pub async fn tonic_single(address: SocketAddr) -> Result<Channel, Failure> {
    Ok(endpoint(address)?.connect().await?)
}

/// The type of [`tower_ewma`].
pub type Buffered = Buffer<
    Request<Body>,
    <Balance<ServiceList<Vec<PeakEwma<Channel>>>, Request<Body>> as Service<Request<Body>>>::Future,
>;

fn endpoint(address: SocketAddr) -> Result<Endpoint, Failure> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?)
}

/// What tower's own example assumes of an endpoint that has not answered yet, and how fast it forgets.
const RTT: Duration = Duration::from_millis(30);
const DECAY: Duration = Duration::from_secs(10);
const BUFFER: usize = 1024;
