//! The one watcher of a handle: all that it watches, services and entries of its own, on one
//! stream.
//!
//! [`Watcher`] takes orders for [`task`], which decides which [`carrier`] carries what: a stream,
//! and the task that reads it. There is one, and another beside it for a while: where watches move
//! to another member or to another token, where a watch has much to catch up with, or where an
//! answer cannot be decoded and it is to be found out whose it is. A watch that moves begins on the
//! next stream with the last revision that its owner knows, and is taken from there once the server
//! has created it.
//!
//! A stream says nothing where nothing happens, and where it is cut off. So one small read after
//! the other asks the member whether it lives, and [`audits`] compare what was told with what there
//! is.

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

/// Watches for a handle. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Watcher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cluster: Arc<Cluster>,
    pace: Pace,
    audits: AuditPace,
    /// To the task, which ends once nobody can give orders.
    orders: Mutex<mpsc::UnboundedSender<Order>>,
    last_number: AtomicU64,
}

/// What the task is asked for.
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
    /// A stream told what cannot be, or left something out.
    Distrust {
        number: u64,
        stream: Option<u64>,
        failure: Failure,
    },
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Start {
    /// With the present: on the stream that carries the others.
    #[default]
    Level,
    /// With a past that may hold much: on a stream of its own, until it is level with the others.
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

    /// Watches keys from a revision on, which is known.
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
    /// Gives an order to the task, or to a new one where it went with its runtime.
    fn order(&self, order: Order) -> mpsc::UnboundedSender<Order> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(mpsc::error::SendError(order)) = orders.send(order) {
            *orders = self.spawn(&Handle::current());
            // Where that runtime is shutting down, too, the watch ends at once.
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
