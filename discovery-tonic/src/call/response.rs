use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use discovery_core::InstanceId;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Code, Status};

use super::{
    attempt::{Attempt, GRPC_STATUS},
    served::{Tried, with_tried},
    status,
};

/// The body of a response from a [`BalancedChannel`](crate::BalancedChannel).
///
/// Until it ends or is dropped the call counts as in flight. The call's deadline ends it too, and a
/// lost connection is `UNAVAILABLE`. The default is an empty body, which an interceptor answers
/// with.
#[derive(Default)]
pub struct ResponseBody {
    deadline: Option<Pin<Box<Sleep>>>,
    /// `None` once the body has ended.
    live: Option<Live>,
}

struct Live {
    body: Incoming,
    attempt: Attempt,
    /// The instances that were tried before this one.
    before: Option<Arc<[InstanceId]>>,
}

impl ResponseBody {
    pub(crate) fn new(
        body: Incoming,
        deadline: Option<Instant>,
        attempt: Attempt,
        before: Option<Arc<[InstanceId]>>,
    ) -> Self {
        let deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        Self { deadline, live: Some(Live { body, attempt, before }) }
    }
}

impl Live {
    fn tried(&self, cause: Option<hyper::Error>) -> Tried {
        let mut instances = self.before.as_deref().unwrap_or_default().to_vec();
        instances.push(self.attempt.instance().id().clone());
        Tried::new(instances, cause.map(Into::into))
    }

    fn fail(self, error: hyper::Error) -> Status {
        let (code, message, of_peer) = self.attempt.loss(&error);
        if of_peer && code == Code::Unavailable {
            self.attempt.endpoint().failed();
        }
        with_tried(Status::new(code, message), self.tried(Some(error)))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { deadline, live } = &mut *self;
        let Some(running) = live else { return Poll::Ready(None) };
        // Before the body, which may be ready for ever.
        if deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(context).is_ready()) {
            let status = with_tried(status::deadline_exceeded(), running.tried(None));
            *live = None;
            return Poll::Ready(Some(Err(status)));
        }
        match ready!(Pin::new(&mut running.body).poll_frame(context)) {
            Some(Ok(frame)) => {
                let unavailable = frame.trailers_ref().and_then(|trailers| trailers.get(&GRPC_STATUS));
                if unavailable.is_some_and(|code| code == UNAVAILABLE) {
                    running.attempt.endpoint().failed();
                } else {
                    running.attempt.endpoint().tally.succeeded();
                }
                if frame.is_trailers() {
                    *live = None;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => Poll::Ready(live.take().map(|live| Err(live.fail(error)))),
            None => {
                *live = None;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.live.as_ref().is_none_or(|live| live.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.live.as_ref().map_or_else(|| SizeHint::with_exact(0), |live| live.body.size_hint())
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let Some(live) = &self.live {
            live.attempt.abandon();
        }
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}

/// [`Code::Unavailable`] as it travels.
const UNAVAILABLE: &str = "14";
