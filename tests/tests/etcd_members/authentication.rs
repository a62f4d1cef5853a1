use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use discovery::tonic::server::{RegisteredServer, Stage};
use discovery_core::{ErrorKind, Resolver};
use discovery_etcd::EtcdBackend;
use futures::future::join_all;
use greeter::Greeter;
use support::{
    Etcd, Log, Proxy, Raw, eventually,
    scene::{SOON, config, count, follow, instance, payments, register, until_registered},
};
use tokio::time::{sleep, timeout};
use tonic::transport::Server;
use tracing::Level;

use crate::cut;

const PASSWORD: &str = "canary";

/// How often all members together were asked to check a password.
fn authenticated(etcd: &Etcd) -> u64 {
    let name =
        r#"grpc_server_started_total{grpc_method="Authenticate",grpc_service="etcdserverpb.Auth",grpc_type="unary"}"#;
    (0..etcd.members().len()).map(|place| etcd.metric(place, name).expect("etcd counts calls") as u64).sum()
}

/// Authentication is switched on and off under a handle with credentials: its lists, watches,
/// registrations and its server go on, whether their connections are cut in between or not, and
/// also where etcd is restarted. The log has it once each time.
#[tokio::test]
async fn authentication_may_be_switched_on_and_off() {
    let log = Log::down_to(Level::INFO);
    let etcd = Etcd::start().await;
    let mut raw = etcd.raw().await;
    raw.add_writer("teller", "").await;
    raw.add_user("teller", Some(PASSWORD), &["teller"]).await;
    let proxy = Proxy::to(etcd.address()).await;
    let backend = EtcdBackend::connect(config([proxy.address()]).with_credentials("teller", PASSWORD)).unwrap();
    let backend = Arc::new(backend);

    let registration = register(&backend, 1).await;
    let follower = follow(&backend);
    let server = RegisteredServer::builder(Arc::clone(&backend), payments())
        .drain(Duration::from_millis(100))
        .bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let handle = server.handle();
    let router = Server::builder().add_service(Greeter::new("one").into_service());
    let serving = tokio::spawn(server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)));
    timeout(SOON, handle.reached(Stage::Serving)).await.unwrap();
    follower.until("all are there", SOON, |set| set.len() == 2).await;

    for (number, step) in (10..).zip([
        "on",
        "cut",
        "off",
        "on",
        "off and cut",
        "on and cut",
        "off",
        "restart",
        "cut",
        "on",
        "restart",
        "off",
    ]) {
        let mut raw = match step {
            step if step.starts_with("off") => etcd.raw_as("root", PASSWORD).await,
            _ => etcd.raw().await,
        };
        match step.split(' ').next().unwrap() {
            "on" => raw.enable_auth(PASSWORD).await,
            "off" => raw.disable_auth().await,
            "restart" => {
                etcd.kill(0);
                etcd.restart(0).await;
            }
            _ => {}
        }
        if step.contains("cut") {
            cut(&proxy).await;
        }
        let start = Instant::now();
        if let Err(error) = backend.list(&payments()).await {
            panic!("{step}: {}", error.report());
        }
        let another = register(&backend, number).await;
        follower.until("it is seen", SOON, |set| set.len() == 3).await;
        until_registered(&registration, SOON).await;
        let weight = |one: discovery_core::Instance| one.with_weight(number.try_into().unwrap());
        registration.update(weight).await.unwrap();
        let is_updated = async || {
            let set = follower.set();
            set.get(instance(1).id().as_str()).is_some_and(|one| one.weight().value() == number)
        };
        eventually("the update is seen", SOON, is_updated).await;
        another.deregister().await.unwrap();
        follower.until("it is gone", SOON, |set| set.len() == 2).await;
        assert!(handle.statuses().current().is_registered(), "{step}: {:?}", handle.statuses().current());
        println!("{step}: listed, registered, watched, updated and deregistered in {:?}", start.elapsed());
    }
    // Through a whole lease of the last kind.
    sleep(Duration::from_secs(4)).await;
    assert!(registration.status().is_registered() && handle.statuses().current().is_registered());
    handle.stop();
    serving.await.unwrap().unwrap();
    registration.deregister().await.unwrap();
    follower.until("none is left", SOON, |set| set.is_empty()).await;
    let lines = log.with("authentication is not enabled in etcd");
    println!("{} lines about it", lines.len());
    assert!((1..=6).contains(&lines.len()), "once each time that it was found off: {lines:?}");
}

/// A wrong password, three members, and many who ask: the members together are asked to check it at
/// most once a second, and less and less often.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_checked_once_a_second_over_all_members() {
    let etcd = Etcd::start_members(3).await;
    let mut raw = etcd.raw().await;
    raw.enable_auth(PASSWORD).await;
    let usual = EtcdBackend::connect(discovery_etcd::EtcdConfig::new(etcd.members()).with_credentials("root", "wrong"));
    let backend = usual.unwrap();
    let mut streams = ["payments", "orders", "refunds"].map(|name| backend.watch(&name.parse().unwrap()).unwrap());
    let before = authenticated(&etcd);
    let start = Instant::now();
    let ask = || async {
        let mut refused = 0;
        while start.elapsed() < Duration::from_secs(8) {
            let error = backend.list(&payments()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{}", error.report());
            refused += 1;
            sleep(Duration::from_millis(100)).await;
        }
        refused
    };
    let refused: usize = join_all((0..20).map(|_| ask())).await.into_iter().sum();
    let (asked, took) = (authenticated(&etcd) - before, start.elapsed());
    println!("{refused} lists were refused in {took:?}, with {asked} Authenticate over three members");
    assert!(asked >= 3, "each member was asked");
    assert!(asked as f64 <= took.as_secs_f64() + 1.0, "{asked} in {took:?}");

    // Mended, it is found with the next attempt.
    let mut root = etcd.raw_as("root", PASSWORD).await;
    root.change_password("root", "wrong").await;
    let start = Instant::now();
    eventually("it is listed", SOON, async || backend.list(&payments()).await.is_ok()).await;
    println!("listed {:?} after the password was mended", start.elapsed());
    for stream in &mut streams {
        use futures::StreamExt;
        let reset = async { while !matches!(stream.next().await, Some(discovery_core::Update::Reset(_))) {} };
        timeout(SOON, reset).await.expect("watched, too");
    }
}

/// Failing over with credentials costs no more than a moment, though each member has to check the
/// password.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_goes_costs_a_handle_with_credentials_a_moment() {
    let etcd = Etcd::start_members(3).await;
    etcd.raw().await.enable_auth(PASSWORD).await;
    let backend = EtcdBackend::connect(config(etcd.members()).with_credentials("root", PASSWORD)).unwrap();
    let registration = register(&backend, 1).await;
    let follower = follow(&backend);
    follower.until("it is there", SOON, |set| set.len() == 1).await;
    for place in 0..3 {
        sleep(Duration::from_secs(1)).await;
        etcd.kill(place);
        let start = Instant::now();
        eventually("listed", SOON, async || count(&backend).await == Some(1)).await;
        println!("without member {place}: listed after {:?}", start.elapsed());
        etcd.restart(place).await;
        until_registered(&registration, SOON).await;
    }
    assert!(follower.removed().is_empty());
    let _: Raw = etcd.raw_as("root", PASSWORD).await;
}
