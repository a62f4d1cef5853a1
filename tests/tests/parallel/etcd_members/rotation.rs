use std::{
    fs,
    time::{Duration, Instant},
};

use discovery_core::{Claim, ErrorKind, RegistryExt, Resolver};
use discovery_etcd::{EtcdBackend, EtcdTls};
use support::{
    Authority, Etcd, Fault, Flaw, Log, Proxy, eventually,
    scene::{SOON, config, count, follow, instance, payments, register, until_registered},
};
use tokio::time::sleep;
use tracing::Level;

use super::cut;

/// Long enough for a rotation including its cut connections.
const TTL: Duration = Duration::from_secs(15);

/// A password is changed in etcd and in its file shortly after each other: nothing is lost.
#[tokio::test]
async fn a_password_is_rotated() {
    let etcd = Etcd::start().await;
    etcd.raw().await.enable_auth("first").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, "first\n").unwrap();
    let proxy = Proxy::to(etcd.address()).await;
    let config = config([proxy.address()]).ttl(TTL).password_file("root", &file);
    let backend = EtcdBackend::new(config.clone()).unwrap();
    let registration = register(&backend, 1).await;
    let follower = follow(&backend);
    follower.until("it is there", SOON, |set| set.len() == 1).await;
    let mut former = "first".to_owned();
    for (password, file_first) in [("second", false), ("third", true), ("fourth", false)] {
        if file_first {
            fs::write(&file, password).unwrap();
            sleep(Duration::from_millis(300)).await;
        }
        etcd.raw_as("root", &former).await.change_password("root", password).await;
        cut(&proxy).await;
        if !file_first {
            assert_eq!(backend.list(&payments()).await.unwrap_err().kind(), ErrorKind::Unauthenticated);
            sleep(Duration::from_millis(300)).await;
            fs::write(&file, password).unwrap();
        }
        let start = Instant::now();
        eventually("listed", SOON, async || count(&backend).await == Some(1)).await;
        println!("{password}: listed {:?} after its file was written", start.elapsed());
        former = password.to_owned();
    }
    sleep(TTL).await;
    assert!(registration.status().is_registered());
    eventually("watched", SOON, async || !follower.is_lost()).await;
    assert!(follower.removed().is_empty());

    fs::remove_file(&file).unwrap();
    let error = EtcdBackend::new(config).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{}", error.report());
}

/// A writer of the password file may empty it first or remove it for a moment. A kept registration
/// recovers once the file is complete.
#[tokio::test]
async fn a_password_file_may_be_missing_for_a_moment() {
    let etcd = Etcd::start().await;
    etcd.raw().await.enable_auth("canary").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    for is_empty in [true, false] {
        fs::write(&file, "canary").unwrap();
        let config = config(etcd.members()).password_file("root", &file);
        let backend = EtcdBackend::new(config).unwrap();
        if is_empty {
            fs::write(&file, "").unwrap();
        } else {
            fs::remove_file(&file).unwrap();
        }
        let kept = backend.keep_registered(&payments(), instance(1), Claim::TakeOver).unwrap();
        let error = backend.list(&payments()).await.unwrap_err();
        assert!(error.is_retryable(), "{}", error.report());
        assert!(error.report().to_string().contains("password"), "{}", error.report());
        assert!(!kept.status().is_registered());
        fs::write(&file, "canary").unwrap();
        let took = until_registered(&kept, Duration::from_secs(15)).await;
        println!("registered {took:?} after the file was complete");
        kept.deregister().await.unwrap();
    }
}

/// Certificates and the authority are renewed in place. Each new connection uses the current files,
/// open connections go on, and the registration is unaffected.
#[tokio::test]
async fn certificates_and_authorities_are_rotated() {
    let etcd = Etcd::setup().client_certificates().start().await;
    let folder = tempfile::tempdir().unwrap();
    let [ca, cert, key] = ["ca.pem", "client.pem", "client.key"].map(|file| folder.path().join(file));
    let strangers = tempfile::tempdir().unwrap();
    let stranger = Authority::in_folder(strangers.path());
    let install = |name: &str, flaw| {
        let own = etcd.authority().client(name, flaw);
        fs::write(&cert, own.cert).unwrap();
        fs::write(&key, own.key).unwrap();
    };
    install("teller", Flaw::None);
    fs::write(&ca, etcd.authority().pem()).unwrap();
    let proxy = Proxy::to(etcd.address()).await;
    let tls = EtcdTls::new().ca_file(&ca).cert_file(&cert).key_file(&key);
    let backend = EtcdBackend::new(config([proxy.address()]).ttl(TTL).tls(tls)).unwrap();
    let registration = register(&backend, 1).await;
    let listed = async || count(&backend).await.is_some();
    assert!(listed().await);

    // Renewed: calls use it within two seconds, although no connection was cut.
    let before = proxy.accepted();
    install("teller", Flaw::None);
    let renewed = async || listed().await && proxy.accepted() > before;
    let took = eventually("a connection with the new certificate", Duration::from_secs(3), renewed).await;
    println!("renewed: used {took:?} after it was written");

    // A bad file is used as well, and its failure shows that the files are read.
    for what in ["an expired certificate", "another authority"] {
        if what == "another authority" {
            fs::write(&ca, stranger.pem()).unwrap();
        } else {
            install("teller", Flaw::Expired);
        }
        let refused = async || backend.list(&payments()).await.is_err();
        // A list keeps trying for 5 s.
        eventually(what, Duration::from_secs(9), refused).await;
        fs::write(&ca, etcd.authority().pem()).unwrap();
        install("teller", Flaw::None);
        let took = eventually("corrected", SOON, listed).await;
        println!("{what}: refused, and accepted {took:?} after it was corrected");
        assert!(registration.status().is_registered(), "open connections go on");
    }
    // A file that cannot be read changes nothing.
    fs::write(&cert, "half a certif").unwrap();
    cut(&proxy).await;
    assert!(listed().await, "the former certificate is used");
    until_registered(&registration, SOON).await;
    install("teller", Flaw::None);
    cut(&proxy).await;
    assert!(listed().await);
    sleep(TTL).await;
    assert!(registration.status().is_registered());
}

