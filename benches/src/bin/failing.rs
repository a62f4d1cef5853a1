//! `failing <code> <endpoints> <pairs>`: what calls cost that fail with this code at all of so many
//! endpoints, beside those that succeed. They take turns so often; prints the medians of their
//! processor time, and the quartiles of what the failing ones take of the others within a pair.

use std::time::Duration;

use benches::{
    Failure,
    caller::Caller,
    clients, cpu,
    load::steady,
    machine,
    rounds::Quartiles,
    servers::{Kind, Servers},
};
use discovery_core::{FixedResolver, Instance};
use discovery_tonic::{BalancedChannel, EndpointState};
use tokio::time::{sleep, timeout};

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [code, endpoints, pairs] = &arguments[..] else { return Err("failing <code> <endpoints> <pairs>".into()) };
    let (code, endpoints, pairs): (i32, usize, u32) = (code.parse()?, endpoints.parse()?, pairs.parse()?);
    machine::allow_files()?;
    let well = Side::start(endpoints).await?;
    let mut ill = Side::start(endpoints).await?;
    for number in 0..LISTENERS {
        ill.servers.turn(number, Kind::Failing(code.into()))?;
    }
    let mut succeeding = Vec::new();
    let mut failing = Vec::new();
    let mut ejected = 0;
    for _ in 0..pairs {
        succeeding.push(well.cost(false).await?);
        failing.push(ill.cost(true).await?);
        ejected = ejected.max(ill.ejected());
    }
    let ratios = Quartiles::of(failing.iter().zip(&succeeding).map(|(failing, succeeding)| failing / succeeding))?;
    println!("us succeeding {:.2}", Quartiles::of(succeeding)?.median);
    println!("us failing {:.2}", Quartiles::of(failing)?.median);
    let Quartiles { first, median, third } = ratios;
    println!("ratio q1 {first:.4}\nratio q2 {median:.4}\nratio q3 {third:.4}");
    println!("ejected {ejected}");
    Ok(())
}

/// Endpoints, and a channel to them.
struct Side {
    servers: Servers,
    channel: BalancedChannel,
}

impl Side {
    /// Connects all, and lets all answer.
    async fn start(endpoints: usize) -> Result<Self, Failure> {
        let servers = Servers::start(&[Kind::Greeter; LISTENERS])?;
        // A listener is many endpoints, which differ in their names.
        let addresses = servers.addresses().iter().cycle().take(endpoints);
        let instances: Result<Vec<_>, Failure> = addresses
            .enumerate()
            .map(|(n, address)| Ok(Instance::new((*address).try_into()?).with_id(format!("endpoint-{n}").parse()?)))
            .collect();
        let channel = BalancedChannel::new(FixedResolver::new(instances?), clients::service())?;
        timeout(Duration::from_secs(60), async {
            while channel.endpoints().iter().filter(|one| one.state == EndpointState::Ready).count() < endpoints {
                sleep(Duration::from_millis(100)).await;
            }
        })
        .await?;
        // Practically all of them get a call of so many.
        Caller::new(channel.clone(), None).at_once(64, endpoints * 12).await?;
        Ok(Self { servers, channel })
    }

    /// The microseconds of processor time that a call takes, all of which fail or none.
    async fn cost(&self, fails: bool) -> Result<f64, Failure> {
        let caller = Caller::new(self.channel.clone(), None);
        // What the calls of the other side have left behind is over by then.
        steady(&caller, RATE, Duration::default, sleep(BEFORE)).await;
        let before = cpu::process();
        let (calls, ()) = steady(&caller, RATE, Duration::default, sleep(WHILE)).await;
        let cost = cpu::process() - before;
        if calls.iter().any(|call| call.failed() != fails) {
            return Err(format!("not all calls {}", if fails { "failed" } else { "succeeded" }).into());
        }
        Ok(cost.as_secs_f64() * 1e6 / calls.len() as f64)
    }

    fn ejected(&self) -> usize {
        self.channel.endpoints().iter().filter(|one| one.ejected_until.is_some()).count()
    }
}

/// Each is the address of many endpoints.
const LISTENERS: usize = 40;
/// Calls a second.
const RATE: u32 = 2_000;
const BEFORE: Duration = Duration::from_secs(2);
const WHILE: Duration = Duration::from_secs(8);
