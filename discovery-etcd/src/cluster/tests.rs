use std::sync::atomic::{AtomicUsize, Ordering};

use discovery_core::ErrorKind;
use tokio::time::{advance, timeout};

use super::*;
use crate::{client::Reason, config::EtcdConfig};

fn cluster(members: usize) -> Cluster {
    let addresses = (1..=members).map(|number| format!("127.0.0.1:{number}"));
    Cluster::new(&Settings::check(&EtcdConfig::new(addresses)).unwrap(), Handle::current()).unwrap()
}

fn failure(reason: Reason, kind: ErrorKind) -> Failure {
    Failure::new(reason, Error::new(kind, "scripted"))
}

/// Runs a call that fails with `failures` one after another and then succeeds. Returns the members
/// that it asked, and its result.
async fn asked(cluster: &Cluster, failures: &[Failure]) -> (Vec<Address>, Result<(), Failure>) {
    let asked = Mutex::new(Vec::new());
    let result = cluster.run(|member| {
        let mut asked = asked.lock().unwrap();
        let outcome = failures.get(asked.len()).cloned().map_or(Ok(()), Err);
        asked.push(member.address().clone());
        async move { outcome }
    });
    let result = result.await;
    (asked.into_inner().unwrap(), result)
}

fn distinct(addresses: &[Address]) -> usize {
    let mut addresses = addresses.to_vec();
    addresses.sort();
    addresses.dedup();
    addresses.len()
}

#[tokio::test(start_paused = true)]
async fn a_call_asks_as_many_members_as_its_failures_allow() {
    use ErrorKind as Kind;
    for (name, reason, kind, members, calls) in [
        ("the member failed", Reason::Member, Kind::Unavailable, 5, 5),
        ("nonsense", Reason::Strange, Kind::Unavailable, 5, 5),
        ("no token helps", Reason::Token, Kind::Unauthenticated, 5, 10),
        ("the password is refused", Reason::Credentials, Kind::Unauthenticated, 5, 5),
        ("too many requests", Reason::Overloaded, Kind::Unavailable, 2, 2),
        ("no answer in time", Reason::TimedOut, Kind::DeadlineExceeded, 2, 2),
        ("denied by the cluster", Reason::Refused, Kind::PermissionDenied, 1, 1),
        ("the lease is gone", Reason::LeaseGone, Kind::Unavailable, 1, 1),
        ("compacted", Reason::Compacted, Kind::Unavailable, 1, 1),
        ("too large to decode", Reason::TooLarge, Kind::ResourceExhausted, 1, 1),
    ] {
        let (asked, result) = asked(&cluster(5), &vec![failure(reason, kind); 20]).await;
        assert_eq!((distinct(&asked), asked.len()), (members, calls), "{name}");
        assert_eq!(result.unwrap_err().error.kind(), kind, "{name}");
    }
    // An unsent request is not a load.
    let load = failure(Reason::TimedOut, Kind::DeadlineExceeded);
    let unsent = failure(Reason::Member, Kind::Unavailable).before_sending();
    let (asked, result) = asked(&cluster(5), &[load.clone(), unsent.clone(), unsent, load.clone(), load]).await;
    assert_eq!(asked.len(), 4);
    assert!(result.is_err());
}

#[tokio::test(start_paused = true)]
async fn only_a_cluster_answer_keeps_its_member_the_current_one() {
    for (reason, stays) in [
        (Reason::Refused, true),
        (Reason::Compacted, true),
        (Reason::LeaseExists, true),
        (Reason::LeaseGone, true),
        (Reason::Member, false),
        (Reason::Overloaded, false),
        (Reason::TimedOut, false),
        (Reason::Credentials, false),
    ] {
        let cluster = cluster(2);
        let first = Arc::clone(cluster.choose().member());
        let (members, _) = asked(&cluster, &[failure(reason, ErrorKind::Unavailable)]).await;
        assert_eq!(members[0], *first.address());
        assert_eq!(Arc::ptr_eq(cluster.choose().member(), &first), stays, "{reason:?}");
    }
}

