//! `list <entries> <rounds>`: lists a service with this many entries of 150 bytes, taking turns
//! with a raw client that reads the same range in one piece, on its own etcd.
//!
//! Prints the medians of the time and of etcd's processor time in ms, the quartiles of the ratio of
//! ours to the raw client's within a round, and the number of requests per list.

use std::{
    env,
    time::{Duration, Instant},
};

use benches::{Failure, cpu, rounds::Quartiles};
use discovery_core::{Instance, Resolver, ServiceName};
use discovery_etcd::{EtcdBackend, EtcdConfig, EtcdNaming, Layout};
use etcd_client::{Client, GetOptions, Txn, TxnOp};
use futures::{StreamExt, TryStreamExt, stream};
use support::Etcd;
use tokio::time::sleep;

/// The cost of one read, in ms.
#[derive(Clone, Copy, Debug)]
struct Cost {
    cpu: f64,
    time: f64,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<u32> = env::args().skip(1).map(|argument| argument.parse()).collect::<Result<_, _>>()?;
    let [entries, rounds] = arguments[..] else { return Err("list <entries> <rounds>".into()) };
    let etcd = Etcd::start().await;
    let client = Client::connect(etcd.members(), None).await?;
    let count = usize::try_from(entries)?;
    fill(&client, entries).await?;
    let backend = EtcdBackend::new(EtcdConfig::new(etcd.members()).max_entries(count))?;
    let service: ServiceName = SERVICE.parse()?;
    let ours = async || Ok(backend.list(&service).await?);
    let raw = async || {
        let options = GetOptions::new().with_prefix();
        let mut kv = client.kv_client().max_decoding_message_size(usize::MAX);
        Ok(kv.get(format!("{SERVICE}/"), Some(options)).await?)
    };
    let mut costs = Vec::new();
    for round in 0..=rounds {
        let ours = cost(&etcd, &ours, |set| set.len() == count).await?;
        let raw = cost(&etcd, &raw, |answer| answer.kvs().len() == count).await?;
        // The first round connects and warms up.
        if round > 0 {
            costs.push((ours, raw));
        }
    }
    print("cpu", &costs, |cost| cost.cpu)?;
    print("time", &costs, |cost| cost.time)?;
    let before = etcd.requests(0, "Range");
    ours().await?;
    println!("requests {}", etcd.requests(0, "Range") - before);
    Ok(())
}

/// Reads the whole range several times and returns the mean cost.
async fn cost<T>(
    etcd: &Etcd,
    read: &impl AsyncFn() -> Result<T, Failure>,
    is_whole: impl Fn(&T) -> bool,
) -> Result<Cost, Failure> {
    let used = cpu::of(etcd.pid(0))?;
    let mut time = Duration::ZERO;
    for _ in 0..READS {
        let start = Instant::now();
        let seen = read().await?;
        time += start.elapsed();
        if !is_whole(&seen) {
            return Err("not all entries were read".into());
        }
    }
    // Includes what etcd cleans up afterwards.
    sleep(Duration::from_millis(50)).await;
    let cpu = cpu::of(etcd.pid(0))? - used;
    let mean = |duration: Duration| duration.as_secs_f64() * 1e3 / f64::from(READS);
    Ok(Cost { cpu: mean(cpu), time: mean(time) })
}

fn print(measure: &str, costs: &[(Cost, Cost)], of: impl Fn(&Cost) -> f64) -> Result<(), Failure> {
    println!("{measure} ours {:.1}", Quartiles::of(costs.iter().map(|(ours, _)| of(ours)))?.median);
    println!("{measure} raw {:.1}", Quartiles::of(costs.iter().map(|(_, raw)| of(raw)))?.median);
    let Quartiles { first, median, third } = Quartiles::of(costs.iter().map(|(ours, raw)| of(ours) / of(raw)))?;
    println!("{measure} q1 {first:.4}\n{measure} q2 {median:.4}\n{measure} q3 {third:.4}");
    Ok(())
}

async fn fill(client: &Client, entries: u32) -> Result<(), Failure> {
    let instances = (0..entries).map(instance).collect::<Result<Vec<_>, _>>()?;
    let put = |part: &[Instance]| {
        let puts: Vec<_> = part.iter().map(put).collect();
        let client = client.clone();
        async move { client.kv_client().txn(Txn::new().and_then(puts)).await.map(drop) }
    };
    let parts: Vec<_> = instances.chunks(AT_ONCE).map(put).collect();
    Ok(stream::iter(parts).buffer_unordered(8).try_collect().await?)
}

fn put(instance: &Instance) -> TxnOp {
    let service = SERVICE.parse().expect("a valid name");
    let written = EtcdNaming::default().write(&service, instance, 0);
    TxnOp::put(format!("{SERVICE}/{}", written.tail), written.value, None)
}

/// Returns an instance whose key and value have about 150 bytes together.
fn instance(number: u32) -> Result<Instance, Failure> {
    let address = format!("10.{}.{}.{}:50051", number >> 16, (number >> 8) & 255, number & 255);
    let metadata = [("version", "2026.11.28-7f3c2a1"), ("zone", "eu-central-1a")];
    Ok(Instance::new(address.parse()?).with_metadata(metadata.try_into()?))
}

const SERVICE: &str = "payments";
/// Reads of one client per turn.
const READS: u32 = 3;
/// The most writes that etcd takes in one transaction.
const AT_ONCE: usize = 128;
