//! Metrics for Prometheus.

use std::{net::SocketAddr, time::Duration};

use axum::{Router, routing::get};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;

use crate::BoxError;

/// Installs the recorder, which must happen before a channel or a server is built: they look up
/// their metrics once.
///
/// # Errors
///
/// If there is a recorder already.
pub fn record_metrics() -> Result<PrometheusHandle, BoxError> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)?
        .install_recorder()?;
    tokio::spawn(tidy(recorder.clone()));
    Ok(recorder)
}

/// Serves `/metrics` at an address of its own, for a program that has no other HTTP.
///
/// # Errors
///
/// If the address cannot be bound.
pub async fn serve_metrics(metrics: PrometheusHandle, address: SocketAddr) -> Result<(), BoxError> {
    let routes = Router::new().route("/metrics", get(async move || metrics.render()));
    let listener = TcpListener::bind(address).await?;
    tokio::spawn(axum::serve(listener, routes).into_future());
    Ok(())
}

/// Keeps the memory of the metrics bounded while nobody reads them.
async fn tidy(metrics: PrometheusHandle) {
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        metrics.run_upkeep();
    }
}

const BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5];
