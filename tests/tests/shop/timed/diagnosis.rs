//! What is wrong with the shop can be read from the gateway's log at `info`, from its table of
//! endpoints, and from its metrics: from each of them alone, unless a test states otherwise.

use std::time::Duration;

use support::{Etcd, Flaw, load::Load};
use tokio::time::{Instant, sleep};

use crate::system::{Gateway, Program, Shop};

/// A shop of three orders and two inventories, under load.
struct Scene {
    shop: Shop,
    orders: Vec<Program>,
    _inventory: Vec<Program>,
    gateway: Gateway,
    _load: Load,
    begun: Instant,
}

impl Scene {
    /// Starts everything. `orders-2` answers with this code, if it is not empty; `inventory-2` gets
    /// a certificate with this flaw; connections live for this long.
    async fn open(fault: &str, flaw: Flaw, connection_age: &'static str) -> Self {
        // The default ttl: a server that hangs leaves the table only after that.
        let shop = Shop::around(Etcd::start().await, "", connection_age);
        let mut inventory = vec![shop.start("inventory", "inventory-1", &[])];
        inventory[0].serves().await;
        shop.issue("inventory", &shop.authority, flaw);
        inventory.push(shop.start("inventory", "inventory-2", &[]));
        inventory[1].serves().await;
        let mut orders = Vec::new();
        for number in 1..=3 {
            let further = [("SHOP_FAULT", fault)];
            let further = if number == 2 && !fault.is_empty() { &further[..] } else { &[] };
            orders.push(shop.start("orders", &format!("orders-{number}"), further));
        }
        for server in &orders {
            server.serves().await;
        }
        let gateway = shop.start_gateway().await;
        let load = Load::start(0, 40, gateway.calls());
        Self { shop, orders, _inventory: inventory, gateway, _load: load, begun: Instant::now() }
    }

    /// Waits until everything is well, where a fault begins.
    async fn is_well(&mut self) {
        self.gateway.has_ready("orders", 3).await;
        self.gateway.has_ready("inventory", 2).await;
        self.begun = Instant::now();
    }

    /// Waits until the log has a line with all of these texts.
    async fn logs(&self, texts: &[&str]) {
        let logged = async || !self.gateway.program.logged(texts).is_empty();
        self.shows(&format!("a log line with {texts:?}"), logged).await;
    }

    /// Waits until the table of a service has a line that begins and goes on like this.
    async fn lists(&self, service: &str, begins: &str, texts: &[&str]) {
        let is_meant = |line: &str| line.starts_with(begins) && texts.iter().all(|text| line.contains(text));
        let listed = async || self.gateway.table(service).await.lines().any(is_meant);
        self.shows(&format!("{begins} with {texts:?} in the table of {service}"), listed).await;
    }

    /// Waits until a metric is as wanted.
    async fn measures(&self, metric: &str, wanted: impl Fn(f64) -> bool) {
        let measured = async || self.gateway.metric(metric).await.is_some_and(&wanted);
        self.shows(metric, measured).await;
    }

    async fn shows(&self, what: &str, mut shown: impl AsyncFnMut() -> bool) {
        let begun = Instant::now();
        while !shown().await {
            if begun.elapsed() > SOON {
                let log = self.gateway.program.log();
                panic!("not within {SOON:?}: {what}\n{}\n{log}", self.gateway.get("/endpoints").await);
            }
            sleep(Duration::from_millis(100)).await;
        }
        println!("{:4.1} s: {what}", self.begun.elapsed().as_secs_f64());
    }

