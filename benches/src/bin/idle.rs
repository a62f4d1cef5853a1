//! `idle ours|raw <address> <services> <registrations>`: watches this many services and registers
//! this many instances on an etcd with the [entries], prints `ready`, and idles until its standard
//! input ends. It has its own process, so that all memory of the process is the measured memory.
//!
//! `raw` is the least that a program does by hand: one client, a list of each service, one stream
//! with a watch per service, one lease that is kept alive, and the addresses in a map.

use std::{collections::HashMap, time::Duration};

use benches::{Failure, entries};
use discovery_core::{Instance, Registration, Registry, ResolverExt, View};
use discovery_etcd::{EtcdBackend, EtcdConfig};
use etcd_client::{
    Client, EventType, GetOptions, KeyValue, LeaseKeepAliveStream, LeaseKeeper, PutOptions, WatchOptions, WatchStream,
};
use futures::future::try_join_all;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, stdin},
    time::{MissedTickBehavior, interval},
};

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, address, services, registrations] = &arguments[..] else { return Err(USAGE.into()) };
    let services = services.parse()?;
    let registrations = registrations.parse()?;
    match mode.as_str() {
        "ours" => {
            let _ours = Ours::start(address, services, registrations).await?;
            until_end().await
        }
        "raw" => {
            let raw = Raw::start(address, services, registrations).await?;
            tokio::select! {
                failed = raw.follow() => failed,
                ended = until_end() => ended,
            }
        }
        _ => Err(USAGE.into()),
    }
}

/// Reports that everything is running and waits until the parent process is done.
async fn until_end() -> Result<(), Failure> {
    println!("ready");
    stdin().read_to_end(&mut Vec::new()).await?;
    Ok(())
}

/// What a program that uses the library holds.
struct Ours {
    _views: Vec<View>,
    _registrations: Vec<Registration>,
}

impl Ours {
    async fn start(address: &str, services: usize, registrations: usize) -> Result<Self, Failure> {
        let backend = EtcdBackend::new(EtcdConfig::new([address]).ttl(TTL))?;
        let mut views = Vec::new();
        for number in 0..services {
            views.push(backend.view(&entries::service(number).parse()?)?);
        }
        for view in &views {
            view.wait_until_ready(LIMIT).await?;
            if view.current().len() != entries::INSTANCES {
                return Err(format!("{view:?} does not have the instances that were put").into());
            }
        }
        let register = async |number| {
            let instance = Instance::new(OWN.parse()?);
            Ok::<_, Failure>(backend.register(&own(number).parse()?, instance).await?)
        };
        let registrations = try_join_all((0..registrations).map(register)).await?;
        Ok(Self { _views: views, _registrations: registrations })
    }
}

/// What a program that uses the raw client holds.
struct Raw {
    sets: HashMap<String, HashMap<String, String>>,
    watches: WatchStream,
    keeper: LeaseKeeper,
    renewals: LeaseKeepAliveStream,
}

impl Raw {
    async fn start(address: &str, services: usize, registrations: usize) -> Result<Self, Failure> {
        let client = Client::connect([address], None).await?;
        let mut sets = HashMap::new();
        let mut watches = None;
        for number in 0..services {
            let range = entries::range(number);
            let list = client.kv_client().get(range.as_str(), Some(GetOptions::new().with_prefix())).await?;
            let set = list.kvs().iter().map(|entry| Ok((entry.key_str()?.to_owned(), decode(entry)?)));
            sets.insert(entries::service(number), set.collect::<Result<HashMap<_, _>, Failure>>()?);
            let revision = list.header().ok_or("a list has no header")?.revision();
            let options = WatchOptions::new().with_prefix().with_start_revision(revision + 1);
            watches = Some(match watches {
                None => client.watch_client().watch(range, Some(options)).await?,
                Some(mut watches) => {
                    WatchStream::watch(&mut watches, range, Some(options)).await?;
                    watches
                }
            });
            let created = watches.as_mut().ok_or("no watch")?.message().await?;
            if !created.is_some_and(|answer| answer.created()) {
                return Err("etcd does not watch".into());
            }
        }
        let lease = client.lease_client().grant(i64::try_from(TTL.as_secs())?, None).await?.id();
        let (keeper, renewals) = client.lease_client().keep_alive(lease).await?;
        for number in 0..registrations {
            let value = format!(r#"{{"Op":0,"Addr":"{OWN}","Metadata":null}}"#);
            let options = PutOptions::new().with_lease(lease);
            client.kv_client().put(format!("{}/{OWN}", own(number)), value, Some(options)).await?;
        }
        Ok(Self { sets, watches: watches.ok_or("no services")?, keeper, renewals })
    }

    /// Keeps the sets up to date and the lease alive until the stream or the lease ends.
    async fn follow(mut self) -> Result<(), Failure> {
        let mut renewal = interval(TTL / 3);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                answer = self.watches.message() => {
                    for event in answer?.ok_or("the stream of watches has ended")?.events() {
                        let entry = event.kv().ok_or("an event without an entry")?;
                        self.apply(event.event_type(), entry)?;
                    }
                }
                _ = renewal.tick() => {
                    self.keeper.keep_alive().await?;
                    self.renewals.message().await?.ok_or("the lease's stream has ended")?;
                }
            }
        }
    }

    fn apply(&mut self, event: EventType, entry: &KeyValue) -> Result<(), Failure> {
        let key = entry.key_str()?;
        let (service, _) = key.split_once('/').ok_or("a key without a service")?;
        let set = self.sets.get_mut(service).ok_or("a service that nobody watches")?;
        match event {
            EventType::Delete => set.remove(key),
            EventType::Put => set.insert(key.to_owned(), decode(entry)?),
        };
        Ok(())
    }
}

/// Returns the address in an entry.
fn decode(entry: &KeyValue) -> Result<String, Failure> {
    let value: Value = serde_json::from_slice(entry.value())?;
    Ok(value["Addr"].as_str().ok_or("an entry without an address")?.to_owned())
}

/// Returns the name of a service that this process registers in. It watches none of them.
fn own(number: usize) -> String {
    format!("own-{number}")
}

const USAGE: &str = "idle ours|raw <address> <services> <registrations>";
/// Where this process would serve.
const OWN: &str = "10.255.0.1:50051";
/// The TTL of the lease.
const TTL: Duration = Duration::from_secs(15);
/// Longer than any list that works takes.
const LIMIT: Duration = Duration::from_secs(30);