/// An error that is final for one member is final for the caller only if all members agree.
#[tokio::test(start_paused = true)]
async fn a_final_error_needs_all_members() {
    let refused = failure(Reason::Credentials, ErrorKind::Unauthenticated);
    let away = failure(Reason::Member, ErrorKind::Unavailable);
    for (failures, is_final) in [([&refused, &refused], true), ([&refused, &away], false), ([&away, &refused], false)] {
        let (_, result) = asked(&cluster(2), &failures.map(Clone::clone)).await;
        assert_eq!(!result.unwrap_err().error.is_retryable(), is_final);
    }
}

/// A thousand callers while no member is well: one at a time asks. The others wait for it, and
/// continue at once when it is answered.
#[tokio::test(start_paused = true)]
async fn one_caller_checks_for_all_whether_a_member_is_back() {
    let cluster = Arc::new(cluster(1));
    let calls = Arc::new(AtomicUsize::new(0));
    let is_back = Arc::new(AtomicUsize::new(0));
    cluster.blame(cluster.choose().member(), failure(Reason::Member, ErrorKind::Unavailable));
    let tasks: Vec<_> = (0..1000)
        .map(|_| {
            let cluster = Arc::clone(&cluster);
            let calls = Arc::clone(&calls);
            let is_back = Arc::clone(&is_back);
            tokio::spawn(async move {
                let mut attempts = 0;
                loop {
                    attempts += 1;
                    let asking = cluster.reachable().await;
                    let done =
                        cluster.run_on(asking, |_| {
                            calls.fetch_add(1, Ordering::Relaxed);
                            let is_back = is_back.load(Ordering::Relaxed) > 0;
                            async move {
                                if is_back { Ok(()) } else { Err(failure(Reason::Member, ErrorKind::Unavailable)) }
                            }
                        });
                    if done.await.is_ok() {
                        return attempts;
                    }
                }
            })
        })
        .collect();
    let minute = Duration::from_secs(60);
    tokio::time::sleep(minute).await;
    let asked = calls.load(Ordering::Relaxed);
    assert!((30..600).contains(&asked), "between once per two seconds and ten times per second: {asked} in a minute");
    is_back.store(1, Ordering::Relaxed);
    let start = Instant::now();
    for task in tasks {
        timeout(minute, task).await.expect("the callers continue").unwrap();
    }
    assert!(start.elapsed() <= Duration::from_secs(1), "{:?}", start.elapsed());
}

/// Lists fail with the result of the caller that checked, instead of waiting for their turn.
#[tokio::test(start_paused = true)]
async fn callers_that_must_not_wait_fail_with_the_caller_that_asked() {
    let cluster = Arc::new(cluster(1));
    cluster.blame(cluster.choose().member(), failure(Reason::Member, ErrorKind::Unavailable));
    let calls = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..1000)
        .map(|_| {
            let cluster = Arc::clone(&cluster);
            let calls = Arc::clone(&calls);
            tokio::spawn(async move {
                let result = cluster.run_when_reachable(|_| {
                    calls.fetch_add(1, Ordering::Relaxed);
                    async { Err::<(), _>(failure(Reason::Member, ErrorKind::Unavailable)) }
                });
                result.await.unwrap_err().error.kind()
            })
        })
        .collect();
    for task in tasks {
        let kind = timeout(Duration::from_secs(2), task).await.expect("within a rest").unwrap();
        assert_eq!(kind, ErrorKind::Unavailable);
    }
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

