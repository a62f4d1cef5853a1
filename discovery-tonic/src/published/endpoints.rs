//! The endpoints of a channel as people see them.

use std::{error::Error, fmt, ops::Deref, sync::Arc, time::Instant};

use discovery_core::Instance;
use tokio::time;

use super::status::RegistryState;
use crate::{
    endpoint::{Endpoint, state::EndpointState},
    error::{printable, report},
};

/// The endpoints of a channel as last published: a slice, whose `Display` is a table for people.
///
/// The table ends with the state of the registry. A table without endpoints states why there are
/// none.
///
/// ```text
/// INSTANCE   ADDRESS         WEIGHT  STATE        IN FLIGHT  FAILURES
/// greeter-1  10.0.7.4:50051     100  ready                3         0
/// greeter-2  10.0.7.5:50051     100  backing off          0         5  connection refused
/// greeter-3  10.0.7.6:50051     100  ready                1         5  ejected for 3.2s
/// registry: in contact
/// ```
#[derive(Clone, Debug)]
pub struct Endpoints {
    rows: Vec<EndpointStatus>,
    /// Why there are no rows, or what else is to be known of the set.
    note: Option<String>,
    registry: RegistryState,
}

/// One endpoint of a channel, as [`BalancedChannel::endpoints`](crate::BalancedChannel::endpoints)
/// returns it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EndpointStatus {
    /// The instance, as it is registered.
    pub instance: Arc<Instance>,
    /// The state of its connections.
    pub state: EndpointState,
    /// The requests in flight on its current connections, each until its response stream ends.
    /// Requests on a connection that was lost or replaced are not counted.
    pub in_flight: u32,
    /// The consecutive calls that were lost with their connection or answered with `UNAVAILABLE`.
    pub failures: u32,
    /// Why the last attempt to connect failed; `None` once one succeeds. While the endpoint is
    /// connected, this is why another connection could not be made, such as one that replaces a
    /// connection of its maximum age.
    pub error: Option<Arc<dyn Error + Send + Sync>>,
    /// Why its last connection ended, if there was a reason: the GOAWAY of the peer, or an error of
    /// the network. It is kept until another connection ends with a reason.
    pub disconnect: Option<Arc<dyn Error + Send + Sync>>,
    /// When its ejection ends; after that it is probed.
    pub ejected_until: Option<Instant>,
    /// When its hold ends at the latest, if the registry no longer has the instance. An outage of
    /// the registry extends it.
    pub held_until: Option<Instant>,
}

/// One endpoint as the pool last published it.
#[derive(Debug)]
pub(crate) struct EndpointRow {
    pub(crate) instance: Arc<Instance>,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) ejected_until: Option<time::Instant>,
    pub(crate) held_until: Option<time::Instant>,
}

impl EndpointRow {
    pub(super) fn status(&self) -> EndpointStatus {
        let (state, in_flight) = self.endpoint.state();
        EndpointStatus {
            instance: Arc::clone(&self.instance),
            state,
            in_flight,
            error: self.endpoint.error(),
            disconnect: self.endpoint.disconnect(),
            failures: self.endpoint.tally.failures(),
            ejected_until: self.ejected_until.map(time::Instant::into_std),
            held_until: self.held_until.map(time::Instant::into_std),
        }
    }
}

impl Endpoints {
    pub(super) fn new(rows: Vec<EndpointStatus>, note: Option<String>, registry: RegistryState) -> Self {
        Self { rows, note, registry }
    }

    /// Returns where the channel stands with the registry.
    pub fn registry(&self) -> &RegistryState {
        &self.registry
    }
}

impl Deref for Endpoints {
    type Target = [EndpointStatus];

    fn deref(&self) -> &[EndpointStatus] {
        &self.rows
    }
}

impl IntoIterator for Endpoints {
    type Item = EndpointStatus;
    type IntoIter = std::vec::IntoIter<EndpointStatus>;

