use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::rt::{Read, ReadBufCursor, Write};

/// What a connector may hand out: bytes both ways.
pub(crate) trait Io: Read + Write + Send + Unpin {}

impl<T: Read + Write + Send + Unpin> Io for T {}

/// A connection's bytes, read first.
///
/// A peer that goes away sends GOAWAY and closes. Writing to it may then fail before that GOAWAY is
/// read, and with it the proof that the requests above it were not processed. So a failed write is
/// swallowed, and the end is left to the read side, which sees GOAWAY, then the end or the same
/// error.
pub(crate) struct ReadFirstIo {
    io: Box<dyn Io>,
    /// A write failed: nothing more is written, and the read side decides.
    write_failed: bool,
}

impl ReadFirstIo {
    pub(crate) fn new(io: Box<dyn Io>) -> Self {
        Self { io, write_failed: false }
    }

    /// What a write step means for hyper: a failure is a success that leads nowhere.
    fn ignore_failure<T>(&mut self, result: Poll<io::Result<T>>, pretended: T) -> Poll<io::Result<T>> {
        match ready!(result) {
            Ok(done) => Poll::Ready(Ok(done)),
            Err(_) => {
                self.write_failed = true;
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
        Pin::new(&mut *self.io).poll_read(context, buffer)
    }
}

impl Write for ReadFirstIo {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.write_failed {
            return Poll::Ready(Ok(bytes.len()));
        }
        let result = Pin::new(&mut *self.io).poll_write(context, bytes);
        self.ignore_failure(result, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = parts.iter().map(|part| part.len()).sum();
        if self.write_failed {
            return Poll::Ready(Ok(all));
        }
        let result = Pin::new(&mut *self.io).poll_write_vectored(context, parts);
        self.ignore_failure(result, all)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.write_failed {
            return Poll::Ready(Ok(()));
        }
        let result = Pin::new(&mut *self.io).poll_flush(context);
        self.ignore_failure(result, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.write_failed {
            return Poll::Ready(Ok(()));
        }
        let result = Pin::new(&mut *self.io).poll_shutdown(context);
        self.ignore_failure(result, ())
    }
}

#[cfg(test)]
mod tests {
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What the peer sent before it went away can be read; nothing can be written to it any more.
    struct Gone(io::Cursor<Vec<u8>>);

    impl tokio::io::AsyncRead for Gone {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut tokio::io::ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(context, buffer)
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

    #[tokio::test]
    async fn a_failed_write_leaves_the_end_to_the_read_side() {
        let mut wire =
            TokioIo::new(ReadFirstIo::new(Box::new(TokioIo::new(Gone(io::Cursor::new(b"GOAWAY".to_vec()))))));
        for _ in 0..2 {
            wire.write_all(b"request").await.unwrap();
            wire.flush().await.unwrap();
        }
        wire.shutdown().await.unwrap();
        let mut read = String::new();
        wire.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "GOAWAY");
    }
}
