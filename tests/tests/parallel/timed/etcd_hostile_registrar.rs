//! Registrations on a server that answers wrongly: bounded attempts, typed errors, no status that
//! is untrue, and recovery once the server behaves.

use std::time::{Duration, Instant};

use discovery_core::{Backoff, Error, ErrorKind, Registration, Registry, Resolver, Status};
use discovery_etcd::{EtcdBackend, EtcdConfig};
use etcd_client::proto::{PbLeaseKeepAliveResponse, PbWatchResponse};
use support::{
    Before, Fake, Method, eventually,
    scene::{SOON, count, instance, payments},
};
use tokio::time::{sleep, timeout};
use tonic::Status as Code;

const SECOND: Duration = Duration::from_secs(1);

fn connect(fake: &Fake) -> EtcdBackend {
    let config = EtcdConfig::new([fake.address()])
        .ttl(Duration::from_secs(3))
        .request_timeout(SECOND)
        .operation_timeout(2 * SECOND)
        .backoff(Backoff::new(Duration::from_millis(100), 2 * SECOND).unwrap());
    EtcdBackend::new(config).unwrap()
}

async fn register(backend: &EtcdBackend) -> Result<Registration, Error> {
    backend.register(&payments(), instance(0)).await
}

/// The methods that are counted at the server for one registration.
const METHODS: [Method; 5] = [Method::Grant, Method::KeepAlive, Method::Write, Method::Range, Method::Watch];

fn within(fake: &Fake, since: Instant, time: Duration) -> [usize; METHODS.len()] {
    let within = |at: &Instant| (since..since + time).contains(at);
    METHODS.map(|method| fake.asked(method).iter().filter(|at| within(at)).count())
}

/// Registers while the server misbehaves for four seconds. Then it is honest, and a registration
/// must hold and end gracefully. Returns the result of the first registration and whether its
/// status was ever other than registered.
async fn register_while(misbehaving: impl FnOnce(&Fake)) -> (Result<(), Error>, bool) {
    let fake = Fake::start().await;
    misbehaving(&fake);
    let backend = connect(&fake);
    let start = Instant::now();
    let first = timeout(3 * SECOND, register(&backend)).await.expect("`register` ends within its deadline");
    let mut was_lost = false;
    while start.elapsed() < 4 * SECOND {
        let status = first.as_ref().map(Registration::status);
        was_lost |= status.is_ok_and(|status| !status.is_registered());
        sleep(SECOND / 100).await;
    }
    let early = within(&fake, start, SECOND);
    let late = within(&fake, start + SECOND, 3 * SECOND);
    fake.be_honest();
    let start = Instant::now();
    let error = first.as_ref().map(drop).map_err(Clone::clone);
    if let Err(error) = &error {
        println!("fault_a26: reported {}", error.report());
    }
    let registration = match first {
        Ok(registration) => registration,
        Err(_) => register(&backend).await.unwrap(),
    };
    let settled = async || registration.status().is_registered() && fake.keys().len() == 1 && fake.leases().len() == 1;
    eventually("registered under one lease", SOON, settled).await;
    println!(
        "fault_a26: {METHODS:?}: {early:?} in the first second, {late:?} in the next three; well after {:?}",
        start.elapsed()
    );
    // Longer than a lease lives without renewal.
    sleep(4 * SECOND).await;
    assert!(registration.status().is_registered() && count(&backend).await == Some(1), "{:?}", registration.status());
    registration.deregister().await.unwrap();
    assert!(fake.keys().is_empty());
    eventually("no lease is left", SOON, async || fake.leases().is_empty()).await;
    // One attempt to heal may write twice: the first write is refused if the entry of the former
    // lease still exists.
    let are_few = |counts: &[usize], most| {
        let most_of = |method: &Method| if *method == Method::Write { 2 * most } else { most };
        METHODS.iter().zip(counts).all(|(method, count)| *count <= most_of(method))
    };
    assert!(are_few(&early, 10), "{early:?}");
    // Random pauses of up to 500 ms make twelve attempts on average, and practically never more
    // than 24.
    assert!(are_few(&late, 24), "no backoff: {late:?}");
    (error, was_lost)
}

fn assert_refused(ended: &(Result<(), Error>, bool)) {
    let error = ended.0.as_ref().expect_err("nothing was registered");
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::DeadlineExceeded), "{}", error.report());
}

/// Ends every watch stream at the answer that the script picks.
fn with_watches_ended(mut at: impl FnMut(&PbWatchResponse) -> bool + Send + 'static) -> impl FnOnce(&Fake) {
    move |fake| {
        fake.edit_watches(move |answer| {
            let ends = at(&answer);
            let mut sent = vec![Ok(answer)];
            sent.extend(ends.then(|| Err(Code::unavailable("enough"))));
            sent
        });
    }
}

