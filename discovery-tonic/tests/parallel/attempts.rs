//! The hook that sees each attempt of a call.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::support::*;
use discovery_tonic::{AttemptOutcome, BalancedChannel, ChannelBuilder};
use greeter::GreetRequest;
use tonic::Code;

type Seen = Arc<Mutex<Vec<(String, u32, AttemptOutcome, Duration)>>>;

fn observed(builder: ChannelBuilder) -> (BalancedChannel, Seen) {
    let seen = Seen::default();
    let sink = Arc::clone(&seen);
    let hook = builder.on_attempt(move |attempt| {
        let id = attempt.instance.id().to_string();
        sink.lock().unwrap().push((id, attempt.number, attempt.outcome, attempt.elapsed));
    });
    (hook.build().unwrap(), seen)
}

fn slow(delay_ms: u32) -> GreetRequest {
    GreetRequest { delay_ms, ..GreetRequest::default() }
}

#[tokio::test]
async fn each_attempt_is_reported_once_with_its_outcome() {
    let server = Server::start("one").await;
    let (channel, seen) = observed(builder(&registry([server.address])));
    greet_with(&channel, None, slow(30)).await.unwrap();
    let _ = greet_with(&channel, Some(Duration::from_millis(50)), slow(5_000)).await.unwrap_err();
    let given_up = greet_with(&channel, None, slow(5_000));
    let _ = tokio::time::timeout(Duration::from_millis(50), given_up).await.unwrap_err();
    let seen = seen.lock().unwrap();
    let id = server.address.to_string();
    let expected = [
        (AttemptOutcome::Responded, 30),
        (AttemptOutcome::Failed(Code::DeadlineExceeded), 30),
        (AttemptOutcome::Cancelled, 30),
    ];
    assert_eq!(seen.len(), expected.len(), "{seen:?}");
    for ((instance, number, outcome, elapsed), (expected, least)) in seen.iter().zip(expected) {
        assert_eq!((instance, *number, *outcome), (&id, 1, expected), "{seen:?}");
        assert!((Duration::from_millis(least)..Duration::from_secs(4)).contains(elapsed), "{seen:?}");
    }
}

#[tokio::test]
async fn a_repeated_call_reports_every_attempt() {
    let (refusing, _, _tasks) = raw_h2(|_, respond| respond.send_reset(h2::Reason::REFUSED_STREAM)).await;
    let (failing, _, _more) = raw_h2(|_, respond| answer(respond, "14")).await;
    let (channel, seen) = observed(builder(&registry([refusing])));
    let status = greet_with(&channel, None, GreetRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let numbers: Vec<u32> = seen.lock().unwrap().iter().map(|(_, number, _, _)| *number).collect();
    // A refused request is sent again three times.
    assert_eq!(numbers, [1, 2, 3, 4]);
    let all_failed =
        seen.lock().unwrap().iter().all(|(_, _, outcome, _)| *outcome == AttemptOutcome::Failed(Code::Unavailable));
    assert!(all_failed);

    let (channel, seen) = observed(builder(&registry([failing])));
    let _ = greet_with(&channel, None, GreetRequest::default()).await.unwrap_err();
    let seen = seen.lock().unwrap();
    assert_eq!((seen.len(), seen[0].2), (1, AttemptOutcome::Failed(Code::Unavailable)), "{seen:?}");
}

#[tokio::test]
async fn a_hook_that_panics_costs_nothing() {
    let server = Server::start("one").await;
    let channel = builder(&registry([server.address])).on_attempt(|_| panic!("a fault of the hook")).build().unwrap();
    for _ in 0..3 {
        greet(&channel, None).await.unwrap();
    }
    // In a drop, too.
    let given_up = greet_with(&channel, None, slow(5_000));
    let _ = tokio::time::timeout(Duration::from_millis(30), given_up).await.unwrap_err();
    greet(&channel, None).await.unwrap();
}
