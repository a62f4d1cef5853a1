//! The etcd backend against a server that answers wrongly.
//!
//! Whatever the answers: no panic, no hot loop, typed errors, and a stream that delivers only what
//! the server really held. Once the server behaves again, everything recovers without help.
//! Attempts are counted at the server.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use discovery_core::{
    Backoff, Error, ErrorKind, Instance, Resolver, ServiceName, Snapshot, Update, UpdateStream, Weight,
};
use discovery_etcd::{EtcdBackend, EtcdConfig};
use etcd_client::proto::{PbEvent, PbKeyValue, PbRangeRequest, PbRangeResponse, PbWatchResponse};
use futures::StreamExt;
use support::{Etcd, Fake, Fault, Method, Proxy, eventually};
use tokio::time::{sleep, timeout};
use tonic::Status;

const SOON: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);

/// Uses the default shortest backoff, and a longest one that tests can wait for.
fn config(member: String) -> EtcdConfig {
    EtcdConfig::new([member])
        .ttl(Duration::from_secs(3))
        .request_timeout(Duration::from_secs(1))
        .operation_timeout(Duration::from_secs(3))
        // Services are audited ten times as often, so every second.
        .audit_interval(Duration::from_secs(10))
        .backoff(Backoff::new(Duration::from_millis(100), Duration::from_secs(2)).unwrap())
}

fn connect(fake: &Fake) -> EtcdBackend {
    EtcdBackend::new(config(fake.address())).unwrap()
}

fn payments() -> ServiceName {
    "payments".parse().unwrap()
}

fn instance(id: &str) -> Instance {
    Instance::new("10.0.0.1:80".parse().unwrap()).with_id(id.parse().unwrap())
}

fn put(fake: &Fake, id: &str) {
    fake.write([entry(id)]);
}

fn entry(id: &str) -> (String, Option<Vec<u8>>) {
    (format!("payments/{id}"), Some(support::entry::encode(&instance(id))))
}

fn ids(set: &Snapshot) -> String {
    set.iter().map(|one| one.id().to_string()).collect()
}

/// Returns how often a method was called within a second from `since` on.
fn in_a_second(fake: &Fake, method: Method, since: Instant) -> usize {
    fake.asked(method).into_iter().filter(|at| (since..since + SECOND).contains(at)).count()
}

/// Folds a stream until the set is as wanted. Every set on the way must be one that the server
/// held.
async fn until(updates: &mut UpdateStream, set: &mut Snapshot, wanted: &str, held: &[&str]) -> Vec<Update> {
    let mut seen = Vec::new();
    while ids(set) != wanted || seen.is_empty() || matches!(seen.last(), Some(Update::Lost(_))) {
        let next = timeout(SOON, updates.next()).await;
        let update = next.unwrap_or_else(|_| panic!("no update arrived; the set is {set:?} after {seen:?}")).unwrap();
        *set = set.after(&update);
        check(&update, set, held);
        seen.push(update);
    }
    seen
}

fn check(update: &Update, set: &Snapshot, held: &[&str]) {
    match update {
        Update::Lost(error) => assert_ne!(error.kind(), ErrorKind::Internal, "{}", error.report()),
        _ => assert!(held.contains(&&*ids(set)), "the server never held {:?}; {update:?}", ids(set)),
    }
}

/// The result of watching a server that misbehaves.
struct Watched {
    errors: Vec<Error>,
    /// Lists and watches that were begun.
    lists: usize,
    watches: usize,
}

