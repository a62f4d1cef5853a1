//! The body of a response, which holds the attempt until its end and enforces the deadline of the
//! call.
//!
//! A body without a deadline is [`State::Endless`]. One with a deadline is shared with the pool,
//! whose sweeps end it even if nobody polls it.

use std::{
    fmt, mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use discovery_core::InstanceId;
use futures::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};
use tonic::{Code, Status};

use super::{
    attempt::{Attempt, GRPC_STATUS},
    request_limit::Place,
    served::{Tried, with_tried},
    shared::Shared,
    status,
};
use crate::{error::BoxError, published::overdue::Expire};

/// The body of a response from a [`BalancedChannel`](crate::BalancedChannel).
///
/// Until it ends or is dropped, the call counts as in flight. The call's deadline ends it too, even
/// if nobody polls it (within 200 ms then), with `DEADLINE_EXCEEDED`. A lost connection is
/// `UNAVAILABLE`. The default is an empty body, for interceptors that answer a call themselves.
///
/// It is a type of its own so that no call needs another allocation. Code that accepts several
/// kinds of channels, such as a client with a field that holds tonic's `Channel` or this one,
/// erases the type:
///
/// ```
/// # fn example(channel: discovery_tonic::BalancedChannel) {
/// use greeter::GreeterClient;
/// use tonic::body::Body;
/// use tower::{BoxError, ServiceExt, util::BoxCloneSyncService};
///
/// type AnyChannel = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, BoxError>;
///
/// let erased = channel.map_response(|response| response.map(Body::from)).map_err(BoxError::from);
/// let client: GreeterClient<AnyChannel> = GreeterClient::new(AnyChannel::new(erased));
/// # }
/// ```
///
/// Errors stay what they are: the client's `Status` still leads to [`Tried`](crate::Tried).
#[derive(Default)]
pub struct ResponseBody(State);

#[derive(Default)]
enum State {
    #[default]
    Ended,
    Endless(Live),
    Limited {
        timer: Pin<Box<Sleep>>,
        shared: Arc<Limited>,
    },
}

/// A response with a deadline, which the sweep ends at the deadline if nobody polls it.
struct Limited {
    /// Locked by the polls of the caller and by the sweep, whichever ends the response.
    progress: Mutex<Progress>,
    /// Keeps the pool, and so the sweeps, alive.
    _shared: Arc<Shared>,
}

enum Progress {
    Ended,
    /// Ended by the sweep at its deadline; the next poll reports it.
    Expired(Tried),
    Live(Live),
}

/// A response that has not ended.
struct Live {
    body: Incoming,
    attempt: Attempt,
    /// The instances that were tried before this one.
    before: Option<Arc<[InstanceId]>>,
    /// Held until the response has ended.
    _place: Option<Place>,
    /// It may end with a frame of data. A response of gRPC ends with its trailers.
    is_http: bool,
    /// The body was lost with its connection, and waits for the reason.
    lost: Option<(hyper::Error, BoxFuture<'static, ()>)>,
}

type Polled = Poll<Option<Result<Frame<Bytes>, Status>>>;

impl ResponseBody {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        body: Incoming,
        deadline: Option<Instant>,
        attempt: Attempt,
        before: Option<Arc<[InstanceId]>>,
        place: Option<Place>,
        is_http: bool,
    ) -> Self {
        if is_http && body.is_end_stream() {
            return Self(State::Ended);
        }
        let live = Live { body, attempt, before, _place: place, is_http, lost: None };
        let Some(deadline) = deadline else { return Self(State::Endless(live)) };
        let limited = Arc::new(Limited { progress: Mutex::new(Progress::Live(live)), _shared: Arc::clone(shared) });
        let watched: Weak<Limited> = Arc::downgrade(&limited);
        shared.published.overdue.watch(deadline, watched);
        // The connection may be a former one, whose requests in flight no sweep counts.
        shared.published.wakeups.sweep();
        Self(State::Limited { timer: Box::pin(shared.timer(deadline)), shared: limited })
    }
}

