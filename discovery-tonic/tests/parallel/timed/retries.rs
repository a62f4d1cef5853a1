//! The retry policy, over real sockets.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::turn;
use crate::support::{
    Mortal, Server, answer, builder, eventually, greet, hung, instance, raw_h2, ready, registry, service,
};
use discovery_tonic::{Retry, RetryPolicy, ServedBy, Tried, WaitForReady};
use greeter::{GreetManyRequest, GreetRequest, GreeterClient};
use tokio::time::sleep;
use tonic::{Code, Request};

const CALLERS: usize = 100;
const SOON: Duration = Duration::from_secs(5);

fn policy() -> RetryPolicy {
    RetryPolicy::new(3).unwrap()
}

async fn until_ready(channel: &discovery_tonic::BalancedChannel, count: usize) {
    let start = Instant::now();
    while ready(channel) < count {
        assert!(start.elapsed() < SOON, "{channel:?}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn b02_without_a_policy_no_failed_call_is_repeated() {
    let (address, requests, _peer) = raw_h2(|_, respond| answer(respond, "14")).await;
    let channel = builder(&registry([address])).build().unwrap();
    assert_eq!(greet(&channel, None).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(requests.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_call_that_failed_goes_to_another_instance() {
    let (bad, requests, _peer) = raw_h2(|_, respond| answer(respond, "14")).await;
    let good = Server::start("good").await;
    let channel = builder(&registry([bad, good.address])).retry(policy()).build().unwrap();
    until_ready(&channel, 2).await;
    for _ in 0..30 {
        assert_eq!(greet(&channel, Some(SOON)).await.unwrap(), good.address);
    }
    assert!(requests.load(Ordering::Relaxed) > 0, "the bad endpoint was called too");
}

/// The final response names the instances that were tried before, and so does one that breaks off.
#[tokio::test]
async fn b09_a_response_names_the_instances_tried_before() {
    let (bad, _, _peer) = raw_h2(|_, respond| answer(respond, "14")).await;
    let good = Server::start("good").await;
    let channel = builder(&registry([bad, good.address])).retry(policy()).build().unwrap();
    until_ready(&channel, 2).await;
    let mut at_once = 0;
    let mut later = 0;
    for _ in 0..30 {
        let response = GreeterClient::new(channel.clone()).greet(GreetRequest::default()).await.unwrap();
        let served_by = response.extensions().get::<ServedBy>().unwrap();
        assert_eq!(served_by.instance().id(), instance(good.address).id());
        match served_by.tried() {
            [] => at_once += 1,
            tried => {
                assert_eq!(tried, [instance(bad).id().clone()]);
                later += 1;
            }
        }
    }
    println!("B9: {at_once} answered at once, {later} by the second instance");
    assert!(at_once > 0 && later > 0);

    let (breaking, _, _peer) = raw_h2(|n, respond| match n {
        0 => answer(respond, "14"),
        _ => drop(respond.send_response(http::Response::new(()), false).unwrap()),
    })
    .await;
    let channel = builder(&registry([breaking])).retry(policy()).build().unwrap();
    let mut request = Request::new(GreetManyRequest { count: 1, ..GreetManyRequest::default() });
    request.set_timeout(Duration::from_millis(700));
    let mut answers = GreeterClient::new(channel).greet_many(request).await.unwrap().into_inner();
    let status = answers.message().await.unwrap_err();
    let id = instance(breaking).id().clone();
    assert_eq!(Tried::from_status(&status).unwrap().instances(), [id.clone(), id]);
}

/// A proxy without a server answers with an HTTP status only.
#[tokio::test]
async fn a_call_that_a_proxy_could_not_deliver_goes_to_another_instance() {
    let (bad, requests, _peer) = raw_h2(|_, respond| {
        let response = http::Response::builder().status(503).body(()).unwrap();
        let mut body = respond.send_response(response, false).unwrap();
        body.send_data("no healthy upstream".into(), true).unwrap();
    })
    .await;
    let good = Server::start("good").await;
    let channel = builder(&registry([bad, good.address])).retry(policy()).build().unwrap();
    until_ready(&channel, 2).await;
    for _ in 0..30 {
        assert_eq!(greet(&channel, Some(SOON)).await.unwrap(), good.address);
    }
    let seen = requests.load(Ordering::Relaxed);
    assert!((1..=10).contains(&seen), "called, then ejected: {seen} of 30");
}

#[tokio::test]
async fn attempts_are_limited_and_the_failure_names_all_of_them() {
    let mut peers = Vec::new();
    for _ in 0..4 {
        peers.push(raw_h2(|_, respond| answer(respond, "14")).await);
    }
    let channel = builder(&registry(peers.iter().map(|peer| peer.0))).retry(policy()).build().unwrap();
    until_ready(&channel, 4).await;
    let status = greet(&channel, None).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let mut tried = Tried::from_status(&status).unwrap().instances().to_vec();
    tried.sort();
    tried.dedup();
    assert_eq!(tried.len(), 3, "three attempts, each on another instance: {status:?}");
    let asked: usize = peers.iter().map(|peer| peer.1.load(Ordering::Relaxed)).sum();
    assert_eq!(asked, 3);
}

#[tokio::test]
async fn other_codes_marked_calls_and_pushback_are_respected() {
    let (address, requests, _peer) = raw_h2(|n, respond| match n {
        0 => answer(respond, "10"),
        1 | 2 => answer(respond, "14"),
        _ => {
            let response = http::Response::builder().header("content-type", "application/grpc");
            let response = response.header("grpc-status", "14").header("grpc-retry-pushback-ms", "-1");
            respond.send_response(response.body(()).unwrap(), true).unwrap();
        }
    })
    .await;
    let channel = builder(&registry([address])).retry(policy()).build().unwrap();
    let seen = || requests.load(Ordering::Relaxed);
    assert_eq!(greet(&channel, None).await.unwrap_err().code(), Code::Aborted);
    assert_eq!(seen(), 1, "the policy does not have that code");

    let mut request = Request::new(GreetRequest::default());
    request.extensions_mut().insert(Retry::Off);
    GreeterClient::new(channel.clone()).greet(request).await.unwrap_err();
    assert_eq!(seen(), 2, "the call opted out");

    greet(&channel, None).await.unwrap_err();
    assert_eq!(seen(), 4, "the server pushed back at the second attempt");
}

#[tokio::test]
async fn a_repeated_request_carries_its_attempt_number_and_keeps_its_deadline() {
    let (sender, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let _peer = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(socket).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            sender.send(request.headers().clone()).unwrap();
            answer(&mut respond, "14");
        }
    });
    let channel = builder(&registry([address])).retry(policy()).build().unwrap();
    greet(&channel, Some(SOON)).await.unwrap_err();
    let mut last = u64::MAX;
    for n in 0..3 {
        let headers = heard.recv().await.unwrap();
        let previous = headers.get("grpc-previous-rpc-attempts").map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(previous, (n > 0).then(|| n.to_string()));
        let timeout = headers["grpc-timeout"].to_str().unwrap();
        let micros = timeout.strip_suffix('u').unwrap().parse::<u64>().unwrap();
        assert!(micros < last && micros <= 5_000_000, "{timeout}");
        last = micros;
    }
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_given_up() {
    let (hanging, requests, _peer) = hung().await;
    let good = Server::start("good").await;
    let policy = policy().attempt_timeout(Duration::from_millis(100));
    let channel = builder(&registry([hanging, good.address])).retry(policy).build().unwrap();
    until_ready(&channel, 2).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..40 {
        let start = Instant::now();
        assert_eq!(greet(&channel, Some(SOON)).await.unwrap(), good.address);
        slowest = slowest.max(start.elapsed());
    }
    assert!(requests.load(Ordering::Relaxed) > 0);
    assert!((Duration::from_millis(100)..Duration::from_secs(2)).contains(&slowest), "{slowest:?}");
}

/// The wait timeout limits the wait for endpoints: the time of attempts and of the backoff between
/// them does not count. A call that asked to wait does so for its retries, too.
#[tokio::test]
async fn only_the_wait_for_an_endpoint_counts_against_the_wait_timeout() {
    let wait = async |comes: bool| {
        let (bad, requests, _peer) = raw_h2(|_, respond| {
            let response =
                http::Response::builder().header("grpc-status", "14").header("grpc-retry-pushback-ms", "1000");
            respond.send_response(response.body(()).unwrap(), true).unwrap();
        })
        .await;
        let backend = registry([bad]);
        let channel = builder(&backend).retry(policy()).wait_timeout(Duration::from_millis(1_500)).build().unwrap();
        until_ready(&channel, 1).await;
        let mut request = Request::new(GreetRequest::default());
        request.extensions_mut().insert(WaitForReady);
        let start = Instant::now();
        let call = tokio::spawn(async move { GreeterClient::new(channel).greet(request).await });
        eventually("the first attempt", || requests.load(Ordering::Relaxed) == 1).await;
        backend.remove(&service(), &bad.to_string());
        sleep(Duration::from_millis(1_700)).await;
        let good = Server::start("good").await;
        if comes {
            backend.put(&service(), good.instance());
        }
        (call.await.unwrap(), start.elapsed())
    };
    let ((served, after), (failed, end)) = tokio::join!(wait(true), wait(false));
    println!("served after {after:?}, given up after {end:?}");
    assert_eq!(served.expect("waited for 0.7 s of the 1.5 s").into_inner().server, "good");
    assert_eq!(failed.unwrap_err().code(), Code::Unavailable);
    assert!((Duration::from_millis(2_450)..Duration::from_secs(5)).contains(&end), "{end:?}");
}

/// An attempt that is given up is cancelled at the server at once, or a slow server would work in
/// vain. So is the last attempt when the call ends.
#[tokio::test]
async fn an_attempt_that_is_given_up_is_cancelled_at_the_server() {
    let (sender, mut resets) = tokio::sync::mpsc::unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let _peer = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(socket).await.unwrap();
        while let Some(Ok((_request, mut respond))) = connection.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                let reason = std::future::poll_fn(|context| respond.poll_reset(context)).await;
                sender.send(reason.unwrap()).unwrap();
            });
        }
    });
    let policy = policy().attempt_timeout(Duration::from_millis(100));
    let channel = builder(&registry([address])).retry(policy).build().unwrap();
    until_ready(&channel, 1).await;
    let start = Instant::now();
    let call = tokio::spawn(async move { greet(&channel, Some(Duration::from_secs(3))).await });
    for n in 0..2 {
        assert_eq!(resets.recv().await, Some(h2::Reason::CANCEL));
        println!("attempt {n} was cancelled after {:?}", start.elapsed());
        assert!(!call.is_finished(), "the last attempt has the rest of the deadline");
    }
    assert_eq!(call.await.unwrap().unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(tokio::time::timeout(SOON, resets.recv()).await.expect("the last one too"), Some(h2::Reason::CANCEL));
}