/// Watches for two seconds while the server misbehaves, with a change in between. Then the server
/// is honest, and the stream must reach its state and follow it.
async fn watch_while(misbehaving: impl FnOnce(&Fake)) -> Watched {
    let fake = Fake::start().await;
    fake.write([entry("a"), entry("b")]);
    misbehaving(&fake);
    let backend = connect(&fake);
    let start = Instant::now();
    let mut updates = backend.watch(&payments()).unwrap();
    let mut set = Snapshot::default();
    let mut errors = Vec::new();
    let mut is_changed = false;
    while start.elapsed() < 2 * SECOND {
        if !is_changed && start.elapsed() > SECOND / 4 {
            is_changed = true;
            put(&fake, "c");
        }
        if let Ok(update) = timeout(SECOND / 20, updates.next()).await {
            let update = update.unwrap();
            set = set.after(&update);
            check(&update, &set, &["", "ab", "abc"][usize::from(matches!(update, Update::Reset(_)))..]);
            if let Update::Lost(error) = update {
                errors.push(error);
            }
        }
    }
    let lists = in_a_second(&fake, Method::Range, start);
    let watches = in_a_second(&fake, Method::Watch, start);
    let later = [Method::Range, Method::Watch].map(|method| in_a_second(&fake, method, start + SECOND));
    // A server that encodes large messages on the same thread may have left no time for it.
    if !is_changed {
        put(&fake, "c");
    }
    fake.be_honest();
    if ids(&set) != "abc" {
        until(&mut updates, &mut set, "abc", &["ab", "abc"]).await;
    }
    let recovered = start.elapsed() - 2 * SECOND;
    put(&fake, "d");
    until(&mut updates, &mut set, "abcd", &["abc", "abcd"]).await;
    println!(
        "fault_a26: {lists} lists and {watches} watches in the first second, {later:?} in the next; recovered in {recovered:?}"
    );
    for error in &errors {
        println!("fault_a26: reported {}", error.report());
    }
    assert!(lists <= 10 && watches <= 10, "{lists} lists, {watches} watches");
    assert!(later.iter().all(|count| *count <= 6), "no backoff: {later:?}");
    Watched { errors, lists: lists + later[0], watches: watches + later[1] }
}

/// A watch that misbehaves like this must neither be continued nor be ignored.
async fn given_up(misbehaving: impl FnOnce(&Fake)) {
    let watched = watch_while(misbehaving).await;
    assert!(watched.watches > 1, "the watch is reopened");
}

/// Changes each event.
fn with_events(mut change: impl FnMut(&mut PbEvent) + Send + 'static) -> impl FnOnce(&Fake) {
    with_messages(move |message| {
        if message.events.is_empty() && message.created {
            return;
        }
        message.events.iter_mut().for_each(&mut change);
    })
}

/// Changes each message of a watch.
fn with_messages(mut change: impl FnMut(&mut PbWatchResponse) + Send + 'static) -> impl FnOnce(&Fake) {
    move |fake| {
        fake.edit_watches(move |mut message| {
            change(&mut message);
            vec![Ok(message)]
        });
    }
}

/// Sends more messages after each new watch was created.
fn after_created(mut more: impl FnMut(PbWatchResponse) -> Vec<PbWatchResponse> + Send + 'static) -> impl FnOnce(&Fake) {
    move |fake| {
        fake.edit_watches(move |message| {
            let mut sent = vec![Ok(message.clone())];
            if message.created {
                sent.extend(more(PbWatchResponse { created: false, ..message }).into_iter().map(Ok));
            }
            sent
        });
    }
}

