//! The request to stop a server: from its handles, from signals, and on to its connections.

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{sync::watch, time::Instant};

/// The strongest request so far.
#[derive(Clone, Debug)]
pub(super) struct Shutdown(watch::Sender<ShutdownKind>);

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum ShutdownKind {
    Serve,
    Stop,
    StopNow,
}

/// Resolves when the connections must send GOAWAY and finish: the shutdown signal of tonic's and
/// hyper's servers.
#[must_use = "a server that does not await it is cut off at the end"]
pub struct GoAway(BoxFuture<'static, ()>);

impl Shutdown {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(ShutdownKind::Serve))
    }

    pub(super) fn give(&self, order: ShutdownKind) {
        self.0.send_if_modified(|strongest| {
            let is_stronger = order > *strongest;
            *strongest = order.max(*strongest);
            is_stronger
        });
    }

    /// Waits for this request, or a stronger one.
    pub(super) async fn given(&self, order: ShutdownKind) {
        let given = self.0.subscribe().wait_for(|strongest| *strongest >= order).await.map(drop);
        given.expect("the sender lives in `self`");
    }

    /// Listens for the signals that ask a process to end: Ctrl-C and, where it exists, SIGTERM. The
    /// first signal stops the server, the second stops it at once. Returns only if the system does
    /// not let the process listen.
    pub(super) async fn follow_signals(&self) -> io::Error {
        let mut first = None;
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let listen = || Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?));
            let (mut terminate, mut interrupt) = match listen() {
                Ok(signals) => signals,
                Err(error) => return error,
            };
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                self.signalled(&mut first);
            }
        }
        #[cfg(not(unix))]
        loop {
            if let Err(error) = tokio::signal::ctrl_c().await {
                return error;
            }
            self.signalled(&mut first);
        }
    }

    fn signalled(&self, first: &mut Option<Instant>) {
        match first {
            None => {
                *first = Some(Instant::now());
                self.give(ShutdownKind::Stop);
            }
            Some(first) if first.elapsed() < TOGETHER => {}
            Some(_) => self.give(ShutdownKind::StopNow),
        }
    }
}

/// Signals this close together count as one: some tools, such as `timeout` of the coreutils, signal
/// a process and then its group.
const TOGETHER: Duration = Duration::from_millis(50);

impl GoAway {
    pub(super) fn new(signal: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Box::pin(signal))
    }
}

impl Future for GoAway {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(context)
    }
}

impl fmt::Debug for GoAway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GoAway").finish_non_exhaustive()
    }
}
