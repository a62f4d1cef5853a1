use std::{sync::Arc, time::Duration};

use etcd_client::{Client, LeaseGrantOptions, LeaseKeepAliveStream, LeaseKeeper};
use tokio::time::timeout;

use super::{
    Failure, Member,
    connection::{Silence, Use},
};
use crate::config::TTL_MAX;

/// The stream on which one lease is renewed.
#[derive(Debug)]
pub(crate) struct Renewals {
    id: i64,
    requests: LeaseKeeper,
    answers: LeaseKeepAliveStream,
    member: Arc<Member>,
    used: Use,
}

impl Member {
    /// Grants a lease under an id of the caller's, so that asking again does no harm, and returns the time it was granted for.
    pub(crate) async fn grant(&self, id: i64, ttl: Duration) -> Result<Duration, Failure> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let granted = self.call("grant", async |client| {
            let answer = client.lease_client().grant(seconds, Some(LeaseGrantOptions::new().with_id(id))).await?;
            Ok(time_of(id, answer.id(), answer.ttl()))
        });
        match granted.await? {
            Ok(granted) if !granted.is_zero() => Ok(granted),
            Ok(_) => Err(Failure::strange("grant", &self.address, "a lease was granted for no time")),
            Err(what) => Err(Failure::strange("grant", &self.address, what)),
        }
    }

    /// The time that a lease was granted for, or 0 where it is gone.
    pub(crate) async fn granted(&self, id: i64) -> Result<Duration, Failure> {
        let granted = self.call("grant", async |client| {
            let answer = client.lease_client().time_to_live(id, None).await?;
            let seconds = if answer.ttl() < 0 { 0 } else { answer.granted_ttl() };
            Ok(time_of(id, answer.id(), seconds))
        });
        granted.await?.map_err(|what| Failure::strange("grant", &self.address, what))
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
    ///
    /// That may take no longer than `limit`, nor than any request.
    pub(crate) async fn renew(self: &Arc<Self>, id: i64, limit: Duration) -> Result<Renewals, Failure> {
        let open = async |client: Client| client.lease_client().keep_alive(id).await;
        let ((requests, answers), used) = self.open("renew", limit, Silence::Connection, open).await?;
        // Of the first answer etcd-client shows the id alone.
        if requests.id() != id {
            return Err(Failure::strange("renew", &self.address, ANOTHER));
        }
        Ok(Renewals { id, requests, answers, member: Arc::clone(self), used })
    }
}

impl Renewals {
    /// Asks for a renewal. That it was sent means nothing; only an answer does.
    pub(crate) async fn ask(&mut self) -> Result<(), Failure> {
        // Waits only where a hundred requests are queued, and then the stream is of no use.
        match timeout(Duration::from_millis(100), self.requests.keep_alive()).await {
            Ok(sent) => sent.map_err(|error| Failure::from_client(error, "renew", &self.member.address)),
            Err(_) => Err(Failure::ended("renew", &self.member.address)),
        }
    }

    /// Takes that the stream does not answer. Its connection may be dead where the member lives, and is used no more.
    pub(crate) fn silent(self) {
        self.used.retire();
    }

    /// The failure of a stream that said this.
    pub(crate) fn strange(&self, what: &'static str) -> Failure {
        Failure::strange("renew", &self.member.address, what)
    }

    /// The next answer: the time that the lease has from the moment that etcd got the request, 0 where it is gone.
    ///
    /// Cancel safe.
    pub(crate) async fn answer(&mut self) -> Result<Duration, Failure> {
        match self.answers.message().await {
            Ok(Some(answer)) => time_of(self.id, answer.id(), answer.ttl()).map_err(|what| self.strange(what)),
            Ok(None) => Err(Failure::ended("renew", &self.member.address)),
            Err(error) => {
                let failure = Failure::from_client(error, "renew", &self.member.address);
                self.used.note(&failure);
                Err(failure)
            }
        }
    }
}

/// The time that an answer gives to the lease asked about, 0 where that is gone.
fn time_of(asked: i64, answered: i64, seconds: i64) -> Result<Duration, &'static str> {
    let time = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    if answered != asked {
        return Err(ANOTHER);
    }
    // More than is ever asked for, and etcd's least is in the order of its election timeout, at most 75 s. Who died would stay.
    if time > TTL_MAX { Err("the time of the lease is out of all proportion") } else { Ok(time) }
}

const ANOTHER: &str = "the answer is about another lease";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_lease_is_one_that_can_be() {
        for (answered, seconds, time) in [
            (7, 15, Some(15)),
            (7, 0, Some(0)),
            (7, -1, Some(0)),
            (7, i64::MIN, Some(0)),
            (7, 24 * 3600, Some(24 * 3600)),
            (7, 24 * 3600 + 1, None),
            (7, i64::MAX, None),
            (8, 15, None),
            (0, 0, None),
        ] {
            assert_eq!(time_of(7, answered, seconds).ok().map(|time| time.as_secs()), time, "{answered} {seconds}");
        }
    }
}
