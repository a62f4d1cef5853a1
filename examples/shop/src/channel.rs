//! The settings of every channel of the shop.

use std::{sync::Arc, time::Duration};

use discovery::{
    Backend, BalancedChannel, Error,
    channel::{EndpointSettings, RetryPolicy},
};
use tracing::info;

use crate::{Settings, tls};

/// Returns a channel to a service of the shop. Build one per service and process, and clone it.
///
/// # Errors
///
/// If the name of the service, a setting or the files of [`Settings::tls`] cannot be used.
pub fn channel(settings: &Settings, backend: Arc<dyn Backend>, service: &str) -> Result<BalancedChannel, Error> {
    let connections = EndpointSettings::default().max_connection_age(settings.connection_age)?;
    BalancedChannel::builder(backend, service.parse()?)
        .tls(settings.tls.as_deref().map(|folder| tls::client(folder, service)))
        .endpoint_settings(move |_| connections.clone())
        .timeout(Duration::from_secs(2)) // of the whole call, with its retries
        .retry(RetryPolicy::new(3)?) // all calls of the shop may be repeated
        .health_check("") // no calls to servers that do not report SERVING
        .endpoint_metrics(true) // for each instance
        .build()
}

/// Waits until the channel has a server to call, however long it takes: the registry and the
/// servers may start in any sequence.
pub async fn until_ready(channel: BalancedChannel) {
    while let Err(error) = channel.wait_until_ready(Duration::from_secs(5)).await {
        info!(error = %error.report(), "waiting for a service");
    }
}
