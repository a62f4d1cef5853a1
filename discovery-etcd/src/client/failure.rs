//! What a failed call means: whose answer it is, and whether another member may do better.

use std::{error::Error as StdError, fmt, time::Duration};

use discovery_core::{Address, Error, ErrorKind};
use etcd_client::Error as ClientError;

/// Why a call to a member gave no usable answer.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) reason: Reason,
    /// The error that callers get.
    pub(crate) error: Error,
    outcome: Outcome,
}

/// How far a request got.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    /// The member answered, or no answer came in time on a connection that may be alive.
    Answered,
    /// The connection failed while it carried the request.
    Lost,
    /// There was no connection to send the request on, so nothing was done.
    Unsent,
    /// This process decided not to send the request.
    Withheld,
}

/// What to do about a [`Failure`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reason {
    /// The member reports that authentication is off, so there are no tokens and none is needed.
    AuthDisabled,
    /// The requested revision is compacted: read the present state.
    Compacted,
    /// The member rejects the user or the password.
    Credentials,
    /// A lease with this id exists: it was granted before.
    LeaseExists,
    /// The lease is gone: grant another.
    LeaseGone,
    /// The member or the connection to it failed, or its answer is not known to be the cluster's.
    Member,
    /// The member is overloaded: asking all others as well would only multiply the load.
    Overloaded,
    /// The cluster refuses; every member would.
    Refused,
    /// The member sent an impossible answer, so nothing is known of what it did.
    Strange,
    /// No answer came in time. Load is a frequent cause, and the request may have been done.
    TimedOut,
    /// The member does not accept the token, or no longer does: authenticate again.
    Token,
    /// The answer exceeds the limit of the decoder: ask for less.
    TooLarge,
}

impl Reason {
    /// Whether this is the cluster's answer, which every member would give.
    pub(crate) fn is_of_cluster(self) -> bool {
        matches!(self, Self::Compacted | Self::LeaseExists | Self::LeaseGone | Self::Refused)
    }

    /// Whether retrying soon or elsewhere adds to a load that may be the cause.
    pub(crate) fn is_load(self) -> bool {
        matches!(self, Self::Overloaded | Self::TimedOut)
    }
}

impl Failure {
    pub(crate) fn new(reason: Reason, error: Error) -> Self {
        Self { reason, error, outcome: Outcome::Answered }
    }

    /// No answer came in time.
    pub(super) fn silent(operation: &'static str, member: &Address, after: Duration) -> Self {
        let message = format!("etcd member {member} did not answer within {after:?}");
        Self::new(Reason::TimedOut, Error::new(ErrorKind::DeadlineExceeded, message).with_operation(operation))
    }

    /// The member ended a stream without giving a reason.
    pub(super) fn ended(operation: &'static str, member: &Address) -> Self {
        let message = format!("etcd member {member} ended the stream");
        Self::new(Reason::Member, Error::new(ErrorKind::Unavailable, message).with_operation(operation))
    }

    /// The member sent an impossible answer.
    pub(super) fn strange(operation: &'static str, member: &Address, what: &'static str) -> Self {
        let error = Error::new(ErrorKind::Unavailable, format!("etcd member {member} sent an invalid answer"));
        Self::new(Reason::Strange, error.with_operation(operation).with_source(what))
    }

    /// The member speaks an older protocol than this crate.
    pub(super) fn too_old(member: &Address, version: &str) -> Self {
        let version = version.escape_debug();
        let message = format!("etcd member {member} runs etcd {version}; required is 3.4 or later");
        let error = Error::new(ErrorKind::Unsupported, message).with_operation("connect to etcd");
        Self { outcome: Outcome::Unsent, ..Self::new(Reason::Member, error) }
    }

    /// The member returned a token, but no call with that token was answered since.
    pub(super) fn token_in_vain(member: &Address) -> Self {
        let message =
            format!("etcd member {member} answered no call with its last token; the next one is not requested yet");
        let error = Error::new(ErrorKind::Unavailable, message).with_operation("authenticate");
        Self { outcome: Outcome::Withheld, ..Self::new(Reason::Token, error) }
    }

