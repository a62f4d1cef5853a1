//! A layout whose keys hold the lease, as those of go-zero do: each registration has a lease of its
//! own, and another key after each loss of it.

use std::time::{Duration, Instant};

use discovery_core::{Error, ErrorKind, Instance, Registration, Registry, Resolver, ServiceName, Status, Weight};
use discovery_etcd::{Capabilities, Decoded, EtcdBackend, Layout, Tail, Written, check_layout};
use futures::future::join_all;
use support::{
    Etcd, Raw, eventually,
    scene::{SOON, config, instance, payments},
};

/// The key is the lease in decimal. The value is the address and the weight, as text.
#[derive(Debug)]
struct LeaseKeys;

impl Layout for LeaseKeys {
    fn capabilities(&self) -> Capabilities {
        Capabilities::default().without_metadata().with_leases_in_entries()
    }

    fn range(&self, service: &ServiceName) -> String {
        format!("{service}/")
    }

    fn write(&self, _: &ServiceName, instance: &Instance, lease: i64) -> Written {
        let value = format!("{} {}", instance.address(), instance.weight());
        Written { tail: lease.to_string(), value: value.into_bytes() }
    }

    fn classify(&self, tail: &str) -> Tail {
        match tail.parse::<i64>() {
            Ok(_) => tail.parse().map_or_else(Tail::Bad, Tail::Instance),
            Err(_) => Tail::Other,
        }
    }

    fn read(&self, tail: &str, value: &[u8]) -> Result<Vec<Decoded>, Error> {
        let problem = || Error::new(ErrorKind::InvalidInput, "it is no address and weight");
        let text = std::str::from_utf8(value).map_err(|_| problem())?;
        let (address, weight) = text.split_once(' ').ok_or_else(problem)?;
        let weight = Weight::new(weight.parse().map_err(|_| problem())?)?;
        Ok(vec![Instance::new(address.parse()?).with_id(tail.parse()?).with_weight(weight).into()])
    }
}

fn open(etcd: &Etcd) -> EtcdBackend {
    EtcdBackend::new(config(etcd.members()).layout(LeaseKeys)).unwrap()
}

async fn register(backend: &EtcdBackend, number: u16) -> Registration {
    backend.register(&payments(), instance(number)).await.unwrap()
}

/// The lease and the value of each entry, after a check that each is under the lease in its key.
async fn entries(raw: &mut Raw) -> Vec<(i64, String)> {
    let mut entries = Vec::new();
    for key in raw.keys().await {
        // It may be gone by now.
        let Some((value, lease)) = raw.entry(&key).await else { continue };
        assert_eq!(key, format!("payments/{lease}"));
        entries.push((lease, String::from_utf8(value).unwrap()));
    }
    entries
}

#[test]
fn the_layout_keeps_the_rules() {
    check_layout(&LeaseKeys);
}

#[tokio::test]
async fn each_registration_has_a_lease_and_a_key_of_its_own() {
    let etcd = Etcd::start().await;
    let mut raw = etcd.raw().await;
    let backend = open(&etcd);
    let one = register(&backend, 1).await;
    let two = register(&backend, 2).await;
    let written = entries(&mut raw).await;
    assert_eq!(written.len(), 2);
    assert_ne!(written[0].0, written[1].0);
    let listed = backend.list(&payments()).await.unwrap();
    let mut addresses: Vec<_> = listed.iter().map(|one| one.address().to_string()).collect();
    addresses.sort();
    assert_eq!(addresses, ["10.0.0.2:80", "10.0.0.3:80"]);

    // An update is made in place.
    let lease = written.iter().find(|(_, value)| value.starts_with("10.0.0.2")).unwrap().0;
    one.update(|one| one.with_weight(Weight::new(7).unwrap())).await.unwrap();
    assert!(entries(&mut raw).await.contains(&(lease, "10.0.0.2:80 7".to_owned())));
    let refused = one.update(|one| one.with_metadata([("zone", "eu")].try_into().unwrap())).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(one.instance().weight().value(), 7);

    // An entry that somebody deletes is written again, at the same key.
    raw.delete(&format!("payments/{lease}")).await;
    let is_back = async || etcd.raw().await.entry(&format!("payments/{lease}")).await.is_some();
    eventually("the entry is back", SOON, is_back).await;

    one.deregister().await.unwrap();
    assert_eq!(entries(&mut raw).await.len(), 1, "deregister returns once the entry is gone");
    eventually("its lease is revoked", SOON, async || etcd.raw().await.leases().await.len() == 1).await;
    drop(two);
    eventually("dropped, it is gone too", SOON, async || etcd.raw().await.keys().await.is_empty()).await;
    eventually("with its lease", SOON, async || etcd.raw().await.leases().await.is_empty()).await;
}

