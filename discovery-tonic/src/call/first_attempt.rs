//! The first attempt of a call, which is nearly always the only one.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use http::{Request, Response};
use pin_project_lite::pin_project;
use tokio::time::{Sleep, timeout_at};
use tonic::Status;

use super::{
    Call, Next,
    attempt::{Answer, Attempt},
    response::ResponseBody,
    shared::Shared,
};
use crate::{balance::Picked, connection::request_body::RequestBody, metrics::Event, published::target::Target};

pin_project! {
    /// A call whose request is on its way to the first endpoint.
    ///
    /// Written by hand rather than as an `async` block to keep the future small. The rare retry
    /// path is boxed separately.
    #[project = Stage]
    #[project_replace = Former]
    pub(super) enum FirstAttempt<F> {
        // Until the response has arrived or the attempt has run out of time.
        Sent {
            #[pin]
            answer: F,
            // The end of the attempt or of the call, whichever is first.
            #[pin]
            end: Option<Sleep>,
            attempt: Attempt,
            call: Call,
            shared: Arc<Shared>,
        },
        // The attempts after the first.
        Rest { rest: Rest },
        Done,
    }
}

type Rest = BoxFuture<'static, Result<Response<ResponseBody>, Status>>;

impl Call {
    /// Sends the request to the picked target, and continues from there.
    pub(crate) fn begin(
        mut self,
        shared: Arc<Shared>,
        request: Request<RequestBody>,
        picked: Picked<Target>,
    ) -> BoxFuture<'static, Result<Response<ResponseBody>, Status>> {
        shared.published.wakeups.sweep();
        shared.published.wakeups.metrics.count(Event::Pick);
        let observed = self.observe(&shared);
        let (attempt, answer) = Attempt::send(picked, request, self.deadline, self.expects_slow(), observed);
        Box::pin(FirstAttempt::new(answer, attempt, self, shared))
    }
}

impl Call {
    /// Waits until it is known how the connection ended, and continues from there.
    #[cold]
    fn conclude_after(
        mut self,
        end: impl Future<Output = ()> + Send + 'static,
        shared: Arc<Shared>,
        attempt: Attempt,
        answer: Answer,
    ) -> Rest {
        Box::pin(async move {
            let deadline = self.deadline;
            let known = async {
                match deadline {
                    Some(deadline) => drop(timeout_at(deadline, end).await),
                    None => end.await,
                }
            };
            shared.on_runtime(known).await;
            match self.on_outcome(&shared, attempt, answer) {
                Next::Again(request, wait) => self.send_after(shared, request, wait).await,
                Next::End(result) => result,
            }
        })
    }
}

impl<F> FirstAttempt<F> {
    pub(super) fn new(answer: F, attempt: Attempt, call: Call, shared: Arc<Shared>) -> Self {
        let end = call.attempt_end(&shared).map(|end| shared.timer(end));
        Self::Sent { answer, end, attempt, call, shared }
    }
}

impl<F> FirstAttempt<F> {
    fn go_on(mut self: Pin<&mut Self>, mut rest: Rest, context: &mut Context<'_>) -> Poll<<Rest as Future>::Output> {
        let polled = rest.as_mut().poll(context);
        self.set(Self::Rest { rest });
        polled
    }
}

impl<F> Future for FirstAttempt<F>
where
    F: Future<Output = Answer>,
{
    type Output = Result<Response<ResponseBody>, Status>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = match self.as_mut().project() {
            Stage::Sent { answer, end, .. } => match answer.poll(context) {
                Poll::Ready(answer) => Some(answer),
                Poll::Pending if end.as_pin_mut().is_some_and(|end| end.poll(context).is_ready()) => None,
                Poll::Pending => return Poll::Pending,
            },
            Stage::Rest { rest } => return rest.as_mut().poll(context),
            Stage::Done => panic!("polled after completion"),
        };
        // Replacing the stage drops the answer future, which cancels an unanswered request.
        let Former::Sent { attempt, mut call, shared, .. } = self.as_mut().project_replace(Self::Done) else {
            unreachable!("the stage was `Sent` a moment ago");
        };
        let next = match answer {
            Some(answer) => match attempt.missing_end(&answer) {
                Some(end) => return self.go_on(call.conclude_after(end, shared, attempt, answer), context),
                None => call.on_outcome(&shared, attempt, answer),
            },
            None => call.expire(&shared, attempt),
        };
        match next {
            Next::Again(request, wait) => self.go_on(call.send_after(shared, request, wait), context),
            Next::End(result) => Poll::Ready(result),
        }
    }
}