    /// The password cannot be read. It could be before, so somebody may be writing the file.
    pub(super) fn no_password(error: Error) -> Self {
        let error = Error::new(ErrorKind::Unavailable, "the password cannot be read").with_source(error);
        Self { outcome: Outcome::Withheld, ..Self::new(Reason::Credentials, error.with_operation("authenticate")) }
    }

    /// Classifies an error of etcd-client. This is the only place that reads them.
    pub(super) fn from_client(error: ClientError, operation: &'static str, member: &Address) -> Self {
        let mut innermost = String::new();
        let mut outcome = if is_answer(&error) { Outcome::Answered } else { Outcome::Lost };
        let (code, text) = match error {
            ClientError::GRpcStatus(status) => {
                // The innermost cause is what rustls or the system reported. tonic's own message
                // may be just "transport error".
                let mut causes: &dyn StdError = &status;
                while let Some(cause) = causes.source() {
                    causes = cause;
                    innermost = cause.to_string();
                }
                (Code(status.code() as i32), status.message().to_owned())
            }
            // etcd answers that the lease has no time left, which etcd-client turns into an error
            // of its own.
            ClientError::LeaseKeepAliveError(text) if text == "lease not found" => {
                (Code::NOT_FOUND, LEASE_NOT_FOUND.to_owned())
            }
            other => (Code::UNAVAILABLE, other.to_string()),
        };
        if is_of_connecting(&text) {
            outcome = Outcome::Unsent;
        }
        let (reason, kind) = classify(code, &text);
        let message = match reason {
            Reason::AuthDisabled => format!("etcd member {member} reports that authentication is not enabled"),
            Reason::Credentials | Reason::Token => "etcd does not accept the credentials".to_owned(),
            Reason::Member => format!("etcd member {member} cannot be reached or cannot answer"),
            Reason::Overloaded => format!("etcd member {member} is overloaded"),
            Reason::Refused if kind == ErrorKind::PermissionDenied => "etcd denied permission".to_owned(),
            Reason::TimedOut => format!("etcd member {member} did not complete the request in time"),
            _ => "etcd refused the request".to_owned(),
        };
        let mut cause = if text.contains(&innermost) { text.clone() } else { format!("{text}: {innermost}") };
        if cause.is_empty() {
            cause = code.to_string();
        }
        // Escaped, because a peer's text may hold anything.
        let cause = cause.escape_debug().to_string();
        let error = Error::new(kind, message).with_operation(operation).with_source(cause);
        Self { outcome, ..Self::new(reason, error) }
    }

    /// Classifies the reason of a canceled watch.
    ///
    /// etcd sends an error's text, with or without its code in front.
    pub(super) fn of_cancel(reason: &str, operation: &'static str) -> Self {
        let text = reason.rsplit_once(" desc = ").map_or(reason, |(_, text)| text);
        let (what, kind) = classify(Code::UNKNOWN, text);
        let error = Error::new(kind, "etcd canceled the watch").with_operation(operation);
        let error = if reason.is_empty() { error } else { error.with_source(reason.escape_debug().to_string()) };
        Self::new(what, error)
    }

    /// The same failure with another reason.
    pub(super) fn with_reason(self, reason: Reason) -> Self {
        Self { reason, ..self }
    }

    /// The same failure, for a further request that is not sent because of it.
    pub(super) fn withheld(self) -> Self {
        Self { outcome: Outcome::Withheld, ..self }
    }

    /// Turns a final failure of one member into a transient one, while the other members cannot be
    /// asked.
    pub(crate) fn of_one_member(self) -> Self {
        let message = "an etcd member refused a request that another one may accept";
        Self { error: Error::new(ErrorKind::Unavailable, message).with_source(self.error), ..self }
    }

    /// The same failure for a request that was not sent.
    #[cfg(test)]
    pub(crate) fn before_sending(self) -> Self {
        Self { outcome: Outcome::Unsent, ..self }
    }

    /// Whether another member may do better.
    pub(crate) fn is_member(&self) -> bool {
        !self.reason.is_of_cluster() && self.reason != Reason::TooLarge
    }

    /// Whether the request may have been done, or may still be.
    pub(crate) fn may_be_done(&self) -> bool {
        matches!(self.reason, Reason::Member | Reason::Strange | Reason::TimedOut) && !self.is_unsent()
    }

    /// Whether nothing was sent.
    pub(crate) fn is_unsent(&self) -> bool {
        matches!(self.outcome, Outcome::Unsent | Outcome::Withheld)
    }

