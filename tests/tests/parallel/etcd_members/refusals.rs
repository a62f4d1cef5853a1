//! Members that answer, but refuse.

use std::time::{Duration, Instant};

use discovery_core::{ErrorKind, Registry, Resolver};
use discovery_etcd::EtcdBackend;
use futures::future::join_all;
use support::{
    Before, Etcd, Fake, Follower, eventually,
    scene::{SOON, config, connect_to, count, follow, instance, payments, register},
};
use tokio::time::sleep;
use tonic::{Code, Status};

/// Answers that one member may give to every request while the others are well.
fn refusals() -> Vec<(&'static str, Status)> {
    vec![
        ("a learner of 3.6", Status::failed_precondition("etcdserver: rpc not supported for learner")),
        ("a learner of 3.5", Status::unavailable("etcdserver: rpc not supported for learner")),
        ("another gRPC server", Status::unimplemented("")),
        ("a member that rejects tokens", Status::unauthenticated("etcdserver: invalid auth token")),
        ("a proxy that authenticates", Status::unauthenticated("no credentials")),
        ("a service mesh", Status::permission_denied("RBAC: access denied")),
        ("a member in trouble", Status::data_loss("etcdserver: corrupt cluster")),
        ("a member that lags", Status::out_of_range("etcdserver: mvcc: required revision is a future revision")),
        ("a member that starts", Status::failed_precondition("etcdserver: not capable")),
        ("a busy member", Status::resource_exhausted("etcdserver: too many requests")),
        ("a gateway", Status::resource_exhausted("rate limit exceeded")),
        ("an old member", Status::invalid_argument("unknown field")),
        ("a server without the method", Status::not_found("no such method")),
        ("a broken server", Status::internal("boom")),
        ("an odd server", Status::aborted("not now")),
        ("an unknown code", Status::new(Code::from(42), "what")),
    ]
}

/// One member refuses everything, and the only other one is down for 2 s. Afterwards everything is
/// as before: the refusal of one member is not taken for the cluster's answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_refuses_takes_nothing_down() {
    let etcd = Etcd::start().await;
    let refusals = refusals();
    let mut cases = Vec::new();
    for (number, (name, status)) in (0..).zip(&refusals) {
        let fake = Fake::start().await;
        let status = status.clone();
        fake.before(move |_| Before::Fail(status.clone()));
        let backend = connect_to([fake.address(), etcd.address()]);
        let registration = register(&backend, number).await;
        let follower = follow(&backend);
        cases.push((*name, backend, registration, follower, fake));
    }
    let is_whole = |follower: &Follower| !follower.is_lost() && follower.set().len() == refusals.len();
    eventually("all are there", SOON, async || cases.iter().all(|(_, _, _, follower, _)| is_whole(follower))).await;

    etcd.kill(0);
    sleep(Duration::from_secs(2)).await;
    etcd.restart(0).await;
    let start = Instant::now();
    for (name, backend, registration, follower, _) in &cases {
        let is_well = async || registration.status().is_registered() && is_whole(follower);
        eventually(&format!("{name}: registered and watched again"), SOON, is_well).await;
        assert_eq!(count(backend).await, Some(refusals.len()), "{name}");
        println!("{name}: registered, watched and listed {:?} after the other member was back", start.elapsed());
    }
}

/// The handle is connected to the member that starts to refuse, and leaves it at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_leaves_a_member_that_starts_to_refuse() {
    let etcd = Etcd::start().await;
    join_all(refusals().into_iter().zip(0..).map(|((name, status), number)| {
        let address = etcd.address();
        async move {
            let fake = Fake::start().await;
            let backend = connect_to([fake.address()]);
            assert_eq!(count(&backend).await, Some(0));
            // This is a member of another cluster, but the handle has read nothing from it yet.
            let both = connect_to([fake.address(), address]);
            fake.before(move |_| Before::Fail(status.clone()));
            let start = Instant::now();
            let _registration = register(&both, number).await;
            println!("{name}: registered elsewhere in {:?}", start.elapsed());
            assert!(count(&both).await.is_some(), "{name}");
        }
    }))
    .await;
}

/// All members refuse: the error corresponds to the answer, and is not final if the answer is only
/// about a member.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_all_members_answer_is_reported() {
    join_all(refusals().into_iter().map(|(name, status)| async move {
        let fakes = [Fake::start().await, Fake::start().await];
        for fake in &fakes {
            let status = status.clone();
            fake.before(move |_| Before::Fail(status.clone()));
        }
        let members = fakes.iter().map(Fake::address);
        // What is final is reported at once; a short timeout could end first on a busy machine.
        let limit = if status.code() == Code::Unauthenticated { SOON } else { Duration::from_secs(1) };
        let backend = EtcdBackend::new(config(members).operation_timeout(limit)).unwrap();
        let error = backend.list(&payments()).await.unwrap_err();
        println!("{name}: {}", error.report());
        assert_eq!(error.kind() == ErrorKind::Unauthenticated, status.code() == Code::Unauthenticated, "{name}");
        assert_eq!(error.is_retryable(), status.code() != Code::Unauthenticated, "{name}: {}", error.report());
        assert!(error.report().to_string().contains(status.message()), "{name}: the report contains the reason");
    }))
    .await;
}

/// A final refusal by one member does not count as final while the other member is away for a
/// moment: an update, a first registration and a list keep trying until that one is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_refusal_of_one_member_is_final_while_the_other_restarts() {
    let token = Status::unauthenticated("etcdserver: invalid auth token");
    join_all([(Some(token), "3.5.16"), (None, "3.3.27")].into_iter().map(|(refusal, version)| async move {
        let etcd = Etcd::start().await;
        let fake = Fake::start().await;
        fake.report_version(version);
        if let Some(status) = refusal {
            fake.before(move |_| Before::Fail(status.clone()));
        }
        let config = config([fake.address(), etcd.address()]).operation_timeout(Duration::from_secs(10));
        let backend = EtcdBackend::new(config).unwrap();
        let held = register(&backend, 0).await;
        etcd.kill(0);
        sleep(Duration::from_millis(300)).await;
        let start = Instant::now();
        let service = payments();
        let (updated, registered, listed, ()) = tokio::join!(
            held.update(|one| one.with_weight(7.try_into().unwrap())),
            backend.register(&service, instance(1)),
            backend.list(&service),
            // Longer than the lease.
            async {
                sleep(Duration::from_millis(2500)).await;
                etcd.restart(0).await;
            },
        );
        println!("{version}: all done after {:?}", start.elapsed());
        updated.unwrap_or_else(|error| panic!("{version}: {}", error.report()));
        let _registered = registered.unwrap_or_else(|error| panic!("{version}: {}", error.report()));
        listed.unwrap_or_else(|error| panic!("{version}: {}", error.report()));
    }))
    .await;
}