    /// Asserts that no other instance was logged as faulty.
    fn blames_only(&self, culprit: &str) {
        for message in ["endpoint ejected", "endpoint unreachable", "no further connection to the endpoint"] {
            for line in self.gateway.program.logged(&[message]) {
                assert!(line.contains(&format!("instance={culprit} ")), "{line}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_down() {
    let mut scene = Scene::open("", Flaw::None, USUAL).await;
    scene.is_well().await;
    scene.shop.etcd.kill(0);
    for service in ["orders", "inventory"] {
        let etcd = scene.shop.etcd.address();
        scene.logs(&["WARN", "registry lost", &format!("service={service} "), &etcd]).await;
        scene.lists(service, "registry: lost ", &[&etcd]).await;
        scene.measures(&format!("discovery_channel_stale{{service=\"{service}\"}}"), |stale| stale == 1.0).await;
        let since = format!("discovery_channel_seconds_since_contact{{service=\"{service}\"}}");
        scene.measures(&since, |seconds| seconds > 1.0).await;
    }
    // The servers are well.
    scene.measures("discovery_channel_endpoints_ready{service=\"orders\"}", |ready| ready == 3.0).await;
    scene.blames_only("none");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_hung() {
    let mut scene = Scene::open("", Flaw::None, USUAL).await;
    scene.is_well().await;
    scene.orders[1].signal("STOP");
    // Accepts connections, which its system does, but never answers: not even in a TLS handshake.
    let further = "no further connection to the endpoint";
    scene.logs(&[further, "service=orders", "instance=orders-2 ", "no TLS handshake within 1s"]).await;
    scene.logs(&["endpoint ejected", "service=orders", "instance=orders-2 ", "cause=Unreachable"]).await;
    scene.lists("orders", "orders-2 ", &["ejected for "]).await;
    scene.measures("discovery_endpoint_ready{service=\"orders\",instance_id=\"orders-2\"}", |ready| ready == 0.0).await;
    scene.measures("discovery_channel_ejections_total{service=\"orders\"}", |ejections| ejections > 0.0).await;
    scene.blames_only("orders-2");
}

/// A failure counts as load for 5 s, so an idle shop calls the server once in that time, and ejects
/// it after five calls. The table and the metrics show it before.
#[tokio::test(flavor = "multi_thread")]
async fn one_server_unavailable() {
    let mut scene = Scene::open("14", Flaw::None, USUAL).await;
    scene.is_well().await;
    let failures = "discovery_endpoint_failures_total{service=\"orders\",instance_id=\"orders-2\"}";
    scene.measures(failures, |count| count > 1.0).await;
    let has_failed = |row: &str| row.starts_with("orders-2 ") && !row.ends_with(" 0");
    let listed = async || scene.gateway.table("orders").await.lines().any(has_failed);
    scene.shows("orders-2 with failures in the table", listed).await;
    scene.logs(&["endpoint ejected", "service=orders", "instance=orders-2 ", "cause=Failing"]).await;
    scene.lists("orders", "orders-2 ", &["ejected for "]).await;
    scene.measures("discovery_endpoint_ready{service=\"orders\",instance_id=\"orders-2\"}", |ready| ready == 0.0).await;
    scene.blames_only("orders-2");
}

/// An error of the application ejects nobody, and the table does not count it. The gateway logs the
/// call, with the server that it was sent to.
#[tokio::test(flavor = "multi_thread")]
async fn one_server_with_internal_errors() {
    let mut scene = Scene::open("13", Flaw::None, USUAL).await;
    scene.is_well().await;
    scene.logs(&["call failed", "code=Internal", "the database is down", "sent to orders-2"]).await;
    let failures = "discovery_endpoint_failures_total{service=\"orders\",instance_id=\"orders-2\"}";
    scene.measures(failures, |count| count > 1.0).await;
    scene.blames_only("none");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_certificate_expired() {
    let scene = Scene::open("", Flaw::Expired, USUAL).await;
    let reason = "it has expired (CN=inventory; names inventory; expired on Jan  1 00:00:00 2001";
    scene.logs(&["endpoint unreachable", "service=inventory", "instance=inventory-2 ", reason]).await;
    scene.lists("inventory", "inventory-2 ", &["backing off", reason]).await;
    scene
        .measures("discovery_endpoint_ready{service=\"inventory\",instance_id=\"inventory-2\"}", |ready| ready == 0.0)
        .await;
    scene.measures("discovery_channel_connect_failures_total{service=\"inventory\"}", |count| count > 0.0).await;
    scene.blames_only("inventory-2");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_certificate_expired() {
    let mut scene = Scene::open("", Flaw::None, "1s").await;
    scene.is_well().await;
    scene.shop.issue("gateway", &scene.shop.authority, Flaw::Expired);
    for service in ["orders", "inventory"] {
        let reason = "(CN=gateway; names gateway; expired on Jan  1 00:00:00 2001";
        scene.logs(&["no further connection to the endpoint", &format!("service={service}"), reason]).await;
        scene.lists(service, service, &["ready", "cannot connect again: ", reason]).await;
        let failures = format!("discovery_channel_connect_failures_total{{service=\"{service}\"}}");
        scene.measures(&failures, |count| count > 0.0).await;
    }
}

/// How long connections live by default.
const USUAL: &str = "1h";
/// How long an operator looks.
const SOON: Duration = Duration::from_secs(60);
