use std::time::Duration;

use etcd_client::proto::{
    PbLeaseGrantResponse, PbLeaseKeepAliveResponse, PbLeaseTimeToLiveResponse, PbRangeRequest, PbRangeResponse,
    PbTxnRequest, PbTxnResponse, PbWatchResponse,
};
use tonic::Status;

/// What the server is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "tests name them")]
pub enum Method {
    /// To check a password; it gives everybody the same token.
    Authenticate,
    /// To count a range or name its keys: a read without values.
    Count,
    /// To grant a lease.
    Grant,
    /// To open a stream of renewals.
    KeepAlive,
    /// To read a range as it was at a revision: a later page.
    Page,
    /// To read a range as it is.
    Range,
    /// To end a lease.
    Revoke,
    /// Which version it is of.
    Status,
    /// How long a lease has.
    TimeToLive,
    /// To open a stream of watches.
    Watch,
    /// To put, delete, or both under conditions.
    Write,
}

/// What becomes of a call before anything is done.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_enums, reason = "tests name them")]
pub enum Before {
    /// It fails.
    Fail(Status),
    /// It is not done and never answered.
    Never,
    /// It is served.
    Serve,
    /// It is served after this time.
    Wait(Duration),
}

impl Method {
    /// Whether it opens a stream.
    pub fn is_stream(self) -> bool {
        matches!(self, Self::KeepAlive | Self::Watch)
    }
}

/// The scripts in force; a server without any is honest.
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

/// Makes of a question and its honest answer what is answered.
pub(super) type Edit<Q, A> = Box<dyn FnMut(&Q, A) -> Result<A, Status> + Send>;
/// Makes of an honest answer on a stream what is sent.
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
