use std::{error::Error as StdError, time::Duration};

use discovery_core::{Address, Error, ErrorKind};
use etcd_client::Error as ClientError;

/// Why a call to a member gave no answer that can be used.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) reason: Reason,
    /// What callers are told.
    pub(crate) error: Error,
    /// The member was not even connected to, so that nothing was done.
    pub(crate) unsent: bool,
}

/// What to do about a [`Failure`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reason {
    /// The revision asked for is compacted: read the present state.
    Compacted,
    /// A lease of this id exists: the grant was done before.
    LeaseExists,
    /// The lease is gone: grant another.
    LeaseGone,
    /// The member, or the way to it, failed; the call may have been done. Another member may do better.
    Member,
    /// The cluster answered, and another member would answer the same.
    Refused,
    /// The member answered what makes no sense, so that nothing is known of what it did. Another member may do better.
    Strange,
    /// The token is not accepted (any more): authenticate anew.
    Token,
    /// The answer is larger than what is decoded: ask for less.
    TooLarge,
}

impl Failure {
    pub(crate) fn new(reason: Reason, error: Error) -> Self {
        Self { reason, error, unsent: false }
    }

    /// No answer in time.
    pub(super) fn silent(operation: &'static str, member: &Address, after: Duration) -> Self {
        let message = format!("etcd member {member} gave no answer within {after:?}");
        Self::new(Reason::Member, Error::new(ErrorKind::DeadlineExceeded, message).during(operation))
    }

    /// A stream that the member ended without a reason.
    pub(super) fn ended(operation: &'static str, member: &Address) -> Self {
        let message = format!("etcd member {member} ended the stream");
        Self::new(Reason::Member, Error::new(ErrorKind::Unavailable, message).during(operation))
    }

    /// An answer that cannot be.
    pub(super) fn strange(operation: &'static str, member: &Address, what: &'static str) -> Self {
        let error = Error::new(ErrorKind::Unavailable, format!("etcd member {member} answered without sense"));
        Self::new(Reason::Strange, error.during(operation).because(what))
    }

    /// The one place where etcd-client's errors are read.
    pub(super) fn from_client(error: ClientError, operation: &'static str, member: &Address) -> Self {
        let mut innermost = String::new();
        let (code, text) = match error {
            ClientError::GRpcStatus(status) => {
                // What rustls or the system said; tonic's own message may be no more than "transport error".
                let mut causes: &dyn StdError = &status;
                while let Some(cause) = causes.source() {
                    causes = cause;
                    innermost = cause.to_string();
                }
                (status.code() as i32, status.message().to_owned())
            }
            // The only thing that etcd-client reports so.
            ClientError::LeaseKeepAliveError(text) if text == "lease not found" => (NOT_FOUND, LEASE_GONE.to_owned()),
            ClientError::InvalidArgs(text) => (INVALID_ARGUMENT, text),
            other => (UNAVAILABLE, other.to_string()),
        };
        let (reason, kind) = classify(code, &text);
        let unsent = is_of_connecting(code, &text);
        let message = match reason {
            Reason::Member => format!("etcd member {member} cannot be reached or cannot answer"),
            Reason::Refused if kind == ErrorKind::PermissionDenied => "etcd denies the permission".to_owned(),
            Reason::Token => "etcd does not accept the credentials".to_owned(),
            _ => "etcd refused the request".to_owned(),
        };
        let text = if text.contains(&innermost) { text } else { format!("{text}: {innermost}") };
        // Peers' text may hold anything.
        let cause = text.escape_debug().to_string();
        Self { unsent, ..Self::new(reason, Error::new(kind, message).during(operation).because(cause)) }
    }

    /// Whether another member may do better.
    pub(crate) fn is_member(&self) -> bool {
        matches!(self.reason, Reason::Member | Reason::Strange)
    }

    /// Whether what was asked may have been done, or may still be.
    pub(crate) fn may_be_done(&self) -> bool {
        self.is_member() && !self.unsent
    }
}

/// Status codes alone do not tell what happened: a request timeout is Cancelled, a broken stream Unknown, a lost token
/// sometimes InvalidArgument. So the texts of etcd's `rpctypes` are read where they decide.
fn classify(code: i32, text: &str) -> (Reason, ErrorKind) {
    match code {
        NOT_FOUND if text.contains("lease not found") => (Reason::LeaseGone, ErrorKind::Unavailable),
        FAILED_PRECONDITION if text.contains("lease already exists") => (Reason::LeaseExists, ErrorKind::Internal),
        OUT_OF_RANGE if text.contains("compacted") => (Reason::Compacted, ErrorKind::Unavailable),
        OUT_OF_RANGE if text.contains("message length too large") => (Reason::TooLarge, ErrorKind::ResourceExhausted),
        // A member that lags or was wiped; reading anew shows which.
        OUT_OF_RANGE => (Reason::Member, ErrorKind::Unavailable),
        UNAUTHENTICATED => (Reason::Token, ErrorKind::Unauthenticated),
        INVALID_ARGUMENT | UNKNOWN | FAILED_PRECONDITION if is_about_token(text) => {
            (Reason::Token, ErrorKind::Unauthenticated)
        }
        PERMISSION_DENIED => (Reason::Refused, ErrorKind::PermissionDenied),
        INVALID_ARGUMENT => (Reason::Refused, ErrorKind::InvalidInput),
        RESOURCE_EXHAUSTED => (Reason::Refused, ErrorKind::ResourceExhausted),
        UNIMPLEMENTED => (Reason::Refused, ErrorKind::Unsupported),
        NOT_FOUND | ALREADY_EXISTS | FAILED_PRECONDITION => (Reason::Refused, ErrorKind::Internal),
        DEADLINE_EXCEEDED => (Reason::Member, ErrorKind::DeadlineExceeded),
        CANCELLED if text.contains("Timeout") => (Reason::Member, ErrorKind::DeadlineExceeded),
        _ => (Reason::Member, ErrorKind::Unavailable),
    }
}

