use std::{
    io,
    iter::Sum,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use discovery_tonic::{BalancedChannel, ChannelBuilder, EndpointSettings};
use futures::future::{join, join_all, join3};
use greeter::{GreetManyRequest, GreeterClient};
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    runtime,
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};
use tonic::Status;
use tower::service_fn;

use crate::{
    Failure,
    caller::Caller,
    clients,
    load::{Ended, steady},
    servers::{Kind, Servers},
    table::Row,
};

/// A channel to its own servers, with a count of its connections.
struct Scene {
    what: &'static str,
    channel: BalancedChannel,
    connections: Arc<AtomicU32>,
    servers: Servers,
}

/// The outcome of calls.
#[derive(Clone, Copy, Debug, Default)]
struct Calls {
    made: u32,
    failed: u32,
    /// Calls that took longer than a quick call may.
    late: u32,
}

/// What was observed of a channel while it was in use.
#[derive(Clone, Copy, Debug)]
struct Seen {
    calls: Calls,
    /// How many looks found an endpoint ejected.
    ejected: u32,
}

/// F15: healthy endpoints are not ejected, however slow they are or seem.
pub(super) async fn rows() -> Result<Vec<Row>, Failure> {
    let stalled = spawn_blocking(|| runtime::Builder::new_current_thread().enable_all().build()?.block_on(stalled()));
    // They wait for most of the time, so all run at once.
    let (polls, alone, mixed, streams, dropped, aged) =
        tokio::try_join!(polls(), alone(), mixed(), streams(), dropped(), aged())?;
    Ok([polls, alone, mixed, streams, dropped, stalled.await??, aged].concat())
}

async fn polls() -> Result<Vec<Row>, Failure> {
    let scene = Scene::start("16 callers of calls that take 5 s", &GREETERS).await?;
    let seen = scene.watch(callers(16, || greet(&scene.channel, POLL))).await;
    Ok(scene.rows(seen))
}

async fn alone() -> Result<Vec<Row>, Failure> {
    let scene = Scene::start("one caller of calls that take 1.5 s", &GREETERS).await?;
    let seen = scene.watch(callers(1, || greet(&scene.channel, SLOW))).await;
    Ok(scene.rows(seen))
}

/// Both, while a third caller finds all endpoints quick.
async fn mixed() -> Result<Vec<Row>, Failure> {
    let scene = Scene::start("16 callers of 5 s, one of 1.5 s, 50 quick calls a second", &GREETERS).await?;
    let calls = async {
        let polls = callers(16, || greet(&scene.channel, POLL));
        let alone = callers(1, || greet(&scene.channel, SLOW));
        let (polls, alone, quick) = join3(polls, alone, scene.quick(50, Duration::ZERO, sleep(WHILE))).await;
        [polls, alone, quick].into_iter().sum()
    };
    let seen = scene.watch(calls).await;
    Ok(scene.rows(seen))
}

async fn streams() -> Result<Vec<Row>, Failure> {
    let scene = Scene::start("20 callers of streams that are silent for 5 s", &[Kind::Late; 2]).await?;
    let seen = scene.watch(callers(20, || stream(&scene.channel))).await;
    Ok(scene.rows(seen))
}

/// Here a call fails if it ends before it is dropped.
async fn dropped() -> Result<Vec<Row>, Failure> {
    let scene = Scene::start("20 callers that drop calls of 2 s after 600 ms", &GREETERS).await?;
    let call = async || match timeout(PATIENCE, greet(&scene.channel, DROPPED)).await {
        Ok(_) => Err(Status::internal("answered before its time")),
        Err(_) => Ok(()),
    };
    let seen = scene.watch(callers(20, call)).await;
    Ok(scene.rows(seen))
}

/// On a runtime with this thread only, so that nothing processes what arrives while it is blocked.
async fn stalled() -> Result<Vec<Row>, Failure> {
    let scene = Scene::start("200 quick calls a second, the client stalls for 2 of every 4 s", &GREETERS).await?;
    let course = async {
        for _ in 0..STALLS {
            sleep(STALL).await;
            thread::sleep(STALL);
        }
        // Time for the effects of the last stall.
        sleep(STALL).await;
    };
    let seen = scene.watch(scene.quick(200, WORK, course)).await;
    Ok(scene.rows(seen))
}

/// The age of the connections determines their number, so no call may wait for one.
async fn aged() -> Result<Vec<Row>, Failure> {
    let settings = EndpointSettings::default().max_connection_age(Duration::from_secs(1))?;
    let young = |builder: ChannelBuilder| builder.endpoint_settings(move |_| settings.clone());
    let aged = Scene::with("100 quick calls a second, connections live 1 s", &GREETERS, young).await?;
    let ageless = Scene::start("the same, connections live on", &GREETERS).await?;
    let (aged_seen, ageless_seen) = join(
        aged.watch(aged.quick(100, Duration::ZERO, sleep(WHILE))),
        ageless.watch(ageless.quick(100, Duration::ZERO, sleep(WHILE))),
    )
    .await;
    Ok(vec![
        aged.ejected(aged_seen),
        aged.failed(aged_seen),
        aged.row("connections made", aged.connections()),
        // A few are due to the machine itself.
        aged.row("calls that took more than 50 ms", aged_seen.calls.late)
            .against(ageless.what, ageless_seen.calls.late.into())
            .more(2.0),
    ])
}

