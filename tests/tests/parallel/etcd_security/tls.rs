use std::{
    fs,
    time::{Duration, Instant},
};

use discovery_core::{ErrorKind, Registry, Resolver, Snapshot};
use discovery_etcd::{EtcdBackend, EtcdConfig, EtcdTls};
use futures::future::join_all;
use support::{
    Authority, Etcd, Fault, Flaw, Proxy, eventually,
    scene::{SOON, config, connect, count, instance, payments, register, until},
};
use tokio::time::sleep;

use super::refusal;

fn trusting(authority: &Authority) -> EtcdTls {
    EtcdTls::new().ca_file(authority.file())
}

fn backend(members: impl IntoIterator<Item = String>, tls: EtcdTls) -> EtcdBackend {
    EtcdBackend::new(config(members).tls(tls)).unwrap()
}

#[tokio::test]
async fn a_service_is_registered_watched_and_listed_over_tls() {
    let etcd = Etcd::setup().tls().start().await;
    let url = format!("etcd://{}/prod?ca_file={}", etcd.address(), etcd.authority().file().display());
    let backend = EtcdBackend::new(url.parse().unwrap()).unwrap();
    let mut updates = backend.watch(&payments()).unwrap();
    let mut set = Snapshot::default();
    let registration = backend.register(&payments(), instance(1)).await.unwrap();
    until(&mut updates, &mut set, |set| set.len() == 1).await;
    assert_eq!(backend.list(&payments()).await.unwrap(), set);
    assert!(etcd.raw().await.entry("prod/payments/10.0.0.2:80").await.is_some());

    let in_memory = EtcdTls::new().ca(etcd.authority().pem()).server_name("localhost");
    let other = EtcdConfig::new([format!("https://{}", etcd.address())]).prefix("prod").tls(in_memory);
    assert_eq!(EtcdBackend::new(other).unwrap().list(&payments()).await.unwrap().len(), 1);

    registration.deregister().await.unwrap();
    until(&mut updates, &mut set, Snapshot::is_empty).await;
}

#[tokio::test]
async fn killing_three_members_in_turn_loses_nothing_over_tls() {
    let etcd = Etcd::setup().members(3).tls().start().await;
    let tls = trusting(etcd.authority());
    let long = config(etcd.members()).tls(tls.clone()).ttl(Duration::from_secs(5));
    let writer = EtcdBackend::new(long).unwrap();
    let observer = backend(etcd.members(), tls);
    let registration = register(&writer, 1).await;
    let mut updates = observer.watch(&payments()).unwrap();
    let mut set = Snapshot::default();
    until(&mut updates, &mut set, |set| set.len() == 1).await;
    for place in 0..3 {
        etcd.kill(place);
        let took = eventually("listed", SOON, async || count(&observer).await == Some(1)).await;
        println!("listed {took:?} after member {place} was killed");
        etcd.restart(place).await;
        eventually("listed", SOON, async || count(&observer).await == Some(1)).await;
    }
    assert!(registration.status().is_registered());
    let second = register(&writer, 2).await;
    until(&mut updates, &mut set, |set| set.len() == 2).await;
    second.deregister().await.unwrap();
}

/// A connection that cannot be trusted fails with a typed error that contains the reason, within
/// the deadline, and is not retried in a hot loop.
#[tokio::test]
async fn untrusted_connections_fail_with_the_reason() {
    let (good, expired, elsewhere, closed, plain) = tokio::join!(
        Etcd::setup().tls().start(),
        Etcd::setup().tls_with(Flaw::Expired).start(),
        Etcd::setup().tls_with(Flaw::OtherHost).start(),
        Etcd::setup().client_certificates().start(),
        Etcd::start(),
    );
    let folder = tempfile::tempdir().unwrap();
    let stranger = Authority::in_folder(folder.path());
    let late = closed.authority().client("late", Flaw::Expired);
    let foreign = stranger.client("foreign", Flaw::None);
    let with = |tls: EtcdTls, own: &support::Certificate| tls.cert_file(&own.cert_file).key_file(&own.key_file);
    let silent = Proxy::to(good.address()).await;
    silent.set(Fault::BlackHole);
    // In TLS 1.3 the handshake is complete for the client when the server refuses it, so the error
    // is the alert or that of the closed connection.
    let refused = &["fatal alert", "connection closed", "broken pipe", "reset"];
    let trusted = || Some(trusting(closed.authority()));
    let cases: [(&str, String, Option<EtcdTls>, &[&str]); 9] = [
        ("wrong authority", good.address(), Some(trusting(&stranger)), &["UnknownIssuer"]),
        ("expired", expired.address(), Some(trusting(expired.authority())), &["certificate expired"]),
        ("other host", elsewhere.address(), Some(trusting(elsewhere.authority())), &["not valid for name"]),
        ("no certificate", closed.address(), trusted(), refused),
        ("expired certificate", closed.address(), trusted().map(|tls| with(tls, &late)), refused),
        ("foreign certificate", closed.address(), trusted().map(|tls| with(tls, &foreign)), refused),
        ("in clear to TLS", good.address(), None, &[""]),
        ("TLS to clear", plain.address(), Some(trusting(good.authority())), &[""]),
        ("silence", silent.address(), Some(trusting(good.authority())), &["handshake timeout"]),
    ];
    join_all(cases.into_iter().map(|(name, address, tls, reasons)| async move {
        let proxy = Proxy::to(address).await;
        let config = config([proxy.address()]);
        let config = tls.into_iter().fold(config, EtcdConfig::tls);
        let backend = EtcdBackend::new(config).unwrap();
        let start = Instant::now();
        let error = backend.list(&payments()).await.unwrap_err();
        let took = start.elapsed();
        let report = error.report().to_string();
        println!("{name}: {report} after {took:?}");
        assert!(error.is_retryable(), "{name}: {report}");
        assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::DeadlineExceeded), "{name}: {report}");
        assert!(reasons.iter().any(|reason| report.contains(reason)), "{name}: {report}");
        // The operation timeout, because the fault could have passed in that time.
        assert!(took < Duration::from_secs(6), "{name}: {took:?}");

        let mut updates = backend.watch(&payments()).unwrap();
        super::lost(&mut updates).await;
        let before = proxy.accepted();
        sleep(Duration::from_secs(3)).await;
        let tried = proxy.accepted() - before;
        println!("{name}: {tried} connections in 3 s of watching");
        // On average 250 ms between attempts of two connections each.
        assert!(tried <= 60, "{name}: {tried} connections");
    }))
    .await;

    let named = trusting(elsewhere.authority()).server_name("elsewhere.test");
    assert_eq!(count(&backend(elsewhere.members(), named)).await, Some(0), "it is trusted by its right name");
}

