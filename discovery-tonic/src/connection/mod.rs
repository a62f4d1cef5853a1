//! One HTTP/2 connection of hyper's, and what the channel adds to it.
//!
//! - The [`connector`] opens the byte stream according to the endpoint's [`settings`], by default
//!   over [`tcp`], with `tls` on top of it if the channel has that; [`wire`] reads from it before
//!   it writes.
//! - [`Connection`] owns hyper's tasks, which the [`executor`] runs. It sees the peer's SETTINGS,
//!   stream limit and GOAWAY before a request does.
//! - A [`link`] is what the others hold of a connection. Requests enter it with the connection's
//!   [`origin`] and a [`request_body`] that can be sent again; a streaming one is a
//!   [`request_stream`], within the [`replay_budget`]. The [`end`] is why the connection takes no
//!   more requests.
//! - A [`health_check`] asks the peer over a link whether it serves.

pub(crate) mod connector;
pub(crate) mod end;
pub(crate) mod executor;
pub(crate) mod health_check;
pub(crate) mod link;
pub(crate) mod origin;
pub(crate) mod replay_budget;
pub(crate) mod request_body;
pub(crate) mod request_stream;
pub(crate) mod settings;
pub(crate) mod tcp;
#[cfg(feature = "tls")]
pub(crate) mod tls;
pub(crate) mod wire;

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use discovery_core::{Address, Error, ErrorKind};
use futures::task::AtomicWaker;
use hyper::client::conn::http2::Builder;
use hyper_util::rt::TokioTimer;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tracing::Span;

use crate::{
    balance::{Load, WaitQueue},
    error::BoxError,
};
use connector::{Connected, Connector};
use end::{End, Witness};
use executor::Executor;
use link::{Health, Link, Sender};
use settings::EndpointSettings;
use wire::ReadFirstIo;

/// An HTTP/2 connection and its tasks. Its end is noticed here before a request can fail because of
/// it.
///
/// Two tasks serve it, as with any connection of hyper's: one for the socket, and one that hands
/// requests to it. Dropping this value ends the second. The first ends once its streams have ended,
/// or immediately if the [`Executor`] aborts it.
#[derive(Debug)]
pub(crate) struct Connection {
    link: Link,
    age: Option<Duration>,
    recheck: Arc<Recheck>,
    executor: Executor,
    task: JoinHandle<()>,
}

/// How many requests a connection takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    /// The streams that are left to others, such as the health check.
    pub(crate) reserved: u32,
    /// The requests that it takes before its first answer.
    pub(crate) tickets: u32,
}

/// Wakes the connection's task to look for what hyper does not report: a GOAWAY while streams are
/// open, or another stream limit.
#[derive(Debug, Default)]
struct Recheck {
    wanted: AtomicBool,
    /// The owner was dropped.
    shut: AtomicBool,
    waker: AtomicWaker,
}