/// A response begins with its headers, which the handler of a stream sends before the first
/// message.
#[tokio::test]
async fn a_stream_is_repeated_if_it_did_not_begin() {
    let many = async |channel: &discovery_tonic::BalancedChannel| {
        let request = GreetManyRequest { count: 2, ..GreetManyRequest::default() };
        let mut answers = GreeterClient::new(channel.clone()).greet_many(request).await?.into_inner();
        let mut count = 0;
        while answers.message().await?.is_some() {
            count += 1;
        }
        Ok::<_, tonic::Status>(count)
    };
    let (bad, requests, _peer) = raw_h2(|_, respond| answer(respond, "14")).await;
    let good = Server::start("good").await;
    let channel = builder(&registry([bad, good.address])).retry(policy()).build().unwrap();
    until_ready(&channel, 2).await;
    for _ in 0..30 {
        assert_eq!(many(&channel).await.unwrap(), 2);
    }
    assert!(requests.load(Ordering::Relaxed) > 0, "the bad endpoint was called too");

    let (begins, requests, _peer) = raw_h2(|_, respond| {
        let response = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut body = respond.send_response(response, false).unwrap();
        body.send_trailers(
            [("grpc-status", "14")]
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .into_iter()
                .collect(),
        )
        .unwrap();
    })
    .await;
    let channel = builder(&registry([begins])).retry(policy()).build().unwrap();
    assert_eq!(many(&channel).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(requests.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_stream_that_began_is_not_repeated() {
    let mut servers = ["one", "two"].map(Mortal::start);
    let registry = registry(servers.iter().map(|server| server.address));
    let channel = builder(&registry).retry(policy()).build().unwrap();
    until_ready(&channel, 2).await;
    let request = GreetManyRequest { count: 2, interval_ms: 60_000, ..GreetManyRequest::default() };
    let mut answers = GreeterClient::new(channel.clone()).greet_many(request).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    servers.iter_mut().for_each(Mortal::kill);
    assert_eq!(answers.message().await.unwrap_err().code(), Code::Unavailable);
    let calls: u64 = servers.iter().map(|server| server.greeter.calls()).sum();
    assert_eq!(calls, 1);
}

#[tokio::test]
async fn a_crash_under_load_fails_no_call_that_may_be_repeated() {
    let _turn = turn().await;
    let mut servers: Vec<_> = ["1", "2", "3", "4"].map(Mortal::start).into();
    let registry = registry(servers.iter().map(|server| server.address));
    for (repeated, most) in [(true, 0), (false, CALLERS)] {
        let mut builder = builder(&registry);
        if repeated {
            builder = builder.retry(policy());
        }
        let channel = builder.build().unwrap();
        until_ready(&channel, servers.len()).await;
        let callers = (0..CALLERS).map(|_| {
            let channel = channel.clone();
            tokio::spawn(async move {
                let mut failed = 0;
                for _ in 0..40 {
                    let request = GreetRequest { delay_ms: 10, ..GreetRequest::default() };
                    failed += usize::from(GreeterClient::new(channel.clone()).greet(request).await.is_err());
                }
                failed
            })
        });
        let callers: Vec<_> = callers.collect();
        sleep(Duration::from_millis(100)).await;
        servers.remove(0).kill();
        let mut failed = 0;
        for caller in callers {
            failed += caller.await.unwrap();
        }
        println!("fault_c1, repeated: {repeated}: {failed} of {} calls failed", 40 * CALLERS);
        assert!(failed <= most, "{failed}");
    }
}
