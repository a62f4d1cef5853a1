//! Granting, renewing and revoking leases.

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
    /// Grants a lease and returns its ttl. The caller chooses the id, so that asking again does no
    /// harm.
    pub(crate) async fn grant(&self, id: i64, ttl: Duration) -> Result<Duration, Failure> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let granted = self.call("grant", async |client| {
            let answer = client.lease_client().grant(seconds, Some(LeaseGrantOptions::new().with_id(id))).await?;
            Ok(time_of(id, answer.id(), answer.ttl()))
        });
        match granted.await? {
            Ok(granted) if !granted.is_zero() => Ok(granted),
            Ok(_) => Err(Failure::strange("grant", &self.address, "a lease was granted with a ttl of 0")),
            Err(what) => Err(Failure::strange("grant", &self.address, what)),
        }
    }

    /// Returns the granted ttl of a lease, or 0 if it is gone.
    pub(crate) async fn granted(&self, id: i64) -> Result<Duration, Failure> {
        let granted = self.call("grant", async |client| {
            let answer = client.lease_client().time_to_live(id, None).await?;
            let seconds = if answer.ttl() < 0 { 0 } else { answer.granted_ttl() };
            Ok(time_of(id, answer.id(), seconds))
        });
        granted.await?.map_err(|what| Failure::strange("grant", &self.address, what))
    }

    /// Revokes a lease, and with it all its entries. A lease that is already gone is no error.
    pub(crate) async fn revoke(&self, id: i64) -> Result<(), Failure> {
        let revoked = self.call("revoke", async |client| client.lease_client().revoke(id).await.map(drop)).await;
        match revoked {
            Err(failure) if failure.reason == super::Reason::LeaseGone => Ok(()),
            other => other,
        }
    }

    /// Opens a stream of renewals. That it opens is the answer to the first renewal.
    ///
    /// It must open within `limit`, and within the timeout of a request.
    pub(crate) async fn renew(self: &Arc<Self>, id: i64, limit: Duration) -> Result<Renewals, Failure> {
        let open = async |client: Client| client.lease_client().keep_alive(id).await;
        let ((requests, answers), used) = self.open("renew", limit, Silence::Connection, open).await?;
        // etcd-client exposes only the id of the first answer.
        if requests.id() != id {
            return Err(Failure::strange("renew", &self.address, ANOTHER));
        }
        Ok(Renewals { id, requests, answers, member: Arc::clone(self), used })
    }
}

impl Renewals {
    /// Requests a renewal. Only an answer means that the lease was renewed.
    pub(crate) async fn ask(&mut self) -> Result<(), Failure> {
        // Waits only if a hundred requests are queued, and then the stream is dead.
        match timeout(Duration::from_millis(100), self.requests.keep_alive()).await {
            Ok(sent) => sent.map_err(|error| Failure::from_client(error, "renew", &self.member.address)),
            Err(_) => Err(Failure::ended("renew", &self.member.address)),
        }
    }

    /// Records that the stream does not answer. Its connection may be dead although the member
    /// lives, so it gets no further calls.
    pub(crate) fn silent(self) {
        self.used.retire();
    }

    /// The failure of a stream that sent an impossible answer.
    pub(crate) fn strange(&self, what: &'static str) -> Failure {
        Failure::strange("renew", &self.member.address, what)
    }

    /// Waits for the next answer, and returns how long the lease is valid from the moment when etcd
    /// received the request; 0 if it is gone. Cancel safe.
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

/// The ttl that an answer gives for the requested lease, 0 if the lease is gone.
fn time_of(asked: i64, answered: i64, seconds: i64) -> Result<Duration, &'static str> {
    let time = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    if answered != asked {
        return Err(ANOTHER);
    }
    // Reject absurd ttls: this crate never requests more than `TTL_MAX`, and etcd's minimum is on
    // the order of its election timeout, at most 75 s. With a longer one, entries of dead processes
    // would stay.
    if time > TTL_MAX { Err("the ttl of the lease is longer than 1 day") } else { Ok(time) }
}

const ANOTHER: &str = "the answer is for another lease";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_that_cannot_be_is_rejected() {
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
