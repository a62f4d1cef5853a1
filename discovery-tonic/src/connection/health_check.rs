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

/// Follows the health of a peer over a connection, according to gRFC A17: only `SERVING` is
/// healthy. If the stream breaks, the peer counts as not serving until it answers another one.
///
/// As in A17, a peer that answers `UNIMPLEMENTED` counts as serving. It is asked once more after
/// the backoff, then no more. Three points differ:
///
/// - The first answer must arrive within [`FIRST`]. In A17 a peer that completes the handshake and
///   then hangs stays connecting, and calls wait for it. Here it does not serve, and calls that
///   find no other endpoint fail at once.
/// - The stream is reopened every [`SERVING`], and every [`NOT_SERVING`] while the peer does not
///   serve. An open stream would keep alive a connection that the peer wants to end, and a server
///   that stops gracefully would wait for it until its limit. On such a connection the next stream
///   fails.
/// - If the peer allows only one or two streams at once, none can be reserved for the check: it
///   opens one every [`NOT_SERVING`] for a single answer, in line with the calls.
///
/// The returned stream never ends.
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
    /// The next health that differs from the last one; or any, once the connection takes no more
    /// requests.
    async fn next(&mut self) -> Health {
        loop {
            let health = match self.answer().await {
                Ok(ServingStatus::Serving) => Health::Serving,
                Ok(_) => Health::NotServing,
                Err(status) if status.code() == Code::Unimplemented && self.said != Health::Serving => {
                    debug!("the peer has no health service and counts as serving");
                    Health::Serving
                }
                // It counts as serving already.
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
        self.reopen().await.unwrap_or_else(|_| Err(silent()))
    }

    /// Opens a stream that replaces the current one, and waits for its first answer.
    async fn reopen(&mut self) -> Result<Result<ServingStatus, Status>, Elapsed> {
        self.answers = None;
        let request = HealthCheckRequest { service: self.service.clone() };
        let first = async {
            let answers = self.answers.insert(self.client.watch(request).await?.into_inner());
            status_of(answers.message().await)
        };
        timeout(FIRST, first).await
    }

    /// Opens a stream for a single answer, then closes it.
    async fn ask_in_passing(&mut self) -> Result<ServingStatus, Status> {
        loop {
            if self.said != Health::Unknown {
                sleep(NOT_SERVING).await;
            }
            let behind = self.load.in_flight() > 0;
            let answer = self.reopen().await;
            self.answers = None;
            match answer {
                Ok(answer) => return answer,
                // A call occupied the stream, so the missing answer proves nothing.
                Err(_) if behind => {}
                Err(_) => return Err(silent()),
            }
        }
    }
}

fn status_of(answer: Result<Option<HealthCheckResponse>, Status>) -> Result<ServingStatus, Status> {
    let answer = answer?.ok_or_else(|| Status::unavailable("the health check stream ended"))?;
    Ok(answer.status())
}

/// Adapts one connection to the service that a tonic client needs.
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
    Status::deadline_exceeded("the health check was not answered in time")
}

/// How long the first answer may take. A health check does no work, and a frozen endpoint is given
/// one second.
const FIRST: Duration = Duration::from_secs(2);
/// How long a stream is kept while the peer serves.
const SERVING: Duration = Duration::from_secs(10);
/// How long a stream is kept while the peer does not serve, because it may be about to stop.
const NOT_SERVING: Duration = Duration::from_secs(1);
