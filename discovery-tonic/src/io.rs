use std::{
    fmt, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures::task::AtomicWaker;
use hyper::rt::{Read, ReadBufCursor, Write};

/// What a connector may hand out: bytes both ways.
pub(crate) trait Io: Read + Write + Send + Unpin {}

impl<T: Read + Write + Send + Unpin> Io for T {}

/// A connection's bytes, with two repairs that hyper does not have.
///
/// - *Read first*: a peer that goes away sends GOAWAY and closes. Writing to it may then fail before that GOAWAY is read, and
///   with it the proof that the requests above it were not processed. So a failed write is swallowed, and the end is left to
///   the read side, which sees GOAWAY, then the end or the same error.
/// - *Cut*: hyper's socket task lives on with its streams after everyone else has let go; the owner's [`Cut`] ends it.
pub(crate) struct Wire {
    io: Box<dyn Io>,
    cut: Arc<State>,
    /// A write failed: nothing more is written, and the read side decides.
    mute: bool,
}

/// The owner's hand on a [`Wire`].
#[derive(Clone)]
pub(crate) struct Cut(Arc<State>);

#[derive(Default)]
struct State {
    is_cut: AtomicBool,
    reader: AtomicWaker,
}

impl Wire {
    pub(crate) fn new(io: Box<dyn Io>) -> (Self, Cut) {
        let cut = Arc::new(State::default());
        (Self { io, cut: Arc::clone(&cut), mute: false }, Cut(cut))
    }

    /// What a write step means for hyper: a failure is a success that leads nowhere.
    fn swallow<T>(&mut self, result: Poll<io::Result<T>>, pretended: T) -> Poll<io::Result<T>> {
        match ready!(result) {
            Ok(done) => Poll::Ready(Ok(done)),
            Err(_) => {
                self.mute = true;
                Poll::Ready(Ok(pretended))
            }
        }
    }
}

impl Cut {
    /// Ends the connection at once, with everything on it.
    pub(crate) fn cut(&self) {
        self.0.is_cut.store(true, Ordering::Release);
        self.0.reader.wake();
    }
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.cut.reader.register(context.waker());
        if self.cut.is_cut.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cut by its owner")));
        }
        Pin::new(&mut *self.io).poll_read(context, buffer)
    }
}

impl Write for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.mute {
            return Poll::Ready(Ok(bytes.len()));
        }
        let result = Pin::new(&mut *self.io).poll_write(context, bytes);
        self.swallow(result, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = parts.iter().map(|part| part.len()).sum();
        if self.mute {
            return Poll::Ready(Ok(all));
        }
        let result = Pin::new(&mut *self.io).poll_write_vectored(context, parts);
        self.swallow(result, all)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.mute {
            return Poll::Ready(Ok(()));
        }
        let result = Pin::new(&mut *self.io).poll_flush(context);
        self.swallow(result, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.mute {
            return Poll::Ready(Ok(()));
        }
        let result = Pin::new(&mut *self.io).poll_shutdown(context);
        self.swallow(result, ())
    }
}

impl fmt::Debug for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cut").finish_non_exhaustive()
    }
}
