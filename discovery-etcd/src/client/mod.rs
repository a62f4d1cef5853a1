//! One member of the cluster: every call with its own deadline, in types of our own.
//!
//! Nothing outside this folder names etcd-client. One client never holds two members, because its balancer sends a share of the
//! calls to a dead one for ever; choosing a member is the work of `cluster`.

mod dial;
mod failure;
mod kv;
mod lease;
#[cfg(feature = "tls")]
mod tls;
mod watch;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use discovery_core::Address;
use etcd_client::Client;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

pub(crate) use dial::Dial;
pub(crate) use failure::{Failure, Reason};
pub(crate) use kv::{Delete, KeyReading, KeyValue, Page, Put, RangeSummary};
pub(crate) use lease::Renewals;
pub(crate) use watch::{Canceled, Event, Message, WatchStream};

/// One member, connected to when it is first asked.
pub(crate) struct Member {
    address: Address,
    dial: Arc<Dial>,
    request_timeout: Duration,
    /// Held while connecting, which only waits where credentials are sent.
    slot: Arc<Mutex<Slot>>,
    /// Clients up to this number are not used any more.
    forgotten: AtomicU64,
}

/// The client in use. Each has a number, from 1 on, so that who failed with one does not throw away the next.
#[derive(Default)]
struct Slot {
    number: u64,
    client: Option<Client>,
    /// When the member last refused the credentials, and how.
    refused: Option<(Instant, Failure)>,
}

/// Which client a stream runs on.
#[derive(Debug)]
struct Origin {
    member: Arc<Member>,
    number: u64,
}

impl Member {
    pub(crate) fn new(address: Address, dial: Arc<Dial>, request_timeout: Duration) -> Self {
        Self { address, dial, request_timeout, slot: Arc::default(), forgotten: AtomicU64::new(0) }
    }

    /// Runs a call under the deadline of a request, connecting included.
    async fn call<T, F>(&self, operation: &'static str, call: impl FnOnce(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.call_within(operation, self.request_timeout, call).await
    }

    /// Runs a call that may have less time than others.
    async fn call_within<T, F>(
        &self,
        operation: &'static str,
        deadline: Duration,
        call: impl FnOnce(Client) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.open(operation, deadline, call).await.map(|(answer, _)| answer)
    }

    /// Runs a call, and says on which client.
    ///
    /// A client that lost its member or its token is not used again: it does not come back by itself once its token, or the
    /// runtime that it was made in, is gone. Streams that are open on it go on.
    async fn open<T, F>(
        &self,
        operation: &'static str,
        deadline: Duration,
        call: impl FnOnce(Client) -> F,
    ) -> Result<(T, u64), Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let deadline = deadline.min(self.request_timeout);
        let mut used = 0;
        let work = async {
            let (number, client) = self.client().await?;
            used = number;
            let answered = call(client).await;
            answered.map_err(|error| Failure::from_client(error, operation, &self.address))
        };
        let result = match timeout(deadline, work).await {
            Ok(result) => result,
            Err(_) => Err(Failure::silent(operation, &self.address, deadline)),
        };
        if result.as_ref().is_err_and(|failure| matches!(failure.reason, Reason::Member | Reason::Token)) {
            self.forget(used);
        }
        result.map(|answer| (answer, used))
    }

    /// The client in use, or a new one. A member that refused the credentials is not asked again at once, however many ask:
    /// checking a password is hard work for etcd, by design.
    async fn client(&self) -> Result<(u64, Client), Failure> {
        let mut slot = Arc::clone(&self.slot).lock_owned().await;
        if let Some(client) = &slot.client
            && slot.number > self.forgotten.load(Ordering::Acquire)
        {
            return Ok((slot.number, client.clone()));
        }
        slot.client = None;
        if let Some((when, failure)) = &slot.refused
            && when.elapsed() < REFUSED
        {
            return Err(failure.clone());
        }
        // In a task of its own, which no caller's deadline ends: etcd takes long to check a password where it is busy, and who
        // began anew with each attempt would never be done, and keep it busy.
        let (address, dial, limit) = (self.address.clone(), Arc::clone(&self.dial), 2 * self.request_timeout);
        let connecting = tokio::spawn(async move {
            let connect = Client::connect([address.to_string()], Some(dial.options()));
            let client = match timeout(limit, connect).await {
                Ok(Ok(client)) => client,
                Ok(Err(error)) => {
                    let failure = Failure::from_client(error, "authenticate", &address);
                    slot.refused = (failure.reason == Reason::Token).then(|| (Instant::now(), failure.clone()));
                    return Err(failure);
                }
                Err(_) => return Err(Failure::silent("authenticate", &address, limit)),
            };
            slot.number += 1;
            slot.client = Some(client.clone());
            Ok((slot.number, client))
        });
        // It fails to end only where its runtime does.
        connecting.await.unwrap_or_else(|_| Err(Failure::ended("authenticate", &self.address)))
    }

    fn forget(&self, number: u64) {
        self.forgotten.fetch_max(number, Ordering::Release);
    }
}

impl Origin {
    /// Where a stream lost its token, the next call authenticates anew; etcd-client does not see to that.
    fn note(&self, failure: Failure) -> Failure {
        if failure.reason == Reason::Token {
            self.member.forget(self.number);
        }
        failure
    }
}

impl fmt::Debug for Member {
    /// Prints the address alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Whether a store can be at this revision, and have a next one.
fn is_revision(revision: i64) -> bool {
    (1..i64::MAX).contains(&revision)
}

/// How long a refusal of the credentials is taken for what the member would say again.
const REFUSED: Duration = Duration::from_secs(1);

/// The largest answer that is decoded; a page that is larger is asked for in smaller ones.
pub(crate) const MAX_ANSWER_BYTES: usize = 32 << 20;
