use std::time::{Duration, Instant};

use discovery_core::{ErrorKind, Registry, Resolver, Update};
use futures::StreamExt;
use support::{
    Before, Fake, Method,
    scene::{SOON, connect_to, count, instance, payments, register},
};
use tokio::time::timeout;
use tonic::Status;

/// A member that is too old is refused with its version, and other members are tried. The refusal
/// does not count as the cluster's answer.
#[tokio::test]
async fn a_member_that_is_too_old_is_refused_with_its_version() {
    for version in ["3.3.27", "3.2.32", "3.0.0", "2.3.8"] {
        let old = Fake::start().await;
        old.report_version(version);
        let backend = connect_to([old.address()]);
        let start = Instant::now();
        for error in [
            backend.list(&payments()).await.unwrap_err(),
            backend.register(&payments(), instance(1)).await.unwrap_err(),
        ] {
            println!("{version}: {}", error.report());
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.report().to_string().contains(version), "{}", error.report());
            assert!(error.report().to_string().contains("3.4 or later"));
        }
        assert!(start.elapsed() < Duration::from_secs(3));
        let mut updates = backend.watch(&payments()).unwrap();
        let lost = timeout(SOON, updates.next()).await.unwrap();
        assert!(matches!(lost, Some(Update::Lost(error)) if error.kind() == ErrorKind::Unsupported));
        assert!(
            old.asked(Method::Write).is_empty() && old.asked(Method::Range).is_empty(),
            "no other request was sent"
        );

        let new = Fake::start().await;
        let both = connect_to([old.address(), new.address()]);
        let _registration = register(&both, 1).await;
        assert_eq!(count(&both).await, Some(1), "{version}");
    }
}

/// Neither an unreadable nor an unknown version is a reason to refuse a member.
#[tokio::test]
async fn an_unreadable_version_is_not_refused() {
    for version in
        ["", "not_decided", "main", "3", "3.", "3.x.1", "v3.2.32", "3.4.0", "3.10.0", "4.0.0-alpha.0", "\u{0}"]
    {
        let fake = Fake::start().await;
        fake.report_version(version);
        let backend = connect_to([fake.address()]);
        let _registration = register(&backend, 1).await;
        assert_eq!(count(&backend).await, Some(1), "{version:?}");
    }
    let silent = |method| if method == Method::Status { Before::Never } else { Before::Serve };
    let unknown = |method| match method {
        Method::Status => Before::Fail(Status::unimplemented("unknown service etcdserverpb.Maintenance")),
        _ => Before::Serve,
    };
    let denied = |method| match method {
        Method::Status => Before::Fail(Status::permission_denied("etcdserver: permission denied")),
        _ => Before::Serve,
    };
    for (name, script) in [("silent", silent as fn(_) -> _), ("unknown", unknown), ("denied", denied)] {
        let fake = Fake::start().await;
        fake.before(script);
        let backend = connect_to([fake.address()]);
        let start = Instant::now();
        let _registration = register(&backend, 1).await;
        println!("{name}: registered in {:?}", start.elapsed());
        assert_eq!(count(&backend).await, Some(1), "{name}");
    }
}
