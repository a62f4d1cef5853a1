//! `propagation <many> <rounds> <puts>`: measures the time from a put until watchers of the service
//! have it in a snapshot, and until a raw watch in the same process has its event, on its own etcd.
//!
//! Four scenes take turns: one consumer; many consumers of the same service; many services with one
//! consumer each and puts to any of them; and many consumers of a bare channel instead of the
//! library. Each round makes this many puts in each scene. Prints for each [scene](Scene) the
//! quantiles over all puts, and the quartiles of the ratios of medians within a round: of the delay
//! after the raw event to that event's time, and of the time to that of one consumer and of the
//! channel.

use std::{collections::HashMap, sync::Arc, time::Duration};

use benches::{Failure, arrivals::Arrivals, entries, rounds::Quartiles};
use discovery_core::{Resolver, Snapshot, Update, UpdateStream};
use discovery_etcd::{EtcdBackend, EtcdConfig};
use etcd_client::{Client, KvClient, WatchOptions, WatchStream};
use futures::StreamExt;
use support::Etcd;
use tokio::{sync::watch, task::JoinSet, time::sleep};

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<usize> = arguments.iter().map(|number| number.parse()).collect::<Result<_, _>>()?;
    let [many, rounds, puts] = numbers[..] else { return Err("propagation <many> <rounds> <puts>".into()) };
    let etcd = Etcd::start().await;
    entries::put(&etcd.members(), many).await?;
    let scenes = [Scene::One, Scene::Consumers(many), Scene::Services(many), Scene::Channel(many)];
    let mut all: HashMap<&str, Vec<Vec<Put>>> = HashMap::new();
    for _ in 0..rounds {
        for scene in scenes {
            all.entry(scene.name()).or_default().push(scene.measure(&etcd.members(), puts).await?);
        }
    }
    for scene in scenes {
        let name = scene.name();
        for (what, of) in MEASURES {
            let mut times: Vec<f64> = all[name].iter().flatten().map(of).collect();
            times.sort_by(f64::total_cmp);
            println!("{name} {what} p50 {:.2}", times[times.len() / 2]);
            println!("{name} {what} p99 {:.2}", times[times.len() * 99 / 100]);
        }
        let half = medians(&all[name], |put| put.half)?;
        let last = medians(&all[name], |put| put.last)?;
        let later = medians(&all[name], |put| put.later())?;
        print_ratios(&format!("{name} later of raw"), &later, &medians(&all[name], |put| put.raw)?)?;
        for peer in ["channel", "one"] {
            print_ratios(&format!("{name} half of {peer}"), &half, &medians(&all[peer], |put| put.half)?)?;
            print_ratios(&format!("{name} last of {peer}"), &last, &medians(&all[peer], |put| put.last)?)?;
        }
    }
    Ok(())
}

/// Returns the median of each round.
fn medians(rounds: &[Vec<Put>], of: Measure) -> Result<Vec<f64>, Failure> {
    rounds.iter().map(|round| Ok(Quartiles::of(round.iter().map(of))?.median)).collect()
}

/// Prints the quartiles of the ratios to the peer's numbers in the same rounds.
fn print_ratios(name: &str, numbers: &[f64], peer: &[f64]) -> Result<(), Failure> {
    let Quartiles { first, median, third } = Quartiles::of(numbers.iter().zip(peer).map(|(one, peer)| one / peer))?;
    println!("{name} q1 {first:.4}\n{name} q2 {median:.4}\n{name} q3 {third:.4}");
    Ok(())
}

/// The consumers.
#[derive(Clone, Copy)]
enum Scene {
    /// This many tasks that a raw watch wakes through a channel: a lower bound for this many
    /// consumers.
    Channel(usize),
    /// This many consumers of one service.
    Consumers(usize),
    /// One consumer of one service.
    One,
    /// One consumer for each of this many services, on one handle.
    Services(usize),
}

/// The arrivals of a put, in microseconds since it was sent.
struct Put {
    raw: f64,
    /// When half of its consumers had it, and when all had.
    half: f64,
    last: f64,
}

/// A number of a put.
type Measure = fn(&Put) -> f64;

impl Put {
    /// Returns how much later than the raw event the snapshot was.
    fn later(&self) -> f64 {
        self.half - self.raw
    }
}

