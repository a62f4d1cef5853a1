//! `failing <code> <endpoints> <pairs>`: compares the cost of calls that fail with this code at all
//! of these endpoints with the cost of calls that succeed. The two take turns this many times.
//! Prints the medians of their processor time and the quartiles of the ratio of failing to
//! succeeding within a pair.

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

/// Endpoints and a channel to them.
struct Side {
    servers: Servers,
    channel: BalancedChannel,
}

impl Side {
    /// Connects all endpoints and lets each answer.
    async fn start(endpoints: usize) -> Result<Self, Failure> {
        let servers = Servers::start(&[Kind::Greeter; LISTENERS])?;
        // Each listener serves many endpoints, which differ in their ids.
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
        // With this many calls practically every endpoint gets one.
        Caller::new(channel.clone(), None).at_once(64, endpoints * 12).await?;
        Ok(Self { servers, channel })
    }

    /// Returns the microseconds of processor time per call. Either all calls must fail or none.
    async fn cost(&self, fails: bool) -> Result<f64, Failure> {
        let caller = Caller::new(self.channel.clone(), None);
        // By the end of this, the other side's calls have left nothing to do.
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
