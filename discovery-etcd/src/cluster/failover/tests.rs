use discovery_core::{Error, ErrorKind};
use proptest::prelude::*;

use super::*;

fn failover(members: usize) -> Failover {
    Failover::new(vec![Health::new(Backoff::default()); members], 0)
}

fn failure(reason: Reason) -> Failure {
    Failure::new(reason, Error::new(ErrorKind::Unavailable, "not now"))
}

/// A call that begins and fails at `now`.
fn fails(failover: &mut Failover, place: usize, reason: Reason, now: Instant) -> bool {
    failover.failed(place, &failure(reason), Some(now), now)
}

#[tokio::test(start_paused = true)]
async fn calls_stay_with_a_member_until_it_fails() {
    let mut failover = failover(3);
    let now = Instant::now();
    assert_eq!(failover.available(now, &[]), Some(0));
    assert!(failover.available(now, &[0]).is_some_and(|place| place != 0));
    fails(&mut failover, 0, Reason::Member, now);
    let second = failover.available(now, &[]).unwrap();
    assert!(second != 0 && failover.available(now, &[]) == Some(second));
    fails(&mut failover, second, Reason::Member, now);
    let third = failover.available(now, &[]).unwrap();
    assert!(![0, second].contains(&third), "the remaining one");
    failover.succeeded(third);
    let later = now + Duration::from_secs(3600);
    assert_eq!(failover.available(later, &[]), Some(third), "and it stays there");
    fails(&mut failover, third, Reason::Member, now);
    assert!(failover.is_down() && failover.available(now, &[]).is_none());
    assert_eq!(failover.any(now, &[0, second]), Some(third), "even though it failed");
    assert_eq!(failover.any(now, &[0, 1, 2]), None);
}

#[tokio::test(start_paused = true)]
async fn streams_try_all_members_in_turns_while_all_fail() {
    let mut failover = failover(3);
    let start = Instant::now();
    for place in 0..3 {
        fails(&mut failover, place, Reason::Member, start);
    }
    // Each attempt takes so long that all others have rested.
    let tried: Vec<usize> = (1..10)
        .map(|attempt| {
            let now = start + Duration::from_secs(15) * attempt;
            let place = failover.preferred(now);
            fails(&mut failover, place, Reason::TimedOut, now);
            place
        })
        .collect();
    for three in tried.windows(3) {
        assert!((0..3).all(|place| three.contains(&place)), "{tried:?}");
    }
}

/// The renewals and the watches of a handle open their streams at the same time.
#[tokio::test(start_paused = true)]
async fn streams_that_open_at_the_same_time_try_different_members() {
    let mut failover = failover(3);
    let start = Instant::now();
    for place in 0..3 {
        fails(&mut failover, place, Reason::Member, start);
    }
    let later = start + Duration::from_secs(15);
    let tried = [0, 1, 2].map(|millis| failover.preferred(later + Duration::from_millis(millis)));
    assert!((0..3).all(|place| tried.contains(&place)), "{tried:?}");
}

#[tokio::test(start_paused = true)]
async fn one_caller_at_a_time_tries_a_member_that_failed() {
    let mut failover = failover(1);
    let now = Instant::now();
    fails(&mut failover, 0, Reason::Member, now);
    let rested = failover.next_trial().expect("it rests");
    assert!(rested > now && rested <= now + Duration::from_secs(1));
    assert_eq!(failover.available(now, &[]), None);
    assert_eq!(failover.available(rested, &[]), Some(0));
    assert_eq!(failover.available(rested, &[]), None, "it is being tried");
    failover.abandoned(0, rested, rested);
    assert_eq!(failover.available(rested, &[]), Some(0), "the next caller's turn");
    let late = failover.next_trial().expect("a trial ends");
    assert_eq!(late, rested + TRIAL);
    assert_eq!(failover.available(late, &[]), Some(0));
    failover.abandoned(0, rested, late);
    assert_eq!(failover.available(late, &[]), None, "that trial had expired");
    fails(&mut failover, 0, Reason::Member, late);
    assert!(failover.next_trial().is_some_and(|next| next > late));
    assert!(failover.succeeded(0) && !failover.is_down());
    assert!(!failover.succeeded(0), "not news");
    failover.abandoned(0, late, late);
    assert!(!failover.is_down());
}

#[tokio::test(start_paused = true)]
async fn an_overloaded_member_rests_longer_than_an_unreachable_one() {
    let now = Instant::now();
    let longest = |reason| {
        let rests = (0..200).map(|_| {
            let mut failover = failover(1);
            let last = (0..12).fold(now, |now, _| {
                assert!(fails(&mut failover, 0, reason, now));
                now + Duration::from_secs(20)
            });
            failover.next_trial().unwrap().saturating_duration_since(last - Duration::from_secs(20))
        });
        rests.max().unwrap()
    };
    assert!(longest(Reason::Member) <= Duration::from_secs(1));
    for reason in [Reason::Overloaded, Reason::TimedOut] {
        assert!(longest(reason) > Duration::from_secs(5), "{reason:?}");
    }
}