#[tokio::test]
async fn certificates_and_keys_are_checked_when_a_backend_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::in_folder(folder.path());
    let own = authority.client("own", Flaw::None);
    let other = authority.client("other", Flaw::None);
    let garbage = folder.path().join("garbage.pem");
    fs::write(&garbage, "-----BEGIN CERTIFICATE-----\nbm90IG9uZQ==\n-----END CERTIFICATE-----\n").unwrap();
    let torn = own.key.replace("-----END", "canary-----END");
    let trusted = || EtcdTls::new().ca(authority.pem());
    let body = own.key.lines().nth(1).unwrap();
    for (tls, said) in [
        (EtcdTls::new(), "`ca_file` is missing"),
        (EtcdTls::new().ca("canary"), "invalid ca: it holds no certificate"),
        (EtcdTls::new().ca(own.key.clone()), "invalid ca: it holds no certificate"),
        (EtcdTls::new().ca_file(folder.path().join("absent.pem")), "it cannot be read"),
        (EtcdTls::new().ca_file(&garbage), "a certificate in it cannot be used"),
        (trusted().cert(own.cert.clone()), "both are required"),
        (trusted().key(own.key.clone()), "both are required"),
        (trusted().cert(own.key.clone()).key(own.key.clone()), "invalid cert: it holds no certificate"),
        (trusted().cert(own.cert.clone()).key(own.cert.clone()), "invalid key: it holds no private key"),
        (trusted().cert(own.cert.clone()).key(torn), "invalid key: it holds no private key"),
        (trusted().cert_file(&own.cert_file).key_file(&other.key_file), "it does not go with the certificate"),
        (trusted().cert_file(&garbage).key_file(&own.key_file), "it does not go with the certificate"),
        (trusted().server_name("no name"), "invalid server_name"),
    ] {
        let config = EtcdConfig::new(["127.0.0.1"]).tls(tls);
        let error = EtcdBackend::new(config.clone()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let text = format!("{error:?} {} {config:?}", error.report());
        assert!(text.contains(said), "{text}");
        assert!(!text.contains("canary") && !text.contains(body), "{text}");
    }
    let good = EtcdConfig::new(["127.0.0.1"]).tls(trusted().cert(own.cert).key(own.key));
    EtcdBackend::new(good).unwrap();
}

/// Certificates that are valid for a day are replaced while programs run.
#[tokio::test]
async fn renewed_certificates_are_used_and_broken_ones_are_not() {
    let etcd = Etcd::setup().client_certificates().start().await;
    let own = etcd.authority().client("own", Flaw::Expired);
    let tls = trusting(etcd.authority()).cert_file(&own.cert_file).key_file(&own.key_file);
    let backend = backend(etcd.members(), tls);
    let error = backend.list(&payments()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.report());
    println!("with an expired certificate: {}", error.report());
    etcd.authority().client("own", Flaw::None);
    assert_eq!(count(&backend).await, Some(0));

    fs::write(&own.key_file, "half of a k").unwrap();
    etcd.kill(0);
    etcd.restart(0).await;
    eventually("listed with the former certificate", SOON, async || count(&backend).await == Some(0)).await;
}

#[tokio::test]
async fn the_common_name_of_a_certificate_is_the_user() {
    let etcd = Etcd::setup().client_certificates().start().await;
    let mut raw = etcd.raw().await;
    raw.add_writer("registrar", "payments/").await;
    raw.add_user("teller", None, &["registrar"]).await;
    raw.enable_auth("of root").await;
    let of = |name: &str| {
        let own = etcd.authority().client(name, Flaw::None);
        trusting(etcd.authority()).cert(own.cert).key(own.key)
    };
    let teller = backend(etcd.members(), of("teller"));
    let registration = register(&teller, 1).await;
    let error = teller.register(&"orders".parse().unwrap(), instance(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{}", error.report());
    registration.deregister().await.unwrap();

    let nobody = backend(etcd.members(), of("nobody"));
    assert!(matches!(refusal(&nobody).await, ErrorKind::PermissionDenied | ErrorKind::Unauthenticated));
    // A password takes precedence over the certificate.
    let as_root = config(etcd.members()).tls(of("teller")).credentials("root", "of root");
    let root = EtcdBackend::new(as_root).unwrap();
    root.register(&"orders".parse().unwrap(), instance(1)).await.unwrap().deregister().await.unwrap();
}

#[tokio::test]
async fn a_backend_in_clear_is_not_served_over_tls() {
    let etcd = Etcd::setup().tls().start().await;
    assert!(connect(&etcd).list(&payments()).await.unwrap_err().is_retryable());
}
