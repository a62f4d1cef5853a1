use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

use super::{
    replay_budget::PER_CALL,
    request_stream::{RequestStream, StreamReader},
};

/// A request's body on its way into hyper.
///
/// The body of a unary or server-streaming call is ready at once: polled without waiting, it yields
/// one frame and the end. Such a body of up to 256 KiB is kept, so that the request can be sent
/// again to another endpoint. Any other body is read through a stream that outlives the attempt.
///
/// It reports no exact size, because hyper would then add a `content-length`.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// The single frame, if there is one, until it is sent.
    Kept(Option<Bytes>),
    Stream(StreamReader),
}

impl RequestBody {
    /// Examines a body without waiting. Fails if the body does, for example because the message is
    /// too large.
    pub(crate) fn new(mut body: tonic::body::Body) -> Result<Self, Status> {
        let mut context = Context::from_waker(Waker::noop());
        let first = match Pin::new(&mut body).poll_frame(&mut context) {
            Poll::Ready(None) => return Ok(Self::Kept(None)),
            Poll::Ready(Some(frame)) => frame?,
            Poll::Pending => return Ok(Self::stream([], body)),
        };
        let first = match first.into_data() {
            Ok(data) if data.len() <= PER_CALL => data,
            Ok(data) => return Ok(Self::stream([Frame::data(data)], body)),
            Err(other) => return Ok(Self::stream([other], body)),
        };
        if body.is_end_stream() {
            return Ok(Self::Kept(Some(first)));
        }
        match Pin::new(&mut body).poll_frame(&mut context) {
            Poll::Ready(None) => Ok(Self::Kept(Some(first))),
            Poll::Ready(Some(second)) => Ok(Self::stream([Frame::data(first), second?], body)),
            Poll::Pending => Ok(Self::stream([Frame::data(first)], body)),
        }
    }

    fn stream(head: impl IntoIterator<Item = Frame<Bytes>>, rest: tonic::body::Body) -> Self {
        Self::Stream(Arc::new(RequestStream::new(head, rest)).first_reader())
    }
}

impl Default for RequestBody {
    fn default() -> Self {
        Self::Kept(None)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match &mut *self {
            Self::Kept(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(reader) => reader.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Kept(bytes) => bytes.is_none(),
            Self::Stream(reader) => reader.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full, StreamBody};

    use super::*;

    fn kept(body: &RequestBody) -> bool {
        matches!(body, RequestBody::Kept(_))
    }

    #[tokio::test]
    async fn one_frame_of_up_to_256_kib_is_kept() {
        for size in [5, PER_CALL] {
            let body = tonic::body::Body::new(Full::new(Bytes::from(vec![7; size])));
            let body = RequestBody::new(body).unwrap();
            assert!(kept(&body));
            assert_eq!(body.collect().await.unwrap().to_bytes(), vec![7; size]);
        }
        assert!(kept(&RequestBody::new(tonic::body::Body::empty()).unwrap()));
    }

    #[tokio::test]
    async fn large_pending_and_multi_frame_bodies_are_streamed() {
        let large = tonic::body::Body::new(Full::new(Bytes::from(vec![0; PER_CALL + 1])));
        let large = RequestBody::new(large).unwrap();
        assert!(!kept(&large));
        assert_eq!(large.collect().await.unwrap().to_bytes().len(), PER_CALL + 1);

        let frames = ["a", "b", "c"].map(|text| Ok::<_, Status>(Frame::data(Bytes::from_static(text.as_bytes()))));
        let many = tonic::body::Body::new(StreamBody::new(futures::stream::iter(frames)));
        let many = RequestBody::new(many).unwrap();
        assert!(!kept(&many));
        assert_eq!(many.collect().await.unwrap().to_bytes(), "abc");

        let waiting = StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, Status>>());
        assert!(!kept(&RequestBody::new(tonic::body::Body::new(waiting)).unwrap()));
    }

    #[test]
    fn a_body_that_fails_at_once_fails_the_call() {
        let failing = futures::stream::once(async { Err::<Frame<Bytes>, _>(Status::out_of_range("too large")) });
        let error = RequestBody::new(tonic::body::Body::new(StreamBody::new(failing))).unwrap_err();
        assert_eq!(error.code(), tonic::Code::OutOfRange);
    }
}