/// All three members are replaced in turn, at new addresses. A handle that discovers members from
/// the cluster's list is unaffected, although none of the configured addresses is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_replaced_at_new_addresses() {
    // Without this flag, etcd would wait before each change until all members had been connected
    // for 5 s.
    let etcd = Etcd::setup().members(3).flag("--strict-reconfig-check=false").start().await;
    let configured = etcd.members();
    let open = |discover| {
        let config = config(configured.clone()).ttl(TTL / 3).discover_members(discover);
        EtcdBackend::new(config.audit_interval(Duration::from_secs(20))).unwrap()
    };
    let backend = open(true);
    let other = open(false);
    let registration = register(&backend, 1).await;
    let follower = follow(&backend);
    follower.until("it is there", SOON, |set| set.len() == 1).await;
    for place in 0..3 {
        etcd.replace(place, true).await;
        println!("member {place} is at {} now", etcd.members()[place]);
        // An operator would take longer than this.
        sleep(Duration::from_secs(2)).await;
        assert_eq!(count(&backend).await, Some(1));
    }
    assert!(configured.iter().all(|address| !etcd.members().contains(address)));
    assert_eq!(count(&other).await, None, "without discovery no member is left");
    sleep(TTL / 3).await;
    assert!(registration.status().is_registered(), "{:?}", registration.status());
    let second = register(&backend, 2).await;
    follower.until("another one is seen", SOON, |set| set.len() == 2).await;
    assert!(follower.removed().is_empty());
    println!("after three replacements: {} losses reported, {} sets", follower.losses(), follower.resets());
    second.deregister().await.unwrap();
}

/// Credentials that may travel in clear on this machine only are sent to no member elsewhere,
/// whatever address etcd advertises.
#[tokio::test]
async fn no_password_is_sent_in_clear_to_a_discovered_member() {
    let log = Log::down_to(Level::DEBUG);
    // A documentation address that leads nowhere.
    let etcd = Etcd::setup().flag("--advertise-client-urls=http://192.0.2.1:2379").start().await;
    etcd.raw().await.enable_auth("canary").await;
    let open = |is_allowed: bool| {
        let config = config(etcd.members()).credentials("root", "canary").discover_members(true);
        EtcdBackend::new(config.allow_plaintext_credentials(is_allowed)).unwrap()
    };
    let backend = open(false);
    assert_eq!(count(&backend).await, Some(0));
    eventually("the list is read", SOON, async || !log.with("lists no member that can be used").is_empty()).await;
    assert_eq!(log.with("members changed").len(), 0);
    let _allowed = open(true);
    eventually("the member is taken", SOON, async || log.with("members changed").len() == 1).await;
}

/// A member's address leads to another cluster for a while. A handle returns to its own cluster
/// whether or not it discovers members.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_returns_from_another_cluster_at_its_members_address() {
    let nowhere = "127.0.0.1:1";
    let one = Proxy::to(nowhere).await;
    let two = Proxy::to(nowhere).await;
    let advertised = format!("--advertise-client-urls=http://{},http://{}", one.address(), two.address());
    let etcd = Etcd::setup().flag(advertised).start().await;
    let other = Etcd::start().await;
    for proxy in [&one, &two] {
        proxy.lead_to(etcd.address());
    }
    let open = |discovers| {
        let config = config([one.address(), two.address()]).discover_members(discovers);
        EtcdBackend::new(config.audit_interval(Duration::from_secs(30))).unwrap()
    };
    let backends = [open(false), open(true)];
    let registrations = [register(&backends[0], 1).await, register(&backends[1], 2).await];
    // Long enough to read the list of members.
    sleep(Duration::from_secs(2)).await;
    two.lead_to(other.address());
    cut(&two).await;
    one.set(Fault::Refuse);
    sleep(Duration::from_secs(3)).await;
    one.set(Fault::None);
    two.set(Fault::Refuse);
    let mut raw = etcd.raw().await;
    let start = Instant::now();
    eventually("both are back", Duration::from_secs(20), async || raw.keys().await.len() == 2).await;
    println!("both are back in their own cluster after {:?}", start.elapsed());
    sleep(Duration::from_secs(3)).await;
    assert_eq!(raw.keys().await.len(), 2);
    assert!(registrations.iter().all(|one| one.status().is_registered()));
}
