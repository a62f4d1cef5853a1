use std::{
    future::Future,
    io, mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::time::{Sleep, sleep};

/// What a connector may hand out: bytes both ways.
pub(crate) trait Io: Read + Write + Send + Unpin {}

impl<T: Read + Write + Send + Unpin> Io for T {}

/// A connection's bytes, read first.
///
/// A peer that goes away sends GOAWAY and closes. Writing to it may then fail before that GOAWAY is
/// read, and with it the proof that the requests above it were not processed. So a failed write is
/// swallowed, and the end is left to the read side, which sees GOAWAY, then the end or the same
/// error. Where it sees nothing for a moment, the error of the write is what it reads.
pub(crate) struct ReadFirstIo {
    io: Box<dyn Io>,
    failed: Option<FailedWrite>,
}

/// Nothing more is written after this.
struct FailedWrite {
    error: io::Error,
    /// How long the read side may still be silent.
    grace: Pin<Box<Sleep>>,
}

impl ReadFirstIo {
    pub(crate) fn new(io: Box<dyn Io>) -> Self {
        Self { io, failed: None }
    }

    /// What a write step means for hyper: a failure is a success that leads nowhere.
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
                // The read side has to be polled again, to wait for the grace, too.
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

/// How long the read side of a connection that cannot be written to may be silent. What a peer sent
/// before it went is there by then.
const GRACE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What the peer sent before it went away can be read; nothing can be written to it any more.
    struct Gone {
        sent: io::Cursor<Vec<u8>>,
        /// After that it is silent, instead of at its end.
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
    async fn a_read_side_that_is_silent_reads_the_error_of_the_write() {
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
