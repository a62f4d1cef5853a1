//! `registrations rate|lost|dropped`: the cost of many registrations of one process, on its own
//! etcd, compared with a raw client.
//!
//! - `rate <count> <pairs>`: registers this many instances, taking turns with a raw client that
//!   grants a lease, puts an entry and keeps the lease alive for each. Prints the medians of their
//!   times, and the streams and messages that keep the leases alive.
//! - `lost <count> <rounds>`: loses all entries at once, by revoking the lease, and prints how long
//!   it takes until they are back.
//! - `dropped <count>`: drops the registrations while etcd resets every connection, and prints the
//!   cost.

use std::time::{Duration, Instant};

use benches::{Failure, cpu};
use discovery_core::{Instance, Registration, Registry, ServiceName};
use discovery_etcd::{EtcdBackend, EtcdConfig};
use etcd_client::{Client, PutOptions};
use futures::{StreamExt, TryStreamExt, future::try_join_all, stream};
use support::{Etcd, Fault, Proxy};
use tokio::time::sleep;

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<u32> = arguments.iter().skip(1).map(|number| number.parse()).collect::<Result<_, _>>()?;
    match (arguments.first().map(String::as_str), &numbers[..]) {
        (Some("rate"), [count, pairs]) => rate(*count, *pairs).await,
        (Some("lost"), [count, rounds]) => lost(*count, *rounds).await,
        (Some("dropped"), [count]) => dropped(*count).await,
        _ => Err("registrations rate <count> <pairs> | lost <count> <rounds> | dropped <count>".into()),
    }
}

async fn rate(count: u32, pairs: u32) -> Result<(), Failure> {
    let etcd = Etcd::start().await;
    let mut ours = Vec::new();
    let mut raw = Vec::new();
    for _ in 0..pairs {
        let backend = backend(etcd.members())?;
        let start = Instant::now();
        let registrations = register(&backend, count).await?;
        ours.push(start.elapsed());
        drop(registrations);
        backend.close().await?;
        let client = Client::connect(etcd.members(), None).await?;
        let start = Instant::now();
        let leases = raw_register(&client, count).await?;
        raw.push(start.elapsed());
        revoke(&client, leases).await?;
    }
    println!("ms for all {:.1}", median(ours));
    println!("ms for all raw {:.1}", median(raw));

    let backend = backend(etcd.members())?;
    let _registrations = register(&backend, count).await?;
    keep_alive(&etcd, "").await;
    backend.close().await?;
    let client = Client::connect(etcd.members(), None).await?;
    let leases = raw_register(&client, count).await?;
    let mut kept = Vec::new();
    for lease in &leases {
        kept.push(client.lease_client().keep_alive(*lease).await?);
    }
    let renewing = tokio::spawn(async move {
        loop {
            sleep(TTL / 3).await;
            for (keeper, _) in &mut kept {
                keeper.keep_alive().await?;
            }
            for (_, answers) in &mut kept {
                answers.message().await?;
            }
        }
        #[expect(unreachable_code, reason = "it names the type of its errors")]
        Ok::<(), etcd_client::Error>(())
    });
    keep_alive(&etcd, " raw").await;
    renewing.abort();
    Ok(())
}