/// Whether it failed while connecting: refused, or not in time. Where it is not certain, it is not said.
fn is_of_connecting(code: i32, text: &str) -> bool {
    code == UNAVAILABLE && text.starts_with("tcp connect error")
}

/// Whether an answer, or the reason of a canceled watch, says that authenticating anew may help.
pub(super) fn is_about_token(text: &str) -> bool {
    [
        "invalid auth token",
        "revision of auth store is old",
        "user name is empty",
        "user name not found",
        "invalid user ID or password",
        "authentication is not enabled",
    ]
    .iter()
    .any(|known| text.contains(known))
}

/// The failure that the reason of a canceled watch stands for.
pub(super) fn of_cancel(reason: &str, operation: &'static str) -> Failure {
    let (what, kind) = if is_about_token(reason) {
        (Reason::Token, ErrorKind::Unauthenticated)
    } else if reason.contains("permission denied") {
        (Reason::Refused, ErrorKind::PermissionDenied)
    } else {
        (Reason::Member, ErrorKind::Unavailable)
    };
    let error = Error::new(kind, "etcd canceled the watch").during(operation);
    let error = if reason.is_empty() { error } else { error.because(reason.escape_debug().to_string()) };
    Failure::new(what, error)
}

const LEASE_GONE: &str = "requested lease not found";

const CANCELLED: i32 = 1;
const UNKNOWN: i32 = 2;
const INVALID_ARGUMENT: i32 = 3;
const DEADLINE_EXCEEDED: i32 = 4;
const NOT_FOUND: i32 = 5;
const ALREADY_EXISTS: i32 = 6;
const PERMISSION_DENIED: i32 = 7;
const RESOURCE_EXHAUSTED: i32 = 8;
const FAILED_PRECONDITION: i32 = 9;
const OUT_OF_RANGE: i32 = 11;
const UNIMPLEMENTED: i32 = 12;
const UNAVAILABLE: i32 = 14;
const UNAUTHENTICATED: i32 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::Cluster,
        config::{EtcdConfig, Settings},
    };

    #[test]
    fn failures_as_measured_are_read_right() {
        use ErrorKind as Kind;
        for (code, text, reason, kind) in [
            (14, "tcp connect error", Reason::Member, Kind::Unavailable),
            (1, "Timeout expired", Reason::Member, Kind::DeadlineExceeded),
            // A connection that ended before the request was on it.
            (1, "operation was canceled", Reason::Member, Kind::Unavailable),
            (2, "h2 protocol error: error reading a body from connection", Reason::Member, Kind::Unavailable),
            (2, "transport error", Reason::Member, Kind::Unavailable),
            (2, "context deadline exceeded", Reason::Member, Kind::Unavailable),
            (14, "etcdserver: no leader", Reason::Member, Kind::Unavailable),
            (5, "etcdserver: requested lease not found", Reason::LeaseGone, Kind::Unavailable),
            (9, "etcdserver: lease already exists", Reason::LeaseExists, Kind::Internal),
            (11, "etcdserver: mvcc: required revision has been compacted", Reason::Compacted, Kind::Unavailable),
            (11, "etcdserver: mvcc: required revision is a future revision", Reason::Member, Kind::Unavailable),
            (
                11,
                "Error, decoded message length too large: found 5 bytes, the limit is: 4 bytes",
                Reason::TooLarge,
                Kind::ResourceExhausted,
            ),
            (16, "etcdserver: invalid auth token", Reason::Token, Kind::Unauthenticated),
            (3, "etcdserver: revision of auth store is old", Reason::Token, Kind::Unauthenticated),
            (3, "etcdserver: user name is empty", Reason::Token, Kind::Unauthenticated),
            (3, "etcdserver: authentication failed, invalid user ID or password", Reason::Token, Kind::Unauthenticated),
            (7, "etcdserver: permission denied", Reason::Refused, Kind::PermissionDenied),
            (8, "etcdserver: mvcc: database space exceeded", Reason::Refused, Kind::ResourceExhausted),
            (3, "etcdserver: request is too large", Reason::Refused, Kind::InvalidInput),
        ] {
            assert_eq!(classify(code, text), (reason, kind), "{code} {text}");
        }
    }

    #[tokio::test]
    async fn what_was_refused_a_connection_was_not_sent() {
        let settings = Settings::check(&EtcdConfig::new(["127.0.0.1:1"])).unwrap();
        let cluster = Cluster::new(&settings).unwrap();
        let put = cluster.run(|member| async move { member.put(b"k".to_vec(), b"v".to_vec(), 7, 0).await }).await;
        let failure = put.unwrap_err();
        assert!(failure.is_member() && !failure.may_be_done(), "{}", failure.error.report());
        assert!(Failure::ended("put", &"127.0.0.1:1".parse().unwrap()).may_be_done());
    }

    #[test]
    fn a_lease_that_is_gone_is_known_by_the_text_of_the_client() {
        let member = "127.0.0.1:2379".parse().unwrap();
        let error = ClientError::LeaseKeepAliveError("lease not found".to_owned());
        assert_eq!(Failure::from_client(error, "renew", &member).reason, Reason::LeaseGone);
    }
}