/// A caller that is dropped while it checks leaves the check to the next one.
#[tokio::test(start_paused = true)]
async fn a_caller_that_gives_up_lets_the_next_one_check() {
    let cluster = Arc::new(cluster(1));
    cluster.blame(cluster.choose().member(), failure(Reason::TimedOut, ErrorKind::DeadlineExceeded));
    for _ in 0..10 {
        let asking = timeout(Duration::from_secs(10), cluster.reachable()).await.expect("a rest ends");
        let hangs = cluster.run_on(asking, |_| std::future::pending::<Result<(), Failure>>());
        assert!(timeout(Duration::from_secs(1), hangs).await.is_err());
    }
    let asking = timeout(Duration::from_secs(1), cluster.reachable()).await.expect("the next caller may check");
    drop(asking);
    advance(Duration::from_secs(1)).await;
    assert!(timeout(Duration::from_secs(1), cluster.reachable()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_handle_chooses_again_once_per_audit_and_its_streams_follow() {
    let cluster = cluster(3);
    let audit = Duration::from_secs(600);
    let first = Arc::clone(cluster.choose().member());
    let mut moves = 0;
    assert!(cluster.another(&first).is_none());
    let mut current = Arc::clone(&first);
    for _ in 0..100 {
        advance(audit * 6 / 5).await;
        if let Some(another) = cluster.another(&current) {
            assert!(cluster.another(&current).is_none(), "only once it is known to be well");
            let member = another.ended(&Ok::<_, Failure>(()));
            assert!(cluster.another(&member).is_none());
            let followed = cluster.another(&current).expect("other streams follow");
            assert!(Arc::ptr_eq(followed.member(), &member));
            current = member;
            moves += 1;
        }
    }
    assert!((45..90).contains(&moves), "two of three times: {moves}");
    // Nobody moves to a member that cannot be reached.
    loop {
        advance(audit * 6 / 5).await;
        if let Some(another) = cluster.another(&current) {
            another.ended(&Err::<(), _>(failure(Reason::Member, ErrorKind::Unavailable)));
            break;
        }
    }
    assert!(cluster.another(&current).is_none());
    assert!(Arc::ptr_eq(cluster.choose().member(), &current));
}

/// Whatever happens to a stream that is opened or moved (the cluster refuses it, or it is dropped),
/// calls continue.
#[tokio::test(start_paused = true)]
async fn a_stream_never_blocks_calls_to_its_member() {
    let cluster = cluster(1);
    let member = Arc::clone(cluster.choose().member());
    cluster.blame(&member, failure(Reason::Member, ErrorKind::Unavailable));
    advance(Duration::from_secs(2)).await;
    drop(cluster.choose());
    let asking = timeout(Duration::from_secs(1), cluster.reachable()).await.expect("the member is free");
    asking.ended(&Err::<(), _>(failure(Reason::Refused, ErrorKind::PermissionDenied)));
    assert!(timeout(Duration::ZERO, cluster.reachable()).await.is_ok(), "it answered");
}

/// A call that hangs has its own timeout. Callers that wait for its result do not have to sit it
/// out.
#[tokio::test(start_paused = true)]
async fn a_slow_call_keeps_nobody_waiting() {
    let cluster = cluster(1);
    cluster.blame(cluster.choose().member(), failure(Reason::Member, ErrorKind::Unavailable));
    let hangs = cluster.run_when_reachable(|_| std::future::pending::<Result<(), Failure>>());
    let others = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let start = Instant::now();
        cluster.run_when_reachable(|_| async { Ok(()) }).await.unwrap();
        start.elapsed()
    };
    let took = tokio::select! {
        _ = hangs => unreachable!("the call is never answered"),
        took = others => took,
    };
    assert!(took <= Duration::from_secs(2), "{took:?}");
}

/// One member refuses for good, and the other one is unreachable for a moment.
#[tokio::test(start_paused = true)]
async fn an_error_is_not_final_while_an_unreachable_member_may_disagree() {
    for (reason, kind) in [
        (Reason::Token, ErrorKind::Unauthenticated),
        (Reason::Credentials, ErrorKind::Unauthenticated),
        (Reason::Member, ErrorKind::Unsupported),
    ] {
        let cluster = cluster(2);
        let away = Arc::clone(cluster.choose().member());
        cluster.blame(&away, failure(Reason::Member, ErrorKind::Unavailable));
        let refuses = || async { Err::<(), _>(failure(reason, kind)) };
        let list = cluster.run_when_reachable(|_| refuses()).await.unwrap_err();
        assert!(list.error.is_retryable(), "{reason:?}: {}", list.error.report());
        assert!(list.error.report().to_string().contains("scripted"), "{}", list.error.report());
        advance(Duration::from_secs(2)).await;
        let write = cluster.run_on(cluster.reachable().await, |member| {
            let is_away = Arc::ptr_eq(&member, &away);
            async move { if is_away { Err(failure(Reason::Member, ErrorKind::Unavailable)) } else { refuses().await } }
        });
        assert!(write.await.unwrap_err().error.is_retryable(), "{reason:?}");
        // Once the other one is back and agrees, the error is final.
        advance(Duration::from_secs(2)).await;
        let last = cluster.run_when_reachable(|_| refuses()).await.unwrap_err();
        assert_eq!(last.error.kind(), kind, "{}", last.error.report());
    }
}
