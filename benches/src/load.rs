//! Calls at a steady rate, whatever becomes of those before.

use std::{future::Future, pin::pin, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};
use tonic::Code;

use crate::caller::{Caller, Transport};

/// One call that ended.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "three measurements")]
pub struct Ended {
    /// When it was due, since the load began.
    pub due: Duration,
    /// How long it took since then, so that what delays its start counts too.
    pub took: Duration,
    /// The name of the server that answered, or how it failed.
    pub result: Result<String, Code>,
}

impl Ended {
    /// Whether it failed.
    pub fn failed(&self) -> bool {
        self.result.is_err()
    }
}

/// Calls `rate` times a second until `course` ends, each over a clone and with its own `work` at the server. Returns all calls, once
/// the last one has ended, and what the course ended with.
pub async fn steady<T: Transport, R>(
    caller: &Caller<T>,
    rate: u32,
    mut work: impl FnMut() -> Duration,
    course: impl Future<Output = R>,
) -> (Vec<Ended>, R) {
    let mut course = pin!(course);
    let start = Instant::now();
    let mut running = FuturesUnordered::new();
    let mut ended = Vec::new();
    let mut due = Duration::ZERO;
    let result = loop {
        tokio::select! {
            biased;
            result = &mut course => break result,
            () = sleep_until(start + due) => {
                let mut caller = caller.clone();
                let work = work();
                running.push(async move {
                    let result = caller.call_for(work).await;
                    let took = (start + due).elapsed();
                    Ended { due, took, result: result.map(|answer| answer.into_inner().server).map_err(|status| status.code()) }
                });
                due += Duration::from_secs(1) / rate;
            }
            Some(one) = running.next() => ended.push(one),
        }
    };
    ended.extend(running.collect::<Vec<_>>().await);
    (ended, result)
}
