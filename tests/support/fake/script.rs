use std::time::Duration;

use etcd_client::proto::{
    PbLeaseGrantResponse, PbLeaseKeepAliveResponse, PbLeaseTimeToLiveResponse, PbRangeRequest, PbRangeResponse,
    PbTxnRequest, PbTxnResponse, PbWatchResponse,
};
use tonic::Status;

/// A kind of request to the server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "tests name them")]
pub enum Method {
    /// Check a password. Everybody gets the same token.
    Authenticate,
    /// Count a range or list its keys: a read without values.
    Count,
    /// Grant a lease.
    Grant,
    /// Open a renewal stream.
    KeepAlive,
    /// Read a range at a past revision: a later page.
    Page,
    /// Read a range at the current revision.
    Range,
    /// Revoke a lease.
    Revoke,
    /// Return the server's version.
    Status,
    /// Return a lease's remaining time.
    TimeToLive,
    /// Open a watch stream.
    Watch,
    /// Put, delete, or both in a transaction.
    Write,
}

/// The fate of a call before it is executed.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_enums, reason = "tests name them")]
pub enum Before {
    /// It fails.
    Fail(Status),
    /// It is neither executed nor answered.
    Never,
    /// It is served.
    Serve,
    /// It is served after this time.
    Wait(Duration),
}

impl Method {
    /// Returns whether it opens a stream.
    pub fn is_stream(self) -> bool {
        matches!(self, Self::KeepAlive | Self::Watch)
    }
}

/// The scripts in force. Without any, the server is honest.
pub(super) struct Scripts {
    pub(super) version: String,
    pub(super) before: Option<Box<dyn FnMut(Method) -> Before + Send>>,
    pub(super) range: Option<Edit<PbRangeRequest, PbRangeResponse>>,
    pub(super) txn: Option<Edit<PbTxnRequest, PbTxnResponse>>,
    pub(super) grant: Option<Edit<(), PbLeaseGrantResponse>>,
    pub(super) time_to_live: Option<Edit<(), PbLeaseTimeToLiveResponse>>,
    pub(super) renewal: Option<Spread<PbLeaseKeepAliveResponse>>,
    pub(super) watch: Option<Spread<PbWatchResponse>>,
}

impl Default for Scripts {
    fn default() -> Self {
        Self {
            version: "3.5.16".to_owned(),
            before: None,
            range: None,
            txn: None,
            grant: None,
            time_to_live: None,
            renewal: None,
            watch: None,
        }
    }
}

/// Maps a request and its honest answer to the answer that is sent.
pub(super) type Edit<Q, A> = Box<dyn FnMut(&Q, A) -> Result<A, Status> + Send>;
/// Maps an honest answer on a stream to the answers that are sent.
pub(super) type Spread<A> = Box<dyn FnMut(A) -> Vec<Result<A, Status>> + Send>;

pub(super) fn edited<Q, A>(edit: &mut Option<Edit<Q, A>>, question: &Q, answer: A) -> Result<A, Status> {
    match edit {
        Some(edit) => edit(question, answer),
        None => Ok(answer),
    }
}

pub(super) fn spread<A>(edit: &mut Option<Spread<A>>, answer: A) -> Vec<Result<A, Status>> {
    match edit {
        Some(edit) => edit(answer),
        None => vec![Ok(answer)],
    }
}