#[tokio::test]
async fn fault_a26_streams_of_watches_that_end_at_once() {
    register_while(with_watches_ended(|answer| answer.created)).await.0.unwrap();
}

#[tokio::test]
async fn fault_a26_streams_of_watches_that_end_with_the_first_event() {
    register_while(with_watches_ended(|answer| !answer.created)).await.0.unwrap();
}

#[tokio::test]
async fn fault_a26_watches_that_are_canceled_at_once() {
    register_while(|fake| {
        fake.edit_watches(|answer| vec![Ok(answer.clone()), Ok(PbWatchResponse { canceled: true, ..answer })]);
    })
    .await
    .0
    .unwrap();
}

#[tokio::test]
async fn fault_a26_another_lease_granted_than_requested() {
    assert_refused(
        &register_while(|fake| {
            fake.edit_grants(|mut answer| {
                answer.id += 1;
                Ok(answer)
            });
            // An honest answer here would show that the lease exists after all.
            fake.edit_times(|mut answer| {
                answer.id += 1;
                Ok(answer)
            });
        })
        .await,
    );
}

async fn granted_for(ttl: i64) {
    let ended = register_while(move |fake| {
        fake.edit_grants(move |mut answer| {
            answer.ttl = ttl;
            Ok(answer)
        });
        fake.edit_times(move |mut answer| {
            answer.granted_ttl = ttl;
            Ok(answer)
        });
    });
    assert_refused(&ended.await);
}

#[tokio::test]
async fn fault_a26_a_lease_granted_for_no_time() {
    granted_for(0).await;
}

#[tokio::test]
async fn fault_a26_a_lease_granted_for_negative_time() {
    granted_for(-1).await;
}

#[tokio::test]
async fn fault_a26_a_lease_granted_forever() {
    granted_for(i64::MAX).await;
}

/// Changes each answer to a renewal.
fn with_renewals(mut change: impl FnMut(&mut PbLeaseKeepAliveResponse) + Send + 'static) -> impl FnOnce(&Fake) {
    move |fake| {
        fake.edit_renewals(move |mut answer| {
            change(&mut answer);
            vec![Ok(answer)]
        });
    }
}

#[tokio::test]
async fn fault_a26_another_lease_renewed_than_requested() {
    register_while(with_renewals(|answer| answer.id += 1)).await.0.unwrap();
}

#[tokio::test]
async fn fault_a26_renewals_that_report_the_lease_as_gone() {
    let (_, was_lost) = register_while(with_renewals(|answer| answer.ttl = 0)).await;
    assert!(was_lost, "the loss is reported");
}

#[tokio::test]
async fn fault_a26_a_lease_renewed_forever() {
    // The first answer is received when the stream opens.
    let mut first = true;
    register_while(with_renewals(move |answer| {
        if !std::mem::replace(&mut first, false) {
            answer.ttl = i64::MAX;
        }
    }))
    .await
    .0
    .unwrap();
}

#[tokio::test]
async fn fault_a26_a_flood_of_renewals() {
    register_while(|fake| fake.edit_renewals(|answer| vec![Ok(answer); 10_000])).await.0.unwrap();
}

#[tokio::test]
async fn fault_a26_streams_of_renewals_that_end_at_once() {
    register_while(|fake| fake.edit_renewals(|answer| vec![Ok(answer), Err(Code::unavailable("enough"))]))
        .await
        .0
        .unwrap();
}

/// The write is found to be done when it is repeated, and is trusted then.
#[tokio::test]
async fn fault_a26_a_write_answered_without_its_header() {
    register_while(|fake| {
        fake.edit_txns(|_, mut answer| {
            answer.header = None;
            Ok(answer)
        });
    })
    .await
    .0
    .unwrap();
}

/// The answer refuses the write although its condition held.
#[tokio::test]
async fn fault_a26_a_write_refused_against_its_own_condition() {
    assert_refused(
        &register_while(|fake| {
            fake.edit_txns(|_, mut answer| {
                answer.succeeded = false;
                answer.responses.clear();
                Ok(answer)
            });
        })
        .await,
    );
}

/// Deregistering must not report that the entry is gone unless the answer proves it.
#[tokio::test]
async fn fault_a26_a_removal_answered_with_nothing() {
    let fake = Fake::start().await;
    let backend = connect(&fake);
    let registration = register(&backend).await.unwrap();
    fake.edit_txns(|_, mut answer| {
        answer.succeeded = false;
        answer.responses.clear();
        Ok(answer)
    });
    let start = Instant::now();
    let error = registration.deregister().await.unwrap_err();
    println!("fault_a26: reported after {:?}: {}", start.elapsed(), error.report());
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(fake.asked(Method::Write).len() <= 12, "{:?}", fake.asked(Method::Write).len());
    fake.be_honest();
    eventually("gone once the server behaves", SOON, async || fake.keys().is_empty() && fake.leases().is_empty()).await;
}

