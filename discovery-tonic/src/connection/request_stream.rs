use std::{
    collections::VecDeque,
    fmt, mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use tonic::Status;

use super::replay_budget::{ReplayBudget, Reservation};

/// The frames of a streaming request, shared by the attempts to send it.
///
/// hyper drops the body of a failed request, and with it the caller's frames. So it is given a
/// reader of this stream, and what was read is kept until the response's headers arrive. If the
/// request was not processed, another reader starts from the beginning.
pub(crate) struct RequestStream(Mutex<Inner>);

/// The view that one attempt has of a stream.
#[derive(Debug)]
pub(crate) struct StreamReader {
    stream: Arc<RequestStream>,
    attempt: u32,
}

struct Inner {
    /// The frames that were taken from the body before the first attempt.
    head: VecDeque<Frame<Bytes>>,
    rest: tonic::body::Body,
    has_ended: bool,
    has_failed: bool,
    /// The attempt that may read.
    attempt: u32,
    /// Whether anything has been read from the head or the rest.
    is_taken: bool,
    kept: Kept,
}

enum Kept {
    /// All that was read; the current attempt has read this many frames of it.
    All {
        frames: Vec<Bytes>,
        read: usize,
        reservation: Reservation,
    },
    /// What the current attempt has still to read of the kept frames; there will be no other
    /// attempt.
    Rest(VecDeque<Bytes>, #[expect(dead_code, reason = "held, not read")] Reservation),
    Nothing,
}

impl RequestStream {
    pub(super) fn new(head: impl IntoIterator<Item = Frame<Bytes>>, rest: tonic::body::Body) -> Self {
        Self(Mutex::new(Inner {
            head: head.into_iter().collect(),
            rest,
            has_ended: false,
            has_failed: false,
            attempt: 0,
            is_taken: false,
            kept: Kept::Nothing,
        }))
    }

    pub(super) fn first_reader(self: Arc<Self>) -> StreamReader {
        StreamReader { stream: self, attempt: 0 }
    }

    /// Keeps what is read from now on, within the limits of the budget.
    pub(crate) fn keep(&self, budget: &Arc<ReplayBudget>) {
        self.lock().kept = Kept::All { frames: Vec::new(), read: 0, reservation: budget.reserve() };
    }

    /// Discards all but what the current attempt has still to read.
    pub(crate) fn stop_keeping(&self) {
        let mut inner = self.lock();
        if let Kept::All { frames, read, reservation } = mem::replace(&mut inner.kept, Kept::Nothing)
            && read < frames.len()
        {
            inner.kept = Kept::Rest(frames.into_iter().skip(read).collect(), reservation);
        }
    }

    /// A reader that starts from the beginning and replaces the current one; `None` if what was
    /// read is no longer kept.
    pub(crate) fn replay(self: &Arc<Self>) -> Option<StreamReader> {
        let mut inner = self.lock();
        if inner.has_failed {
            return None;
        }
        let is_taken = inner.is_taken;
        match &mut inner.kept {
            Kept::All { read, .. } => *read = 0,
            Kept::Nothing if !is_taken => {}
            Kept::Rest(..) | Kept::Nothing => return None,
        }
        inner.attempt += 1;
        Some(StreamReader { stream: Arc::clone(self), attempt: inner.attempt })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match &mut self.kept {
            Kept::All { frames, read, .. } => {
                if let Some(frame) = frames.get(*read) {
                    *read += 1;
                    return Poll::Ready(Some(Ok(Frame::data(frame.clone()))));
                }
            }
            Kept::Rest(frames, _) => match frames.pop_front() {
                Some(frame) => return Poll::Ready(Some(Ok(Frame::data(frame)))),
                None => self.kept = Kept::Nothing,
            },
            Kept::Nothing => {}
        }
        if self.has_ended {
            return Poll::Ready(None);
        }
        let next = match self.head.pop_front() {
            Some(frame) => Some(Ok(frame)),
            None => ready!(Pin::new(&mut self.rest).poll_frame(context)),
        };
        match &next {
            Some(Ok(frame)) => {
                self.is_taken = true;
                self.keep(frame);
            }
            Some(Err(_)) => (self.has_ended, self.has_failed) = (true, true),
            None => self.has_ended = true,
        }
        Poll::Ready(next)
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        let Kept::All { frames, read, reservation } = &mut self.kept else { return };
        let Some(data) = frame.data_ref().filter(|data| reservation.grow(data.len() + OVERHEAD)) else {
            self.kept = Kept::Nothing;
            return;
        };
        // A slice keeps its whole buffer alive, and a small one shares that with others: copy it.
        let is_small = data.len() < WORTH_SHARING;
        frames.push(if is_small { Bytes::copy_from_slice(data) } else { data.clone() });
        *read += 1;
    }

    fn is_end(&self) -> bool {
        let is_read = match &self.kept {
            Kept::All { frames, read, .. } => *read == frames.len(),
            Kept::Rest(frames, _) => frames.is_empty(),
            Kept::Nothing => true,
        };
        is_read && (self.has_ended || (self.head.is_empty() && self.rest.is_end_stream()))
    }
}

impl StreamReader {
    pub(crate) fn stream(&self) -> &Arc<RequestStream> {
        &self.stream
    }

    pub(super) fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut inner = self.stream.lock();
        if inner.attempt != self.attempt {
            return Poll::Ready(Some(Err(Status::cancelled("the request was sent to another endpoint"))));
        }
        inner.poll_next(context)
    }

    pub(super) fn is_end(&self) -> bool {
        let inner = self.stream.lock();
        self.attempt == inner.attempt && inner.is_end()
    }
}

impl fmt::Debug for RequestStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestStream").finish_non_exhaustive()
    }
}

