//! Servers are killed under load (SIGKILL) with and without etcd: what callers lose.
//!
//! Each test has a single-threaded runtime, so that no client code runs between the kill and the
//! count of the requests in flight.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use discovery_core::Instance;
use discovery_tonic::{BalancedChannel, EndpointState, EndpointStatus, RetryPolicy};
use support::{
    Etcd, eventually,
    greeters::{GreeterProcess, Greeters, serve_child_process, service},
    load::{Load, Outcome, tonic_channel, unary},
};
use tokio::time::sleep;

const SOON: Duration = Duration::from_secs(30);
/// How long a killed server stays registered.
const TTL: Duration = Duration::from_secs(2);
/// The duration of a call, so that some are in flight everywhere.
const TIME: Duration = Duration::from_millis(50);

/// Four servers and the clients that call them.
struct Scene {
    etcd: Etcd,
    servers: Vec<GreeterProcess>,
    /// Without and with a retry policy.
    channels: [BalancedChannel; 2],
    loads: [Load; 2],
    tonics: Load,
}

/// The outcome of the calls of the three clients.
struct Lost {
    plain: Outcome,
    retrying: Outcome,
    tonics: Outcome,
}

impl Scene {
    async fn start() -> Self {
        let etcd = Etcd::start().await;
        let greeters = Greeters { members: etcd.members(), ttl: TTL, drain: Duration::ZERO, executed: None };
        let mut servers = Vec::new();
        for _ in 0..4 {
            servers.push(greeters.start().await);
        }
        let resolver = Arc::new(greeters.backend());
        let builder = || BalancedChannel::builder(Arc::clone(&resolver), service());
        let channels = [builder(), builder().retry(RetryPolicy::new(3).unwrap())].map(|one| one.build().unwrap());
        for channel in &channels {
            eventually("all are ready", SOON, async || ready(channel) == 4).await;
        }
        let tonics = tonic_channel(&resolver, &service()).await;
        let loads = channels.each_ref().map(|channel| Load::start(0, 200, unary(channel.clone(), TIME)));
        let tonics = Load::start(0, 200, unary(tonics, TIME));
        sleep(Duration::from_secs(1)).await;
        Self { etcd, servers, channels, loads, tonics }
    }

    /// Kills one of the servers. Returns which, when, and how many requests of the client without a
    /// policy were in flight there.
    async fn kill(&mut self) -> Killed {
        let mut dying = self.servers.remove(0);
        let in_flight = endpoint(&self.channels[0], &dying.instance).expect("it serves").in_flight;
        dying.kill();
        let at = Instant::now();
        let out = async |channel: &BalancedChannel| {
            let is_out =
                async || endpoint(channel, &dying.instance).is_none_or(|one| one.state != EndpointState::Ready);
            eventually("the channel noticed the kill", SOON, is_out).await
        };
        let known = out(&self.channels[0]).await;
        out(&self.channels[1]).await;
        Killed { instance: dying.instance.clone(), in_flight: in_flight as usize, at, known }
    }

    async fn stop(self) -> Lost {
        let [plain, retrying] = self.loads;
        Lost { plain: plain.stop().await, retrying: retrying.stop().await, tonics: self.tonics.stop().await }
    }
}

struct Killed {
    instance: Instance,
    in_flight: usize,
    at: Instant,
    /// How long it took until the channel noticed.
    known: Duration,
}

impl Lost {
    fn assert_only_what_was_in_flight(&self, what: &str, killed: &Killed) {
        let failed = &self.plain.failed;
        let before = failed.iter().filter(|call| call.begun <= killed.at).count();
        let after = failed.iter().filter(|call| call.begun > killed.at + killed.known).count();
        println!(
            "{what}: {} of {} calls failed, {} were in flight there, the kill was noticed after {:?}; with retries {} of {}; \
             of tonic's {} of {}",
            failed.len(),
            self.plain.calls,
            killed.in_flight,
            killed.known,
            self.retrying.failed.len(),
            self.retrying.calls,
            self.tonics.failed.len(),
            self.tonics.calls
        );
        assert!(killed.in_flight > 0 && before <= killed.in_flight && after == 0, "{failed:?}");
        assert!(killed.known < Duration::from_secs(1), "{:?}", killed.known);
        assert!(self.retrying.failed.is_empty(), "{:?}", self.retrying.failed);
    }
}

fn ready(channel: &BalancedChannel) -> usize {
    channel.endpoints().iter().filter(|one| one.state == EndpointState::Ready).count()
}

fn endpoint(channel: &BalancedChannel, instance: &Instance) -> Option<EndpointStatus> {
    channel.endpoints().iter().find(|one| one.instance.id() == instance.id()).cloned()
}

/// The child process of the other tests; does nothing unless they start it.
#[tokio::test]
async fn a_greeter_as_a_process() {
    serve_child_process().await;
}

/// `fault_l4`: one of four servers is killed and stays registered for a TTL. The requests in flight
/// there fail; with a retry policy none does.
#[tokio::test]
async fn fault_l4_a_killed_server_fails_its_calls_in_flight_and_none_with_retries() {
    let mut scene = Scene::start().await;
    let killed = scene.kill().await;
    let is_removed = async || scene.channels.iter().all(|one| endpoint(one, &killed.instance).is_none());
    let removed = eventually("the instance is removed", SOON, is_removed).await;
    println!("fault_l4: removed {removed:?} after the kill");
    sleep(Duration::from_secs(1)).await;
    scene.stop().await.assert_only_what_was_in_flight("fault_l4", &killed);
}

/// `fault_c14`, `fault_l5`: etcd is killed once all clients know all servers, and stays away. No
/// call fails for that, no instance is removed, and a server that really dies still gets no more
/// calls.
#[tokio::test]
async fn fault_c14_calls_go_on_without_etcd_and_avoid_a_dead_server() {
    without_etcd(TTL * 2).await;
}

#[tokio::test]
#[ignore = "soak: a minute and a half"]
async fn fault_c14_calls_go_on_for_a_minute_and_a_half_without_etcd() {
    without_etcd(Duration::from_secs(40)).await;
}

/// Kills etcd, and a server in the middle of the outage, which lasts twice this time.
async fn without_etcd(half: Duration) {
    let mut scene = Scene::start().await;
    scene.etcd.kill(0);
    sleep(half).await;
    let killed = scene.kill().await;
    sleep(half).await;
    for channel in &scene.channels {
        assert_eq!((channel.endpoints().len(), ready(channel)), (4, 3), "all are known and three are ready");
    }
    scene.stop().await.assert_only_what_was_in_flight("fault_c14, fault_l5", &killed);
}
