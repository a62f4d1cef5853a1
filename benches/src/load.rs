//! Calls at a steady rate, independent of how earlier calls fare.

use std::{future::Future, pin::pin, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};
use tonic::Code;

use crate::caller::{Caller, Transport};

/// One call that has ended.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "three measurements")]
pub struct Ended {
    /// When it was due, since the load began.
    pub due: Duration,
    /// How long it took from then on, so that a delayed start counts too.
    pub took: Duration,
    /// The name of the server that answered, or the code with which it failed.
    pub result: Result<String, Code>,
}

impl Ended {
    /// Returns whether it failed.
    pub fn failed(&self) -> bool {
        self.result.is_err()
    }
}

/// Calls `rate` times a second until `course` ends, each call over a clone and with its own `work`
/// at the server. Returns all calls, once the last one has ended, and the result of the course.
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
