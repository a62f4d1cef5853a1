//! The channels that are compared, over the same servers.

use std::{net::SocketAddr, time::Duration};

use discovery_core::{FixedResolver, Instance};
use discovery_tonic::{BalancedChannel, EndpointState};
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};

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

/// tonic's channel to one server.
///
/// # Errors
///
/// Where the server is not there.
pub async fn tonic_single(address: SocketAddr) -> Result<Channel, Failure> {
    Ok(endpoint(address)?.connect().await?)
}

fn endpoint(address: SocketAddr) -> Result<Endpoint, Failure> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?)
}
