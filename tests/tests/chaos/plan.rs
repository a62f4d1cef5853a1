//! The plan of a run: what happens and when, as decided by the seed.

use std::{fmt, time::Duration};

use discovery_core::{Claim, ServiceName};
use fastrand::Rng;
use support::Fault;

/// What happens in a run and when. The seed alone decides it.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) members: usize,
    /// Whether processes see etcd's own gRPC proxy as one more member.
    pub(crate) has_grpc_proxy: bool,
    pub(crate) length: Duration,
    pub(crate) acts: Vec<(Duration, Act)>,
}

#[derive(Clone, Debug)]
pub(crate) enum Act {
    // Actions of users.
    Burst { registration: usize },
    Close { stream: usize },
    Deregister { registration: usize },
    Drop { registration: usize },
    List { process: usize, service: ServiceName },
    Open { process: usize, stream: usize, service: ServiceName, slow: bool },
    Register { process: usize, registration: usize, service: ServiceName, id: u16, claim: Claim },
    Update { registration: usize },
    // Faults of processes.
    Crash { process: usize, pause: Duration },
    Freeze { process: usize, pause: Duration },
    // Faults of the network.
    Cut { process: Option<usize>, member: Option<usize>, fault: Fault, pause: Duration },
    // Faults of etcd.
    Authentication { pause: Duration },
    Compact { back: i64 },
    Isolate { target: Members, pause: Duration },
    Kill { target: Members, pause: Duration },
    KillGrpcProxy { pause: Duration },
    Pause { target: Members, pause: Duration },
    PauseGrpcProxy { pause: Duration },
    Replace { member: usize },
    Stop { target: Members, pause: Duration },
    Wipe,
    // Changes of entries by hand.
    Delete { service: ServiceName, id: u16 },
    Overwrite { service: ServiceName, id: u16 },
    PutBad { service: ServiceName, id: u16 },
    PutDeeper { service: ServiceName },
    PutPair { service: ServiceName, there: bool },
    Revoke { service: ServiceName, id: u16 },
}

/// A choice of members of the cluster.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Members {
    Leader,
    Majority,
    One(usize),
}

/// The kinds of faults in a plan.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Weather {
    /// All faults.
    Foul,
    /// The faults that a simple registry survives: nothing hangs, and etcd is never replaced.
    Rough,
}

impl Plan {
    /// Returns the plan of a seed. Odd seeds have three members, and half of all seeds have the
    /// gRPC proxy as well.
    pub(crate) fn of(seed: u64, length: Duration, weather: Weather) -> Self {
        let members = if weather == Weather::Foul && seed % 2 == 1 { 3 } else { 1 };
        let has_grpc_proxy = weather == Weather::Foul && matches!(seed % 4, 0 | 3);
        // A subject that faces fewer kinds of faults faces them more often.
        let rest = if weather == Weather::Foul { 500..2500 } else { 100..800 };
        let mut author = Author { rng: Rng::with_seed(seed), members, has_grpc_proxy, ..Author::default() };
        let mut acts: Vec<(Duration, Act)> = author.opening().into_iter().map(|act| (Duration::ZERO, act)).collect();
        let mut now = Duration::ZERO;
        let mut fault = Duration::from_millis(1500);
        while now < length {
            now += Duration::from_millis(author.rng.u64(20..200));
            if now >= fault {
                let (act, pause) = author.fault(weather);
                if matches!(act, Act::Cut { .. }) && pause > Duration::from_millis(300) {
                    // What the processes miss meanwhile cannot be read afterwards.
                    acts.push((now + pause - Duration::from_millis(50), Act::Compact { back: 0 }));
                }
                acts.push((now, act));
                fault = now + pause.min(Duration::from_secs(1)) + author.millis(rest.clone());
            } else if let Some(act) = author.use_it() {
                acts.push((now, act));
            }
        }
        acts.sort_by_key(|(at, _)| *at);
        Self { seed, members, has_grpc_proxy, length, acts }
    }
}

/// Writes a plan, and keeps track of what it has planned so far.
#[derive(Default)]
struct Author {
    rng: Rng,
    members: usize,
    has_grpc_proxy: bool,
    registrations: usize,
    streams: usize,
    /// The registrations and streams that should exist, by process.
    live: Vec<(usize, usize)>,
    open: Vec<(usize, usize)>,
    pairs: bool,
    wiped: bool,
}

impl Author {
    fn opening(&mut self) -> Vec<Act> {
        let mut acts: Vec<_> = (0..PROCESSES).map(|process| self.open_stream(process, false)).collect();
        acts.push(self.open_stream(0, true));
        acts.extend((0..PROCESSES).map(|process| self.register(process)));
        acts
    }

    /// Returns an action of a user.
    fn use_it(&mut self) -> Option<Act> {
        let process = self.rng.usize(..PROCESSES);
        Some(match self.rng.u32(..100) {
            0..20 if self.live.len() < 3 * PROCESSES => self.register(process),
            20..45 => Act::Update { registration: self.any_live()? },
            45..47 => Act::Burst { registration: self.any_live()? },
            47..57 => Act::Deregister { registration: self.take_live()? },
            57..62 => Act::Drop { registration: self.take_live()? },
            62..70 if self.open.len() < 4 * PROCESSES => {
                let slow = self.rng.u32(..4) == 0;
                self.open_stream(process, slow)
            }
            70..75 if self.open.len() > PROCESSES => {
                let place = self.rng.usize(..self.open.len());
                Act::Close { stream: self.open.swap_remove(place).1 }
            }
            _ => Act::List { process, service: self.service() },
        })
    }

