//! Anything that may have been written into etcd, and any name that a caller may pass: rows
//! `fault_d4` to `fault_d10` of the fault list.
//!
//! If memory is measured, the resolver runs in a child process, which is this same program.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use discovery_core::{ErrorKind, InstanceId, Registry, Resolver, ServiceName, Snapshot, Update};
use discovery_etcd::EtcdConfig;
use futures::{FutureExt, StreamExt};
use support::{
    Etcd, Log, Proxy,
    scene::{SOON, connect, connect_to, count, instance, payments, register, until},
};
use tokio::time::{sleep, timeout};
use tracing::Level;

/// Returns values that do not decode to an instance, by the last part of their key.
fn bad_values() -> Vec<(String, Vec<u8>)> {
    let addr = |addr: &str| format!(r#"{{"Op":0,"Addr":{addr},"Metadata":null}}"#).into_bytes();
    let metadata = |metadata: &str| format!(r#"{{"Addr":"10.0.0.1:80","Metadata":{metadata}}}"#).into_bytes();
    let values = [
        ("empty", Vec::new()),
        ("not-utf8", b"{\"Addr\":\"\xff\xfe:80\"}".to_vec()),
        ("not-json", b"10.0.0.1:80".to_vec()),
        ("cut-off", br#"{"Op":0,"Addr":"10.0."#.to_vec()),
        ("trailing", br#"{"Addr":"10.0.0.1:80"} {}"#.to_vec()),
        ("empty-list", b"[]".to_vec()),
        ("text", b"\"10.0.0.1:80\"".to_vec()),
        ("null", b"null".to_vec()),
        ("deep", "[".repeat(60_000).into_bytes()),
        ("deep-inside", metadata(&format!("{}{}", "[".repeat(200), "]".repeat(200)))),
        ("huge", addr(&format!("\"{}\"", "1".repeat(100_000)))),
        ("no-address", br#"{"Op":0}"#.to_vec()),
        ("address-null", addr("null")),
        ("address-number", addr("80")),
        ("address-list", addr(r#"["10.0.0.1:80"]"#)),
        ("port-missing", addr(r#""10.0.0.1""#)),
        ("port-0", addr(r#""10.0.0.1:0""#)),
        ("port-65536", addr(r#""10.0.0.1:65536""#)),
        ("port-minus", addr(r#""10.0.0.1:-1""#)),
        ("port-text", addr(r#""10.0.0.1:http""#)),
        ("last-of-doubles", br#"{"Addr":"10.0.0.1:80","addr":"10.0.0.1:0"}"#.to_vec()),
        ("weight-text", metadata(r#"{"weight":"heavy"}"#)),
        ("weight-object", metadata(r#"{"weight":{}}"#)),
    ];
    values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Returns values of the instance 10.9.0.1:80 with labels that are not allowed, and how many.
fn odd_labels() -> [(&'static str, String, u64); 3] {
    let metadata = |metadata: &str| format!(r#"{{"Addr":"10.9.0.1:80","Metadata":{metadata}}}"#);
    let many: Vec<String> = (0..66).map(|n| format!(r#""k{n}":"""#)).collect();
    [
        ("huge", metadata(&format!(r#"{{"k":"{}"}}"#, "v".repeat(5000))), 1),
        ("many", metadata(&format!("{{{}}}", many.join(","))), 2),
        ("key", metadata(r#"{"a b":"c"}"#), 1),
    ]
}

/// `fault_d4`: entries with arbitrary bytes. Each bad one is skipped, counted and logged once,
/// whether listed, watched or listed again. Whatever can be read is served, however odd it is
/// (unknown fields, duplicates, wrong types in the metadata).
#[tokio::test]
async fn fault_d4_bad_entries_hide_no_others() {
    let log = Log::down_to(Level::WARN);
    let etcd = Etcd::start().await;
    let backend = connect(&etcd);
    let mut raw = etcd.raw().await;
    let _good = register(&backend, 1).await;
    for odd in [r#"{"Addr":"10.9.0.1:80","new":{"a":[]}}"#, r#"{"Addr":"1.1.1.1:1","ADDR":"10.9.0.1:80","Op":"x"}"#] {
        raw.put(&format!("payments/odd-{}", odd.len()), odd).await;
    }
    let odd_labels = odd_labels();
    for (name, value, _) in &odd_labels {
        raw.put(&format!("payments/labels-{name}"), value.as_str()).await;
    }
    let bad = bad_values();
    let (listed, watched) = bad.split_at(bad.len() / 2);
    for (name, value) in listed {
        raw.put(&format!("payments/bad-{name}"), value.clone()).await;
    }
    for key in [&b"payments/bad-key-\xff"[..], b"payments/bad-key-\xfe", b"payments/", b"payments/bad key"] {
        raw.put_at(key, support::entry::encode(&instance(7))).await;
    }
    let mut updates = backend.watch(&payments()).unwrap();
    let mut set = Snapshot::default();
    until(&mut updates, &mut set, |set| set.len() == 6).await;
    assert_eq!(backend.skipped(), listed.len() as u64 + 4);
    assert_eq!(backend.dropped_labels(), odd_labels.iter().map(|(_, _, labels)| labels).sum::<u64>());
    for (name, value) in watched {
        raw.put(&format!("payments/bad-{name}"), value.clone()).await;
    }
    let _second = register(&backend, 2).await;
    until(&mut updates, &mut set, |set| set.len() == 7).await;
    let all = bad.len() as u64 + 4;
    assert_eq!(backend.skipped(), all);
    assert_eq!(backend.list(&payments()).await.unwrap(), set);
    assert_eq!(backend.skipped(), all, "the same value counts once");
    let lines = log.with("bad entry skipped");
    println!(
        "fault_d4: {all} bad entries, {} log lines, the longest of {:?} bytes",
        lines.len(),
        lines.iter().map(String::len).max()
    );
    assert_eq!(lines.len() as u64, all);
    for (name, _) in &bad {
        assert_eq!(log.with(&format!("payments/bad-{name} ")).len(), 1, "{name}");
    }
    assert!(lines.iter().all(|line| line.len() < 1500), "{lines:?}");

    // A bad value over a good one counts as its removal, and a good one over a bad one brings it
    // back.
    raw.put("payments/odd-37", "?").await;
    until(&mut updates, &mut set, |set| set.len() == 6).await;
    raw.put("payments/odd-37", support::entry::encode(&instance(7))).await;
    until(&mut updates, &mut set, |set| set.len() == 7).await;
    assert_eq!(backend.list(&payments()).await.unwrap(), set);
}

/// `fault_d4`: a key that keeps being rewritten with bad values is counted each time and logged
/// once a minute, even if it is good in between.
#[tokio::test]
async fn fault_d4_a_key_rewritten_badly_does_not_fill_the_log() {
    let log = Log::down_to(Level::WARN);
    let etcd = Etcd::start().await;
    let backend = connect(&etcd);
    let mut updates = backend.watch(&payments()).unwrap();
    let mut set = Snapshot::default();
    let mut raw = etcd.raw().await;
    let good = support::entry::encode(&instance(1));
    // Without this wait, the first values could be overwritten before they are read.
    assert!(matches!(updates.next().await, Some(Update::Reset(_))));
    let start = Instant::now();
    for number in 0..300 {
        raw.put("payments/bad", format!("{number}")).await;
        if number % 3 == 0 {
            raw.put("payments/bad", good.clone()).await;
        }
    }
    let took = start.elapsed();
    let _last = register(&backend, 2).await;
    until(&mut updates, &mut set, |set| set.get(instance(2).id().as_str()).is_some()).await;
    let lines = log.with("bad entry skipped").len();
    println!("fault_d4: 300 bad values at one key in {took:?}: {} counted, {lines} logged", backend.skipped());
    assert_eq!(backend.skipped(), 300);
    assert!(took < Duration::from_secs(60), "the bound is one line a minute: {took:?}");
    assert_eq!(lines, 1);
}

/// `fault_d5`: a hundred values of 1.4 MB, 140 MB in all, are listed and then all rewritten under
/// an open watch. They are skipped, the rest is served, and the process takes less than two thirds
/// of that. (etcd does not accept more than 1.5 MiB in one request.)
#[tokio::test]
async fn fault_d5_huge_values_are_skipped_and_memory_is_bounded() {
    let etcd = Etcd::start().await;
    let mut raw = etcd.raw().await;
    let mut huge = support::entry::encode(&instance(1));
    huge.resize(1_400_000, b' ');
    for number in 0..100 {
        raw.put(&format!("payments/huge-{number}"), huge.clone()).await;
    }
    let one = support::entry::encode(&instance(1));
    raw.put("payments/one", one.clone()).await;
    let mut process = Process::start(&etcd);
    let first =
        process.until("a list and a set", |seen| seen.listed == Some(1) && seen.set == 1 && seen.skipped == 100);
    for number in 0..100 {
        raw.put(&format!("payments/huge-{number}"), huge.clone()).await;
    }
    raw.put("payments/two", one).await;
    let second = process.until("the later entry", |seen| seen.set == 2 && seen.skipped == 200);
    println!("fault_d5: 140 MB of values took {} kB at most to list, {} kB with the watch", first.peak, second.peak);
    assert!(second.peak < 93_000, "{second:?}");
}

/// `fault_d6`: 100,000 entries in one service. No client follows more than its limit (20,000): a
/// list is refused, watchers get one `Lost` with `ResourceExhausted`, and the set stays as last
/// known. Once the service is smaller, it is listed and followed again: at once by a new watcher,
/// and within two minutes by an existing one, which a test with a paused clock shows in
/// `discovery-core`.
///
/// The set is refused rather than truncated: a part is not a state that the registry had, and a
/// removal from it would require a new list each time.
#[tokio::test]
async fn fault_d6_a_service_of_too_many_entries_is_not_followed() {
    let etcd = Etcd::start().await;
    let mut raw = etcd.raw().await;
    let value = support::entry::encode(&instance(1));
    raw.put("payments/a", value.clone()).await;
    let mut process = Process::start(&etcd);
    process.until("the first set", |seen| seen.set == 1 && seen.listed == Some(1));
    let keys: Vec<String> = (0..100_000).map(|number| format!("payments/flood-{number}")).collect();
    let start = Instant::now();
    raw.put_all(&keys, &value).await;
    println!("fault_d6: 100,000 entries written in {:?}", start.elapsed());
    let lost = process.until("lost", |seen| seen.lost.is_some() && seen.listed.is_none());
    assert_eq!(lost.lost.as_deref(), Some("ResourceExhausted"), "{lost:?}");
    assert!((1..=20_000).contains(&lost.set), "the set stays as last known: {lost:?}");
    sleep(Duration::from_secs(2)).await;
    let still = process.until("still lost", |seen| seen.lost.is_some());
    println!("fault_d6: {} instances stay, reported {} times; {} kB at most", still.set, still.losses, still.peak);
    assert_eq!(still.set, lost.set, "{still:?}");
    assert!(still.peak < 100_000, "{still:?}");

    raw.delete_below("payments/flood-").await;
    let back = process.until("listed again", |seen| seen.listed == Some(1));
    println!("fault_d6: listed again; {} kB at most", back.peak);
    drop(process);
    let mut process = Process::start(&etcd);
    process.until("followed again", |seen| seen.set == 1 && seen.lost.is_none() && seen.listed == Some(1));
}

/// `fault_d7`: addresses that would lead a client astray are refused wherever they come from.
/// Private addresses and loopback are allowed.
#[tokio::test]
async fn fault_d7_hostile_addresses_are_refused() {
    let etcd = Etcd::start().await;
    let backend = connect(&etcd);
    let mut raw = etcd.raw().await;
    let hostile = [
        "unix:/var/run/docker.sock",
        "unix:///x",
        "http://169.254.169.254/latest",
        "http://h:80",
        "169.254.169.254:80",
        "[fe80::1]:80",
        "[fe80::1%eth0]:80",
        "[::ffff:169.254.169.254]:80",
        "0.0.0.0:80",
        "[::]:80",
        "[::ffff:0.0.0.0]:80",
        "224.0.0.1:80",
        "[ff02::1]:80",
        "255.255.255.255:80",
        "2852039166:80",
        "0xa9fea9fe:80",
        "0251.0376.0251.0376:80",
        "169.254.43518:80",
        "127.1:80",
        "user:pw@10.0.0.1:80",
        "10.0.0.1:80/path",
        "10.0.0.1:80?x",
        "10.0.0.1:80#x",
        "10.0.0.1:99999",
        "h",
        "",
        "a b:80",
        "a\\nb:80",
        "a\\u0000b:80",
        "\\u202e1.0.0.1:80",
    ];
    for (number, address) in hostile.iter().enumerate() {
        raw.put(&format!("payments/{number}"), format!(r#"{{"Addr":"{address}"}}"#)).await;
    }
    let allowed = ["10.0.0.1:80", "127.0.0.1:80", "[::1]:80", "[fd00::1]:80", "payments-7.internal:80"];
    for (number, address) in allowed.iter().enumerate() {
        raw.put(&format!("payments/good-{number}"), format!(r#"{{"Addr":"{address}"}}"#)).await;
    }
    let set = backend.list(&payments()).await.unwrap();
    let served: Vec<String> = set.iter().map(|one| one.address().to_string()).collect();
    println!("fault_d7: {} of {} hostile addresses refused", backend.skipped(), hostile.len());
    assert_eq!(served, allowed);
    assert_eq!(backend.skipped(), hostile.len() as u64);
}

/// `fault_d8`: names and ids that could escape from their part of the key are refused before
/// anything is sent.
#[tokio::test]
async fn fault_d8_bad_names_are_refused_before_any_request() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::to(etcd.address()).await;
    let backend = connect_to([proxy.address()]);
    let long = "a".repeat(254);
    let names = [
        "",
        ".",
        "..",
        "a/b",
        "../b",
        "a/../b",
        "/",
        "a\0",
        "a\n",
        "a\u{1b}[0m",
        "a b",
        "ä",
        "a\u{202e}",
        "a%2fb",
        "a\\b",
        &long,
    ];
    let mut refused = 0;
    for name in names {
        let parsed: Result<ServiceName, _> = name.parse();
        match parsed {
            Ok(name) => drop(backend.list(&name).await),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                assert!(!error.to_string().contains(|c: char| c.is_control() || c == '\u{202e}'), "{error}");
                refused += 1;
            }
        }
        let parsed: Result<InstanceId, _> = name.parse();
        if let (Ok(id), false) = (parsed, ["a%2fb", "a\\b", &long].contains(&name)) {
            drop(backend.register(&payments(), instance(1).with_id(id)).await);
        }
    }
    for url in ["etcd://127.0.0.1/../x", "etcd://127.0.0.1/a%00b", "etcd://127.0.0.1/a//b", "etcd://127.0.0.1/%0a"] {
        assert_eq!(url.parse::<EtcdConfig>().unwrap_err().kind(), ErrorKind::InvalidInput, "{url}");
    }
    println!("fault_d8: {refused} of {} names refused, {} connections made", names.len(), proxy.accepted());
    assert_eq!((refused, proxy.accepted()), (names.len(), 0));
    assert_eq!(count(&backend).await, Some(0), "a good name is accepted");
    assert!(proxy.accepted() > 0);
}

/// `fault_d9`: `foo` contains nothing of `foobar`, of deeper paths or of `foo//`, whether listed or
/// watched.
#[tokio::test]
async fn fault_d9_only_whole_segments_are_a_service() {
    let etcd = Etcd::start().await;
    let backend = connect(&etcd);
    let mut raw = etcd.raw().await;
    let value = support::entry::encode(&instance(1));
    let others = [
        "foobar/1", "foo", "foo-/1", "foo./1", "foo0", "foo/x/y", "foo/x/", "foo//1", "foo//", "fo/1", "xfoo/1",
        "/foo/1",
    ];
    for key in others {
        raw.put(key, value.clone()).await;
    }
    raw.put("foo/real", value.clone()).await;
    let foo: ServiceName = "foo".parse().unwrap();
    let ids = |set: &Snapshot| set.iter().map(|one| one.id().to_string()).collect::<Vec<_>>();
    assert_eq!(ids(&backend.list(&foo).await.unwrap()), ["real"]);
    let mut updates = backend.watch(&foo).unwrap();
    let mut set = Snapshot::default();
    until(&mut updates, &mut set, |set| set.len() == 1).await;
    for key in others {
        raw.put(key, "?").await;
        raw.delete(key).await;
    }
    raw.put("foo/second", value).await;
    let seen = until(&mut updates, &mut set, |set| set.len() == 2).await;
    println!("fault_d9: {} writes beside the service gave {} updates", 2 * others.len(), seen.len() - 1);
    assert!(matches!(&seen[..], [Update::Change(change)] if change.removes().is_empty()), "{seen:?}");
    assert_eq!(backend.skipped(), 0);
}

/// `fault_d10`: text from keys and values reaches logs and errors escaped, so that no line, colour
/// or direction can be forged.
#[tokio::test]
async fn fault_d10_text_from_the_registry_is_escaped() {
    let log = Log::down_to(Level::TRACE);
    let etcd = Etcd::start().await;
    let backend = connect(&etcd);
    let mut raw = etcd.raw().await;
    let hostile = ["a\nb", "a\u{1b}[31mb", "a\u{202e}b", "a\0b", "a\rb", "a\u{9b}b", "a\u{2028}b", "a\u{200f}b"];
    for (number, text) in hostile.iter().enumerate() {
        raw.put_at(format!("payments/key-{number}-{text}"), "?").await;
        raw.put(&format!("payments/address-{number}"), serde_json::json!({ "Addr": text }).to_string()).await;
        raw.put(&format!("payments/text-{number}"), serde_json::json!(text).to_string()).await;
        let metadata = serde_json::json!({ "Addr": "10.0.0.1:80", "Metadata": { *text: "" } });
        raw.put(&format!("payments/metadata-{number}"), metadata.to_string()).await;
    }
    raw.put_at(b"payments/bytes-\xff\n\x1b".to_vec(), "?").await;
    // Of these, only the labels are bad.
    assert_eq!(count(&backend).await, Some(hostile.len()));
    let mut updates = backend.watch(&payments()).unwrap();
    let mut set = Snapshot::default();
    until(&mut updates, &mut set, |set| set.len() == hostile.len()).await;
    raw.put_at("payments/later\n\u{1b}\u{202e}", "?").await;
    let _good = register(&backend, 1).await;
    until(&mut updates, &mut set, |set| set.len() == hostile.len() + 1).await;
    let entries = log.with("bad entry skipped");
    let labels = log.with("bad labels dropped");
    assert_eq!((entries.len(), labels.len()), (3 * hostile.len() + 2, hostile.len()));
    let lines = [entries, labels].concat();
    println!("fault_d10: {} lines about bad entries and labels", lines.len());
    let is_hostile = |c: char| c.is_control() || matches!(c, '\u{202e}' | '\u{2028}' | '\u{200f}');
    for line in &lines {
        assert!(!line.contains(is_hostile), "{line:?}");
    }
    assert_eq!(log.with("discovery").iter().filter(|line| line.contains(is_hostile)).count(), 0);
    assert!(lines.iter().any(|line| line.contains(r"key-0-a\nb")), "{lines:?}");
    // A caller may pass text from anywhere.
    for text in hostile {
        let error = text.parse::<ServiceName>().unwrap_err();
        assert!(!format!("{error} {error:?} {}", error.report()).contains(is_hostile), "{error:?}");
    }
}

/// What a resolver in a child process reports of `payments`.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// The number of instances in the last list, if it succeeded.
    listed: Option<usize>,
    /// The number of instances in the watched set.
    set: usize,
    skipped: u64,
    /// The kind of the last loss, until the next set.
    lost: Option<String>,
    losses: usize,
    /// The peak of its memory above what it started with, in kB.
    peak: u64,
}

const MEMBER: &str = "DISCOVERY_TEST_MEMBER";

/// A child process for other tests. It lists and watches, and reports what it sees until its input
/// is closed.
#[tokio::test]
#[ignore = "is started by the other tests here"]
async fn child() {
    let Ok(member) = env::var(MEMBER) else { return };
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_line(&mut String::new());
        std::process::exit(0);
    });
    let start = peak();
    let backend = discovery_etcd::EtcdBackend::new(EtcdConfig::new([member])).unwrap();
    let mut updates = backend.watch(&payments()).unwrap();
    let mut set = Snapshot::default();
    let mut seen = Seen::default();
    loop {
        let mut next = timeout(Duration::from_millis(200), updates.next()).await.ok().flatten();
        while let Some(update) = next {
            set = set.after(&update);
            match &update {
                Update::Lost(error) => {
                    seen.lost = Some(format!("{:?}", error.kind()));
                    seen.losses += 1;
                }
                Update::Change(_) | Update::Reset(_) => seen.lost = None,
            }
            next = updates.next().now_or_never().flatten();
        }
        seen.set = set.len();
        seen.listed = count(&backend).await;
        seen.skipped = backend.skipped();
        let listed = seen.listed.map_or_else(|| "-".to_owned(), |count| count.to_string());
        let lost = seen.lost.as_deref().unwrap_or("-");
        println!("\nseen {listed} {} {} {lost} {} {}", seen.set, seen.skipped, seen.losses, peak() - start);
        std::io::stdout().flush().unwrap();
    }
}

/// Returns the peak of this process's resident memory, in kB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// A resolver in a child process.
struct Process {
    child: Child,
    _input: ChildStdin,
    seen: Receiver<Seen>,
}

impl Process {
    fn start(etcd: &Etcd) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["child", "--exact", "--ignored", "--nocapture"])
            .env(MEMBER, etcd.address())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let input = child.stdin.take().unwrap();
        let (sender, seen) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some(one) = line.strip_prefix("seen ").map(read)
                    && sender.send(one).is_err()
                {
                    return;
                }
            }
        });
        Self { child, _input: input, seen }
    }

    /// Waits until it reports something that satisfies the condition.
    fn until(&mut self, what: &str, holds: impl Fn(&Seen) -> bool) -> Seen {
        let start = Instant::now();
        let mut last = None;
        while start.elapsed() < 3 * SOON {
            let Ok(seen) = self.seen.recv_timeout(3 * SOON) else { break };
            if holds(&seen) {
                return seen;
            }
            last = Some(seen);
        }
        panic!("not within {:?}: {what}; last {last:?}", 3 * SOON);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(line: &str) -> Seen {
    let words: Vec<&str> = line.split(' ').collect();
    let [listed, set, skipped, lost, losses, peak] = words[..] else { panic!("{line}") };
    Seen {
        listed: listed.parse().ok(),
        set: set.parse().unwrap(),
        skipped: skipped.parse().unwrap(),
        lost: (lost != "-").then(|| lost.to_owned()),
        losses: losses.parse().unwrap(),
        peak: peak.parse().unwrap(),
    }
}
