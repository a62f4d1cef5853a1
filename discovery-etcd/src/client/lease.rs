use std::{sync::Arc, time::Duration};

use etcd_client::{LeaseGrantOptions, LeaseKeepAliveStream, LeaseKeeper};
use tokio::time::timeout;

use super::{Failure, Member, Origin};

/// The stream on which one lease is renewed.
#[derive(Debug)]
pub(crate) struct Renewals {
    requests: LeaseKeeper,
    answers: LeaseKeepAliveStream,
    origin: Origin,
}

impl Member {
    /// Grants a lease under an id of the caller's, so that asking again does no harm, and returns the time it was granted for.
    pub(crate) async fn grant(&self, id: i64, ttl: Duration) -> Result<Duration, Failure> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        self.call("grant", async |client| {
            let options = LeaseGrantOptions::new().with_id(id);
            Ok(of_seconds(client.lease_client().grant(seconds, Some(options)).await?.ttl()))
        })
        .await
    }

    /// The time that a lease was granted for, or 0 where it is gone.
    pub(crate) async fn granted(&self, id: i64) -> Result<Duration, Failure> {
        self.call("grant", async |client| {
            let answer = client.lease_client().time_to_live(id, None).await?;
            Ok(if answer.ttl() < 0 { Duration::ZERO } else { of_seconds(answer.granted_ttl()) })
        })
        .await
    }

    /// Ends a lease, and with it all entries under it. A lease that is gone already is no error.
    pub(crate) async fn revoke(&self, id: i64) -> Result<(), Failure> {
        let revoked = self.call("revoke", async |client| client.lease_client().revoke(id).await.map(drop)).await;
        match revoked {
            Err(failure) if failure.reason == super::Reason::LeaseGone => Ok(()),
            other => other,
        }
    }

    /// Opens a stream of renewals; that it opens is the answer to the first one.
    pub(crate) async fn renew(self: &Arc<Self>, id: i64) -> Result<Renewals, Failure> {
        let opened =
            self.open("renew", self.request_timeout, async |client| client.lease_client().keep_alive(id).await);
        let ((requests, answers), number) = opened.await?;
        Ok(Renewals { requests, answers, origin: Origin { member: Arc::clone(self), number } })
    }
}

impl Renewals {
    /// Asks for a renewal. That it was sent means nothing; only an answer does.
    pub(crate) async fn ask(&mut self) -> Result<(), Failure> {
        // Waits only where a hundred requests are queued, and then the stream is of no use.
        match timeout(Duration::from_millis(100), self.requests.keep_alive()).await {
            Ok(sent) => sent.map_err(|error| Failure::from_client(error, "renew", &self.origin.member.address)),
            Err(_) => Err(Failure::ended("renew", &self.origin.member.address)),
        }
    }

    /// The next answer: the time that the lease has from the moment that etcd got the request, 0 where it is gone.
    ///
    /// Cancel safe.
    pub(crate) async fn answer(&mut self) -> Result<Duration, Failure> {
        match self.answers.message().await {
            Ok(Some(answer)) => Ok(of_seconds(answer.ttl())),
            Ok(None) => Err(Failure::ended("renew", &self.origin.member.address)),
            Err(error) => Err(self.origin.note(Failure::from_client(error, "renew", &self.origin.member.address))),
        }
    }
}

fn of_seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
