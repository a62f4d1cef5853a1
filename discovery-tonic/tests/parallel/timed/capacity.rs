//! Calls that wait for a free stream are served in order of arrival, whatever happens to the
//! others.

use std::{
    future::Future,
    pin::pin,
    task::{Context, Waker},
    time::{Duration, Instant},
};

use super::turn;
use crate::support::*;
use discovery_tonic::BalancedChannel;
use greeter::{GreetRequest, GreeterClient};
use tokio::task::JoinSet;

/// The results of one caller.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    calls: u32,
    failed: u32,
    longest: Duration,
}

const TASK: Duration = Duration::from_millis(10);

/// Calls repeatedly for this time.
async fn keep_calling(channel: BalancedChannel, time: Duration) -> Seen {
    let mut seen = Seen::default();
    let start = Instant::now();
    while start.elapsed() < time {
        let begun = Instant::now();
        let request = GreetRequest { delay_ms: TASK.as_millis() as u32, ..GreetRequest::default() };
        match greet_with(&channel, Some(Duration::from_secs(10)), request).await {
            Ok(_) => seen.calls += 1,
            Err(_) => seen.failed += 1,
        }
        seen.longest = seen.longest.max(begun.elapsed());
    }
    seen
}

async fn few_streams(limit: u32) -> Server {
    Server::start_with("few", tonic::transport::Server::builder().max_concurrent_streams(limit)).await
}

fn assert_fair(all: &[Seen], time: Duration) {
    let total: u32 = all.iter().map(|seen| seen.calls).sum();
    let mean = f64::from(total) / all.len() as f64;
    let fewest = all.iter().map(|seen| seen.calls).min().unwrap();
    let longest = all.iter().map(|seen| seen.longest).max().unwrap();
    let fair = time.div_f64(mean);
    eprintln!("{fewest} of {mean:.1} calls, longest {longest:?} against {fair:?}");
    assert_eq!(all.iter().map(|seen| seen.failed).sum::<u32>(), 0);
    assert!(f64::from(fewest) >= 0.9 * mean - 1.0, "{fewest} of {mean}: {all:?}");
    // Twice the fair wait, and what a busy machine adds.
    assert!(longest < fair * 2 + Duration::from_millis(200), "{longest:?} against {fair:?}");
}

/// Figure F14, scaled down. Regression: 64 callers got 1 to 946 calls each, and 20 calls failed.
#[tokio::test]
async fn b03_all_callers_get_their_share_of_few_streams() {
    let _turn = turn().await;
    let time = Duration::from_secs(4);
    for (callers, limit) in [(64, 8), (8, 4)] {
        let server = few_streams(limit).await;
        let channel = channel(&registry([server.address]));
        greet(&channel, None).await.unwrap();
        let calling: JoinSet<_> = (0..callers).map(|_| keep_calling(channel.clone(), time)).collect();
        assert_fair(&calling.join_all().await, time);
    }
}

/// The same, while other callers keep giving up at any point of their wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_give_up_take_nothing_from_those_that_wait() {
    let _turn = turn().await;
    let time = Duration::from_secs(4);
    let server = few_streams(4).await;
    let channel = channel(&registry([server.address]));
    greet(&channel, None).await.unwrap();
    let mut impatient = JoinSet::new();
    for _ in 0..16 {
        let channel = channel.clone();
        impatient.spawn(async move {
            loop {
                let wait = Duration::from_micros(fastrand::u64(0..20_000));
                let _ = tokio::time::timeout(wait, greet(&channel, None)).await;
            }
        });
    }
    let calling: JoinSet<_> = (0..16).map(|_| keep_calling(channel.clone(), time)).collect();
    let all = calling.join_all().await;
    drop(impatient);
    assert_fair(&all, time);
    let start = Instant::now();
    greet(&channel, None).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "no place is lost: {:?}", start.elapsed());
}

/// A future that is kept but not polled, as in a stream of calls whose reader pauses.
#[tokio::test]
async fn a_call_that_is_not_polled_keeps_no_place_from_others() {
    let _turn = turn().await;
    let server = few_streams(1).await;
    let channel = channel(&registry([server.address]));
    greet(&channel, None).await.unwrap();
    let busy = GreetRequest { delay_ms: 100, ..GreetRequest::default() };
    let busy = tokio::spawn({
        let channel = channel.clone();
        async move { greet_with(&channel, None, busy).await }
    });
    eventually("the stream is taken", || server.greeter.calls() == 2).await;
    let mut client = GreeterClient::new(channel.clone());
    let mut kept = pin!(client.greet(GreetRequest::default()));
    assert!(kept.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending(), "it waits for the stream");
    busy.await.unwrap().unwrap();
    for _ in 0..5 {
        greet(&channel, Some(Duration::from_secs(2))).await.expect("the call that is not polled is overtaken");
    }
    kept.await.expect("it has kept its turn");
}
