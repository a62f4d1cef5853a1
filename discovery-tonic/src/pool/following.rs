use std::{
    any::Any,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use discovery_core::{Backoff, Delays, Error, ErrorKind, Resolver, ServiceName, Update, UpdateStream};
use futures::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep_until};
use tracing::error;

use crate::error::panic_text;

/// The updates of a service, without end.
///
/// If the resolver's stream panics, or ends contrary to its contract, the set stays as last known
/// and the service is watched again after a backoff. Such a fault is logged here; outages of the
/// registry are logged by the resolver, once for all that follow the service.
pub(crate) struct Following {
    resolver: Arc<dyn Resolver>,
    service: ServiceName,
    state: State,
    delays: Delays,
    /// It has failed, which is logged, and has delivered nothing since.
    is_failing: bool,
}

enum State {
    Watching { updates: UpdateStream, since: Instant },
    Waiting { until: Instant },
}

impl Following {
    pub(crate) fn new(resolver: Arc<dyn Resolver>, service: ServiceName, updates: UpdateStream) -> Self {
        let state = State::Watching { updates, since: Instant::now() };
        Self { resolver, service, state, delays: Backoff::default().delays(), is_failing: false }
    }

    /// Waits for the next update. Dropped before completion, it loses none.
    pub(crate) async fn next(&mut self) -> Update {
        loop {
            match &mut self.state {
                State::Watching { updates, .. } => match AssertUnwindSafe(updates.next()).catch_unwind().await {
                    Ok(Some(update)) => {
                        self.is_failing = false;
                        return update;
                    }
                    Ok(None) => return self.lose(ended()),
                    Err(panic) => return self.lose(panicked(&*panic)),
                },
                State::Waiting { until } => {
                    sleep_until(*until).await;
                    match catch_unwind(AssertUnwindSafe(|| self.resolver.watch(&self.service))) {
                        Ok(Ok(updates)) => self.state = State::Watching { updates, since: Instant::now() },
                        Ok(Err(error)) => return self.lose(error),
                        Err(panic) => return self.lose(panicked(&*panic)),
                    }
                }
            }
        }
    }

    /// Drops the stream and watches the service again after a backoff, because the set may differ
    /// from what the updates assume.
    pub(crate) fn restart(&mut self) {
        if matches!(self.state, State::Waiting { until } if until > Instant::now()) {
            return;
        }
        let former = mem::replace(&mut self.state, State::Waiting { until: Instant::now() });
        if matches!(former, State::Watching { since, .. } if since.elapsed() >= GOOD) {
            self.delays.reset();
        }
        self.state = State::Waiting { until: Instant::now() + self.delays.next_delay() };
        // A stream that panicked may panic again when it is dropped.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(former)));
    }

    fn lose(&mut self, error: Error) -> Update {
        self.restart();
        if !mem::replace(&mut self.is_failing, true) {
            // The subscriber may panic as well, and the update must not be lost with it.
            let log = || error!(error = %error.report(), "resolver failed, watching again");
            let _ = catch_unwind(AssertUnwindSafe(log));
        }
        Update::Lost(error)
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::Internal, "the resolver's updates ended")
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    Error::new(ErrorKind::Internal, format!("the resolver panicked: {}", panic_text(panic)))
}

/// A stream that lived this long counts as good, which resets the backoff.
const GOOD: Duration = Duration::from_secs(10);
