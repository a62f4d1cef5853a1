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

use crate::{attempt::Attempt, body::RequestBody, call::Call, channel::Shared, response::ResponseBody};

pin_project! {
    /// A call whose request is on its way to the first endpoint, which nearly always is the only one.
    ///
    /// By hand instead of `async`, so that it is small and nothing in it moves: what is rare gets a future of its own.
    pub(crate) struct Flight<F> {
        #[pin]
        answer: F,
        // Until the answer.
        attempt: Option<Attempt>,
        call: Option<Call>,
        shared: Option<Arc<Shared>>,
        #[pin]
        deadline: Option<Sleep>,
        // The attempts after the first.
        rest: Option<BoxFuture<'static, Result<Response<ResponseBody>, Status>>>,
    }
}

impl<F> Flight<F> {
    pub(crate) fn new(answer: F, attempt: Attempt, call: Call, shared: Arc<Shared>) -> Self {
        let deadline = call.deadline.map(sleep_until);
        Self { answer, attempt: Some(attempt), call: Some(call), shared: Some(shared), deadline, rest: None }
    }
}

impl<F> Future for Flight<F>
where
    F: Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>>,
{
    type Output = Result<Response<ResponseBody>, Status>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Some(rest) = this.rest {
            return rest.as_mut().poll(context);
        }
        let (Some(attempt), Some(call)) = (&*this.attempt, &mut *this.call) else {
            unreachable!("polled after it was ready");
        };
        let Poll::Ready(answer) = this.answer.poll(context) else {
            let expired = this.deadline.as_pin_mut().is_some_and(|deadline| deadline.poll(context).is_ready());
            return if expired { Poll::Ready(Err(call.expire(attempt))) } else { Poll::Pending };
        };
        let (Some(attempt), Some(mut call)) = (this.attempt.take(), this.call.take()) else {
            unreachable!("both were there a line above");
        };
        let error = match answer {
            Ok(response) => return Poll::Ready(call.finish(attempt, response)),
            Err(error) => error,
        };
        let request = match call.restore(&attempt, error) {
            Ok(request) => request,
            Err(status) => return Poll::Ready(Err(status)),
        };
        drop(attempt);
        let shared = this.shared.take().expect("taken here alone, with the attempt");
        this.rest.insert(call.go_on(shared, request)).as_mut().poll(context)
    }
}
