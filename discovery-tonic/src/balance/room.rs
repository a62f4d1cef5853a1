use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{Notify, futures::OwnedNotified};

/// Where those wait who found all candidates full.
///
/// Everyone who leaves a candidate wakes one who waits, so that no place stays empty while somebody waits for it. Nobody is
/// missed: who waits first stands in line, is counted, and only then looks; who leaves first leaves, and only then looks at the
/// count.
#[derive(Debug, Default)]
pub(crate) struct Room {
    line: Arc<Notify>,
    waiting: AtomicUsize,
}

/// A place in the line.
pub(crate) struct Waiting<'a> {
    room: &'a Room,
    pub(crate) turn: std::pin::Pin<Box<OwnedNotified>>,
}

impl Room {
    /// Stands in line; the look at the candidates comes after this.
    pub(crate) fn wait(&self) -> Waiting<'_> {
        let mut turn = Box::pin(Arc::clone(&self.line).notified_owned());
        turn.as_mut().enable();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Waiting { room: self, turn }
    }

    /// There is one place more.
    #[inline]
    pub(crate) fn one_left(&self) {
        if self.is_wanted() {
            self.line.notify_one();
        }
    }

    /// Whether anybody waits.
    pub(crate) fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// There may be many.
    pub(crate) fn many_left(&self) {
        self.line.notify_waiters();
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.room.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