/// Prints the number of streams that keep leases alive and the messages on them per minute.
async fn keep_alive(etcd: &Etcd, whose: &str) {
    let streams = |etcd: &Etcd| {
        let count = |what| {
            let labels = r#"grpc_method="LeaseKeepAlive",grpc_service="etcdserverpb.Lease",grpc_type="bidi_stream""#;
            let codes = if what == "started" {
                vec![String::new()]
            } else {
                CODES.map(|code| format!(r#"grpc_code="{code}","#)).to_vec()
            };
            codes
                .iter()
                .filter_map(|code| etcd.metric(0, &format!("grpc_server_{what}_total{{{code}{labels}}}")))
                .sum::<f64>()
        };
        count("started") - count("handled")
    };
    // Skips the messages that open the streams.
    sleep(TTL / 3).await;
    let before = etcd.requests(0, "LeaseKeepAlive");
    let start = Instant::now();
    sleep(TTL).await;
    let sent = (etcd.requests(0, "LeaseKeepAlive") - before) as f64;
    println!("streams{whose} {}", streams(etcd));
    println!("messages a minute{whose} {:.0}", sent / start.elapsed().as_secs_f64() * 60.0);
}

async fn lost(count: u32, rounds: u32) -> Result<(), Failure> {
    let etcd = Etcd::start().await;
    let client = Client::connect(etcd.members(), None).await?;
    let start = Instant::now();
    let leases = raw_register(&client, count).await?;
    println!("s raw {:.2}", start.elapsed().as_secs_f64());
    revoke(&client, leases).await?;

    let backend = backend(etcd.members())?;
    let registrations = register(&backend, count).await?;
    for round in 1..=rounds {
        let leases = client.lease_client().leases().await?;
        let start = Instant::now();
        for lease in leases.leases() {
            client.lease_client().revoke(lease.id()).await?;
        }
        let is_whole = || registrations.iter().all(|one| one.status().is_registered());
        while is_whole() && start.elapsed() < LIMIT {
            sleep(Duration::from_millis(1)).await;
        }
        while !is_whole() && start.elapsed() < LIMIT {
            sleep(Duration::from_millis(20)).await;
        }
        println!("s round {round} {:.2}", start.elapsed().as_secs_f64());
    }
    Ok(())
}

async fn dropped(count: u32) -> Result<(), Failure> {
    let etcd = Etcd::start().await;
    let proxy = Proxy::to(etcd.address()).await;
    let backend = backend(vec![proxy.address()])?;
    let registrations = register(&backend, count).await?;
    proxy.set(Fault::Reset);
    drop(registrations);
    sleep(Duration::from_millis(500)).await;
    let accepted = proxy.accepted();
    let used = cpu::process();
    let start = Instant::now();
    sleep(Duration::from_secs(10)).await;
    let took = start.elapsed().as_secs_f64();
    println!("connections a second {:.2}", (proxy.accepted() - accepted) as f64 / took);
    println!("percent of a core {:.2}", (cpu::process() - used).as_secs_f64() / took * 100.0);
    Ok(())
}

fn backend(members: Vec<String>) -> Result<EtcdBackend, Failure> {
    Ok(EtcdBackend::new(EtcdConfig::new(members).ttl(TTL))?)
}

async fn register(backend: &EtcdBackend, count: u32) -> Result<Vec<Registration>, Failure> {
    let service: ServiceName = "payments".parse()?;
    let instances = (0..count).map(instance).collect::<Result<Vec<_>, _>>()?;
    Ok(try_join_all(instances.into_iter().map(|instance| backend.register(&service, instance))).await?)
}

/// Grants a lease and puts an entry for each, with as many requests in flight as ours has.
async fn raw_register(client: &Client, count: u32) -> Result<Vec<i64>, Failure> {
    let one = |number: u32| {
        let client = client.clone();
        async move {
            let seconds = i64::try_from(TTL.as_secs())?;
            let lease = client.lease_client().grant(seconds, None).await?.id();
            let instance = instance(number)?;
            let value = format!(r#"{{"Op":0,"Addr":"{}","Metadata":null}}"#, instance.address());
            let options = PutOptions::new().with_lease(lease);
            client.kv_client().put(format!("raw/{}", instance.id()), value, Some(options)).await?;
            Ok::<_, Failure>(lease)
        }
    };
    stream::iter((0..count).map(one)).buffer_unordered(AT_ONCE).try_collect().await
}

async fn revoke(client: &Client, leases: Vec<i64>) -> Result<(), Failure> {
    let one = |lease| {
        let client = client.clone();
        async move { client.lease_client().revoke(lease).await.map(drop) }
    };
    Ok(stream::iter(leases.into_iter().map(one)).buffer_unordered(AT_ONCE).try_collect().await?)
}

fn instance(number: u32) -> Result<Instance, Failure> {
    Ok(Instance::new(format!("10.{}.{}.{}:80", number >> 16, (number >> 8) & 255, number & 255).parse()?))
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

const TTL: Duration = Duration::from_secs(15);
const AT_ONCE: usize = 128;
/// Longer than anything that works takes.
const LIMIT: Duration = Duration::from_secs(120);
/// The codes with which a stream may have ended.
const CODES: [&str; 5] = ["OK", "Canceled", "Unavailable", "Unknown", "DeadlineExceeded"];
