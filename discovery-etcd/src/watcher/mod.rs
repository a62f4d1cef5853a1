//! The watcher of a handle: everything that the handle watches, services and its own entries, on
//! one stream.
//!
//! [`Watcher`] sends orders to [`task`]. The task does what [`plan`] decides: which stream carries
//! which watch. Each stream is read by a [`carrier`], which finds the watch of a message with
//! [`ids`] and passes it to the owner through its [`subscription`].
//!
//! Usually there is one stream. A second one exists for a while when watches move to another member
//! or another token, when a watch has much to catch up with, or to find out which watch an
//! undecodable answer belongs to. A watch that moves starts on the next stream at the last revision
//! that its owner knows, and is taken from there once the server has created it.
//!
//! A stream is equally silent when nothing happens and when it is cut off. So the member is asked
//! for signs of life with one small read after another, and [`audits`] compare what was reported
//! with what etcd holds.

mod audits;
mod carrier;
mod ids;
mod keys;
mod plan;
mod subscription;
mod task;

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use tokio::{runtime::Handle, sync::mpsc};

use crate::{client::Failure, cluster::Cluster, pace::Pace};
pub(crate) use audits::AuditPace;
use carrier::Carried;
pub(crate) use keys::Keys;
use subscription::Shared;
pub(crate) use subscription::{Audited, Ended, News, Watch};
use task::Task;

/// The watcher of a handle. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Watcher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cluster: Arc<Cluster>,
    pace: Pace,
    audits: AuditPace,
    /// To the task, which ends once nobody can send orders.
    orders: Mutex<mpsc::UnboundedSender<Order>>,
    last_number: AtomicU64,
}

/// What the task is asked to do.
#[derive(Debug)]
enum Order {
    Watch {
        carried: Carried,
        start: Start,
    },
    Leave {
        number: u64,
    },
    /// Audit a watch at the next opportunity.
    Audit {
        number: u64,
    },
    /// A stream sent something impossible, or left something out.
    Distrust {
        number: u64,
        stream: Option<u64>,
        failure: Failure,
    },
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Start {
    /// At the present: on the stream that carries the others.
    #[default]
    Level,
    /// In a past that may hold much: on a stream of its own, until it is level with the others.
    Behind,
}

impl Watcher {
    /// Starts the task on a runtime. It opens no stream before something is watched.
    pub(crate) fn start(cluster: &Arc<Cluster>, pace: Pace, audits: AuditPace, runtime: &Handle) -> Self {
        let inner = Inner {
            cluster: Arc::clone(cluster),
            pace,
            audits,
            orders: Mutex::new(mpsc::unbounded_channel().0),
            last_number: AtomicU64::new(0),
        };
        *inner.orders.lock().unwrap_or_else(PoisonError::into_inner) = inner.spawn(runtime);
        Self(Arc::new(inner))
    }

    /// Watches keys from revision `known` on, which the caller has already seen.
    pub(crate) fn watch(&self, keys: Keys, known: i64, start: Start) -> Watch {
        let number = self.0.last_number.fetch_add(1, Ordering::Relaxed) + 1;
        let (notices, received) = futures::channel::mpsc::unbounded();
        let shared = Arc::new(Shared::new(keys, known));
        let carried = Carried { number, shared: Arc::clone(&shared), notices };
        let orders = self.0.order(Order::Watch { carried, start });
        Watch::new(number, shared, received, orders)
    }
}

impl Inner {
    /// Sends an order to the task, or to a new task if the former one ended with its runtime.
    fn order(&self, order: Order) -> mpsc::UnboundedSender<Order> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(mpsc::error::SendError(order)) = orders.send(order) {
            *orders = self.spawn(&Handle::current());
            // If that runtime is shutting down, too, the watch ends at once.
            let _ = orders.send(order);
        }
        orders.clone()
    }

    fn spawn(&self, runtime: &Handle) -> mpsc::UnboundedSender<Order> {
        let (orders, ordered) = mpsc::unbounded_channel();
        runtime.spawn(Task::new(Arc::clone(&self.cluster), self.pace, self.audits, ordered).run());
        orders
    }
}