/// 128 calls time out together, streams break with them, and calls that began before end after the
/// member is back.
#[tokio::test(start_paused = true)]
async fn calls_begun_before_a_failure_are_part_of_it() {
    let begun = Instant::now();
    let longest = (0..200).map(|_| {
        let mut failover = failover(1);
        let mut at = begun + Duration::from_secs(5);
        assert!(failover.failed(0, &failure(Reason::TimedOut), Some(begun), at));
        let trial = failover.next_trial().unwrap();
        for _ in 0..128 {
            at += Duration::from_millis(1);
            assert!(!failover.failed(0, &failure(Reason::TimedOut), Some(begun), at));
            assert!(!failover.failed(0, &failure(Reason::Member), None, at), "a stream");
        }
        assert_eq!(failover.next_trial(), Some(trial));
        assert_eq!(failover.available(trial, &[]), Some(0));
        assert!(!failover.failed(0, &failure(Reason::TimedOut), Some(begun), trial));
        failover.succeeded(0);
        assert!(!failover.failed(0, &failure(Reason::TimedOut), Some(begun), trial));
        assert!(!failover.is_down(), "the member has been well since");
        assert!(failover.failed(0, &failure(Reason::Member), None, trial), "a stream that breaks now");
        assert!(failover.is_down());
        trial - begun - Duration::from_secs(5)
    });
    assert!(longest.max() <= Some(Backoff::default().min()), "the first step of the backoff");
}

/// An answer to a call that began before a move does not undo the move.
#[tokio::test(start_paused = true)]
async fn a_member_that_is_well_stays_the_current_one() {
    let mut failover = failover(3);
    failover.settle(1);
    failover.succeeded(1);
    assert!(!failover.succeeded(0));
    assert_eq!(failover.current(), 1);
    fails(&mut failover, 1, Reason::Member, Instant::now());
    failover.succeeded(2);
    assert_ne!(failover.current(), 1);
}

/// What one member refuses for good, another may accept, unless it refused as well.
#[tokio::test(start_paused = true)]
async fn an_error_is_final_if_all_resting_members_agree() {
    let refused = Failure::new(Reason::Credentials, Error::new(ErrorKind::Unauthenticated, "refused"));
    let now = Instant::now();
    let mut failover = failover(3);
    failover.failed(0, &refused, Some(now), now);
    assert!(failover.may_others_answer(&[0]), "two are well");
    fails(&mut failover, 1, Reason::Member, now);
    failover.failed(2, &refused, Some(now), now);
    assert!(failover.may_others_answer(&[0]), "one is only unreachable");
    let later = now + Duration::from_secs(1);
    failover.failed(1, &refused, Some(later), later);
    assert!(!failover.may_others_answer(&[0]));
    assert!(!failover.may_others_answer(&[]));
    failover.succeeded(2);
    assert!(failover.may_others_answer(&[0]));
}

/// Restarting one member after another leaves all handles on two of three. Choosing again spreads
/// them.
#[tokio::test(start_paused = true)]
async fn handles_spread_over_the_members_that_are_well() {
    let mut handles: Vec<Failover> = (0..3000).map(|_| failover(3)).collect();
    let count = |handles: &[Failover]| {
        [0, 1, 2].map(|member| handles.iter().filter(|handle| handle.current() == member).count())
    };
    let mut now = Instant::now();
    for member in 0..3 {
        for handle in handles.iter_mut().filter(|handle| handle.current() == member) {
            fails(handle, member, Reason::Member, now);
            let place = handle.available(now, &[member]).unwrap();
            handle.succeeded(place);
        }
        now += Duration::from_secs(10);
        if member == 0 {
            assert!(count(&handles)[1..].iter().all(|handles| (1350..1650).contains(handles)), "at random");
        }
    }
    assert_eq!(count(&handles)[2], 0, "the member restarted last has none");
    for handle in &mut handles {
        let place = handle.candidate(now).expect("all rests are over");
        handle.settle(place);
        handle.succeeded(place);
    }
    let spread = count(&handles);
    assert!(spread.iter().all(|handles| (900..1100).contains(handles)), "{spread:?}");
}

proptest! {
    #[test]
    fn every_member_is_asked_before_an_operation_that_must_not_wait_fails(
        members in 1usize..8,
        failures in proptest::collection::vec(0usize..8, 0..30),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut failover = failover(members);
            for place in failures {
                fails(&mut failover, place % members, Reason::Member, Instant::now());
            }
            let mut tried = Vec::new();
            while tried.len() < members {
                let place = failover.any(Instant::now(), &tried).unwrap();
                assert!(!tried.contains(&place));
                tried.push(place);
            }
        });
    }
}
