//! The health that the server reports (`grpc.health.v1`).

use tonic_health::{ServingStatus, server::HealthReporter};

/// Reports the health of the server and of its gRPC services.
pub(super) struct Health {
    reporter: HealthReporter,
    /// The gRPC services; the empty name is the server as a whole.
    services: Vec<String>,
}

impl Health {
    pub(super) fn new(reporter: HealthReporter, services: impl Iterator<Item = String>) -> Self {
        Self { reporter, services: std::iter::once(String::new()).chain(services).collect() }
    }

    pub(super) async fn say(&self, status: ServingStatus) {
        for service in &self.services {
            self.reporter.set_service_status(service, status).await;
        }
    }

    pub(super) fn reporter(&self) -> &HealthReporter {
        &self.reporter
    }

    pub(super) fn services(&self) -> &[String] {
        &self.services
    }
}
