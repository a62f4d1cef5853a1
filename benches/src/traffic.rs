//! Shapes of traffic other than small calls in sequence, over any client.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use futures::stream;
use greeter::{GreetManyRequest, GreetRequest, GreeterClient};
use tokio::task::JoinSet;
use tonic::Status;

use crate::{Failure, caller::Transport};

/// A number of callers, each of which calls again at once, until a total number of calls was made.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a row of the table of shapes")]
pub struct Shape {
    /// Its name in the table, after the unit.
    pub name: &'static str,
    /// The number of callers; each is a task with a clone of the same transport.
    pub callers: u32,
    /// The number of calls of all callers together.
    pub calls: u32,
    /// The kind of call.
    pub call: Call,
}

/// One call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Call {
    /// A call with 4 MiB, which the server returns.
    Large,
    /// A call for this many small messages from the server.
    Messages(u32),
    /// A call with 64 bytes, which the server returns.
    Small,
    /// A call that sends 4 MiB to the server in 64 messages.
    Upload,
}

/// The measurements of one run of a shape.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "three measurements")]
pub struct Piece {
    /// Units per second, as counted by [`Call::unit`].
    pub rate: f64,
    /// The median duration of a call in microseconds.
    pub p50: f64,
    /// The 99th percentile of the duration of a call in microseconds.
    pub p99: f64,
}

/// A measurement of a piece and its name.
pub type Measure = (&'static str, fn(&Piece) -> f64);

impl Shape {
    /// Makes all calls.
    ///
    /// # Errors
    ///
    /// The status of the first failed call.
    pub async fn run<T: Transport>(self, transport: T) -> Result<Piece, Failure> {
        let Self { calls, call, .. } = self;
        let started = Arc::new(AtomicU32::new(0));
        let mut callers = JoinSet::new();
        let start = Instant::now();
        for _ in 0..self.callers {
            let mut client = GreeterClient::new(transport.clone()).max_decoding_message_size(DECODED);
            let started = Arc::clone(&started);
            callers.spawn(async move {
                let mut times = Vec::new();
                while started.fetch_add(1, Ordering::Relaxed) < calls {
                    let start = Instant::now();
                    call.make(&mut client).await?;
                    times.push(start.elapsed());
                }
                Ok::<_, Status>(times)
            });
        }
        let mut times = Vec::new();
        while let Some(ended) = callers.join_next().await {
            times.append(&mut ended??);
        }
        let took = start.elapsed().as_secs_f64();
        times.sort();
        let of_100 = |part: usize| times.get(times.len() * part / 100).map_or(0.0, micros);
        Ok(Piece { rate: f64::from(calls) * call.units() / took, p50: of_100(50), p99: of_100(99) })
    }
}

impl Call {
    /// Returns the unit in which calls are counted.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::Large | Self::Upload => "MiB",
            Self::Messages(_) => "messages",
            Self::Small => "calls",
        }
    }

    /// Returns what to report of a piece: only the rate if its calls are few.
    #[must_use]
    pub fn measures(self) -> &'static [Measure] {
        if self == Self::Small { &MEASURES } else { &MEASURES[..1] }
    }

    /// Returns how many units a call is.
    fn units(self) -> f64 {
        match self {
            Self::Large | Self::Upload => 4.0,
            Self::Messages(count) => f64::from(count),
            Self::Small => 1.0,
        }
    }

    async fn make<T: Transport>(self, client: &mut GreeterClient<T>) -> Result<(), Status> {
        let with = |bytes| GreetRequest { payload: vec![7; bytes], ..GreetRequest::default() };
        match self {
            Self::Large => client.greet(with(4 << 20)).await.map(drop),
            Self::Messages(count) => {
                let request = GreetManyRequest { count, ..GreetManyRequest::default() };
                let mut messages = client.greet_many(request).await?.into_inner();
                let mut seen = 0;
                while messages.message().await?.is_some() {
                    seen += 1;
                }
                if seen == count { Ok(()) } else { Err(Status::data_loss(format!("{seen} messages of {count}"))) }
            }
            Self::Small => client.greet(with(64)).await.map(drop),
            Self::Upload => {
                let requests = stream::iter((0..64).map(move |_| with(64 << 10)));
                client.greet_all(requests).await.map(drop)
            }
        }
    }
}

fn micros(time: &Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// All shapes. One run of a shape takes about a quarter of a second.
pub const SHAPES: [Shape; 6] = [
    Shape { name: "64 callers", callers: 64, calls: 15_000, call: Call::Small },
    Shape { name: "256 callers", callers: 256, calls: 15_000, call: Call::Small },
    Shape { name: "bodies of 4 MiB, 8 callers", callers: 8, calls: 32, call: Call::Large },
    Shape { name: "100000 on one stream", callers: 1, calls: 10, call: Call::Messages(100_000) },
    Shape { name: "100000 over 50 streams", callers: 50, calls: 500, call: Call::Messages(2_000) },
    Shape { name: "uploads of 64 times 64 KiB, 8 callers", callers: 8, calls: 64, call: Call::Upload },
];
/// The decoding limit of clients and servers: 4 MiB plus framing.
pub const DECODED: usize = 5 << 20;
const MEASURES: [Measure; 3] = [("rate", |piece| piece.rate), ("p50", |piece| piece.p50), ("p99", |piece| piece.p99)];