/// Frames of this size or more are assumed to use most of their buffer.
const WORTH_SHARING: usize = 4 << 10;
/// What is charged for a frame in addition to its bytes.
const OVERHEAD: usize = 64;

#[cfg(test)]
mod tests {
    use futures::stream;
    use http_body_util::{BodyExt, StreamBody};
    use proptest::prelude::*;

    use super::*;
    use crate::connection::{replay_budget::PER_CALL, request_body::RequestBody};

    fn body(frames: Vec<Vec<u8>>) -> tonic::body::Body {
        let frames = frames.into_iter().map(|frame| Ok::<_, Status>(Frame::data(Bytes::from(frame))));
        tonic::body::Body::new(StreamBody::new(stream::iter(frames)))
    }

    fn reader(frames: Vec<Vec<u8>>) -> StreamReader {
        let stream = Arc::new(RequestStream::new([], body(frames)));
        stream.keep(&Arc::default());
        stream.first_reader()
    }

    async fn read_all(reader: StreamReader) -> Vec<u8> {
        RequestBody::Stream(reader).collect().await.unwrap().to_bytes().to_vec()
    }

    async fn read(reader: &mut StreamReader) -> Option<Result<Frame<Bytes>, Status>> {
        std::future::poll_fn(|context| reader.poll_frame(context)).await
    }

    proptest! {
        /// However many attempts are given up, and after however many frames, the next one reads
        /// the same.
        #[test]
        fn each_reader_reads_the_whole(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..9_000), 0..12),
            attempts in proptest::collection::vec(0usize..14, 0..5),
            headers_after in 0usize..14,
        ) {
            futures::executor::block_on(async {
                let mut reader = reader(frames.clone());
                for count in attempts {
                    for _ in 0..count {
                        let _ = read(&mut reader).await;
                    }
                    let former = reader;
                    reader = former.stream().replay().expect("all of it is kept");
                    let mut former = former;
                    prop_assert!(read(&mut former).await.unwrap().is_err(), "the former reader gets nothing more");
                }
                // The response begins while the last attempt is still reading, or after it has read
                // everything.
                let mut all = Vec::new();
                for _ in 0..headers_after {
                    if let Some(frame) = read(&mut reader).await {
                        all.extend(frame.unwrap().into_data().unwrap());
                    }
                }
                reader.stream().stop_keeping();
                all.extend(read_all(reader).await);
                prop_assert_eq!(all, frames.concat());
                Ok(())
            })?;
        }
    }

    #[tokio::test]
    async fn frames_beyond_the_limit_are_not_kept() {
        let frames = vec![vec![1; 100_000]; 4];
        let mut reader = reader(frames.clone());
        for _ in 0..2 {
            read(&mut reader).await.unwrap().unwrap();
        }
        let mut reader = reader.stream().replay().expect("200 kB are kept");
        for _ in 0..3 {
            read(&mut reader).await.unwrap().unwrap();
        }
        assert!(reader.stream().replay().is_none(), "300 kB are not");
        assert_eq!(read_all(reader).await, frames[3], "and the attempt goes on");
    }

    #[tokio::test]
    async fn a_stream_that_was_not_read_may_be_of_any_size() {
        let reader = reader(vec![vec![1; PER_CALL * 2]]);
        assert_eq!(read_all(reader.stream().replay().unwrap()).await.len(), PER_CALL * 2);
    }

    #[tokio::test]
    async fn a_failed_stream_is_not_read_again() {
        let frames = stream::iter([Ok(Frame::data(Bytes::from_static(b"a"))), Err(Status::aborted("a fault"))]);
        let stream = Arc::new(RequestStream::new([], tonic::body::Body::new(StreamBody::new(frames))));
        stream.keep(&Arc::default());
        let mut reader = stream.first_reader();
        read(&mut reader).await.unwrap().unwrap();
        read(&mut reader).await.unwrap().unwrap_err();
        assert!(reader.stream().replay().is_none());
    }

    #[tokio::test]
    async fn nothing_is_kept_after_the_headers() {
        let mut reader = reader(vec![vec![1], vec![2]]);
        read(&mut reader).await.unwrap().unwrap();
        reader.stream().stop_keeping();
        assert!(reader.stream().replay().is_none());
        assert_eq!(read_all(reader).await, [2]);
    }
}