    fn into_iter(self) -> Self::IntoIter {
        self.rows.into_iter()
    }
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = |one: &EndpointStatus| [one.instance.id().to_string(), one.instance.address().to_string()];
        let rows: Vec<[String; 2]> = self.iter().map(texts).collect();
        let width = |column: usize, title: &str| rows.iter().map(|row| row[column].len()).fold(title.len(), usize::max);
        let id = width(0, ID);
        let address = width(1, ADDRESS);
        write!(f, "{ID:id$}  {ADDRESS:address$}  WEIGHT  STATE        IN FLIGHT  FAILURES")?;
        let now = Instant::now();
        for (row, one) in rows.iter().zip(&**self) {
            let weight = one.instance.weight();
            let state = one.state.to_string();
            let in_flight = one.in_flight;
            let failures = one.failures;
            write!(f, "\n{:id$}  {:address$}  {weight:>6}  {state:11}  {in_flight:>9}  {failures:>8}", row[0], row[1])?;
            if let Some(error) = &one.error {
                let what = match one.state {
                    EndpointState::NotServing | EndpointState::Ready => "cannot connect again: ",
                    EndpointState::BackingOff | EndpointState::Connecting | EndpointState::Idle => "",
                };
                write!(f, "  {what}{}", printable(&report(&**error)))?;
            }
            if let Some(disconnect) = &one.disconnect {
                write!(f, "  last connection: {}", printable(&report(&**disconnect)))?;
            }
            for (what, until) in [("ejected", one.ejected_until), ("held", one.held_until)] {
                if let Some(until) = until {
                    write!(f, "  {what} for {:.1}s", until.saturating_duration_since(now).as_secs_f64())?;
                }
            }
        }
        if let Some(note) = &self.note {
            write!(f, "\n{note}")?;
        }
        write!(f, "\nregistry: {}", self.registry)
    }
}

const ID: &str = "INSTANCE";
const ADDRESS: &str = "ADDRESS";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn endpoints_are_printed_as_a_table() {
        let endpoint = |id: &str, state| EndpointStatus {
            instance: Arc::new(Instance::new("10.0.7.4:50051".parse().unwrap()).with_id(id.parse().unwrap())),
            state,
            in_flight: 3,
            failures: 12,
            error: None,
            disconnect: None,
            ejected_until: None,
            held_until: None,
        };
        let mut out = endpoint("a-long-name", EndpointState::BackingOff);
        out.error = Some(Arc::new(std::io::Error::other("connection\nrefused")));
        out.disconnect = Some(Arc::new(std::io::Error::other("too_many_pings")));
        out.ejected_until = Some(Instant::now() + Duration::from_secs(60));
        let rows = vec![endpoint("one", EndpointState::Ready), out];
        let printed = Endpoints::new(rows, None, RegistryState::InContact).to_string();
        let lines: Vec<_> = printed.lines().collect();
        assert_eq!(lines[0], "INSTANCE     ADDRESS         WEIGHT  STATE        IN FLIGHT  FAILURES");
        assert_eq!(lines[1], "one          10.0.7.4:50051     100  ready                3        12");
        assert!(lines[2].starts_with(
            "a-long-name  10.0.7.4:50051     100  backing off          3        12  connection\\nrefused  last connection: too_many_pings  ejected for "
        ));
        assert!(lines[2].ends_with('s') && lines.len() == 4, "{printed}");
        assert_eq!(lines[3], "registry: in contact");

        let mut expired = endpoint("one", EndpointState::Ready);
        expired.error = Some(Arc::new(std::io::Error::other("it has expired")));
        let printed = Endpoints::new(vec![expired], None, RegistryState::InContact).to_string();
        assert!(
            printed.contains("  ready                3        12  cannot connect again: it has expired\n"),
            "{printed}"
        );

        let note = Some("no endpoint of payments: it has no instances".to_owned());
        let printed = Endpoints::new(Vec::new(), note, RegistryState::Waiting).to_string();
        let lines: Vec<_> = printed.lines().skip(1).collect();
        assert_eq!(lines, ["no endpoint of payments: it has no instances", "registry: has not answered yet"]);
    }
}