#[tokio::test]
async fn after_the_loss_of_its_lease_an_instance_has_another_key() {
    let etcd = Etcd::start().await;
    let mut raw = etcd.raw().await;
    let backend = open(&etcd);
    let one = register(&backend, 1).await;
    let _two = register(&backend, 2).await;
    one.update(|one| one.with_weight(Weight::new(9).unwrap())).await.unwrap();
    let mut leases = Vec::new();
    for _ in 0..3 {
        let (lease, _) = *entries(&mut raw).await.iter().find(|(_, value)| value == "10.0.0.2:80 9").unwrap();
        assert!(!leases.contains(&lease), "each lease is another one");
        leases.push(lease);
        raw.revoke(lease).await;
        let is_back = async || {
            let written = entries(&mut etcd.raw().await).await;
            written.iter().any(|(now, value)| *now != lease && value == "10.0.0.2:80 9")
        };
        eventually("it is written under another lease", SOON, is_back).await;
        eventually("its status follows", SOON, async || one.status().is_registered()).await;
        assert_eq!(entries(&mut raw).await.len(), 2, "the former entry is gone, and the other one untouched");
    }
    let many = join_all((10..40).map(|number| register(&backend, number))).await;
    backend.close().await.unwrap();
    assert_eq!(raw.leases().await.len(), 0, "closing waits for all leases");
    assert!(raw.keys().await.is_empty());
    assert!(many.iter().all(|one| matches!(one.status(), Status::Deregistered { .. })));
    assert!(matches!(one.status(), Status::Deregistered { .. }));
    assert_eq!(backend.register(&payments(), instance(3)).await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn an_outage_is_survived_and_an_update_made_meanwhile_is_written() {
    let etcd = Etcd::start().await;
    let backend = open(&etcd);
    let one = register(&backend, 1).await;
    etcd.stop(0);
    eventually("the loss is noticed", SOON, async || !one.status().is_registered()).await;
    let late = one.update(|one| one.with_weight(Weight::new(5).unwrap())).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::DeadlineExceeded, "it is kept for later");
    etcd.restart(0).await;
    let is_back = async || {
        let written = entries(&mut etcd.raw().await).await;
        matches!(&written[..], [(_, value)] if value == "10.0.0.2:80 5")
    };
    eventually("it is back, once, with the update", SOON, is_back).await;
    eventually("its status follows", SOON, async || one.status().is_registered()).await;
    one.deregister().await.unwrap();
    assert!(etcd.raw().await.keys().await.is_empty());
}

#[tokio::test]
async fn without_etcd_a_registration_fails_in_time_and_leaves_nothing() {
    let etcd = Etcd::start().await;
    let backend =
        EtcdBackend::new(config(etcd.members()).operation_timeout(Duration::from_secs(1)).layout(LeaseKeys)).unwrap();
    etcd.stop(0);
    let start = Instant::now();
    let error = backend.register(&payments(), instance(1)).await.unwrap_err();
    assert!(start.elapsed() < SOON && error.is_retryable(), "{error}");
    etcd.restart(0).await;
    // An attempt that was given up must not be written later.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut raw = etcd.raw().await;
    assert!(raw.keys().await.is_empty() && raw.leases().await.is_empty());
    let _one = register(&backend, 1).await;
    assert_eq!(entries(&mut raw).await.len(), 1);
}
