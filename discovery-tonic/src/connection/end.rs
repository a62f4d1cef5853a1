//! How and why a connection ended, for the calls that were lost with it.

use std::{
    error::Error as StdError,
    fmt, io,
    pin::pin,
    sync::{Arc, OnceLock},
};

use h2::Reason;
use tokio::sync::Notify;

use crate::error::SharedError;

/// How a connection ended, with or without a reason; set once it takes no new requests.
#[derive(Default)]
pub(crate) struct End {
    ended: OnceLock<Option<SharedError>>,
    known: Notify,
}

/// Held by the connection's task. If that task is dropped, the end counts as known, so that no call
/// waits for it forever.
pub(super) struct Witness(Arc<End>);

impl Witness {
    pub(super) fn new(end: &Arc<End>) -> Self {
        Self(Arc::clone(end))
    }

    /// Records how the connection ended.
    pub(super) fn tell(&self, ended: Result<(), hyper::Error>) {
        self.0.ended.get_or_init(|| ended.err().map(|error| Arc::new(error) as SharedError));
        self.0.known.notify_waiters();
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.tell(Ok(()));
    }
}

impl End {
    /// Waits until it is known how the connection ended. The connection's task learns it a moment
    /// after its calls.
    pub(crate) async fn known(self: Arc<Self>) {
        let mut known = pin!(self.known.notified());
        // Registered before the check, so that no notification is missed.
        known.as_mut().enable();
        if self.ended.get().is_none() {
            known.await;
        }
    }

    /// Whether a call failed because its connection was lost, and the reason is not known yet.
    pub(crate) fn is_missing(&self, error: &hyper::Error) -> bool {
        self.ended.get().is_none() && is_io(error)
    }

    pub(crate) fn reason(&self) -> Option<&SharedError> {
        self.ended.get()?.as_ref()
    }

    /// Whether the peer ended it with a GOAWAY whose reason is not NO_ERROR.
    pub(crate) fn is_go_away(&self) -> bool {
        self.go_away().is_some()
    }

    /// Whether the peer ended it because it was asked too much, such as by frequent pings.
    pub(crate) fn is_enhance_your_calm(&self) -> bool {
        self.go_away() == Some(Reason::ENHANCE_YOUR_CALM)
    }

    fn go_away(&self) -> Option<Reason> {
        let error = h2_error(&**self.reason()?)?;
        error.reason().filter(|_| error.is_remote() && error.is_go_away())
    }
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("End").field(&self.reason()).finish()
    }
}

/// Whether the connection was lost. The source of hyper's error is h2's error for a body, and the
/// I/O error for a response.
fn is_io(error: &hyper::Error) -> bool {
    match h2_error(error) {
        Some(error) => error.is_io(),
        None => error.source().is_some_and(|source| source.is::<io::Error>()),
    }
}

/// Finds h2's error among the sources of hyper's.
///
/// The types match only while hyper and this crate use the same major version of h2; a test of the
/// channel guards that.
pub(crate) fn h2_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a h2::Error> {
    let mut next = error.source();
    while let Some(source) = next {
        if let Some(error) = source.downcast_ref() {
            return Some(error);
        }
        next = source.source();
    }
    None
}