    /// Whether the connection failed and cannot be used any more.
    pub(crate) fn is_of_connection(&self) -> bool {
        matches!(self.outcome, Outcome::Lost | Outcome::Unsent) && self.reason != Reason::TooLarge
    }
}

/// A gRPC status code.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Code(i32);

impl Code {
    const CANCELLED: Self = Self(1);
    const UNKNOWN: Self = Self(2);
    const INVALID_ARGUMENT: Self = Self(3);
    const DEADLINE_EXCEEDED: Self = Self(4);
    const NOT_FOUND: Self = Self(5);
    const PERMISSION_DENIED: Self = Self(7);
    const RESOURCE_EXHAUSTED: Self = Self(8);
    const FAILED_PRECONDITION: Self = Self(9);
    const OUT_OF_RANGE: Self = Self(11);
    const UNAVAILABLE: Self = Self(14);
    const UNAUTHENTICATED: Self = Self(16);
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the status code {}", self.0)
    }
}

/// Decides whose answer a status is.
///
/// A code alone does not show it: a learner, another gRPC server at a reused address, and a proxy
/// in between answer with the same codes as the cluster. So an answer is the cluster's, or about a
/// token, only if the code *and* the whole text are those of etcd's `rpctypes` (identical in 3.4 to
/// 3.7). All other answers are the member's own.
fn classify(code: Code, text: &str) -> (Reason, ErrorKind) {
    let is_known = |(known, is_text, ..): &&(Code, &str, Reason, ErrorKind)| {
        // etcd's own grpc-proxy passes on texts but not codes, and the reasons of canceled watches
        // have no code.
        text == *is_text && (code == *known || code == Code::UNKNOWN)
    };
    if let Some((.., reason, kind)) = KNOWN.iter().find(is_known) {
        return (*reason, *kind);
    }
    match code {
        Code::UNAUTHENTICATED => (Reason::Token, ErrorKind::Unauthenticated),
        Code::DEADLINE_EXCEEDED => (Reason::TimedOut, ErrorKind::DeadlineExceeded),
        // tonic's own timeout.
        Code::CANCELLED if text == "Timeout expired" => (Reason::TimedOut, ErrorKind::DeadlineExceeded),
        Code::UNKNOWN if text == "context deadline exceeded" => (Reason::TimedOut, ErrorKind::Unavailable),
        // tonic's own limit.
        Code::OUT_OF_RANGE if text.starts_with("Error, decoded message length too large") => {
            (Reason::TooLarge, ErrorKind::ResourceExhausted)
        }
        _ => (Reason::Member, ErrorKind::Unavailable),
    }
}

