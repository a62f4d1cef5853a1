//! The two ends of a watch: what its owner holds, and what the watcher sends there.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicUsize, Ordering},
};

use discovery_core::{Error, ErrorKind};
use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use tokio::{sync::mpsc, time::Instant};

use super::{Order, keys::Keys};
use crate::client::{Failure, Message, Reading};

/// One watch of a handle. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Watch {
    number: u64,
    /// The stream that carries it, and in which of its turns.
    home: Option<Home>,
    shared: Arc<Shared>,
    /// A channel that takes little memory while it is empty: there may be thousands.
    notices: UnboundedReceiver<Notice>,
    orders: mpsc::UnboundedSender<Order>,
}

#[derive(Clone, Copy, Debug)]
struct Home {
    stream: u64,
    turn: u64,
}

/// What the owner of a watch and the handle's watcher share.
#[derive(Debug)]
pub(super) struct Shared {
    keys: Keys,
    known: AtomicI64,
    size: AtomicUsize,
}

/// What is sent to a watch, from all streams that carry it or did.
#[derive(Debug)]
pub(super) enum Notice {
    Created {
        stream: u64,
        turn: u64,
        cluster: u64,
    },
    Message {
        turn: u64,
        message: Message,
    },
    Audited(Audited),
    /// The server ended it in this turn.
    Canceled {
        turn: u64,
        ended: Ended,
    },
    Ended(Ended),
}

/// What a watch reports to its owner.
#[derive(Debug)]
pub(crate) enum News {
    Message(Message),
    /// Another stream, perhaps of another member, carries it from now on, starting at the last
    /// known revision. The cluster is 0 if a proxy does not report it.
    Moved {
        cluster: u64,
    },
    Audited(Audited),
    /// The watch is over.
    Ended(Ended),
}

/// Why a watch is over.
#[derive(Debug)]
pub(crate) enum Ended {
    Broken(Error),
    Compacted,
}

/// What was read beside the watch.
#[derive(Debug)]
pub(crate) struct Audited {
    /// When it was requested.
    pub(crate) asked: Instant,
    /// The revision that was known then.
    pub(crate) known: i64,
    pub(crate) reading: Reading,
}

impl Watch {
    pub(super) fn new(
        number: u64,
        shared: Arc<Shared>,
        notices: UnboundedReceiver<Notice>,
        orders: mpsc::UnboundedSender<Order>,
    ) -> Self {
        Self { number, home: None, shared, notices, orders }
    }

    /// Waits for the next news. Cancel safe.
    pub(crate) async fn next(&mut self) -> News {
        loop {
            match self.notices.next().await {
                // A later turn has already begun.
                Some(Notice::Created { turn, .. }) if self.home.is_some_and(|home| home.turn > turn) => {}
                Some(Notice::Created { stream, turn, cluster }) => {
                    self.home = Some(Home { stream, turn });
                    return News::Moved { cluster };
                }
                Some(Notice::Message { turn, message }) if self.home.is_some_and(|home| home.turn == turn) => {
                    return News::Message(message);
                }
                Some(Notice::Canceled { turn, ended }) if self.home.is_some_and(|home| home.turn == turn) => {
                    return News::Ended(ended);
                }
                // Of a former turn: the present stream reports the same, or will.
                Some(Notice::Message { .. } | Notice::Canceled { .. }) => {}
                Some(Notice::Audited(audited)) => return News::Audited(audited),
                Some(Notice::Ended(ended)) => return News::Ended(ended),
                None => {
                    let error = Error::new(ErrorKind::Internal, "the runtime that kept the watch was shut down");
                    return News::Ended(Ended::Broken(error.with_operation("watch")));
                }
            }
        }
    }

    /// Records that everything is known up to a revision, which is where another stream starts.
    pub(crate) fn know(&self, revision: i64) {
        self.shared.known.store(revision, Ordering::Release);
    }

    /// Records how many keys it covers.
    pub(crate) fn count(&self, keys: usize) {
        self.shared.set_size(keys);
    }

    /// Requests an audit at the next opportunity.
    pub(crate) fn audit_soon(&self) {
        let _ = self.orders.send(Order::Audit { number: self.number });
    }

    /// Reports that the stream that carries it cannot be trusted.
    pub(crate) fn distrust(&self, failure: Failure) {
        let stream = self.home.map(|home| home.stream);
        let _ = self.orders.send(Order::Distrust { number: self.number, stream, failure });
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // If the watcher is gone, there is nothing to leave.
        let _ = self.orders.send(Order::Leave { number: self.number });
    }
}

impl Shared {
    pub(super) fn new(keys: Keys, known: i64) -> Self {
        Self { keys, known: AtomicI64::new(known), size: AtomicUsize::new(0) }
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(super) fn known(&self) -> i64 {
        self.known.load(Ordering::Acquire)
    }

    pub(super) fn set_size(&self, keys: usize) {
        self.size.store(keys, Ordering::Relaxed);
    }

    pub(super) fn size(&self) -> usize {
        self.size.load(Ordering::Relaxed)
    }
}