fn put_event(key: &str, revision: i64) -> PbEvent {
    let value = support::entry::encode(&instance("x"));
    let kv = PbKeyValue { key: key.into(), value, mod_revision: revision, version: 1, ..PbKeyValue::default() };
    PbEvent { r#type: 0, kv: Some(kv), prev_kv: None }
}

#[tokio::test]
async fn fault_a26_an_unknown_event_type() {
    given_up(with_events(|event| event.r#type = 7)).await;
}

#[tokio::test]
async fn fault_a26_an_event_without_an_entry() {
    given_up(with_events(|event| event.kv = None)).await;
}

#[tokio::test]
async fn fault_a26_an_event_of_revision_0() {
    given_up(with_events(|event| event.kv.as_mut().unwrap().mod_revision = 0)).await;
}

#[tokio::test]
async fn fault_a26_an_event_of_a_negative_revision() {
    given_up(with_events(|event| event.kv.as_mut().unwrap().mod_revision = -5)).await;
}

#[tokio::test]
async fn fault_a26_an_event_of_the_largest_revision() {
    given_up(with_events(|event| event.kv.as_mut().unwrap().mod_revision = i64::MAX)).await;
}

#[tokio::test]
async fn fault_a26_events_out_of_order() {
    let order = with_messages(|message| {
        if let Some(event) = message.events.first().cloned() {
            let mut later = event;
            later.kv.as_mut().unwrap().mod_revision += 1;
            message.events.insert(0, later);
        }
    });
    given_up(order).await;
}

/// Releases of etcd before 3.5.33 send such events to readers of one key. They do not belong to the
/// service.
#[tokio::test]
async fn fault_a26_events_of_keys_that_were_not_requested() {
    let strangers = |created: PbWatchResponse| {
        let revision = created.header.as_ref().unwrap().revision + 1;
        let keys = ["", "payments", "payments-/x", "payments0x", "zebra/x"];
        vec![PbWatchResponse { events: keys.map(|key| put_event(key, revision - 1)).into(), ..created }]
    };
    let watched = watch_while(after_created(strangers)).await;
    assert_eq!((watched.lists, watched.watches), (1, 1), "no reason to reopen anything");
    assert!(watched.errors.is_empty());
}

/// A missing confirmation is harmless: events prove as much, and silence is detected as usual.
#[tokio::test]
async fn fault_a26_a_missing_confirmation() {
    watch_while(|fake| fake.edit_watches(|message| if message.created { vec![] } else { vec![Ok(message)] })).await;
}

/// Like etcd's gRPC proxy, which assigns its own watch ids on a stream.
#[tokio::test]
async fn fault_a26_watch_ids_assigned_by_the_server() {
    let fake = Fake::start().await;
    fake.edit_watches(|mut message| {
        message.watch_id %= 7;
        vec![Ok(message)]
    });
    let (_backend, mut updates, mut set) = watching(config(fake.address()), &fake).await;
    put(&fake, "c");
    let seen = until(&mut updates, &mut set, "abc", &["abc"]).await;
    assert!(matches!(&seen[..], [Update::Change(_)]), "{seen:?}");
    assert_eq!(fake.asked(Method::Watch).len(), 1);
}

/// Like etcd's gRPC proxy, which does not identify the cluster.
#[tokio::test]
async fn fault_a26_messages_without_a_header() {
    let watched = watch_while(with_messages(|message| message.header = None)).await;
    assert!(watched.errors.is_empty());
    assert_eq!((watched.lists, watched.watches), (1, 1));
}

#[tokio::test]
async fn fault_a26_watches_canceled_without_end() {
    let watched = watch_while(after_created(|created| vec![PbWatchResponse { canceled: true, ..created }])).await;
    assert!(!watched.errors.is_empty(), "the loss is reported");
}

#[tokio::test]
async fn fault_a26_watches_canceled_without_end_as_compacted() {
    let canceled = |created| PbWatchResponse { canceled: true, compact_revision: 2, ..created };
    let watched = watch_while(after_created(move |created| vec![canceled(created)])).await;
    assert!(!watched.errors.is_empty(), "the loss is reported");
}

#[tokio::test]
async fn fault_a26_a_flood_of_cancellations() {
    given_up(after_created(|created| vec![PbWatchResponse { canceled: true, ..created }; 10_000])).await;
}

#[tokio::test]
async fn fault_a26_watches_refused_for_their_token() {
    let refused = with_messages(|message| {
        if message.created {
            message.canceled = true;
            message.watch_id = -1;
            message.cancel_reason = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token".into();
        }
    });
    let watched = watch_while(refused).await;
    assert!(watched.errors.iter().all(|error| error.kind() == ErrorKind::Unauthenticated), "{:?}", watched.errors);
    assert!(!watched.errors.is_empty());
}

#[tokio::test]
async fn fault_a26_a_message_above_the_decoding_limit() {
    let huge = after_created(|created| {
        let mut event = put_event("payments/x", 9);
        event.kv.as_mut().unwrap().value = vec![b'x'; 33 << 20];
        vec![PbWatchResponse { events: vec![event], ..created }]
    });
    given_up(huge).await;
}

/// Fragments that never complete are not kept without bound.
#[tokio::test]
async fn fault_a26_fragments_without_end() {
    let endless = after_created(|created| {
        let mut event = put_event("payments/x", 9);
        event.kv.as_mut().unwrap().value = vec![b'x'; 1 << 20];
        vec![PbWatchResponse { events: vec![event], fragment: true, ..created }; 100]
    });
    given_up(endless).await;
}

/// Returns whether a read is of the set itself, rather than a small read beside a watch.
fn is_list(asked: &PbRangeRequest) -> bool {
    !asked.count_only && !asked.keys_only
}

/// Changes each answer to a list.
fn with_lists(mut change: impl FnMut(&PbRangeRequest, &mut PbRangeResponse) + Send + 'static) -> impl FnOnce(&Fake) {
    move |fake| {
        fake.edit_ranges(move |asked, mut answer| {
            if is_list(asked) {
                change(asked, &mut answer);
            }
            Ok(answer)
        });
    }
}

/// Nothing from such a list may be served: the error must be reported, and no watch may start from
/// it.
async fn never_listed(misbehaving: impl FnOnce(&Fake)) {
    let watched = watch_while(misbehaving).await;
    assert!(!watched.errors.is_empty() && watched.watches == 0, "{} watches", watched.watches);
}

#[tokio::test]
async fn fault_a26_an_empty_page_that_promises_more() {
    never_listed(with_lists(|_, answer| {
        answer.more = true;
        answer.kvs.clear();
    }))
    .await;
}

#[tokio::test]
async fn fault_a26_a_list_without_end() {
    // Every page is the first one.
    let first = Arc::new(Mutex::new(Vec::new()));
    never_listed(with_lists(move |_, answer| {
        let mut first = first.lock().unwrap();
        if first.is_empty() {
            first.clone_from(&answer.kvs);
        }
        answer.kvs.clone_from(&first);
        answer.more = true;
    }))
    .await;
}

#[tokio::test]
async fn fault_a26_a_list_of_entries_that_were_not_requested() {
    never_listed(with_lists(|_, answer| {
        let mut other = answer.kvs[0].clone();
        other.key = b"secrets/x".to_vec();
        answer.kvs.push(other);
    }))
    .await;
}

#[tokio::test]
async fn fault_a26_a_list_with_an_entry_twice() {
    never_listed(with_lists(|_, answer| answer.kvs.push(answer.kvs.last().unwrap().clone()))).await;
}

#[tokio::test]
async fn fault_a26_a_list_without_a_header() {
    never_listed(with_lists(|_, answer| answer.header = None)).await;
}

#[tokio::test]
async fn fault_a26_a_list_at_an_impossible_revision() {
    let revisions = [0, -1, i64::MIN, i64::MAX];
    let mut next = revisions.into_iter().cycle();
    never_listed(with_lists(move |_, answer| answer.header.as_mut().unwrap().revision = next.next().unwrap())).await;
}

#[tokio::test]
async fn fault_a26_another_cluster_at_each_answer() {
    watch_while(|fake| {
        let mut cluster = 1000;
        fake.edit_ranges(move |_, mut answer| {
            cluster += 1;
            answer.header.as_mut().unwrap().cluster_id = cluster;
            Ok(answer)
        });
    })
    .await;
}

/// A list above the decoding limit is requested again in smaller pages, down to one entry; then the
/// attempt fails.
#[tokio::test]
async fn fault_a26_an_entry_above_the_decoding_limit() {
    let fake = Fake::start().await;
    put(&fake, "a");
    let pages = Arc::new(Mutex::new(Vec::new()));
    let asked_for = Arc::clone(&pages);
    with_lists(move |asked, answer| {
        asked_for.lock().unwrap().push(asked.limit);
        answer.kvs[0].value = vec![b'x'; 33 << 20];
    })(&fake);
    let patient = config(fake.address()).request_timeout(SOON).operation_timeout(3 * SOON);
    let backend = EtcdBackend::new(patient).unwrap();
    let error = backend.list(&payments()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{}", error.report());
    println!("fault_a26: pages of {:?} entries, then {}", pages.lock().unwrap(), error.report());
    let limits = pages.lock().unwrap().clone();
    assert!(limits.len() <= 4 && limits.is_sorted_by(|a, b| a > b) && limits.last() == Some(&1), "{limits:?}");
    fake.be_honest();
    assert_eq!(ids(&backend.list(&payments()).await.unwrap()), "a");
}

/// A list whose later pages arrive after their revision was compacted restarts three times. Then
/// the attempt fails with an error, and the backoff applies.
#[tokio::test]
async fn fault_a15_compaction_between_the_pages_of_a_list() {
    let fake = Fake::start().await;
    // More than fits a page, even if the sizes of entries are known from an earlier one.
    let large = |number: u16| {
        let (key, value) = entry(&format!("{number:04}"));
        let value = value.map(|mut value| {
            value.resize(10_000, b' ');
            value
        });
        (key, value)
    };
    fake.write((0..1200).map(large));
    // Each first page is followed by a write and a compaction: twice at first, then always.
    let compactions = Arc::new(AtomicUsize::new(2));
    let compacted = Arc::clone(&compactions);
    let lists = Arc::new(AtomicUsize::new(0));
    let begun = Arc::clone(&lists);
    fake.edit_ranges(move |asked, answer| {
        if asked.revision == 0 && is_list(asked) {
            begun.fetch_add(1, Ordering::SeqCst);
        } else if asked.revision > 0
            && compacted.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
        {
            return Err(Status::out_of_range("etcdserver: mvcc: required revision has been compacted"));
        }
        Ok(answer)
    });
    let backend = connect(&fake);
    assert_eq!(backend.list(&payments()).await.unwrap().len(), 1200);
    println!("fault_a15: listed after {} restarts", lists.load(Ordering::SeqCst) - 1);
    assert_eq!(lists.swap(0, Ordering::SeqCst), 3, "two restarts");

    compactions.store(usize::MAX, Ordering::SeqCst);
    let error = backend.list(&payments()).await.unwrap_err();
    println!("fault_a15: {} restarts, then {}", lists.load(Ordering::SeqCst) - 1, error.report());
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.report());
    let begun = lists.swap(0, Ordering::SeqCst);
    assert!((5..=4 * 12).contains(&begun), "backoff between attempts: {begun}");

    // The last request of that list may still be in flight.
    sleep(Duration::from_millis(300)).await;
    lists.store(0, Ordering::SeqCst);
    // A single attempt: the next one would come after the operation's timeout.
    let hour = Duration::from_secs(3600);
    let once = config(fake.address()).backoff(Backoff::new(hour, hour).unwrap()).operation_timeout(SECOND);
    EtcdBackend::new(once).unwrap().list(&payments()).await.unwrap_err();
    assert_eq!(lists.swap(0, Ordering::SeqCst), 4, "three restarts");

    let mut updates = backend.watch(&payments()).unwrap();
    let start = Instant::now();
    assert!(matches!(updates.next().await, Some(Update::Lost(error)) if error.kind() == ErrorKind::Unavailable));
    sleep(2 * SECOND).await;
    let attempts = fake.asked(Method::Range).into_iter().filter(|at| (start..start + SECOND).contains(at)).count();
    println!(
        "fault_a15: watching, {attempts} pages in the first second, {} lists in two",
        lists.load(Ordering::SeqCst)
    );
    assert!(lists.load(Ordering::SeqCst) <= 4 * 12, "backoff between attempts of four lists each");
    compactions.store(0, Ordering::SeqCst);
    let mut set = Snapshot::default();
    while set.len() != 1200 {
        set = set.after(&timeout(SOON, updates.next()).await.unwrap().unwrap());
        assert!([0, 1200].contains(&set.len()), "the set is whole or empty");
    }
}

/// Opens a watch of a server that holds `ab`, and waits until it is idle.
async fn watching(config: EtcdConfig, fake: &Fake) -> (EtcdBackend, UpdateStream, Snapshot) {
    fake.write([entry("a"), entry("b")]);
    let backend = EtcdBackend::new(config).unwrap();
    let mut updates = backend.watch(&payments()).unwrap();
    let mut set = Snapshot::default();
    until(&mut updates, &mut set, "ab", &["ab"]).await;
    eventually("the watch is open", SOON, async || fake.open_watches() == 1).await;
    (backend, updates, set)
}

/// The stream is silent, the connection works, and other requests are answered.
#[tokio::test]
async fn fault_a32_a_stuck_watch_on_a_good_connection_is_reopened() {
    let fake = Fake::start().await;
    fake.edit_watches(|message| if message.created { vec![Ok(message)] } else { vec![] });
    let (_backend, mut updates, mut set) = watching(config(fake.address()), &fake).await;
    let start = Instant::now();
    put(&fake, "c");
    let seen = until(&mut updates, &mut set, "abc", &["abc"]).await;
    let came = start.elapsed();
    let start = Instant::now();
    fake.write([("payments/b", None)]);
    let more = until(&mut updates, &mut set, "ac", &["ac"]).await;
    println!("fault_a32: found {came:?} after an entry came, {:?} after one went", start.elapsed());
    assert!(matches!((&seen[..], &more[..]), ([Update::Reset(_)], [Update::Reset(_)])), "{seen:?} {more:?}");
    // One audit notices the difference, and the next one notices that the stream has not reported
    // it.
    assert!(came < 4 * SECOND && start.elapsed() < 4 * SECOND, "more than two audits and 2 s");
}

/// As above, without a change in the number of entries.
#[tokio::test]
async fn fault_a32_a_stuck_watch_is_found_by_a_change_in_place() {
    let fake = Fake::start().await;
    fake.edit_watches(|message| if message.created { vec![Ok(message)] } else { vec![] });
    let (_backend, mut updates, mut set) = watching(config(fake.address()), &fake).await;
    let start = Instant::now();
    let heavy = instance("a").with_weight(Weight::new(300).unwrap());
    fake.write([("payments/a", Some(support::entry::encode(&heavy)))]);
    let seen = until(&mut updates, &mut set, "ab", &["ab"]).await;
    println!("fault_a32: found {:?} after a change in place", start.elapsed());
    assert!(matches!(&seen[..], [Update::Reset(_)]) && set.get("a").unwrap().weight() == heavy.weight());
    assert!(start.elapsed() < 4 * SECOND, "more than two audits and 2 s");
}

/// The last event arrives just before the missing one, so the stream was not silent.
#[tokio::test]
async fn fault_a32_a_watch_that_sticks_right_after_an_event_is_found() {
    let fake = Fake::start().await;
    let mut sent = 0;
    fake.edit_watches(move |mut message| {
        message.events.truncate(1);
        sent += message.events.len();
        // The first event is of the listed revision, at which the watch starts.
        if message.created || sent <= 2 { vec![Ok(message)] } else { vec![] }
    });
    let (_backend, mut updates, mut set) = watching(config(fake.address()), &fake).await;
    let start = Instant::now();
    put(&fake, "c");
    fake.write([("payments/b", None)]);
    let seen = until(&mut updates, &mut set, "ac", &["abc", "ac"]).await;
    println!("fault_a32: a delete lost right after an event was found {:?} later", start.elapsed());
    assert!(matches!(&seen[..], [Update::Change(_), Update::Reset(_)]), "{seen:?}");
    assert!(start.elapsed() < 4 * SECOND, "{:?}", start.elapsed());
}

/// As some releases do around a compaction: one delete is missing, and later events arrive.
#[tokio::test]
async fn fault_a32_a_watch_that_leaves_out_a_delete_and_goes_on_is_found() {
    let fake = Fake::start().await;
    fake.edit_watches(|mut message| {
        message.events.retain(|event| event.r#type == 0);
        vec![Ok(message)]
    });
    let (_backend, mut updates, mut set) = watching(config(fake.address()), &fake).await;
    let start = Instant::now();
    fake.write([("payments/b", None)]);
    let mut weight = 0;
    while ids(&set) != "a" {
        assert!(start.elapsed() < 4 * SECOND, "not found in {:?}", start.elapsed());
        weight += 1;
        let one = instance("a").with_weight(Weight::new(weight).unwrap());
        fake.write([("payments/a", Some(support::entry::encode(&one)))]);
        while let Ok(update) = timeout(SECOND / 20, updates.next()).await {
            set = set.after(&update.unwrap());
        }
    }
    println!("fault_a32: a delete that was left out among {weight} events was found {:?} later", start.elapsed());
}

/// Newer releases do not answer progress requests while nothing is written. A watch must not be
/// suspected for that.
#[tokio::test]
async fn fault_a31_an_idle_store_is_not_taken_for_a_dead_stream() {
    let fake = Fake::start().await;
    let (_backend, mut updates, _) = watching(config(fake.address()).ttl(3 * SECOND), &fake).await;
    assert!(timeout(5 * SECOND, updates.next()).await.is_err(), "nothing happened");
    // Writes elsewhere do not raise suspicion either.
    for number in 0..50 {
        fake.write([(format!("orders/{number}"), Some(vec![]))]);
        assert!(timeout(SECOND / 10, updates.next()).await.is_err(), "nothing happened to the service");
    }
    let [lists, watches, counts] = [Method::Range, Method::Watch, Method::Count].map(|method| fake.asked(method).len());
    println!("fault_a31: {watches} stream and {lists} list in 10 s, {counts} counts");
    assert_eq!((lists, watches), (1, 1), "0 reconnects");
    assert!(counts >= 10, "the set was checked meanwhile");
}

#[tokio::test]
async fn fault_a31_an_idle_etcd_is_not_taken_for_a_dead_stream() {
    let etcd = Etcd::start().await;
    let backend = EtcdBackend::new(config(etcd.address()).ttl(3 * SECOND)).unwrap();
    let mut updates = backend.watch(&payments()).unwrap();
    assert!(matches!(updates.next().await, Some(Update::Reset(_))));
    let mut raw = etcd.raw().await;
    assert!(timeout(4 * SECOND, updates.next()).await.is_err(), "nothing happened");
    for number in 0..30 {
        raw.put(&format!("orders/{number}"), "").await;
        let seen = timeout(SECOND / 10, updates.next()).await;
        assert!(seen.is_err(), "nothing happened to the service, but {seen:?}");
    }
    let opened =
        r#"grpc_server_started_total{grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"}"#;
    println!("fault_a31: {:?} stream in 7 s on etcd", etcd.metric(0, opened));
    assert_eq!(etcd.metric(0, opened), Some(1.0), "0 reconnects");
}

/// Returns 128 entries of 40 kB: a message of 5 MiB.
fn large(round: u16) -> impl Iterator<Item = (String, Vec<u8>)> {
    let value =
        format!(r#"{{"Addr":"10.0.0.1:80","Metadata":{{"weight":{round}}},"Filler":"{}"}}"#, "x".repeat(40_000));
    (0..128).map(move |number| (format!("payments/{number:03}"), value.clone().into_bytes()))
}

fn changed(update: Option<Update>) -> usize {
    match update {
        Some(Update::Change(change)) if change.removes().is_empty() => change.upserts().len(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn fault_a18_one_transaction_is_one_update() {
    let etcd = Etcd::start().await;
    let backend = EtcdBackend::new(config(etcd.address())).unwrap();
    let mut updates = backend.watch(&payments()).unwrap();
    assert!(matches!(updates.next().await, Some(Update::Reset(set)) if set.is_empty()));
    let mut raw = etcd.raw().await;
    let keys: Vec<_> = (0..128).map(|number| format!("payments/{number:03}")).collect();
    for round in 1..4u16 {
        // As much as an etcd request may hold: 1.5 MiB.
        let filler = "x".repeat(10_000);
        let value = format!(r#"{{"Addr":"10.0.0.1:80","Metadata":{{"weight":{round}}},"Filler":"{filler}"}}"#);
        raw.put_all(&keys, value.as_bytes()).await;
        assert_eq!(changed(timeout(SOON, updates.next()).await.unwrap()), 128);
    }
    assert!(timeout(SECOND / 2, updates.next()).await.is_err(), "nothing else");
    println!("fault_a18: 3 revisions of 128 entries were 3 updates");
}

/// A message above 2 MiB arrives in fragments, none of which may become visible alone.
#[tokio::test]
async fn fault_a18_one_transaction_in_fragments_is_one_update() {
    let fake = Fake::start().await;
    let parts = Arc::new(AtomicUsize::new(0));
    let sent = Arc::clone(&parts);
    fake.edit_watches(move |message| {
        sent.fetch_add(usize::from(message.fragment), Ordering::SeqCst);
        vec![Ok(message)]
    });
    let (_backend, mut updates, _) = watching(config(fake.address()), &fake).await;
    for round in 1..4u16 {
        fake.write(large(round).map(|(key, value)| (key, Some(value))));
        assert_eq!(changed(timeout(SOON, updates.next()).await.unwrap()), 128);
    }
    let parts = parts.load(Ordering::SeqCst);
    println!("fault_a18: 3 revisions of 128 entries were 3 updates, after {parts} fragments with more to follow");
    assert!(parts >= 6, "{parts}");
    assert!(timeout(SECOND / 2, updates.next()).await.is_err(), "nothing else");
}

/// Whether the stream ends with an error or the connection is cut, no fragment becomes visible and
/// nothing is lost.
#[tokio::test]
async fn fault_a19_a_cut_in_mid_fragment() {
    for cut_connection in [false, true] {
        let fake = Fake::start().await;
        let proxy = Proxy::to(fake.address()).await;
        let is_cut = Arc::new(AtomicBool::new(false));
        let cut_at = Arc::new(AtomicUsize::new(0));
        let cut = Arc::clone(&is_cut);
        let place = Arc::clone(&cut_at);
        fake.edit_watches(move |message| {
            let silent = cut_connection && cut.load(Ordering::SeqCst) && !message.created;
            let starts = message.fragment && !cut.swap(true, Ordering::SeqCst);
            match (silent, starts) {
                (true, _) => vec![],
                (_, true) => {
                    place.fetch_add(message.events.len(), Ordering::SeqCst);
                    let end = Err(Status::unavailable("cut"));
                    if cut_connection { vec![Ok(message)] } else { vec![Ok(message), end] }
                }
                _ => vec![Ok(message)],
            }
        });
        let (_backend, mut updates, mut set) = watching(config(proxy.address()), &fake).await;
        let start = Instant::now();
        fake.write(large(1).map(|(key, value)| (key, Some(value))));
        if cut_connection {
            eventually("the first part is sent", SOON, async || is_cut.load(Ordering::SeqCst)).await;
            sleep(SECOND / 5).await;
            proxy.set(Fault::Refuse);
            sleep(SECOND / 5).await;
            proxy.set(Fault::None);
            fake.be_honest();
        }
        let mut seen = Vec::new();
        while set.len() != 130 {
            let update = timeout(SOON, updates.next()).await.unwrap().unwrap();
            set = set.after(&update);
            assert!([2, 130].contains(&set.len()), "half of a revision: {} entries", set.len());
            seen.push(update);
        }
        println!("fault_a19: whole {:?} after the write, cut after {cut_at:?} of 128 events", start.elapsed());
        assert!(matches!(seen.last(), Some(Update::Reset(_))), "{seen:?}");
        assert!(seen[..seen.len() - 1].iter().all(|update| matches!(update, Update::Lost(_))), "{seen:?}");
        put(&fake, "c");
        assert_eq!(changed(timeout(SOON, updates.next()).await.unwrap()), 1);
    }
}
