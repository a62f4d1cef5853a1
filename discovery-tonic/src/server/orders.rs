use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use tokio::sync::watch;

/// How often a server was asked to stop.
#[derive(Clone, Debug)]
pub(super) struct Orders(watch::Sender<u32>);

/// Resolves when connections shall be told to end: the shutdown signal of tonic's and hyper's servers.
#[must_use = "a server that does not wait for it is cut off at the end"]
pub struct GoAway(BoxFuture<'static, ()>);

impl Orders {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(0))
    }

    pub(super) fn stop(&self) {
        self.0.send_modify(|orders| *orders = orders.saturating_add(1));
    }

    /// Waits until there were so many.
    pub(super) async fn reach(&self, count: u32) {
        let reached = self.0.subscribe().wait_for(|orders| *orders >= count).await.map(drop);
        reached.expect("the sender lives in `self`");
    }

    /// Gives an order at each signal that asks a process to end: ctrl-c, and SIGTERM where there is one. Ends only where the system
    /// lets nobody listen for them.
    pub(super) async fn follow_signals(&self) -> io::Error {
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
                self.stop();
            }
        }
        #[cfg(not(unix))]
        loop {
            if let Err(error) = tokio::signal::ctrl_c().await {
                return error;
            }
            self.stop();
        }
    }
}

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
