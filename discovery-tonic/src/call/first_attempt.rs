use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::{body::Incoming, client::conn::TrySendError};
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep_until};
use tonic::Status;

use super::{Call, Next, attempt::Attempt, response::ResponseBody};
use crate::{channel::Shared, connection::request_body::RequestBody};

pin_project! {
    /// A call whose request is on its way to the first endpoint, which nearly always is the only one.
    ///
    /// By hand instead of `async`, so that it is small and nothing in it moves: what is rare gets a future of its own.
    pub(crate) struct Flight<F> {
        // Until it has come, or has been given up.
        #[pin]
        answer: Option<F>,
        // Until the answer.
        attempt: Option<Attempt>,
        call: Option<Call>,
        shared: Option<Arc<Shared>>,
        // Of the attempt, or of the call.
        #[pin]
        end: Option<Sleep>,
        // The attempts after the first.
        rest: Option<BoxFuture<'static, Result<Response<ResponseBody>, Status>>>,
    }
}

impl<F> Flight<F> {
    pub(crate) fn new(answer: F, attempt: Attempt, call: Call, shared: Arc<Shared>) -> Self {
        let end = call.attempt_end(&shared.board).map(sleep_until);
        Self { answer: Some(answer), attempt: Some(attempt), call: Some(call), shared: Some(shared), end, rest: None }
    }
}

impl<F> Future for Flight<F>
where
    F: Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>>,
{
    type Output = Result<Response<ResponseBody>, Status>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(rest) = this.rest {
            return rest.as_mut().poll(context);
        }
        let Some(pending) = this.answer.as_mut().as_pin_mut() else { unreachable!("polled after it was ready") };
        let answer = match pending.poll(context) {
            Poll::Ready(answer) => Some(answer),
            Poll::Pending if this.end.as_pin_mut().is_some_and(|end| end.poll(context).is_ready()) => None,
            Poll::Pending => return Poll::Pending,
        };
        let (Some(attempt), Some(mut call), Some(shared)) = (this.attempt.take(), this.call.take(), this.shared.take())
        else {
            unreachable!("polled after it was ready");
        };
        let next = match answer {
            Some(answer) => call.settle(&shared.board, attempt, answer),
            None => {
                // Which cancels the request.
                this.answer.set(None);
                call.expire(&shared.board, attempt)
            }
        };
        match next {
            Next::Again(request, wait) => this.rest.insert(call.go_on(shared, request, wait)).as_mut().poll(context),
            Next::End(result) => Poll::Ready(result),
        }
    }
}