/// Streams work, and no other call is answered.
#[tokio::test]
async fn unanswered_unary_calls_hang_nothing() {
    let fake = Fake::start().await;
    let backend = connect(&fake);
    let registration = register(&backend).await.unwrap();
    let mut updates = backend.watch(&payments()).unwrap();
    let first = timeout(SOON, futures::StreamExt::next(&mut updates)).await.unwrap();
    assert!(matches!(first, Some(discovery_core::Update::Reset(_))));
    fake.before(|method| if method.is_stream() { Before::Serve } else { Before::Never });
    let start = Instant::now();
    let list = backend.list(&payments()).await.unwrap_err();
    let listed = start.elapsed();
    let lost = timeout(SOON, futures::StreamExt::next(&mut updates)).await.unwrap();
    println!("list failed in {listed:?}, the watch was lost within {:?}", start.elapsed());
    assert!(matches!(lost, Some(discovery_core::Update::Lost(_))), "{lost:?}");
    assert!(list.kind() == ErrorKind::DeadlineExceeded && listed < 4 * SECOND, "{}", list.report());
    sleep(3 * SECOND).await;
    assert!(registration.status().is_registered(), "renewals are answered");
    let asked = fake.asked(Method::Range).into_iter().filter(|at| *at >= start).count();
    assert!(asked <= 16, "{asked} lists in {:?}", start.elapsed());
    let error = registration.deregister().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{}", error.report());
    fake.be_honest();
    eventually("gone once it answers", SOON, async || fake.keys().is_empty()).await;
    eventually("listed again", SOON, async || count(&backend).await == Some(0)).await;
}

/// Unary calls are answered, and no stream ever opens. Sets come from lists, and registrations
/// survive by new leases.
#[tokio::test]
async fn streams_that_never_open_hang_nothing() {
    let fake = Fake::start().await;
    fake.before(|method| if method.is_stream() { Before::Never } else { Before::Serve });
    let backend = connect(&fake);
    let start = Instant::now();
    let mut updates = backend.watch(&payments()).unwrap();
    let mut set = discovery_core::Snapshot::default();
    let registration = register(&backend).await.unwrap();
    while set.is_empty() {
        let update = timeout(SOON, futures::StreamExt::next(&mut updates)).await.unwrap().unwrap();
        set = set.after(&update);
    }
    println!("seen {:?} after the start, without a watch", start.elapsed());
    eventually("the lease ends, and the status reports it", SOON, async || {
        matches!(registration.status(), Status::Lost { .. })
    })
    .await;
    eventually("registered again", SOON, async || registration.status().is_registered()).await;
    sleep((8 * SECOND).saturating_sub(start.elapsed())).await;
    let asked = [Method::Watch, Method::KeepAlive, Method::Grant, Method::Range].map(|method| fake.asked(method).len());
    println!("watches, renewals, grants, lists in {:?}: {asked:?}", start.elapsed());
    assert!(asked.iter().all(|count| *count <= 40), "{asked:?}");
    fake.be_honest();
    eventually("watched at last", SOON, async || fake.open_watches() >= 1).await;
    eventually("registered", SOON, async || registration.status().is_registered()).await;
    registration.deregister().await.unwrap();
    assert!(fake.keys().is_empty());
}

/// Each answer arrives just when nobody waits for it any more; the request is executed all the
/// same.
#[tokio::test]
async fn answers_at_the_deadline_hang_nothing() {
    let fake = Fake::start().await;
    fake.before(|_| Before::Wait(SECOND));
    let backend = connect(&fake);
    let start = Instant::now();
    let service = payments();
    let (list, registered) = tokio::join!(backend.list(&service), register(&backend));
    println!("ended after {:?}: {:?}, {:?}", start.elapsed(), list.as_ref().map(drop), registered.as_ref().map(drop));
    assert!(start.elapsed() < 4 * SECOND);
    for error in [list.map(drop).err(), registered.map(drop).err()].into_iter().flatten() {
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{}", error.report());
    }
    let asked = [Method::Range, Method::Grant].map(|method| fake.asked(method).len());
    assert!(asked.iter().all(|count| *count <= 6), "{asked:?}");
    fake.be_honest();
    let registration = register(&backend).await.unwrap();
    eventually("listed", SOON, async || count(&backend).await == Some(1)).await;
    registration.deregister().await.unwrap();
    eventually("nothing is left", SOON, async || fake.keys().is_empty() && fake.leases().is_empty()).await;
}