impl Scene {
    fn name(self) -> &'static str {
        match self {
            Self::Channel(_) => "channel",
            Self::Consumers(_) => "consumers",
            Self::One => "one",
            Self::Services(_) => "services",
        }
    }

    /// Returns the service and the place of each consumer. The first place belongs to the raw
    /// watch.
    fn consumers(self) -> Vec<(usize, usize)> {
        match self {
            Self::Channel(many) | Self::Consumers(many) => (1..=many).map(|place| (0, place)).collect(),
            Self::One => vec![(0, 1)],
            Self::Services(many) => (0..many).map(|service| (service, service + 1)).collect(),
        }
    }

    async fn measure(self, members: &[String], puts: usize) -> Result<Vec<Put>, Failure> {
        let consumers = self.consumers();
        let arrivals = Arc::new(Arrivals::new(1 + consumers.len()));
        let mut tasks = JoinSet::new();
        let backend = EtcdBackend::new(EtcdConfig::new(members))?;
        arrivals.expect(consumers.len());
        if matches!(self, Self::Channel(_)) {
            let source = raw_watch(members).await?;
            hand_out(source, &consumers, &arrivals, &mut tasks);
        } else {
            for (service, place) in &consumers {
                let updates = backend.watch(&entries::service(*service).parse()?)?;
                tasks.spawn(consume(updates, *place, Arc::clone(&arrivals)));
            }
        }
        // All consumers have the first set.
        arrivals.all(LIMIT).await?;
        tasks.spawn(note(raw_watch(members).await?, Arc::clone(&arrivals)));

        let mut kv = Client::connect(members, None).await?.kv_client();
        let mut times = Vec::new();
        for number in 0..WARM_UP + puts {
            let (service, _) = consumers[fastrand::usize(..consumers.len())];
            let places: Vec<usize> =
                consumers.iter().filter(|(watched, _)| *watched == service).map(|(_, place)| *place).collect();
            sleep(PAUSE).await;
            let put = put(&mut kv, service, &places, &arrivals).await?;
            if number >= WARM_UP {
                times.push(put);
            }
        }
        tasks.shutdown().await;
        backend.close().await?;
        Ok(times)
    }
}

/// Changes an instance of a service and waits until all its watchers have seen the change.
async fn put(kv: &mut KvClient, service: usize, places: &[usize], arrivals: &Arrivals) -> Result<Put, Failure> {
    let address = entries::address(service, 0);
    let number = fastrand::u32(..);
    let value = format!(r#"{{"Op":0,"Addr":"{address}","Metadata":{{"number":"{number}"}}}}"#);
    arrivals.expect(1 + places.len());
    let sent = arrivals.now();
    kv.put(entries::key(service, 0), value, None).await?;
    arrivals.all(LIMIT).await?;
    let since = |place: usize| (arrivals.at(place) as f64 - sent as f64) / 1e3;
    let mut times: Vec<f64> = places.iter().map(|place| since(*place)).collect();
    times.sort_by(f64::total_cmp);
    let last = *times.last().ok_or("nobody consumes")?;
    Ok(Put { raw: since(0), half: times[times.len() / 2], last })
}

/// Does what a picker does: folds the updates into snapshots. An outage that swallows a change
/// shows as a missing arrival.
async fn consume(mut updates: UpdateStream, place: usize, arrivals: Arc<Arrivals>) {
    let mut snapshot = Snapshot::default();
    let mut is_first = true;
    while let Some(update) = updates.next().await {
        snapshot = snapshot.after(&update);
        if is_first || matches!(update, Update::Change(_)) {
            arrivals.arrive(place);
        }
        is_first = false;
    }
}

/// Records when a raw watch has an event.
async fn note(mut source: WatchStream, arrivals: Arc<Arrivals>) {
    while let Ok(Some(answer)) = source.message().await {
        for _ in answer.events() {
            arrivals.arrive(0);
        }
    }
}

/// Wakes a task per consumer with each value of a raw watch, and does nothing else.
fn hand_out(mut source: WatchStream, consumers: &[(usize, usize)], arrivals: &Arc<Arrivals>, tasks: &mut JoinSet<()>) {
    let sender = watch::Sender::new(Arc::<[u8]>::default());
    for (_, place) in consumers {
        let mut receiver = sender.subscribe();
        let place = *place;
        let arrivals = Arc::clone(arrivals);
        tasks.spawn(async move {
            loop {
                let value = Arc::clone(&receiver.borrow_and_update());
                arrivals.arrive(place);
                if receiver.changed().await.is_err() {
                    return drop(value);
                }
            }
        });
    }
    tasks.spawn(async move {
        while let Ok(Some(answer)) = source.message().await {
            for entry in answer.events().iter().filter_map(|event| event.kv()) {
                sender.send_replace(entry.value().into());
            }
        }
    });
}

/// Opens a watch of all services over its own connection and waits until etcd has created it.
async fn raw_watch(members: &[String]) -> Result<WatchStream, Failure> {
    let client = Client::connect(members, None).await?;
    let mut source = client.watch_client().watch("orders-", Some(WatchOptions::new().with_prefix())).await?;
    let created = source.message().await?;
    if !created.is_some_and(|answer| answer.created()) {
        return Err("etcd does not watch".into());
    }
    Ok(source)
}

/// What is measured of each put.
const MEASURES: [(&str, Measure); 4] =
    [("raw", |put| put.raw), ("half", |put| put.half), ("last", |put| put.last), ("later", Put::later)];
/// Uncounted puts at the start of each round.
const WARM_UP: usize = 10;
/// The pause between two puts, in which the work of the former one ends.
const PAUSE: Duration = Duration::from_millis(5);
/// Longer than anything that works takes.
const LIMIT: Duration = Duration::from_secs(30);
