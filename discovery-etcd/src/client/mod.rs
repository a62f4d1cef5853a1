//! One member of the cluster: every call with its own timeout, in our own types.
//!
//! Nothing outside this folder names etcd-client. One client never holds two members, because its
//! balancer keeps sending a share of the calls to a dead one. [`cluster`](crate::cluster) chooses
//! the member.
//!
//! A call asks the [`Member`] for its [`Connection`]. If there is none, [`connect`](connect) makes
//! one: it checks the member's version, and [`auth`] gets a token for it. [`failure`] classifies
//! errors.

mod auth;
mod connect;
mod connection;
mod dial;
mod failure;
mod kv;
mod lease;
mod members;
#[cfg(feature = "tls")]
mod tls;
mod watch;

use std::{
    fmt,
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::Duration,
};

use discovery_core::Address;
use etcd_client::Client;
use tokio::{sync::Mutex, task::AbortHandle, time::timeout};

use connect::Slot;
use connection::{Connection, Silence, Use};
pub(crate) use dial::Dial;
pub(crate) use failure::{Failure, Reason};
pub(crate) use kv::{Asked, Delete, KeyReading, KeyValue, Page, Put, RangeSummary, Reading};
pub(crate) use lease::Renewals;
pub(crate) use members::ListedMembers;
pub(crate) use watch::{
    Canceled, Event, Message, StreamConnection, WatchAnswers, WatchRequest, WatchRequests, WatchStream,
};

/// One member, connected to when it is first asked.
pub(crate) struct Member {
    address: Address,
    dial: Arc<Dial>,
    request_timeout: Duration,
    /// Locked while connecting.
    slot: Arc<Mutex<Slot>>,
    /// The task that connects, which ends with the member.
    connecting: StdMutex<Option<AbortHandle>>,
}

impl Member {
    pub(crate) fn new(address: Address, dial: Arc<Dial>, request_timeout: Duration) -> Self {
        Self { address, dial, request_timeout, slot: Arc::default(), connecting: StdMutex::default() }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Runs a call within the timeout of a request, connecting included.
    async fn call<T, F>(&self, operation: &'static str, call: impl FnOnce(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.open(operation, self.request_timeout, Silence::Call, call).await.map(|(answer, _)| answer)
    }

    /// Runs a call, and returns its use of the connection, for later messages on a stream.
    ///
    /// A connection that failed gets no further calls: a client does not recover by itself once its
    /// token, or the runtime that it was made in, is gone. Streams that are open on it continue.
    async fn open<T, F>(
        &self,
        operation: &'static str,
        limit: Duration,
        silence: Silence,
        call: impl FnOnce(Client) -> F,
    ) -> Result<(T, Use), Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let limit = limit.min(self.request_timeout);
        let mut begun: Option<Use> = None;
        let work = async {
            let connection = self.connection().await?;
            let used = begun.insert(connection.begin()).clone();
            // Boxed: the future of a call takes many kB, which its caller would hold as long as it
            // lives.
            let answered = Box::pin(call(connection.client())).await;
            used.answered(&answered);
            let answer = answered.map_err(|error| Failure::from_client(error, operation, &self.address))?;
            Ok((answer, used))
        };
        let result = timeout(limit, work).await;
        match (result, begun) {
            (Ok(Ok(done)), _) => Ok(done),
            (Ok(Err(failure)), used) => {
                if let Some(used) = used {
                    used.note(&failure);
                    self.dial.auth.failed(&self.address, &failure);
                }
                Err(failure)
            }
            (Err(_), used) => {
                if let Some(used) = used {
                    used.silent(silence);
                }
                Err(Failure::silent(operation, &self.address, limit))
            }
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let connecting = self.connecting.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(connecting) = connecting.take() {
            connecting.abort();
        }
    }
}

impl fmt::Debug for Member {
    /// Prints only the address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Whether a store can be at this revision and still have a next one.
fn is_revision(revision: i64) -> bool {
    (1..i64::MAX).contains(&revision)
}

/// The largest answer that is decoded. A page that is larger is requested again in smaller ones.
pub(crate) const MAX_ANSWER_BYTES: usize = 32 << 20;
