//! What the health that a server reports means for its registrations.

use std::sync::Arc;

use discovery_core::{Instance, Weight};
use futures::{
    FutureExt, Stream, StreamExt,
    stream::{self, BoxStream, SelectAll},
};
use tokio::time::{Duration, sleep};
use tonic::Request;
use tonic_health::{
    pb::{HealthCheckRequest, health_check_response::ServingStatus, health_server::Health as _},
    server::HealthService,
};

use super::health::Health;

/// What becomes of a server's registrations while it reports that it is not serving; see
/// [`when_not_serving`](super::ServerBuilder::when_not_serving).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum NotServing {
    /// The instance leaves the registry, and is registered again once it serves.
    Leave,
    /// Nothing changes. Only clients that check health notice.
    #[default]
    Stay,
    /// The instance stays with weight 0, and gets its own weight again once it serves. If all
    /// instances of a service have weight 0, they share its calls equally.
    ZeroWeight,
}

/// How an instance is in the registry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Presence {
    Absent,
    Present,
    Weightless,
}

/// Whether a server serves, by the statuses that its reporter has.
pub(super) struct Readiness {
    /// Whether each gRPC service serves; `None` until that was read.
    serving: Vec<Option<bool>>,
    changes: SelectAll<BoxStream<'static, (usize, bool)>>,
}

impl NotServing {
    pub(super) fn presence(self, is_serving: bool) -> Presence {
        match self {
            _ if is_serving => Presence::Present,
            Self::Leave => Presence::Absent,
            Self::Stay => Presence::Present,
            Self::ZeroWeight => Presence::Weightless,
        }
    }
}

impl Presence {
    /// Returns what to register of the instance that the user wants.
    pub(super) fn of(self, wanted: &Instance) -> Option<Instance> {
        match self {
            Self::Absent => None,
            Self::Present => Some(wanted.clone()),
            Self::Weightless => Some(wanted.clone().with_weight(Weight::new(0).expect("0 is a weight"))),
        }
    }
}

impl Readiness {
    /// Follows what a reporter has for the server and for its gRPC services; without one the server
    /// always serves.
    pub(super) async fn follow(health: Option<&Health>) -> Self {
        let mut changes = SelectAll::new();
        let mut count = 0;
        if let Some(health) = health {
            let service = Arc::new(HealthService::from_health_reporter(health.reporter().clone()));
            for name in health.services() {
                let number = count;
                count += 1;
                let statuses = statuses(Arc::clone(&service), name.clone());
                changes.push(statuses.map(move |is_serving| (number, is_serving)).boxed());
            }
        }
        let mut readiness = Self { serving: vec![None; count], changes };
        while readiness.serving.contains(&None) {
            readiness.next().await;
        }
        readiness
    }

    /// Returns whether the server serves now: each of its gRPC services, and the server as a whole.
    pub(super) fn is_serving(&mut self) -> bool {
        while let Some(Some((number, is_serving))) = self.changes.next().now_or_never() {
            self.serving[number] = Some(is_serving);
        }
        self.was_serving()
    }

    /// Waits until the server serves if it did not, and the other way around. Of several changes in
    /// the meantime only the last counts.
    ///
    /// Cancel safe: a change that was read is in `serving`, from where `is_serving` returns it.
    pub(super) async fn changed(&mut self, from: bool) {
        while self.is_serving() == from {
            self.next().await;
        }
    }

    async fn next(&mut self) {
        match self.changes.next().await {
            Some((number, is_serving)) => self.serving[number] = Some(is_serving),
            // Nothing is followed.
            None => std::future::pending().await,
        }
    }

    fn was_serving(&self) -> bool {
        self.serving.iter().all(|serving| *serving == Some(true))
    }
}

/// Returns whether a gRPC service serves now, and after each change. A service whose status is
/// cleared does not.
fn statuses(health: Arc<HealthService>, service: String) -> impl Stream<Item = bool> + Send {
    /// The statuses of the service; `None` while it has none.
    type Watch = Option<tonic_health::server::WatchStream>;
    let first: (Watch, bool) = (None, false);
    stream::unfold((health, service, first), |(health, service, (mut watch, mut was_cleared))| async move {
        loop {
            if let Some(statuses) = &mut watch {
                if let Some(Ok(response)) = statuses.next().await {
                    let is_serving = response.status() == ServingStatus::Serving;
                    return Some((is_serving, (health, service, (watch, false))));
                }
                watch = None;
            }
            let request = Request::new(HealthCheckRequest { service: service.clone() });
            match health.watch(request).await {
                Ok(response) => watch = Some(response.into_inner()),
                Err(_) if was_cleared => sleep(PAUSE).await,
                Err(_) => {
                    was_cleared = true;
                    return Some((false, (health, service, (None, was_cleared))));
                }
            }
        }
    })
}

/// How often a gRPC service whose status was cleared is looked for.
const PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use tokio::time::timeout;
    use tonic_health::{
        ServingStatus::{NotServing as Down, Serving as Up, Unknown},
        server::HealthReporter,
    };

    use super::*;

    #[test]
    fn what_is_registered_depends_on_the_setting_and_on_the_health() {
        let wanted = Instance::new("10.0.0.1:80".parse().unwrap()).with_weight(Weight::new(7).unwrap());
        for (setting, is_serving, weight) in [
            (NotServing::Leave, true, Some(7)),
            (NotServing::Leave, false, None),
            (NotServing::Stay, true, Some(7)),
            (NotServing::Stay, false, Some(7)),
            (NotServing::ZeroWeight, true, Some(7)),
            (NotServing::ZeroWeight, false, Some(0)),
        ] {
            let registered = setting.presence(is_serving).of(&wanted);
            assert_eq!(registered.map(|one| one.weight().value()), weight, "{setting:?} {is_serving}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_serves_while_all_that_it_reports_is_serving() {
        let mut reporter = HealthReporter::new();
        let health = Health::new(reporter.clone(), ["a".to_owned(), "b".to_owned()].into_iter());
        health.say(Up).await;
        let mut readiness = Readiness::follow(Some(&health)).await;
        assert!(readiness.is_serving());
        let unchanged = async |readiness: &mut Readiness, from| {
            timeout(2 * PAUSE, readiness.changed(from)).await.expect_err("nothing changed");
        };
        unchanged(&mut readiness, true).await;
        for (service, status, expected) in [
            ("", Down, false),
            ("a", Down, false),
            ("", Up, false),
            ("a", Up, true),
            ("b", Unknown, false),
            ("c", Down, false),
            ("b", Up, true),
            ("b", Up, true),
        ] {
            let from = readiness.is_serving();
            reporter.set_service_status(service, status).await;
            if from == expected {
                unchanged(&mut readiness, from).await;
            } else {
                timeout(PAUSE / 2, readiness.changed(from)).await.unwrap();
            }
            assert_eq!(readiness.is_serving(), expected, "{service} {status}");
        }
        reporter.clear_service_status("a").await;
        timeout(PAUSE / 2, readiness.changed(true)).await.unwrap();
        unchanged(&mut readiness, false).await;
        reporter.set_service_status("a", Up).await;
        timeout(2 * PAUSE, readiness.changed(false)).await.unwrap();

        for _ in 0..100 {
            reporter.set_service_status("a", Down).await;
            reporter.set_service_status("a", Up).await;
        }
        unchanged(&mut readiness, true).await;
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_reporter_a_server_always_serves() {
        let mut readiness = Readiness::follow(None).await;
        assert!(readiness.is_serving());
        timeout(PAUSE, readiness.changed(true)).await.unwrap_err();
    }
}
