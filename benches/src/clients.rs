//! The channels that are compared, over the same servers.

use std::{net::SocketAddr, time::Duration};

use discovery_core::{FixedResolver, Instance, InstanceId, Resolver, ServiceName, Snapshot};
use discovery_memory::MemoryBackend;
use discovery_tonic::{BalancedChannel, ChannelBuilder, EndpointState};
use futures::StreamExt;
use http::Request;
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};
use tonic::{
    body::Body,
    transport::{Channel, Endpoint, channel::Change},
};
use tower::{
    Service,
    balance::p2c::Balance,
    buffer::Buffer,
    discover::ServiceList,
    load::{CompleteOnResponse, PeakEwma},
};

use crate::Failure;

/// Returns our channel, just built.
///
/// # Errors
///
/// Outside a runtime.
pub fn ours(addresses: &[SocketAddr]) -> Result<BalancedChannel, Failure> {
    Ok(builder(addresses)?.build()?)
}

/// Returns our channel with all endpoints connected.
///
/// # Errors
///
/// If an endpoint is not ready within ten seconds.
pub async fn ours_ready(addresses: &[SocketAddr]) -> Result<BalancedChannel, Failure> {
    ours_with(addresses, |builder| builder).await
}

/// Like [`ours_ready`], built as `configure` specifies.
///
/// # Errors
///
/// If an endpoint is not ready within ten seconds.
pub async fn ours_with(
    addresses: &[SocketAddr],
    configure: impl FnOnce(ChannelBuilder) -> ChannelBuilder,
) -> Result<BalancedChannel, Failure> {
    ready(configure(builder(addresses)?).build()?, addresses.len()).await
}

fn builder(addresses: &[SocketAddr]) -> Result<ChannelBuilder, Failure> {
    let instances: Result<Vec<_>, _> =
        addresses.iter().map(|address| Ok(Instance::new((*address).try_into()?))).collect();
    let instances = instances.map_err(|error: discovery_core::Error| error)?;
    Ok(BalancedChannel::builder(FixedResolver::new(instances), service()))
}

async fn ready(channel: BalancedChannel, count: usize) -> Result<BalancedChannel, Failure> {
    timeout(Duration::from_secs(10), async {
        while channel.endpoints().iter().filter(|one| one.state == EndpointState::Ready).count() < count {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await?;
    Ok(channel)
}

/// Returns our channel over the registry with this many endpoints connected, built as `configure`
/// specifies.
///
/// # Errors
///
/// If they are not ready within ten seconds.
pub async fn ours_following(
    backend: &MemoryBackend,
    count: usize,
    configure: impl FnOnce(ChannelBuilder) -> ChannelBuilder,
) -> Result<BalancedChannel, Failure> {
    let builder = BalancedChannel::builder(backend.another_process(), service());
    ready(configure(builder).build()?, count).await
}

/// Returns tonic's balanced channel, which follows the instances in the registry.
///
/// # Errors
///
/// If the registry cannot be watched.
pub async fn tonic_following(backend: &MemoryBackend) -> Result<Channel, Failure> {
    let (channel, changes) = Channel::balance_channel::<InstanceId>(1024);
    let mut updates = backend.another_process().watch(&service())?;
    let (first, filled) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let mut set = Snapshot::default();
        let mut first = Some(first);
        while let Some(update) = updates.next().await {
            let next = set.after(&update);
            let change = set.diff(&next);
            set = next;
            for instance in change.upserts() {
                let uri = format!("http://{}", instance.address());
                let Ok(endpoint) = Endpoint::from_shared(uri) else { continue };
                if changes.send(Change::Insert(instance.id().clone(), endpoint)).await.is_err() {
                    return;
                }
            }
            for id in change.removes() {
                if changes.send(Change::Remove(id.clone())).await.is_err() {
                    return;
                }
            }
            drop(first.take());
        }
    });
    // Dropping `first` signals that the set is there.
    let _ = filled.await;
    Ok(channel)
}

/// Returns the service name of all servers.
#[must_use]
pub fn service() -> ServiceName {
    "greeter".parse().expect("a service name")
}

/// Returns tonic's balanced channel.
///
/// # Errors
///
/// If an address does not make a URI.
pub fn tonic_balanced(addresses: &[SocketAddr]) -> Result<Channel, Failure> {
    let endpoints: Result<Vec<_>, _> = addresses.iter().map(|address| endpoint(*address)).collect();
    Ok(Channel::balance_list(endpoints?.into_iter()))
}

/// Returns what a user of tower would write: a balancer over tonic's channels by peak EWMA of their
/// latency, behind a buffer so that it can be cloned.
///
/// # Errors
///
/// If a server cannot be reached.
pub async fn tower_ewma(addresses: &[SocketAddr]) -> Result<Buffered, Failure> {
    let mut channels = Vec::new();
    for address in addresses {
        let channel = tonic_single(*address).await?;
        channels.push(PeakEwma::new(channel, RTT, DECAY.as_nanos() as f64, CompleteOnResponse::default()));
    }
    Ok(Buffer::new(Balance::new(ServiceList::new::<Request<Body>>(channels)), BUFFER))
}

/// Returns tonic's channel to one server.
///
/// # Errors
///
/// If the server cannot be reached.
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

/// The latency that tower's own example assumes for an endpoint that has not answered yet, and the
/// time over which it decays.
const RTT: Duration = Duration::from_millis(30);
const DECAY: Duration = Duration::from_secs(10);
const BUFFER: usize = 1024;
