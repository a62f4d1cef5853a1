//! What an operator does to the shop, and what happens to its etcd, fails no call.

use std::time::Duration;

use support::{Authority, Etcd, Flaw, eventually, load::Load, programs};
use tokio::time::{Instant, sleep};

use crate::{
    http::http,
    system::{Gateway, LIMIT, PROGRAMS, Program, Shop},
};

/// The servers and clients of a running shop.
struct System {
    shop: Shop,
    orders: Vec<Program>,
    inventory: Vec<Program>,
    gateway: Gateway,
    worker: Program,
}

impl System {
    /// Starts everything while etcd is down, and then etcd.
    async fn start_before_etcd() -> Self {
        let shop = Shop::around(Etcd::absent(), PARAMETERS, "1s");
        let servers = |service| NUMBERS.map(|number| shop.start(service, &format!("{service}-{number}"), &[])).into();
        let orders: Vec<Program> = servers("orders");
        let inventory: Vec<Program> = servers("inventory");
        let worker = shop.start("worker", "worker", &[]);
        let gateway = shop.start_gateway().await;
        // The orders do not register before they have an inventory to call.
        for (servers, message) in [(&orders, "registry lost"), (&inventory, "not registered yet")] {
            for server in servers {
                eventually(message, LIMIT, async || !server.logged(&[message]).is_empty()).await;
            }
        }
        assert!(http(gateway.address, "GET", "/ready", "").await.is_err(), "{}", gateway.get("/endpoints").await);
        shop.etcd.appear().await;
        let system = Self { shop, orders, inventory, gateway, worker };
        system.is_whole().await;
        system.worker.printed(" orders placed").await;
        system
    }

    /// Waits until the gateway follows the registry, and all servers take its calls.
    async fn is_whole(&self) {
        self.gateway.has_ready("orders", NUMBERS.len()).await;
        self.gateway.has_ready("inventory", NUMBERS.len()).await;
    }

    /// Restarts all servers, one of each service at a time.
    async fn roll(&mut self) {
        let Self { shop, orders, inventory, .. } = self;
        tokio::join!(roll(shop, "orders", orders), roll(shop, "inventory", inventory));
        self.is_whole().await;
    }

    /// Waits until every channel has read its renewed files this often in all.
    async fn files_were_read(&self, times: usize) {
        let clients =
            [(&self.gateway.program, "orders"), (&self.gateway.program, "inventory"), (&self.worker, "orders")];
        for (client, service) in clients {
            let service = format!("service={service}");
            let read = async || client.logged(&["the TLS files changed", &service]).len() == times;
            eventually("new files are in use", LIMIT, read).await;
        }
    }
}

/// Restarts the servers of a service in turn. As in a stateful set, each returns under its id.
async fn roll(shop: &Shop, service: &str, servers: &mut Vec<Program>) {
    for number in NUMBERS {
        servers.remove(0).stop().await;
        let next = shop.start(service, &format!("{service}-{number}"), &[]);
        next.serves().await;
        servers.push(next);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deployments_new_certificates_and_outages_of_etcd_fail_no_call() {
    programs();
    let begun = Instant::now();
    let step = |what: &str| println!("{:5.1} s: {what}", begun.elapsed().as_secs_f64());
    let mut system = System::start_before_etcd().await;
    step("etcd came up, and everything serves");
    let load = Load::start(0, 50, system.gateway.calls());

    for program in PROGRAMS {
        system.shop.issue(program, &system.shop.authority, Flaw::None);
    }
    system.files_were_read(1).await;
    system.roll().await;
    step("every server was restarted, and all have new certificates");

    let folder = tempfile::tempdir().unwrap();
    let next = Authority::in_folder(folder.path());
    let both = format!("{}{}", system.shop.authority.pem(), next.pem());
    for program in PROGRAMS {
        system.shop.trust(program, &both);
    }
    system.files_were_read(2).await;
    system.roll().await;
    step("everybody trusts two authorities");
    for program in PROGRAMS {
        system.shop.issue(program, &next, Flaw::None);
    }
    system.files_were_read(3).await;
    system.roll().await;
    step("all certificates are of the new authority");
    for program in PROGRAMS {
        system.shop.trust(program, next.pem());
    }
    system.files_were_read(4).await;
    system.roll().await;
    step("nobody trusts the former authority");

    let lost = async || system.gateway.program.logged(&["registry lost"]).len();
    let losses = lost().await;
    system.shop.etcd.kill(0);
    eventually("the loss is noticed", LIMIT, async || lost().await > losses).await;
    sleep(2 * TTL).await;
    system.shop.etcd.restart(0).await;
    system.is_whole().await;
    step("etcd was down for longer than a ttl");
    system.shop.etcd.pause(0);
    sleep(2 * TTL).await;
    system.shop.etcd.resume(0);
    system.is_whole().await;
    sleep(2 * TTL).await;
    system.is_whole().await;
    step("etcd was frozen for longer than a ttl");

    let browsed = load.stop().await;
    let warned = [system.gateway.program.logged(&["call failed"]), system.worker.logged(&["call failed"])].concat();
    let worked = system.worker.stop().await;
    let worked = worked.lines().last().unwrap();
    step(&format!("{} calls by HTTP, {} failed; worker {worked}", browsed.calls, browsed.failed.len()));
    assert!(warned.is_empty(), "{warned:#?}");
    assert!(browsed.failed.is_empty(), "{}", browsed.failed[0].status);
    assert!(browsed.calls > 500, "{}", browsed.calls);
    let (placed, rest) = worked.strip_prefix("in all: ").unwrap().split_once(' ').unwrap();
    assert!(rest.ends_with(" 0 failed") && placed.parse::<u64>().unwrap() > 250, "{worked}");
}

const NUMBERS: [usize; 3] = [1, 2, 3];
const TTL: Duration = Duration::from_secs(2);
/// Short, like the tests of the etcd backend.
const PARAMETERS: &str = "ttl=2s&request_timeout=1s&connect_timeout=500ms&operation_timeout=3s";
