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

use super::cut;

const PASSWORD: &str = "canary";

/// Returns how many times all members together were asked to check a password.
fn authenticated(etcd: &Etcd) -> u64 {
    let name =
        r#"grpc_server_started_total{grpc_method="Authenticate",grpc_service="etcdserverpb.Auth",grpc_type="unary"}"#;
    (0..etcd.members().len()).map(|place| etcd.metric(place, name).expect("etcd counts calls") as u64).sum()
}

/// Authentication is enabled and disabled under a handle with credentials. Its lists, watches,
/// registrations and server go on, whether or not connections are cut in between, and even if etcd
/// restarts. The log reports each change once.
#[tokio::test]
async fn authentication_may_be_enabled_and_disabled() {
    let log = Log::down_to(Level::INFO);
    let etcd = Etcd::start().await;
    let mut raw = etcd.raw().await;
    raw.add_writer("teller", "").await;
    raw.add_user("teller", Some(PASSWORD), &["teller"]).await;
    let proxy = Proxy::to(etcd.address()).await;
    // Longer than a busy machine needs to restart etcd, because this test is not about the lease.
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
    // A whole lease with authentication disabled.
    sleep(ttl + Duration::from_secs(1)).await;
    assert!(registration.status().is_registered() && handle.statuses().current().is_registered());
    handle.stop();
    serving.await.unwrap().unwrap();
    registration.deregister().await.unwrap();
    follower.until("none is left", SOON, |set| set.is_empty()).await;
    let lines = log.with("authentication is not enabled in etcd");
    println!("{} lines about it", lines.len());
    assert!((1..=6).contains(&lines.len()), "once each time that authentication is found disabled: {lines:?}");
}

/// A wrong password, three members and many callers: the members together check it at most once a
/// second, and less and less often.
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

    // Once the password is corrected, the next attempt succeeds.
    let mut root = etcd.raw_as("root", PASSWORD).await;
    root.change_password("root", "wrong").await;
    let start = Instant::now();
    eventually("it is listed", SOON, async || backend.list(&payments()).await.is_ok()).await;
    println!("listed {:?} after the password was corrected", start.elapsed());
    for stream in &mut streams {
        use futures::StreamExt;
        let reset = async { while !matches!(stream.next().await, Some(discovery_core::Update::Reset(_))) {} };
        timeout(SOON, reset).await.expect("the services are watched again");
    }
}

/// Failing over with credentials takes no more than a moment, although each member has to check the
/// password.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_with_credentials_fails_over_within_a_moment() {
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

/// A member that checks passwords and then rejects its own tokens is asked less and less often.
#[tokio::test]
async fn rejected_tokens_are_requested_less_and_less_often() {
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
    // Once tokens are accepted, the next attempt succeeds.
    fake.before(|_| Before::Serve);
    let took = until_registered(&kept, Duration::from_secs(25)).await;
    println!("registered {took:?} later");
}

/// Authentication is disabled, and something in front of etcd still refuses calls. The log reports
/// once that it is disabled.
#[tokio::test]
async fn disabled_authentication_is_reported_once() {
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

/// A handle used on two runtimes is not blocked by one that stops running: a caller there gave up
/// while a connection was being made.
#[test]
fn a_stalled_runtime_does_not_block_a_shared_connection() {
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
    // The handle's own runtime ends, and a caller uses another one.
    let third = runtime();
    let orphan = third.block_on(async { usual([proxy.address()]) });
    drop(third);
    main.block_on(async { assert_eq!(count(&orphan).await, Some(0)) });
}

/// Tests that measure time or shares. `scripts/test` runs them after all others.
mod timed {
    use super::*;

    /// A member that accepts connections and stays silent does not delay the token of another
    /// member. Handles that start with it are registered elsewhere after one request timeout, and
    /// their leases survive a restart of the other member.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_silent_member_does_not_delay_the_token_of_another() {
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
        // Handles start with either member.
        etcd.kill(0);
        sleep(Duration::from_millis(500)).await;
        etcd.restart(0).await;
        let start = Instant::now();
        while start.elapsed() < TTL * 3 / 2 {
            for registration in &registrations {
                assert!(
                    registration.status().is_registered(),
                    "{:?} after {:?}",
                    registration.status(),
                    start.elapsed()
                );
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}
