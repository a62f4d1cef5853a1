use std::{
    mem,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use discovery_core::{Backoff, Delays};
use futures::{
    future::BoxFuture,
    stream::{BoxStream, StreamExt, unfold},
};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::time::{error::Elapsed, sleep, timeout};
use tonic::{Code, Status, Streaming};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_client::HealthClient,
};
use tower::Service;
use tracing::debug;

use super::{
    link::{Health, Link},
    request_body::RequestBody,
};
use crate::{balance::Load, error::BoxError};

/// Follows the health of a peer over a connection, by gRFC A17: nothing but SERVING is good, and
/// where the stream breaks the peer counts as not serving until it answers another one.
///
/// As there, a peer that answers UNIMPLEMENTED counts as serving: it is asked once more after a
/// wait, and then left alone. Three points differ:
///
/// - A first answer has to come within [`FIRST`]. In A17 a peer that shakes hands and then hangs
///   keeps connecting, and calls wait for it; here it does not serve, and calls that find nobody
///   else fail at once.
/// - The stream is opened anew every [`SERVING`], and every [`NOT_SERVING`] where the peer does not
///   serve. An open stream would keep a connection from ending that the peer lets go, and a server
///   that stops in order would wait for it until its limit: on such a connection the next stream
///   fails.
/// - Where the peer allows only a stream or two at once there is none to spare for the check: it
///   takes one every [`NOT_SERVING`] for a single answer, in line with the calls.
///
/// Never ends.
pub(crate) fn follow(link: &Link, service: String, backoff: Backoff) -> BoxStream<'static, Health> {
    let client = HealthClient::new(Through(link.clone()));
    let check = Check {
        client,
        load: Arc::clone(&link.load),
        service,
        answers: None,
        delays: backoff.delays(),
        failed: false,
        said: Health::Unknown,
    };
    unfold(check, |mut check| async move { Some((check.next().await, check)) }).boxed()
}

/// A check over one connection.
struct Check {
    client: HealthClient<Through>,
    load: Arc<Load>,
    service: String,
    answers: Option<Streaming<HealthCheckResponse>>,
    delays: Delays,
    failed: bool,
    said: Health,
}

impl Check {
    /// The next health that differs from the last one, or that of a connection that takes no
    /// requests any more.
    async fn next(&mut self) -> Health {
        loop {
            let health = match self.answer().await {
                Ok(ServingStatus::Serving) => Health::Serving,
                Ok(_) => Health::NotServing,
                Err(status) if status.code() == Code::Unimplemented && self.said != Health::Serving => {
                    debug!("the peer has no health check, and counts as serving");
                    Health::Serving
                }
                // It has been told already.
                Err(status) if status.code() == Code::Unimplemented => std::future::pending().await,
                Err(_) => Health::NotServing,
            };
            if mem::replace(&mut self.said, health) != health || self.load.is_closed() {
                return health;
            }
        }
    }

    async fn answer(&mut self) -> Result<ServingStatus, Status> {
        if mem::take(&mut self.failed) {
            sleep(self.delays.next_delay()).await;
        }
        let answer = self.ask().await;
        match &answer {
            Ok(_) => self.delays.reset(),
            Err(_) => (self.answers, self.failed) = (None, true),
        }
        answer
    }

    async fn ask(&mut self) -> Result<ServingStatus, Status> {
        if self.load.limit() <= 1 {
            return self.ask_in_passing().await;
        }
        let limit = if self.said == Health::NotServing { NOT_SERVING } else { SERVING };
        if let Some(answers) = &mut self.answers
            && let Ok(answer) = timeout(limit, answers.message()).await
        {
            return status_of(answer);
        }
        self.ask_anew().await.unwrap_or_else(|_| Err(silent()))
    }

    /// Opens a stream in place of the present one, and waits for its first answer.
    async fn ask_anew(&mut self) -> Result<Result<ServingStatus, Status>, Elapsed> {
        self.answers = None;
        let request = HealthCheckRequest { service: self.service.clone() };
        let first = async {
            let answers = self.answers.insert(self.client.watch(request).await?.into_inner());
            status_of(answers.message().await)
        };
        timeout(FIRST, first).await
    }

    /// Takes a stream for a single answer, now and then.
    async fn ask_in_passing(&mut self) -> Result<ServingStatus, Status> {
        loop {
            if self.said != Health::Unknown {
                sleep(NOT_SERVING).await;
            }
            let behind = self.load.in_flight() > 0;
            let answer = self.ask_anew().await;
            self.answers = None;
            match answer {
                Ok(answer) => return answer,
                // A call has the stream, so that no answer says nothing.
                Err(_) if behind => {}
                Err(_) => return Err(silent()),
            }
        }
    }
}

fn status_of(answer: Result<Option<HealthCheckResponse>, Status>) -> Result<ServingStatus, Status> {
    let answer = answer?.ok_or_else(|| Status::unavailable("the health check ended"))?;
    Ok(answer.status())
}

/// One connection as a tonic client needs it.
#[derive(Clone)]
struct Through(Link);

impl Service<Request<tonic::body::Body>> for Through {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let link = self.0.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let mut request = Request::from_parts(parts, RequestBody::new(body)?);
            link.origin.apply_to(&mut request);
            link.sender.send(request).await.map_err(|error| {
                if error.message().is_some() {
                    link.load.close();
                }
                error.into_error().into()
            })
        })
    }
}

fn silent() -> Status {
    Status::deadline_exceeded("the health check is not answered")
}

/// How long a first answer may take: a health check does no work, and a second is what a frozen
/// endpoint is given.
const FIRST: Duration = Duration::from_secs(2);
/// How long a stream is kept.
const SERVING: Duration = Duration::from_secs(10);
/// The same where the peer does not serve, as one that is about to stop.
const NOT_SERVING: Duration = Duration::from_secs(1);
