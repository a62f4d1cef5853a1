//! What the proxy does as seen by etcd-client. The other tests of this program rely on it; if a
//! release of etcd behaves differently, these tests show it.

use std::time::Duration;

use etcd_client::{Client, WatchOptions, WatchResponse, WatchResponseStream};
use tokio::time::timeout;

use super::start;

fn from(revision: i64, id: i64) -> Option<WatchOptions> {
    Some(WatchOptions::new().with_start_revision(revision).with_watch_id(id))
}

/// Receives until nothing more arrives.
async fn drained(answers: &mut WatchResponseStream) -> Vec<WatchResponse> {
    let mut all = Vec::new();
    while let Ok(answer) = timeout(Duration::from_millis(500), answers.message()).await {
        all.push(answer.expect("the stream does not fail").expect("the stream does not end"));
    }
    all
}

/// The proxy ignores the watch ids that a client requests and counts from 0 on each stream. If it
/// already watches the same range, it answers at once and without the cluster's id. Otherwise it
/// forwards etcd's answer, which arrives later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_assigns_watch_ids_and_answers_joined_watches() {
    let (etcd, proxy) = start().await;
    let mut raw = etcd.raw().await;
    raw.put("a", "1").await;
    // Prevents an event from arriving with the first answers.
    raw.put("elsewhere", "1").await;
    let revision = raw.revision().await;
    let mut client = Client::connect([proxy.address()], None).await.unwrap();
    let _first = client.watch("a", from(revision, 70)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;

    let (mut requests, mut answers) = client.watch("b", from(revision, 5)).await.unwrap().split();
    requests.watch("c", from(revision, 6)).await.unwrap();
    // The first stream already watches this key.
    requests.watch("a", from(revision, 7)).await.unwrap();
    let created = drained(&mut answers).await;
    assert!(created.iter().all(WatchResponse::created), "{created:?}");
    let mut ids: Vec<i64> = created.iter().map(WatchResponse::watch_id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2], "the requested ids are 5, 6 and 7");
    let cluster = |answer: &WatchResponse| answer.header().map_or(0, |header| header.cluster_id());
    let joined: Vec<_> = created.iter().filter(|answer| cluster(answer) == 0).collect();
    assert_eq!(joined.len(), 1, "{created:?}");
    assert_eq!(joined[0].watch_id(), 2, "{created:?}");

    // Events also carry the proxy's watch ids, and the cluster's id.
    raw.put("a", "2").await;
    let events = drained(&mut answers).await;
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0].watch_id(), 2);
    assert_ne!(cluster(&events[0]), 0);

    // A cancel with the proxy's id ends a watch; one with the client's id is not answered.
    requests.cancel(7).await.unwrap();
    requests.cancel(2).await.unwrap();
    let canceled = drained(&mut answers).await;
    assert_eq!(canceled.len(), 1, "{canceled:?}");
    assert!(canceled[0].canceled());
    assert_eq!(canceled[0].watch_id(), 2);
    raw.put("a", "3").await;
    assert!(drained(&mut answers).await.is_empty());

    // The list of members contains only the proxy, without a header.
    let members = client.member_list().await.unwrap();
    assert!(members.header().is_none());
    let addresses: Vec<_> = members.members().iter().flat_map(|member| member.client_urls()).collect();
    assert_eq!(addresses, [&proxy.address()]);
}
