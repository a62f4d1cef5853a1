use h2::Reason;
use http::StatusCode;
use tonic::{Code, Status};

use crate::connection::end::h2_error;

/// What is known of a request whose sending failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// It may have been processed.
    Ambiguous,
    /// The peer says that it was not processed.
    Refused,
    /// Its message never left this process; its headers may have, if they are all there is.
    Unsent,
}

/// Looks for a proof that a request was not processed.
///
/// - GOAWAY from the peer: h2 fails only streams above the last one that the peer processed.
/// - REFUSED_STREAM from the peer says so itself.
/// - A user error of h2 means that it dropped the request while it waited for a place, its body
///   never polled.
///
/// That hyper handed the message back is a proof too; the caller has seen that before. All else is
/// ambiguous, also hyper's user error: it may mean that a request was dropped which waited for its
/// place, but just as well that one was which had been sent, with its runtime.
pub(crate) fn outcome(error: &hyper::Error) -> Outcome {
    match h2_error(error) {
        Some(error) if error.is_remote() && error.is_go_away() => Outcome::Refused,
        Some(error) if error.is_remote() && error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM) => {
            Outcome::Refused
        }
        Some(error) if error.is_reset() || error.is_go_away() || error.is_io() => Outcome::Ambiguous,
        Some(error) if is_user(error) => Outcome::Unsent,
        _ => Outcome::Ambiguous,
    }
}

/// The code and text for a call or a response body that the connection failed, by the HTTP/2
/// mapping of the gRPC protocol, and whether it was the peer's or the connection's doing.
///
/// An own table, since tonic's depends on its features.
pub(crate) fn from_connection(error: &hyper::Error) -> (Code, &'static str, bool) {
    let Some(error) = h2_error(error).filter(|error| error.is_reset() || error.is_go_away()) else {
        return (Code::Unavailable, "the connection was lost", true);
    };
    if error.is_go_away() {
        return match error.is_remote() {
            true => (Code::Unavailable, "the peer ended the connection", true),
            // h2's guards, which are settings of ours; all else is what the peer did wrong.
            false if error.reason() == Some(Reason::ENHANCE_YOUR_CALM) => CUT,
            false => (Code::Unavailable, "the peer broke HTTP/2, which ended the connection", true),
        };
    }
    match (error.is_remote(), error.reason()) {
        // h2 has one error for both; grpc-go has this code for both.
        (false, Some(Reason::PROTOCOL_ERROR)) if error.is_library() => {
            (Code::Internal, "the response has headers above the limit (max_header_list_size), or breaks HTTP/2", false)
        }
        (false, _) if error.is_library() => (Code::Internal, "the response breaks HTTP/2", false),
        (false, _) => (Code::Internal, "the call was reset on this side, as when its request's body fails", false),
        (true, Some(Reason::CANCEL)) => (Code::Cancelled, "the peer cancelled the call", true),
        (true, Some(Reason::ENHANCE_YOUR_CALM)) => {
            (Code::ResourceExhausted, "the peer asked for less (ENHANCE_YOUR_CALM)", true)
        }
        (true, Some(Reason::INADEQUATE_SECURITY)) => {
            (Code::PermissionDenied, "the peer asks for better transport security", true)
        }
        (true, Some(Reason::REFUSED_STREAM)) => (Code::Unavailable, "the peer refused the call", true),
        (true, _) => (Code::Internal, "the peer reset the call", true),
    }
}

/// What an answer without `grpc-status` says that comes from a proxy, or from a server that is
/// about to go, by the mapping of the gRPC protocol; nothing where its HTTP status is 200.
pub(crate) fn from_http(status: StatusCode) -> Option<Status> {
    let code = match status {
        StatusCode::OK => return None,
        StatusCode::BAD_REQUEST => Code::Internal,
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND => Code::Unimplemented,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Code::Unavailable,
        _ => Code::Unknown,
    };
    Some(Status::new(code, format!("an answer without grpc-status, of HTTP status {}", status.as_u16())))
}

/// The status that the deadline ends a call with.
pub(crate) fn deadline_exceeded() -> Status {
    Status::deadline_exceeded("the deadline of the call passed")
}

/// The status where an attempt took too long, and the call is not repeated.
pub(crate) fn attempt_too_long() -> Status {
    Status::deadline_exceeded("no answer came within the time of one attempt")
}

/// What a call ends with whose connection this side ended.
pub(crate) const CUT: (Code, &str, bool) =
    (Code::Unavailable, "this side ended the connection, as at the drain limit", false);

/// h2 names its user errors by this alone: no remote peer, no io, no library.
fn is_user(error: &h2::Error) -> bool {
    !error.is_remote() && !error.is_library() && !error.is_io() && error.reason().is_none()
}