    /// Returns a fault and its duration.
    fn fault(&mut self, weather: Weather) -> (Act, Duration) {
        let short = self.millis(100..1500);
        let long = self.millis(1500..4500);
        let pause = if self.rng.u32(..3) == 0 { long } else { short };
        let process = self.rng.usize(..PROCESSES);
        let service = self.service();
        let id = self.rng.u16(..IDS);
        let choice = match weather {
            // Faults of the proxy come last, so that plans without a proxy stay the same.
            Weather::Foul if self.has_grpc_proxy => self.rng.u32(..37),
            Weather::Foul => self.rng.u32(..28),
            Weather::Rough => self.rng.u32(..15),
        };
        let act = match choice {
            0 => Act::Compact { back: self.rng.i64(0..4) },
            1 => Act::Delete { service, id },
            2 => Act::Overwrite { service, id },
            3 => Act::PutBad { service, id },
            4 => Act::PutDeeper { service },
            5 | 6 => {
                self.pairs = !self.pairs;
                Act::PutPair { service: "payments".parse().expect("a plain word is a name"), there: self.pairs }
            }
            7 | 8 => Act::Revoke { service, id },
            9 => self.crash(process, pause),
            10 => Act::Freeze { process, pause: long },
            11..=13 => Act::Cut { process: Some(process), member: None, fault: Fault::Refuse, pause },
            14 => Act::Cut { process: None, member: None, fault: Fault::Refuse, pause },
            15..=17 => Act::Cut { process: Some(process), member: None, fault: self.bad_network(), pause },
            18 => {
                let member = Some(self.rng.usize(..self.members));
                Act::Cut { process: None, member, fault: self.bad_network(), pause }
            }
            19 => Act::Stop { target: self.target(), pause },
            20 | 21 => Act::Kill { target: self.target(), pause },
            22 => Act::Pause { target: self.target(), pause },
            23 if self.members > 1 => Act::Isolate { target: self.target(), pause },
            24 | 25 => Act::Authentication { pause: long },
            26 if self.members > 1 => Act::Replace { member: self.rng.usize(..self.members) },
            28..=31 => Act::KillGrpcProxy { pause },
            32 | 33 => Act::PauseGrpcProxy { pause },
            34..=36 => {
                // Processes see the proxy as the member after the last.
                Act::Cut { process: None, member: Some(self.members), fault: self.bad_network(), pause }
            }
            _ if !self.wiped => {
                self.wiped = true;
                Act::Wipe
            }
            _ => Act::Kill { target: Members::Leader, pause },
        };
        (act, pause)
    }

    fn bad_network(&mut self) -> Fault {
        let delay = Duration::from_millis(150);
        let jitter = Duration::from_millis(100);
        let carried = self.rng.u64(500..20_000);
        let faults = [
            Fault::BlackHole,
            Fault::BlackHoleAnswers,
            Fault::BlackHoleRequests,
            Fault::Delay { delay, jitter },
            Fault::HalfOpen,
            Fault::LoseAnswers,
            Fault::Reset,
            Fault::ResetAfter(carried),
            Fault::Throttle(16 << 10),
        ];
        self.rng.choice(faults).expect("there are some")
    }

    fn crash(&mut self, process: usize, pause: Duration) -> Act {
        self.live.retain(|(of, _)| *of != process);
        self.open.retain(|(of, _)| *of != process);
        Act::Crash { process, pause }
    }

    fn register(&mut self, process: usize) -> Act {
        let registration = self.registrations;
        self.registrations += 1;
        self.live.push((process, registration));
        let claim = if self.rng.u32(..4) == 0 { Claim::IfAbsent } else { Claim::TakeOver };
        Act::Register { process, registration, service: self.service(), id: self.rng.u16(..IDS), claim }
    }

    fn open_stream(&mut self, process: usize, slow: bool) -> Act {
        let stream = self.streams;
        self.streams += 1;
        self.open.push((process, stream));
        // On one service there are enough changes to overflow a queue.
        let service = if slow { "payments".parse().expect("a plain word is a name") } else { self.service() };
        Act::Open { process, stream, service, slow }
    }

    fn any_live(&mut self) -> Option<usize> {
        self.rng.choice(&self.live).map(|(_, registration)| *registration)
    }

    fn take_live(&mut self) -> Option<usize> {
        if self.live.len() <= PROCESSES {
            return None;
        }
        let place = self.rng.usize(..self.live.len());
        Some(self.live.swap_remove(place).1)
    }

    /// Returns the first service most of the time; the others are its neighbours in etcd.
    fn service(&mut self) -> ServiceName {
        let name = match self.rng.u32(..10) {
            0..7 => "payments",
            7 | 8 => "payments-history",
            _ => "pay",
        };
        name.parse().expect("a plain word is a name")
    }

    fn target(&mut self) -> Members {
        match self.rng.u32(..4) {
            0 => Members::Majority,
            1 => Members::Leader,
            _ => Members::One(self.rng.usize(..self.members)),
        }
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.u64(range))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proxy = if self.has_grpc_proxy { " and the gRPC proxy" } else { "" };
        writeln!(f, "seed {}: {} members{proxy}, {:?}", self.seed, self.members, self.length)?;
        for (at, act) in &self.acts {
            writeln!(f, "  {at:8.3?} {act:?}")?;
        }
        Ok(())
    }
}

/// The number of processes, each with one handle that registers and resolves.
pub(crate) const PROCESSES: usize = 4;
/// The number of ids per service, small so that processes collide.
const IDS: u16 = 6;