impl Connection {
    /// Connects and waits for the peer's SETTINGS, each within the connect timeout. Calls `ended`
    /// once the connection takes no more requests, with the reason if there is one.
    ///
    /// hyper's handshake alone succeeds even if the listener never speaks, and assumes 100 streams
    /// until SETTINGS arrive. Therefore no streams are allowed at first: a limit above 0 means that
    /// SETTINGS have arrived. They do not wake the connection's future, so it is polled on a tick.
    pub(crate) async fn open(
        connector: &Connector,
        address: &Address,
        settings: &EndpointSettings,
        waiters: &Arc<WaitQueue>,
        allowance: Allowance,
        first_address: usize,
        ended: impl FnOnce(&End) + Send + 'static,
    ) -> Result<Self, BoxError> {
        let Connected { io, origin } = connector.connect(address, settings, first_address).await?;
        let shake_hands = async {
            let executor = Executor::default();
            let mut builder = Builder::new(executor.clone());
            builder
                .timer(TokioTimer::new())
                .initial_max_send_streams(0)
                .initial_stream_window_size(settings.initial_stream_window_size)
                .initial_connection_window_size(settings.initial_connection_window_size)
                .max_header_list_size(settings.http2_max_header_list_size)
                // With a limit, late responses to abandoned calls would end the connection with all
                // other calls.
                .max_local_error_reset_streams(None);
            if let Some(interval) = settings.http2_keep_alive_interval {
                builder.keep_alive_interval(interval).keep_alive_timeout(settings.keep_alive_timeout);
            }
            let (sender, mut future) = builder.handshake(ReadFirstIo::new(io)).await?;
            while future.current_max_send_streams() == 0 {
                tokio::select! {
                    ended = &mut future => {
                        ended?;
                        return Err("the peer closed the connection before its SETTINGS".into());
                    }
                    () = sleep(SETTINGS_TICK) => {}
                }
            }
            let own = settings.concurrency_limit.unwrap_or(u32::MAX);
            let limit = streams(future.current_max_send_streams(), allowance.reserved).min(own);
            let load = Load::with_waiters(limit, allowance.tickets, Arc::clone(waiters));
            let load = Arc::new(load);
            let recheck = Arc::new(Recheck::default());
            let end = Arc::new(End::default());
            let watched = Arc::clone(&load);
            let rechecking = Arc::clone(&recheck);
            let witness = Witness::new(&end);
            let sender = Sender::new(sender, Arc::clone(&end));
            let span = Span::current();
            let task = tokio::spawn(async move {
                let mut future = pin!(future);
                let ended_with = poll_fn(|context| {
                    rechecking.waker.register(context.waker());
                    // The end of this future means that the connection accepts no new requests.
                    // Polled before `shut` is read, since it knows the reason.
                    if let Poll::Ready(ended) = future.as_mut().poll(context) {
                        return Poll::Ready(ended);
                    }
                    if rechecking.shut.load(Ordering::Acquire) {
                        return Poll::Ready(Ok(()));
                    }
                    if rechecking.wanted.swap(false, Ordering::AcqRel) {
                        watched.set_limit(streams(future.current_max_send_streams(), allowance.reserved).min(own));
                    }
                    Poll::Pending
                })
                .await;
                witness.tell(ended_with);
                watched.close();
                span.in_scope(|| ended(&end));
                // Keep hyper's request queue until all hand-overs have finished. Otherwise a
                // request could be lost in it, neither sent nor returned.
                while watched.is_sending() {
                    sleep(HANDOVER_TICK).await;
                }
            });
            Ok(Self {
                link: Link { origin, sender, load, health: Health::Serving },
                age: settings.max_connection_age.map(jittered),
                recheck,
                executor,
                task,
            })
        };
        let limit = settings.connect_timeout;
        let too_slow = || Error::new(ErrorKind::DeadlineExceeded, format!("no HTTP/2 SETTINGS came within {limit:?}"));
        timeout(limit, shake_hands).await.unwrap_or_else(|_| Err(too_slow().into()))
    }

    /// Wakes the connection's task to look again.
    pub(crate) fn recheck(&self) {
        self.recheck.wanted.store(true, Ordering::Release);
        self.recheck.waker.wake();
    }

    /// Whether it takes no more requests.
    pub(crate) fn is_closed(&self) -> bool {
        self.task.is_finished() || self.link.load.is_closed()
    }

    /// Whether enough of its calls were given up that it should be replaced: at some point peers
    /// and proxies take that for an attack (CVE-2023-44487) and end the connection with all its
    /// calls.
    pub(crate) fn is_worn(&self) -> bool {
        self.link.load.abandoned() >= MOST_ABANDONED
    }

    /// The age at which it is to be replaced.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.age
    }

    pub(crate) fn link(&self) -> Link {
        self.link.clone()
    }

    pub(crate) fn load(&self) -> &Arc<Load> {
        &self.link.load
    }

    pub(crate) fn executor(&self) -> Executor {
        self.executor.clone()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.recheck.shut.store(true, Ordering::Release);
        self.recheck.waker.wake();
    }
}

/// How many requests a connection takes: the peer's limit minus the reserved streams, but at least
/// one if the peer allows any.
fn streams(limit: usize, reserved: u32) -> u32 {
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    limit.saturating_sub(reserved).max(limit.min(1))
}

/// Varies an age by up to a tenth, as gRPC servers do, so that connections opened together are not
/// replaced together.
fn jittered(age: Duration) -> Duration {
    age.mul_f64(0.9 + 0.2 * fastrand::f64())
}

/// More than ordinary callers give up, and well below what would burden a peer.
const MOST_ABANDONED: u32 = 8192;
const HANDOVER_TICK: Duration = Duration::from_millis(1);
const SETTINGS_TICK: Duration = Duration::from_millis(5);
