use std::{
    collections::VecDeque,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

/// A request's body on its way into hyper.
///
/// The body of a unary or server-streaming call is ready at once: polled without waiting it gives one frame and the end. Such a
/// body of up to 64 KiB is kept, so that the request can be sent again to another endpoint. All else streams through.
///
/// Gives no exact size, or hyper would add a `content-length`.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// The one frame, if there is any, until it is sent.
    Kept(Option<Bytes>),
    /// The frames that were looked at, and the rest.
    Stream { head: VecDeque<Frame<Bytes>>, rest: tonic::body::Body },
}

impl RequestBody {
    /// Looks at a body without waiting. Fails where the body does, for example when the message is too large.
    pub(crate) fn new(mut body: tonic::body::Body) -> Result<Self, Status> {
        let mut head = VecDeque::new();
        let mut context = Context::from_waker(Waker::noop());
        loop {
            match pin!(&mut body).poll_frame(&mut context) {
                Poll::Ready(None) => break,
                Poll::Ready(Some(frame)) => head.push_back(frame?),
                Poll::Pending => return Ok(Self::Stream { head, rest: body }),
            }
            if head.len() > 1 || head.iter().any(|frame| frame.data_ref().is_none_or(|data| data.len() > MAX_KEPT)) {
                return Ok(Self::Stream { head, rest: body });
            }
            if body.is_end_stream() {
                break;
            }
        }
        Ok(Self::Kept(head.pop_front().and_then(|frame| frame.into_data().ok())))
    }

    /// The same body again, if it is kept and not yet sent.
    pub(crate) fn again(&self) -> Option<Self> {
        match self {
            Self::Kept(bytes) => Some(Self::Kept(bytes.clone())),
            Self::Stream { .. } => None,
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match &mut *self {
            Self::Kept(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream { head, rest } => match head.pop_front() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None => Pin::new(rest).poll_frame(context),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Kept(bytes) => bytes.is_none(),
            Self::Stream { head, rest } => head.is_empty() && rest.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

const MAX_KEPT: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full, StreamBody};

    use super::*;

    fn kept(body: &RequestBody) -> bool {
        body.again().is_some()
    }

    #[tokio::test]
    async fn one_small_frame_is_kept_and_can_be_sent_twice() {
        let body = tonic::body::Body::new(Full::new(Bytes::from_static(b"hello")));
        let body = RequestBody::new(body).unwrap();
        let again = body.again().unwrap();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "hello");
        assert_eq!(again.collect().await.unwrap().to_bytes(), "hello");
        assert!(kept(&RequestBody::new(tonic::body::Body::empty()).unwrap()));
    }

    #[tokio::test]
    async fn large_waiting_and_many_frames_stream_through() {
        let large = tonic::body::Body::new(Full::new(Bytes::from(vec![0; MAX_KEPT + 1])));
        let large = RequestBody::new(large).unwrap();
        assert!(!kept(&large));
        assert_eq!(large.collect().await.unwrap().to_bytes().len(), MAX_KEPT + 1);

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