impl Limited {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_frame(&self, timer: Pin<&mut Sleep>, context: &mut Context<'_>) -> Polled {
        let mut progress = self.lock();
        let Progress::Live(live) = &mut *progress else {
            return Poll::Ready(match mem::replace(&mut *progress, Progress::Ended) {
                Progress::Expired(tried) => Some(Err(with_tried(status::deadline_exceeded(), tried))),
                Progress::Ended | Progress::Live(_) => None,
            });
        };
        let deadline = timer.deadline();
        let polled = live.poll_frame(context);
        // A body may be ready at every poll, so the timer alone is not enough.
        let is_over = match &polled {
            Poll::Ready(_) => Instant::now() >= deadline,
            Poll::Pending => timer.poll(context).is_ready(),
        };
        let polled = if is_over {
            live.attempt.abandon();
            Some(Err(with_tried(status::deadline_exceeded(), live.tried(None))))
        } else {
            ready!(polled)
        };
        if is_last(&polled) || live.has_ended_with_data() {
            *progress = Progress::Ended;
        }
        Poll::Ready(polled)
    }
}

impl Expire for Limited {
    fn expire(&self) {
        let mut progress = self.lock();
        if let Progress::Live(live) = &*progress {
            live.attempt.abandon();
            *progress = Progress::Expired(live.tried(None));
        }
    }
}

impl Live {
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Polled {
        if let Some((_, end)) = &mut self.lost {
            ready!(end.as_mut().poll(context));
            return Poll::Ready(self.lost.take().map(|(error, _)| Err(self.fail(error))));
        }
        Poll::Ready(match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            Some(Ok(frame)) => {
                let code = frame.trailers_ref().and_then(|trailers| trailers.get(&GRPC_STATUS));
                self.attempt.ended_with(code.map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes())));
                Some(Ok(frame))
            }
            Some(Err(error)) => match self.attempt.missing_end_of_body(&error) {
                Some(end) => {
                    self.lost = Some((error, Box::pin(end)));
                    return self.poll_frame(context);
                }
                None => Some(Err(self.fail(error))),
            },
            None => None,
        })
    }

    /// Whether the frame of data that was read last ended the response.
    fn has_ended_with_data(&self) -> bool {
        self.is_http && self.body.is_end_stream()
    }

    /// Counts the response as abandoned, unless only its end was not read.
    fn abandon(&self) {
        if !self.body.is_end_stream() {
            self.attempt.abandon();
        }
    }

    fn tried(&self, cause: Option<BoxError>) -> Tried {
        let mut instances = self.before.as_deref().unwrap_or_default().to_vec();
        instances.push(self.attempt.instance().id().clone());
        Tried::new(instances, cause)
    }

    fn fail(&self, error: hyper::Error) -> Status {
        let (code, message, of_peer) = self.attempt.loss(&error);
        if of_peer {
            self.attempt.ended_with(code);
        }
        with_tried(Status::new(code, message), self.tried(Some(self.attempt.cause(error))))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled {
        match &mut self.0 {
            State::Ended => Poll::Ready(None),
            State::Endless(live) => {
                let polled = ready!(live.poll_frame(context));
                if is_last(&polled) || live.has_ended_with_data() {
                    self.0 = State::Ended;
                }
                Poll::Ready(polled)
            }
            State::Limited { timer, shared } => shared.poll_frame(timer.as_mut(), context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            State::Ended => true,
            State::Endless(live) => live.body.is_end_stream(),
            State::Limited { shared, .. } => match &*shared.lock() {
                Progress::Ended => true,
                Progress::Expired(_) => false,
                Progress::Live(live) => live.body.is_end_stream(),
            },
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            State::Ended => SizeHint::with_exact(0),
            State::Endless(live) => live.body.size_hint(),
            State::Limited { shared, .. } => match &*shared.lock() {
                Progress::Ended | Progress::Expired(_) => SizeHint::with_exact(0),
                Progress::Live(live) => live.body.size_hint(),
            },
        }
    }
}

impl From<ResponseBody> for tonic::body::Body {
    fn from(body: ResponseBody) -> Self {
        Self::new(body)
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        match &self.0 {
            State::Ended => {}
            State::Endless(live) => live.abandon(),
            State::Limited { shared, .. } => {
                if let Progress::Live(live) = &*shared.lock() {
                    live.abandon();
                }
            }
        }
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}

/// Whether this is the last item of the body.
fn is_last(polled: &Option<Result<Frame<Bytes>, Status>>) -> bool {
    polled.as_ref().is_none_or(|frame| frame.as_ref().map_or(true, Frame::is_trailers))
}
