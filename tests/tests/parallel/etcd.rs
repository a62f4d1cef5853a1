//! The etcd backend against real etcd processes and their faults.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use discovery_core::{Claim, ErrorKind, Registry, Resolver, Snapshot, Status, Update, Weight};
use discovery_etcd::{EtcdBackend, EtcdConfig};
use futures::{StreamExt, future::join_all};
use support::{
    Etcd, Fault, Proxy, eventually,
    scene::{
        SOON, TTL, assert_one_outage, config, connect, count, instance, payments, register, until, until_lost,
        until_registered,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};

#[tokio::test]
async fn a_service_is_registered_watched_updated_and_deregistered() {
    let etcd = Etcd::start().await;
    let backend = EtcdBackend::new(config(etcd.members()).prefix("prod")).unwrap();
    let mut updates = backend.watch(&payments()).unwrap();
    let mut set = Snapshot::default();
    assert!(matches!(updates.next().await, Some(Update::Reset(set)) if set.is_empty()));
    let one = instance(1).with_metadata([("zone", "a")].try_into().unwrap());
    let registration = backend.register(&payments(), one.clone()).await.unwrap();
    until(&mut updates, &mut set, |set| set.len() == 1).await;

    let mut raw = etcd.raw().await;
    let (value, lease) = raw.entry("prod/payments/10.0.0.2:80").await.expect("the key that Go's resolver reads");
    assert_eq!(String::from_utf8(value).unwrap(), r#"{"Op":0,"Addr":"10.0.0.2:80","Metadata":"{\"zone\":\"a\"}"}"#);
    assert_ne!(lease, 0);

    let heavy = Weight::new(300).unwrap();
    registration.update(|one| one.with_weight(heavy)).await.unwrap();
    let seen = until(&mut updates, &mut set, |set| set.iter().any(|one| one.weight() == heavy)).await;
    assert!(seen.iter().all(|update| matches!(update, Update::Change(change) if change.removes().is_empty())));
    let (value, same_lease) = raw.entry("prod/payments/10.0.0.2:80").await.unwrap();
    let value = String::from_utf8(value).unwrap();
    assert_eq!(value, r#"{"Op":0,"Addr":"10.0.0.2:80","Metadata":"{\"weight\":300,\"zone\":\"a\"}"}"#);
    assert_eq!(lease, same_lease, "an update needs no other lease");

    registration.deregister().await.unwrap();
    assert!(raw.keys().await.is_empty(), "deregister returns once the entry is gone");
    until(&mut updates, &mut set, Snapshot::is_empty).await;
    eventually("the lease is revoked with the last registration", SOON, async || raw.leases().await.is_empty()).await;
}

#[tokio::test]
async fn without_etcd_calls_fail_within_their_deadline_and_leave_nothing() {
    let etcd = Etcd::absent();
    let backend = EtcdBackend::new(config(etcd.members()).operation_timeout(Duration::from_secs(1))).unwrap();
    let start = Instant::now();
    let error = backend.register(&payments(), instance(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.report());
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    etcd.appear().await;
    sleep(Duration::from_millis(700)).await;
    let mut raw = etcd.raw().await;
    assert!(raw.keys().await.is_empty(), "an abandoned registration is not written later");
    eventually("no lease stays", SOON, async || raw.leases().await.is_empty()).await;
}

#[tokio::test]
async fn a_restart_within_the_ttl_changes_no_instance() {
    let etcd = Etcd::start().await;
    let backend = EtcdBackend::new(config(etcd.members()).ttl(Duration::from_secs(5))).unwrap();
    let registration = register(&backend, 1).await;
    let mut updates = backend.watch(&payments()).unwrap();
    let mut set = Snapshot::default();
    until(&mut updates, &mut set, |set| set.len() == 1).await;
    let first = Arc::clone(set.iter().next().unwrap());
    etcd.kill(0);
    // Without waiting for the loss, an etcd that restarts before the next list would be no outage.
    let mut seen = vec![timeout(SOON, updates.next()).await.unwrap().unwrap()];
    etcd.restart(0).await;
    while !matches!(seen.last(), Some(Update::Reset(_))) {
        let update = timeout(SOON, updates.next()).await.unwrap().unwrap();
        set = set.after(&update);
        seen.push(update);
    }
    assert_one_outage(&seen);
    assert!(Arc::ptr_eq(set.iter().next().unwrap(), &first));
    assert!(registration.status().is_registered());
    sleep(Duration::from_secs(6)).await;
    assert!(registration.status().is_registered(), "its lease is still renewed");
    assert_eq!(count(&backend).await, Some(1));
}

#[tokio::test]
async fn a_stop_longer_than_the_ttl_is_reported_and_healed() {
    let etcd = Etcd::start().await;
    let backend = connect(&etcd);
    let registration = register(&backend, 1).await;
    etcd.stop(0);
    let lost = until_lost(&registration, TTL + Duration::from_secs(1)).await;
    sleep(TTL).await;
    etcd.restart(0).await;
    let back = until_registered(&registration, SOON).await;
    assert_eq!(count(&backend).await, Some(1));
    let mut raw = etcd.raw().await;
    let (_, lease) = raw.entry("payments/10.0.0.2:80").await.unwrap();
    eventually("one lease is left", SOON, async || raw.leases().await == [lease]).await;
    println!("lost {lost:?} after the stop, back {back:?} after the restart");
}

/// The watch's connection carries nothing any more, which only pings would reveal. Other requests
/// use another connection.
#[tokio::test]
async fn fault_a32_a_watch_stuck_on_its_connection_is_reopened() {
    let etcd = Etcd::start().await;
    let (address, stall) = stalling_proxy(etcd.address()).await;
    let config = EtcdConfig::new([address]).ttl(Duration::from_secs(9));
    let backend = EtcdBackend::new(config.request_timeout(Duration::from_millis(300))).unwrap();
    let writer = connect(&etcd);
    let gone = register(&writer, 1).await;
    let mut updates = backend.watch(&payments()).unwrap();
    let mut set = Snapshot::default();
    until(&mut updates, &mut set, |set| set.len() == 1).await;
    // The set arrives a moment before the watch is open.
    sleep(Duration::from_millis(500)).await;
    stall.send_replace(true);
    assert_eq!(count(&backend).await, Some(1), "on a second connection");
    gone.deregister().await.unwrap();
    let start = Instant::now();
    let seen = until(&mut updates, &mut set, Snapshot::is_empty).await;
    println!("the stuck watch was reopened {:?} after the change that it missed", start.elapsed());
    assert!(matches!(&seen[..], [Update::Reset(_)]), "nothing else: {seen:?}");
    assert!(start.elapsed() < Duration::from_secs(9), "long before a ping");
}

/// A proxy whose first connection delivers no more answers once it is stalled.
async fn stalling_proxy(target: String) -> (String, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let stall = watch::Sender::new(false);
    let mut first = Some(stall.subscribe());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let mut stalled = first.take();
            let target = target.clone();
            tokio::spawn(async move {
                let server = TcpStream::connect(target).await.unwrap();
                let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                    (client.into_split(), server.into_split());
                let answers = async {
                    let mut buffer = vec![0; 64 << 10];
                    while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
                        if let Some(stalled) = &mut stalled {
                            let _ = stalled.wait_for(|stalled| !stalled).await;
                        }
                        if to_client.write_all(&buffer[..count]).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::select! {
                    () = answers => {}
                    _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
                }
            });
        }
    });
    (address, stall)
}

#[tokio::test]
async fn registrations_return_after_a_wipe() {
    let etcd = Etcd::start().await;
    let backend = connect(&etcd);
    let registrations = join_all((0..10).map(|number| register(&backend, number))).await;
    let mut updates = backend.watch(&payments()).unwrap();
    let mut set = Snapshot::default();
    until(&mut updates, &mut set, |set| set.len() == 10).await;
    etcd.wipe().await;
    let took = eventually("all are listed", SOON, async || count(&backend).await == Some(10)).await;
    println!("10 registrations back {took:?} after the wipe");
    for registration in &registrations {
        until_registered(registration, SOON).await;
    }
    // Revisions start again, and each registration still learns what happens to its entry.
    let mut raw = etcd.raw().await;
    raw.delete("payments/10.0.0.2:80").await;
    let back = async || raw.entry("payments/10.0.0.2:80").await.is_some();
    eventually("repaired", Duration::from_secs(1), back).await;
    let mut model = Snapshot::default();
    let list = backend.list(&payments()).await.unwrap();
    until(&mut updates, &mut model, |set| *set == list).await;
}

#[tokio::test]
async fn one_handle_keeps_the_order_of_its_own_registrations() {
    let etcd = Etcd::start().await;
    let backend = connect(&etcd);
    let first = register(&backend, 1).await;
    let second = register(&backend, 1).await;
    assert!(matches!(first.status(), Status::Superseded { .. }), "the status shows it at once");
    let error = backend.register_with(&payments(), instance(1), Claim::IfAbsent).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(first.update(|one| one).await.unwrap_err().kind(), ErrorKind::Conflict);
    first.deregister().await.unwrap();
    assert_eq!(count(&backend).await, Some(1), "the superseded registration removes nothing");
    second.deregister().await.unwrap();
    assert_eq!(count(&backend).await, Some(0));
    let third = backend.register_with(&payments(), instance(1), Claim::IfAbsent).await.unwrap();
    assert!(third.status().is_registered());
}

#[tokio::test]
async fn killing_three_members_in_turn_removes_nothing() {
    let etcd = Etcd::start_members(3).await;
    let backend = EtcdBackend::new(config(etcd.members()).ttl(Duration::from_secs(5))).unwrap();
    let observer = connect(&etcd);
    let registration = register(&backend, 1).await;
    let mut updates = observer.watch(&payments()).unwrap();
    let mut set = Snapshot::default();
    until(&mut updates, &mut set, |set| set.len() == 1).await;
    for place in 0..3 {
        etcd.kill(place);
        sleep(Duration::from_secs(3)).await;
        etcd.restart(place).await;
        eventually("listed", SOON, async || count(&observer).await == Some(1)).await;
    }
    assert!(registration.status().is_registered());
    while let Ok(Some(update)) = timeout(Duration::from_millis(100), updates.next()).await {
        set = set.after(&update);
        assert_eq!(set.len(), 1, "{update:?}");
    }
}

#[tokio::test]
async fn close_removes_everything_and_ends_the_handle() {
    let etcd = Etcd::start().await;
    let backend = connect(&etcd);
    let registrations = join_all((0..100).map(|number| register(&backend, number))).await;
    let mut updates = backend.watch(&payments()).unwrap();
    assert!(matches!(updates.next().await, Some(Update::Reset(_))));
    let start = Instant::now();
    backend.close().await.unwrap();
    println!("100 registrations closed in {:?}", start.elapsed());
    let mut raw = etcd.raw().await;
    assert!(raw.keys().await.is_empty());
    assert!(raw.leases().await.is_empty());
    for registration in registrations {
        assert!(matches!(registration.status(), Status::Deregistered { .. }));
        registration.deregister().await.unwrap();
    }
    assert_eq!(backend.register(&payments(), instance(1)).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(backend.list(&payments()).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(backend.watch(&payments()).unwrap_err().kind(), ErrorKind::Closed);
    let lost = async {
        loop {
            if let Some(Update::Lost(error)) = updates.next().await {
                return error;
            }
        }
    };
    assert_eq!(timeout(SOON, lost).await.unwrap().kind(), ErrorKind::Closed);
    backend.close().await.unwrap();
}

#[tokio::test]
async fn deregistering_without_etcd_reports_when_the_lease_ends() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::to(etcd.address()).await;
    let settings = config([proxy.address()]).operation_timeout(Duration::from_millis(700));
    let backend = EtcdBackend::new(settings).unwrap();
    let registration = register(&backend, 1).await;
    proxy.set(Fault::BlackHole);
    let start = Instant::now();
    let error = registration.deregister().await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(error.to_string().contains("ends in at most"), "{error}");
    let mut raw = etcd.raw().await;
    let took =
        eventually("the lease ends the entry", TTL + Duration::from_secs(1), async || raw.keys().await.is_empty())
            .await;
    println!("{error}; it was gone after {took:?}");
}

/// Regression: minutes after etcd was gone, the message stated that the lease "ends in at most 1s".
#[tokio::test]
async fn deregistering_long_after_etcd_was_lost_does_not_state_that_the_lease_is_about_to_end() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::to(etcd.address()).await;
    let settings = config([proxy.address()]).operation_timeout(Duration::from_millis(700));
    let backend = EtcdBackend::new(settings).unwrap();
    let registration = register(&backend, 1).await;
    let other = register(&backend, 2).await;
    proxy.set(Fault::BlackHole);
    until_lost(&registration, SOON).await;
    // Renewals that were sent before may have arrived.
    sleep(TTL + Duration::from_secs(1)).await;
    let deregistered = [registration.deregister().await, other.deregister().await];
    // The lease has no user any more, and revoking it has failed, too.
    sleep(TTL).await;
    let closed = backend.close().await;
    for error in deregistered.into_iter().chain([closed]).filter_map(Result::err) {
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        let message = error.to_string();
        assert!(!message.contains("ends in at most") && !message.contains("renewed"), "{message}");
        assert!(message.contains("the lease was due to end "), "{message}");
        assert!(message.contains(" after it has a leader again"), "{message}");
    }
}

/// Regression: if etcd refuses connections, the attempt to revoke the lease fails at once. Its end
/// was then unknown, and stated as "at most 1s".
#[tokio::test]
async fn deregistering_while_etcd_refuses_connections_reports_when_the_lease_ends() {
    let etcd = Etcd::start().await;
    let settings = config(etcd.members()).ttl(Duration::from_secs(60)).operation_timeout(Duration::from_secs(3));
    let backend = EtcdBackend::new(settings).unwrap();
    let registration = register(&backend, 1).await;
    etcd.kill(0);
    let error = registration.deregister().await.unwrap_err();
    let message = error.to_string();
    assert!(message.contains("ends in at most 5"), "{message}");
    assert!(message.contains("or, if etcd is down, 1m 1s after it has a leader again"), "{message}");
}

/// Tests that measure time or shares. `scripts/test` runs them after all others.
mod timed {
    use super::*;

    #[tokio::test]
    async fn a_thousand_registrations_share_a_lease() {
        let etcd = Etcd::start().await;
        let backend = EtcdBackend::new(config(etcd.members()).ttl(Duration::from_secs(5))).unwrap();
        let start = Instant::now();
        let registrations = join_all((0..1000).map(|number| register(&backend, number))).await;
        println!("1,000 registered in {:?}", start.elapsed());
        let mut raw = etcd.raw().await;
        assert_eq!(raw.leases().await.len(), 1);
        let lease = raw.leases().await[0];
        let watchers = "etcd_debugging_mvcc_watcher_total";
        eventually("each registration watches its entry", SOON, async || etcd.metric(0, watchers) == Some(1000.0))
            .await;
        assert_eq!(etcd.metric(0, "etcd_debugging_mvcc_watch_stream_total"), Some(1.0), "on one stream");
        let renewals = r#"grpc_server_started_total{grpc_method="LeaseKeepAlive",grpc_service="etcdserverpb.Lease",grpc_type="bidi_stream"}"#;
        assert_eq!(etcd.metric(0, renewals), Some(1.0), "renewals share one stream");
        raw.revoke(lease).await;
        let start = Instant::now();
        eventually("all are back", SOON, async || count(&backend).await == Some(1000)).await;
        for registration in &registrations {
            until_registered(registration, SOON).await;
        }
        println!("1,000 back {:?} after their lease was revoked", start.elapsed());
        let start = Instant::now();
        backend.close().await.unwrap();
        println!("1,000 closed in {:?}", start.elapsed());
        assert!(raw.keys().await.is_empty());
    }
}
