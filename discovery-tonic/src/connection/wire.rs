//! The byte stream below hyper, which keeps a failed write from hiding the peer's GOAWAY.

use std::{
    future::Future,
    io, mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::time::{Sleep, sleep};

/// The byte stream that a connector returns.
pub(crate) trait Io: Read + Write + Send + Unpin {}

impl<T: Read + Write + Send + Unpin> Io for T {}

/// The byte stream of a connection, whose read side decides how it ends.
///
/// A peer that stops sends GOAWAY and closes the connection. A write may then fail before the
/// GOAWAY is read, and the proof is lost that the requests above its last stream were not
/// processed. Therefore a failed write is reported as a success, and the read side reports the end:
/// the GOAWAY, then the end of the stream or the same error. If nothing arrives for a moment, a
/// read returns the error of the write.
pub(crate) struct ReadFirstIo {
    io: Box<dyn Io>,
    failed: Option<FailedWrite>,
}

/// A write failed: nothing more is written.
struct FailedWrite {
    error: io::Error,
    /// When a read gives up waiting for the peer's last bytes.
    grace: Pin<Box<Sleep>>,
}

impl ReadFirstIo {
    pub(crate) fn new(io: Box<dyn Io>) -> Self {
        Self { io, failed: None }
    }

    /// Turns a failed write into a success for hyper, and starts the grace period of the read side.
    fn ignore_failure<T>(
        &mut self,
        context: &Context<'_>,
        result: Poll<io::Result<T>>,
        pretended: T,
    ) -> Poll<io::Result<T>> {
        match ready!(result) {
            Ok(done) => Poll::Ready(Ok(done)),
            Err(error) => {
                self.failed = Some(FailedWrite { error, grace: Box::pin(sleep(GRACE)) });
                // Poll the read side again, so that it also waits for the grace period.
                context.waker().wake_by_ref();
                Poll::Ready(Ok(pretended))
            }
        }
    }
}

impl Read for ReadFirstIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut *self.io).poll_read(context, buffer);
        if read.is_pending()
            && let Some(failed) = &mut self.failed
        {
            ready!(failed.grace.as_mut().poll(context));
            let error = mem::replace(&mut failed.error, io::ErrorKind::BrokenPipe.into());
            return Poll::Ready(Err(error));
        }
        read
    }
}

impl Write for ReadFirstIo {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.failed.is_some() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let result = Pin::new(&mut *self.io).poll_write(context, bytes);
        self.ignore_failure(context, result, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = parts.iter().map(|part| part.len()).sum();
        if self.failed.is_some() {
            return Poll::Ready(Ok(all));
        }
        let result = Pin::new(&mut *self.io).poll_write_vectored(context, parts);
        self.ignore_failure(context, result, all)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.failed.is_some() {
            return Poll::Ready(Ok(()));
        }
        let result = Pin::new(&mut *self.io).poll_flush(context);
        self.ignore_failure(context, result, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.failed.is_some() {
            return Poll::Ready(Ok(()));
        }
        let result = Pin::new(&mut *self.io).poll_shutdown(context);
        self.ignore_failure(context, result, ())
    }
}

/// How long a read may wait after a write has failed. What a peer sent before it stopped has
/// arrived by then.
const GRACE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A peer that has stopped: what it sent before can be read, but nothing can be written.
    struct Gone {
        sent: io::Cursor<Vec<u8>>,
        /// Whether it is silent after that, instead of closed.
        is_silent: bool,
    }

    impl tokio::io::AsyncRead for Gone {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut tokio::io::ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.is_silent && self.sent.position() == self.sent.get_ref().len() as u64 {
                return Poll::Pending;
            }
            Pin::new(&mut self.sent).poll_read(context, buffer)
        }
    }

    impl tokio::io::AsyncWrite for Gone {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }
    }

    fn gone(sent: &[u8], is_silent: bool) -> TokioIo<ReadFirstIo> {
        let gone = Gone { sent: io::Cursor::new(sent.to_vec()), is_silent };
        TokioIo::new(ReadFirstIo::new(Box::new(TokioIo::new(gone))))
    }

    #[tokio::test]
    async fn a_failed_write_leaves_the_end_to_the_read_side() {
        let mut wire = gone(b"GOAWAY", false);
        for _ in 0..2 {
            wire.write_all(b"request").await.unwrap();
            wire.flush().await.unwrap();
        }
        wire.shutdown().await.unwrap();
        let mut read = String::new();
        wire.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "GOAWAY");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_read_side_returns_the_error_of_the_write() {
        let mut wire = gone(b"GOAWAY", true);
        wire.write_all(b"request").await.unwrap();
        let mut read = Vec::new();
        let start = tokio::time::Instant::now();
        let error = wire.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(
            (&read[..], error.kind(), start.elapsed().as_millis()),
            (&b"GOAWAY"[..], io::ErrorKind::BrokenPipe, 100)
        );
        wire.read_u8().await.unwrap_err();
    }
}
