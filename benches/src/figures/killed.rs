use std::time::Duration;

use discovery_core::{Instance, Registration, Registry};
use discovery_memory::MemoryBackend;
use discovery_tonic::{BalancedChannel, RetryPolicy};
use futures::future::join3;
use tokio::time::sleep;

use crate::{
    Failure,
    caller::{Caller, Transport},
    clients,
    load::{Ended, steady},
    servers::{Kind, Servers},
    table::Row,
};

/// Four servers, each in its own process, and their registrations.
struct Fleet {
    backend: MemoryBackend,
    servers: Vec<Servers>,
    registrations: Vec<Registration>,
}

/// The outcome of a client's calls.
struct Outcome {
    calls: Vec<Ended>,
    /// The requests in flight at the server when it was killed, if the client reports them.
    in_flight: u32,
    /// When the server was killed, since the calls began.
    killed: Duration,
    /// The endpoints that the client knew then.
    known: usize,
}

/// L4: one of four servers is killed, and removed from the registry two seconds later.
pub(super) async fn removed_later() -> Result<Vec<Row>, Failure> {
    let plain = Fleet::start().await?;
    let repeating = Fleet::start().await?;
    let tonic = Fleet::start().await?;
    let ours = clients::ours_following(&plain.backend, 4, |builder| builder).await?;
    let policy = RetryPolicy::new(3)?;
    let ours_repeating = clients::ours_following(&repeating.backend, 4, |builder| builder.retry(policy)).await?;
    let channel = clients::tonic_following(&tonic.backend).await?;
    let (ours, ours_repeating, tonic) = join3(
        plain.lose_one(ours.clone(), Some(ours)),
        repeating.lose_one(ours_repeating.clone(), Some(ours_repeating)),
        tonic.lose_one(channel, None),
    )
    .await;
    let ours = ours?;
    let ours_repeating = ours_repeating?;
    let tonic = tonic?;
    let what = format!("failed of {} calls, 1 of 4 servers killed and removed 2 s later", ours.calls.len());
    let row = Row::new("L4", &what, ours.failed());
    Ok(vec![
        row.clone().against("in flight there at the kill", ours.in_flight.into()).more(0.0),
        row.against(TONIC, tonic.failed()),
        Row::new("L4", format!("{what}, with a `RetryPolicy`"), ours_repeating.failed()).most(0.0),
    ])
}

/// L5: the registry is lost for the whole run, and then a server is killed.
pub(super) async fn registry_lost() -> Result<Vec<Row>, Failure> {
    let fleet = Fleet::start().await?;
    let tonic = Fleet::start().await?;
    let channel = clients::ours_following(&fleet.backend, 4, |builder| builder).await?;
    let tonic_channel = clients::tonic_following(&tonic.backend).await?;
    let (ours, tonic) =
        tokio::join!(fleet.lose_registry(channel.clone(), Some(channel)), tonic.lose_registry(tonic_channel, None));
    let ours = ours?;
    let tonic = tonic?;
    let [before, after] = ours.parts();
    let [tonic_before, tonic_after] = tonic.parts();
    let failed = |calls: &[Ended]| calls.iter().filter(|call| call.failed()).count() as f64;
    let what = format!("failed of {} calls without the registry, whose leases end after 5 s", before.len());
    let then = format!("failed of {} calls then, 1 of 4 servers killed", after.len());
    Ok(vec![
        Row::new("L5", what, failed(&before)).against(TONIC, failed(&tonic_before)).most(0.0),
        Row::new("L5", "endpoints gone without the registry", 4.0 - ours.known as f64).most(0.0),
        Row::new("L5", &then, failed(&after)).against("in flight there at the kill", ours.in_flight.into()).more(0.0),
        Row::new("L5", then, failed(&after)).against(TONIC, failed(&tonic_after)),
    ])
}

impl Fleet {
    async fn start() -> Result<Self, Failure> {
        let mut fleet = Self { backend: MemoryBackend::with_ttl(TTL), servers: Vec::new(), registrations: Vec::new() };
        for _ in 0..4 {
            let servers = Servers::start(&[Kind::Greeter])?;
            for address in servers.addresses() {
                let instance = Instance::new((*address).try_into()?);
                fleet.registrations.push(fleet.backend.register(&clients::service(), instance).await?);
            }
            fleet.servers.push(servers);
        }
        Ok(fleet)
    }

    /// Kills a server whose registration is removed later.
    async fn lose_one<T: Transport>(self, transport: T, ours: Option<BalancedChannel>) -> Result<Outcome, Failure> {
        self.run(transport, ours, BEFORE, async |fleet| {
            sleep(REMOVED).await;
            fleet.registrations.remove(0).deregister().await?;
            sleep(BEFORE).await;
            Ok(())
        })
        .await
    }

    /// Loses the registry at once, and a server at the end.
    async fn lose_registry<T: Transport>(
        self,
        transport: T,
        ours: Option<BalancedChannel>,
    ) -> Result<Outcome, Failure> {
        self.backend.interrupt();
        self.run(transport, ours, TTL * 3, async |_| {
            sleep(TTL).await;
            Ok(())
        })
        .await
    }

    /// Calls for a while, kills the first server, and keeps calling while `then` runs.
    async fn run<T: Transport>(
        mut self,
        transport: T,
        ours: Option<BalancedChannel>,
        before: Duration,
        then: impl AsyncFnOnce(&mut Self) -> Result<(), Failure>,
    ) -> Result<Outcome, Failure> {
        let course = async {
            sleep(before).await;
            let endpoints = ours.as_ref().map(BalancedChannel::endpoints);
            let first = self.registrations[0].instance().id().clone();
            let there = endpoints.iter().flat_map(|all| all.iter()).find(|one| *one.instance.id() == first);
            let in_flight = there.map_or(0, |one| one.in_flight);
            // Blocks until the server has ended, so that no call begins between the count and its
            // end.
            drop(self.servers.remove(0));
            then(&mut self).await?;
            Ok((in_flight, endpoints.map_or(0, |all| all.len())))
        };
        let (calls, course) = steady(&Caller::new(transport, Some(DEADLINE)), RATE, || WORK, course).await;
        course.map(|(in_flight, known)| Outcome { calls, in_flight, killed: before, known })
    }
}

impl Outcome {
    fn failed(&self) -> f64 {
        self.calls.iter().filter(|call| call.failed()).count() as f64
    }

    /// Splits the calls into those that ended before the kill and the others.
    fn parts(&self) -> [Vec<Ended>; 2] {
        let before = |call: &&Ended| call.due + call.took < self.killed;
        let (before, after): (Vec<&Ended>, Vec<&Ended>) = self.calls.iter().partition(before);
        [before, after].map(|part| part.into_iter().cloned().collect())
    }
}

/// Calls per second, and how long each takes.
const RATE: u32 = 1_000;
const WORK: Duration = Duration::from_millis(50);
const DEADLINE: Duration = Duration::from_secs(1);
const BEFORE: Duration = Duration::from_secs(2);
const REMOVED: Duration = Duration::from_secs(2);
const TTL: Duration = Duration::from_secs(5);
const TONIC: &str = "tonic `balance_channel`";