/// etcd's answers that have a meaning here, with their codes and whole texts.
///
/// Other answers are left out because no call of this crate can get them (those about members,
/// users and roles), or because they concern only the member that gives them (no leader, not
/// capable, a learner, a revision that it has not seen).
const KNOWN: [(Code, &str, Reason, ErrorKind); 24] = {
    use ErrorKind as Kind;
    [
        (
            Code::OUT_OF_RANGE,
            "etcdserver: mvcc: required revision has been compacted",
            Reason::Compacted,
            Kind::Unavailable,
        ),
        (Code::NOT_FOUND, LEASE_NOT_FOUND, Reason::LeaseGone, Kind::Unavailable),
        (Code::FAILED_PRECONDITION, "etcdserver: lease already exists", Reason::LeaseExists, Kind::Internal),
        (Code::PERMISSION_DENIED, "etcdserver: permission denied", Reason::Refused, Kind::PermissionDenied),
        (
            Code::RESOURCE_EXHAUSTED,
            "etcdserver: mvcc: database space exceeded",
            Reason::Refused,
            Kind::ResourceExhausted,
        ),
        (Code::INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request", Reason::Refused, Kind::InvalidInput),
        (Code::INVALID_ARGUMENT, "etcdserver: invalid sort option", Reason::Refused, Kind::InvalidInput),
        (Code::INVALID_ARGUMENT, "etcdserver: key is not provided", Reason::Refused, Kind::InvalidInput),
        (Code::INVALID_ARGUMENT, "etcdserver: lease is provided", Reason::Refused, Kind::InvalidInput),
        (Code::INVALID_ARGUMENT, "etcdserver: request is too large", Reason::Refused, Kind::InvalidInput),
        (Code::INVALID_ARGUMENT, "etcdserver: too many operations in txn request", Reason::Refused, Kind::InvalidInput),
        (Code::INVALID_ARGUMENT, "etcdserver: value is provided", Reason::Refused, Kind::InvalidInput),
        (Code::OUT_OF_RANGE, "etcdserver: too large lease TTL", Reason::Refused, Kind::InvalidInput),
        (Code::RESOURCE_EXHAUSTED, "etcdserver: too many requests", Reason::Overloaded, Kind::Unavailable),
        (Code::UNAVAILABLE, "etcdserver: request timed out", Reason::TimedOut, Kind::Unavailable),
        (
            Code::UNAVAILABLE,
            "etcdserver: request timed out, possibly due to connection lost",
            Reason::TimedOut,
            Kind::Unavailable,
        ),
        (
            Code::UNAVAILABLE,
            "etcdserver: request timed out, possibly due to previous leader failure",
            Reason::TimedOut,
            Kind::Unavailable,
        ),
        (
            Code::UNAVAILABLE,
            "etcdserver: request timed out, waiting for the applied index took too long",
            Reason::TimedOut,
            Kind::Unavailable,
        ),
        (
            Code::FAILED_PRECONDITION,
            "etcdserver: authentication is not enabled",
            Reason::AuthDisabled,
            Kind::Unauthenticated,
        ),
        (
            Code::INVALID_ARGUMENT,
            "etcdserver: authentication failed, invalid user ID or password",
            Reason::Credentials,
            Kind::Unauthenticated,
        ),
        (Code::INVALID_ARGUMENT, "etcdserver: revision of auth store is old", Reason::Token, Kind::Unauthenticated),
        (Code::INVALID_ARGUMENT, "etcdserver: user name is empty", Reason::Token, Kind::Unauthenticated),
        (Code::FAILED_PRECONDITION, "etcdserver: user name not found", Reason::Token, Kind::Unauthenticated),
        (Code::UNAUTHENTICATED, "etcdserver: invalid auth token", Reason::Token, Kind::Unauthenticated),
    ]
};

/// Whether the member answered. Otherwise tonic or hyper report that the connection failed.
pub(super) fn is_answer(error: &ClientError) -> bool {
    match error {
        // A status sent by a peer has no source.
        ClientError::GRpcStatus(status) => status.source().is_none() && !is_of_connecting(status.message()),
        ClientError::LeaseKeepAliveError(_) => true,
        _ => false,
    }
}

/// Whether the call failed before anything was sent, judged by tonic's texts; `false` if in doubt.
fn is_of_connecting(text: &str) -> bool {
    // The second text is sent if the runtime that the client was made in is gone.
    text.starts_with("tcp connect error") || text.starts_with("Service was not ready")
}

const LEASE_NOT_FOUND: &str = "etcdserver: requested lease not found";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::Cluster,
        config::{EtcdConfig, Settings},
    };

    /// All answers in `rpctypes/error.go` of etcd 3.4.0 to 3.7.1, and how this crate classifies
    /// them. `M` is the member's own.
    const RPCTYPES: &str = "
        Canceled|etcdserver: request canceled|M
        Canceled|etcdserver: watch canceled|M
        DataLoss|etcdserver: corrupt cluster|M
        DeadlineExceeded|etcdserver: context deadline exceeded|TimedOut
        FailedPrecondition|etcdserver: Peer URLs already exists|M
        FailedPrecondition|etcdserver: authentication is not enabled|AuthDisabled
        FailedPrecondition|etcdserver: bad leader transferee|M
        FailedPrecondition|etcdserver: can only promote a learner member|M
        FailedPrecondition|etcdserver: can only promote a learner member which is in sync with leader|M
        FailedPrecondition|etcdserver: cluster ID mismatch|M
        FailedPrecondition|etcdserver: cluster has a downgrade job in progress|M
        FailedPrecondition|etcdserver: cluster version not found during downgrade|M
        FailedPrecondition|etcdserver: lease already exists|LeaseExists
        FailedPrecondition|etcdserver: member ID already exist|M
        FailedPrecondition|etcdserver: no inflight downgrade job|M
        FailedPrecondition|etcdserver: not capable|M
        FailedPrecondition|etcdserver: not leader|M
        FailedPrecondition|etcdserver: permission is not granted to the role|M
        FailedPrecondition|etcdserver: re-configuration failed due to not enough started members|M
        FailedPrecondition|etcdserver: role is not granted to the user|M
        FailedPrecondition|etcdserver: role name already exists|M
        FailedPrecondition|etcdserver: role name not found|M
        FailedPrecondition|etcdserver: root user does not exist|M
        FailedPrecondition|etcdserver: root user does not have root role|M
        FailedPrecondition|etcdserver: rpc not supported for learner|M
        FailedPrecondition|etcdserver: too many learner members in cluster|M
        FailedPrecondition|etcdserver: user name already exists|M
        FailedPrecondition|etcdserver: user name not found|Token
        InvalidArgument|etcdserver: authentication failed, invalid user ID or password|Credentials
        InvalidArgument|etcdserver: duplicate key given in txn request|Refused
        InvalidArgument|etcdserver: given member URLs are invalid|M
        InvalidArgument|etcdserver: invalid auth management|M
        InvalidArgument|etcdserver: invalid client api version|M
        InvalidArgument|etcdserver: invalid downgrade target version|M
        InvalidArgument|etcdserver: invalid sort option|Refused
        InvalidArgument|etcdserver: key is not provided|Refused
        InvalidArgument|etcdserver: key not found|M
        InvalidArgument|etcdserver: lease is provided|Refused
        InvalidArgument|etcdserver: permission not given|M
        InvalidArgument|etcdserver: request is too large|Refused
        InvalidArgument|etcdserver: revision of auth store is old|Token
        InvalidArgument|etcdserver: role name is empty|M
        InvalidArgument|etcdserver: too many operations in txn request|Refused
        InvalidArgument|etcdserver: user name is empty|Token
        InvalidArgument|etcdserver: value is provided|Refused
        InvalidArgument|etcdserver: wrong downgrade target version format|M
        NotFound|etcdserver: member not found|M
        NotFound|etcdserver: requested lease not found|LeaseGone
        OutOfRange|etcdserver: mvcc: required revision has been compacted|Compacted
        OutOfRange|etcdserver: mvcc: required revision is a future revision|M
        OutOfRange|etcdserver: too large lease TTL|Refused
        PermissionDenied|etcdserver: permission denied|Refused
        ResourceExhausted|etcdserver: mvcc: database space exceeded|Refused
        ResourceExhausted|etcdserver: too many requests|Overloaded
        Unauthenticated|etcdserver: invalid auth token|Token
        Unavailable|etcdserver: cluster version not found during downgrade|M
        Unavailable|etcdserver: leader changed|M
        Unavailable|etcdserver: no leader|M
        Unavailable|etcdserver: not capable|M
        Unavailable|etcdserver: request timed out|TimedOut
        Unavailable|etcdserver: request timed out, possibly due to connection lost|TimedOut
        Unavailable|etcdserver: request timed out, possibly due to previous leader failure|TimedOut
        Unavailable|etcdserver: request timed out, waiting for the applied index took too long|TimedOut
        Unavailable|etcdserver: rpc not supported for learner|M
        Unavailable|etcdserver: server stopped|M
        Unavailable|etcdserver: unhealthy cluster|M";

    const CODES: [&str; 17] = [
        "Ok",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];

    #[test]
    fn an_answer_is_the_clusters_only_with_its_code_and_its_whole_text() {
        let rows = RPCTYPES.split('\n').map(str::trim).filter(|row| !row.is_empty());
        let mut known = 0;
        for row in rows {
            let [code, text, expected] = row.split('|').collect::<Vec<_>>()[..] else { panic!("{row}") };
            let expected = if expected == "M" { "Member" } else { expected };
            known += usize::from(expected != "Member" && code != "DeadlineExceeded");
            let number = CODES.iter().position(|name| *name == code).unwrap();
            let read = |number: usize, text: &str| {
                let (reason, kind) = classify(Code(i32::try_from(number).unwrap()), text);
                (format!("{reason:?}"), reason, kind)
            };
            assert_eq!(read(number, text).0, expected, "{row}");
            // Similar texts, and other codes, are the member's.
            for similar in [format!("{text} "), format!("proxy: {text}"), text[1..].to_owned(), text.to_uppercase()] {
                for number in 0..CODES.len() {
                    assert!(!read(number, &similar).1.is_of_cluster(), "{number} {similar}");
                }
            }
            for other in (0..CODES.len()).filter(|other| *other != number && CODES[*other] != "Unknown") {
                assert!(!read(other, text).1.is_of_cluster(), "{other} {text}");
            }
        }
        assert_eq!(known, KNOWN.len(), "each known answer is one of etcd's");
        // A member's own answer is retryable, whatever it looks like: the status of a service mesh,
        // or a gRPC server that is not etcd.
        for number in 0..CODES.len() {
            for text in ["", "rpc not supported for learner", "RBAC: access denied", "permission denied"] {
                let (reason, kind) = classify(Code(i32::try_from(number).unwrap()), text);
                assert!(!reason.is_of_cluster(), "{number} {text}");
                let is_about_token = number == 16;
                assert_eq!(Error::new(kind, "").is_retryable(), !is_about_token, "{number} {text}");
            }
        }
    }

    #[test]
    fn measured_failures_are_classified() {
        use ErrorKind as Kind;
        for (code, text, reason, kind) in [
            (14, "tcp connect error", Reason::Member, Kind::Unavailable),
            (1, "Timeout expired", Reason::TimedOut, Kind::DeadlineExceeded),
            // The connection ended before the request was sent on it.
            (1, "operation was canceled", Reason::Member, Kind::Unavailable),
            (2, "h2 protocol error: error reading a body from connection", Reason::Member, Kind::Unavailable),
            (2, "transport error", Reason::Member, Kind::Unavailable),
            (2, "context deadline exceeded", Reason::TimedOut, Kind::Unavailable),
            (12, "unknown service etcdserverpb.KV", Reason::Member, Kind::Unavailable),
            // As passed on by etcd's grpc-proxy.
            (2, "etcdserver: requested lease not found", Reason::LeaseGone, Kind::Unavailable),
            (2, "etcdserver: permission denied", Reason::Refused, Kind::PermissionDenied),
            (2, "etcdserver: invalid auth token", Reason::Token, Kind::Unauthenticated),
            (
                11,
                "Error, decoded message length too large: found 5 bytes, the limit is: 4 bytes",
                Reason::TooLarge,
                Kind::ResourceExhausted,
            ),
        ] {
            assert_eq!(classify(Code(code), text), (reason, kind), "{code} {text}");
        }
    }

    #[test]
    fn cancel_reasons_are_classified_with_and_without_a_code() {
        for (reason, expected) in [
            ("", Reason::Member),
            ("etcdserver: permission denied", Reason::Refused),
            ("rpc error: code = PermissionDenied desc = etcdserver: permission denied", Reason::Refused),
            ("rpc error: code = Unauthenticated desc = etcdserver: invalid auth token", Reason::Token),
            ("rpc error: code = InvalidArgument desc = etcdserver: user name is empty", Reason::Token),
            ("etcdserver: mvcc: required revision is a future revision", Reason::Member),
            ("permission denied", Reason::Member),
        ] {
            assert_eq!(Failure::of_cancel(reason, "watch").reason, expected, "{reason}");
        }
    }

    #[tokio::test]
    async fn a_request_without_a_connection_was_not_sent() {
        let settings = Settings::check(&EtcdConfig::new(["127.0.0.1:1"])).unwrap();
        let cluster = Cluster::new(&settings, tokio::runtime::Handle::current()).unwrap();
        let put = cluster.run(|member| async move { member.put(b"k".to_vec(), b"v".to_vec(), 7, 0).await }).await;
        let failure = put.unwrap_err();
        assert!(failure.is_member() && !failure.may_be_done(), "{}", failure.error.report());
        assert!(Failure::ended("put", &"127.0.0.1:1".parse().unwrap()).may_be_done());
    }

    #[test]
    fn a_lease_that_is_gone_is_recognized_by_the_clients_text() {
        let member = "127.0.0.1:2379".parse().unwrap();
        let error = ClientError::LeaseKeepAliveError("lease not found".to_owned());
        assert_eq!(Failure::from_client(error, "renew", &member).reason, Reason::LeaseGone);
    }
}