impl Scene {
    async fn start(what: &'static str, kinds: &[Kind]) -> Result<Self, Failure> {
        Self::with(what, kinds, |builder| builder).await
    }

    async fn with(
        what: &'static str,
        kinds: &[Kind],
        configure: impl FnOnce(ChannelBuilder) -> ChannelBuilder,
    ) -> Result<Self, Failure> {
        let servers = Servers::start(kinds)?;
        let connections = Arc::<AtomicU32>::default();
        let counter = Arc::clone(&connections);
        let connector = service_fn(move |uri| {
            counter.fetch_add(1, Ordering::Relaxed);
            connect(uri)
        });
        let channel = clients::ours_with(servers.addresses(), |builder| configure(builder.connector(connector)));
        Ok(Self { what, channel: channel.await?, connections, servers })
    }

    /// Looks at the endpoints while calls are made.
    async fn watch(&self, calls: impl Future<Output = Calls>) -> Seen {
        let start = Instant::now();
        let mut ejected = 0;
        let mut was_out = false;
        let looks = async {
            loop {
                let endpoints = self.channel.endpoints();
                let is_out = endpoints.iter().any(|one| one.ejected_until.is_some());
                ejected += u32::from(is_out);
                if is_out != was_out {
                    eprintln!("{}, after {:.2} s:\n{endpoints}", self.what, start.elapsed().as_secs_f64());
                }
                was_out = is_out;
                sleep(LOOK).await;
            }
        };
        tokio::select! {
            calls = calls => Seen { calls, ejected },
            () = looks => unreachable!("there is always another look"),
        }
    }

    /// Makes this many calls per second until `course` ends.
    async fn quick(&self, rate: u32, work: Duration, course: impl Future<Output = ()>) -> Calls {
        let caller = Caller::new(self.channel.clone(), None);
        let (ended, ()) = steady(&caller, rate, || work, course).await;
        ended.iter().map(Calls::of).sum()
    }

    fn rows(&self, seen: Seen) -> Vec<Row> {
        // In less than a minute each endpoint may be probed once.
        let most = 2 * self.servers.addresses().len();
        let connections = self.row("connections made", self.connections()).most(most as f64);
        vec![self.ejected(seen), self.failed(seen), connections]
    }

    fn ejected(&self, seen: Seen) -> Row {
        self.row("looks that found an endpoint ejected", seen.ejected).most(0.0)
    }

    fn failed(&self, seen: Seen) -> Row {
        self.row(&format!("failed of {} calls", seen.calls.made), seen.calls.failed).most(0.0)
    }

    fn row(&self, counted: &str, ours: u32) -> Row {
        Row::new("F15", format!("{counted}, {}", self.what), ours.into())
    }

    fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Calls {
    fn of(ended: &Ended) -> Self {
        Self { made: 1, failed: ended.failed().into(), late: (ended.took > QUICK).into() }
    }
}

impl Sum for Calls {
    fn sum<I: Iterator<Item = Self>>(calls: I) -> Self {
        calls.fold(Self::default(), |all, one| Self {
            made: all.made + one.made,
            failed: all.failed + one.failed,
            late: all.late + one.late,
        })
    }
}

/// Runs callers that each call again at once, for a while.
async fn callers(count: usize, call: impl AsyncFn() -> Result<(), Status>) -> Calls {
    let start = Instant::now();
    let caller = async || {
        let mut calls = Calls::default();
        while start.elapsed() < WHILE {
            calls.made += 1;
            calls.failed += u32::from(call().await.is_err());
        }
        calls
    };
    join_all((0..count).map(|_| caller())).await.into_iter().sum()
}

async fn greet(channel: &BalancedChannel, work: Duration) -> Result<(), Status> {
    Caller::new(channel.clone(), None).call_for(work).await.map(drop)
}

async fn stream(channel: &BalancedChannel) -> Result<(), Status> {
    let request = GreetManyRequest { count: EVENTS, ..GreetManyRequest::default() };
    let mut events = GreeterClient::new(channel.clone()).greet_many(request).await?.into_inner();
    while events.message().await?.is_some() {}
    Ok(())
}

async fn connect(uri: Uri) -> io::Result<TokioIo<TcpStream>> {
    let address = uri.authority().ok_or_else(|| io::Error::other("no address"))?;
    let stream = TcpStream::connect(address.as_str()).await?;
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(stream))
}

const GREETERS: [Kind; 4] = [Kind::Greeter; 4];
/// How long new calls are started.
const WHILE: Duration = Duration::from_secs(20);
/// How long servers work on calls.
const POLL: Duration = Duration::from_secs(5);
const SLOW: Duration = Duration::from_millis(1_500);
const DROPPED: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_millis(600);
const QUICK: Duration = Duration::from_millis(50);
const EVENTS: u32 = 10;
/// Long enough that some quick calls are in flight when the client stalls.
const WORK: Duration = Duration::from_millis(20);
const STALL: Duration = Duration::from_secs(2);
const STALLS: usize = 5;
const LOOK: Duration = Duration::from_millis(5);
