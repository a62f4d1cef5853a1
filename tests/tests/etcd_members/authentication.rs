use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use discovery::server::{RegisteredServer, Stage};
use discovery_core::{Claim, ErrorKind, RegistryExt, Resolver};
use discovery_etcd::EtcdBackend;
use futures::future::join_all;
use greeter::Greeter;
use support::{
    Before, Etcd, Fake, Fault, Log, Method, Proxy, Raw, eventually,
    scene::{SOON, config, count, follow, instance, payments, register, until_registered, usual},
};
use tokio::time::{sleep, timeout};
use tonic::{Status as Rpc, transport::Server};
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
    // Longer than a busy machine needs to restart etcd: the lease itself is not what this is about.
    let ttl = Duration::from_secs(5);
    let config = config([proxy.address()]).ttl(ttl).credentials("teller", PASSWORD);
    let backend = Arc::new(EtcdBackend::new(config).unwrap());

    let registration = register(&backend, 1).await;
    let follower = follow(&backend);
    let server = RegisteredServer::builder(Arc::clone(&backend), payments())
        .drain_time(Duration::from_millis(100))
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
    sleep(ttl + Duration::from_secs(1)).await;
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
    let usual = EtcdBackend::new(discovery_etcd::EtcdConfig::new(etcd.members()).credentials("root", "wrong"));
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
    let asked = authenticated(&etcd) - before;
    let took = start.elapsed();
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
    let backend = EtcdBackend::new(config(etcd.members()).credentials("root", PASSWORD)).unwrap();
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

/// A member that takes connections and says nothing keeps no other member's token back: handles
/// that begin with it are registered elsewhere after one request's time, and their leases survive
/// that the other member restarts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_member_keeps_no_token_of_another_one_back() {
    const TTL: Duration = Duration::from_secs(10);
    let etcd = Etcd::start().await;
    etcd.raw().await.enable_auth(PASSWORD).await;
    let silent = Proxy::to(etcd.address()).await;
    silent.set(Fault::BlackHole);
    let open = || {
        let members = [silent.address(), etcd.address()];
        let config = discovery_etcd::EtcdConfig::new(members).ttl(TTL).credentials("root", PASSWORD);
        EtcdBackend::new(config).unwrap()
    };
    let backends: Vec<_> = (0..12).map(|_| open()).collect();
    let start = Instant::now();
    let registrations = join_all(backends.iter().zip(0..).map(|(backend, number)| register(backend, number))).await;
    println!("twelve handles registered within {:?}", start.elapsed());
    // They begin with either member.
    etcd.kill(0);
    sleep(Duration::from_millis(500)).await;
    etcd.restart(0).await;
    let start = Instant::now();
    while start.elapsed() < TTL * 3 / 2 {
        for registration in &registrations {
            assert!(registration.status().is_registered(), "{:?} after {:?}", registration.status(), start.elapsed());
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// A member that checks passwords and then accepts none of its tokens is asked less and less often.
#[tokio::test]
async fn tokens_that_are_never_accepted_are_asked_for_less_and_less_often() {
    let fake = Fake::start().await;
    fake.before(|method| match method {
        Method::Authenticate | Method::Status => Before::Serve,
        _ => Before::Fail(Rpc::unauthenticated("etcdserver: invalid auth token")),
    });
    let config = discovery_etcd::EtcdConfig::new([fake.address()]).credentials("teller", PASSWORD);
    let backend = EtcdBackend::new(config).unwrap();
    let _follower = follow(&backend);
    let kept = backend.keep_registered(&payments(), instance(1), Claim::TakeOver).unwrap();
    sleep(Duration::from_secs(20)).await;
    let asked = fake.asked(Method::Authenticate).len();
    println!("{asked} Authenticate in 20 s");
    assert!((3..=16).contains(&asked), "{asked}");
    // It accepts them again: the handle is back with the next attempt.
    fake.before(|_| Before::Serve);
    let took = until_registered(&kept, Duration::from_secs(25)).await;
    println!("registered {took:?} later");
}

/// Authentication is off, and something in front of etcd refuses calls all the same: that it is off
/// is reported once.
#[tokio::test]
async fn authentication_that_is_off_is_reported_once() {
    let log = Log::down_to(Level::INFO);
    let fake = Fake::start().await;
    fake.before(|method| match method {
        Method::Authenticate => Before::Fail(Rpc::failed_precondition("etcdserver: authentication is not enabled")),
        Method::Status => Before::Serve,
        _ => Before::Fail(Rpc::unauthenticated("no credentials")),
    });
    let config = discovery_etcd::EtcdConfig::new([fake.address()]).credentials("teller", PASSWORD);
    let backend = EtcdBackend::new(config).unwrap();
    let _follower = follow(&backend);
    let _kept = backend.keep_registered(&payments(), instance(1), Claim::TakeOver).unwrap();
    sleep(Duration::from_secs(10)).await;
    let asked = fake.asked(Method::Authenticate).len();
    println!("{asked} Authenticate in 10 s");
    assert!((2..=11).contains(&asked), "{asked}");
    assert_eq!(log.with("authentication is not enabled").len(), 1);
    assert_eq!(log.with("requires authentication").len(), 0);
}

/// What serves two runtimes is not kept by the one that stands still: a caller of that one gave up
/// while a connection was being made.
#[test]
fn a_runtime_that_stands_still_keeps_no_connection_back() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let main = runtime();
    let idle = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (_etcd, proxy, backend) = main.block_on(async {
        let etcd = Etcd::start().await;
        let proxy = Proxy::to(etcd.address()).await;
        let backend = usual([proxy.address()]);
        (etcd, proxy, backend)
    });
    proxy.set(Fault::BlackHole);
    let gave_up = idle.block_on(async { timeout(Duration::from_millis(200), backend.list(&payments())).await });
    assert!(gave_up.is_err());
    proxy.set(Fault::None);
    main.block_on(async { assert_eq!(count(&backend).await, Some(0)) });
    // The handle's own runtime ends, and a caller has another one.
    let third = runtime();
    let orphan = third.block_on(async { usual([proxy.address()]) });
    drop(third);
    main.block_on(async { assert_eq!(count(&orphan).await, Some(0)) });
}
