//! Classifies how a request failed: whether it may have been processed, and the gRPC status that
//! its caller gets.

use h2::Reason;
use http::StatusCode;
use tonic::{Code, Status};

use crate::connection::end::h2_error;

/// What is known about a request that failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// It may have been processed.
    Ambiguous,
    /// The peer states that it was not processed.
    Refused,
    /// Its message never left this process; its headers may have been sent, if there is no message.
    Unsent,
}

/// Looks for proof that a request was not processed.
///
/// - GOAWAY from the peer: h2 fails only streams above the last one that the peer processed.
/// - REFUSED_STREAM from the peer: it states so itself.
/// - A user error of h2: h2 dropped the request while it waited for a free stream, and never polled
///   its body.
///
/// A message that hyper handed back is proof too; the caller has checked that before. Anything else
/// is ambiguous, including hyper's user error: it may mean that a queued request was dropped, but
/// equally that a sent one was dropped when its runtime shut down.
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

/// Returns the code and message for a call or a response body that failed with its connection, by
/// the HTTP/2 mapping of the gRPC protocol, and whether the peer or the network caused it.
///
/// tonic's own table depends on its features, so this is a separate one.
pub(crate) fn from_connection(error: &hyper::Error) -> (Code, &'static str, bool) {
    let Some(error) = h2_error(error).filter(|error| error.is_reset() || error.is_go_away()) else {
        return (Code::Unavailable, "the connection was lost", true);
    };
    if error.is_go_away() {
        return match error.is_remote() {
            true => (Code::Unavailable, "the peer ended the connection", true),
            // These are h2's guards, whose limits this side sets; anything else is a violation by
            // the peer.
            false if error.reason() == Some(Reason::ENHANCE_YOUR_CALM) => CUT,
            false => (Code::Unavailable, "the peer violated HTTP/2, which ended the connection", true),
        };
    }
    match (error.is_remote(), error.reason()) {
        // h2 has one error for both, and grpc-go this code for both.
        (false, Some(Reason::PROTOCOL_ERROR)) if error.is_library() => {
            (Code::Internal, "the response violates HTTP/2, or its headers exceed http2_max_header_list_size", false)
        }
        (false, _) if error.is_library() => (Code::Internal, "the response violates HTTP/2", false),
        (false, _) => {
            (Code::Internal, "the call was reset on this side, for example because its request body failed", false)
        }
        (true, Some(Reason::CANCEL)) => (Code::Cancelled, "the peer cancelled the call", true),
        (true, Some(Reason::ENHANCE_YOUR_CALM)) => {
            (Code::ResourceExhausted, "the peer asked for less load (ENHANCE_YOUR_CALM)", true)
        }
        (true, Some(Reason::INADEQUATE_SECURITY)) => {
            (Code::PermissionDenied, "the peer requires better transport security", true)
        }
        (true, Some(Reason::REFUSED_STREAM)) => (Code::Unavailable, "the peer refused the call", true),
        (true, _) => (Code::Internal, "the peer reset the call", true),
    }
}

/// Returns the status for a response without `grpc-status`, which comes from a proxy or from a
/// server that is shutting down, by the mapping of the gRPC protocol; `None` if its HTTP status is
/// 200.
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
    Some(Status::new(code, format!("the response has no grpc-status, and HTTP status {}", status.as_u16())))
}

/// Returns the code by which an HTTP response counts for its endpoint; `None` if the server did not
/// fail.
pub(crate) fn of_server_error(status: StatusCode) -> Option<Code> {
    Some(match status {
        StatusCode::INTERNAL_SERVER_ERROR => Code::Internal,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => Code::Unavailable,
        status if status.as_u16() >= 500 => Code::Unknown,
        _ => return None,
    })
}

/// Returns the status of a call that its deadline ended.
pub(crate) fn deadline_exceeded() -> Status {
    Status::deadline_exceeded("the deadline of the call has passed")
}

/// Returns the status of a call that its deadline ended before there was an endpoint for it.
pub(crate) fn deadline_exceeded_while_waiting(reason: &str) -> Status {
    Status::deadline_exceeded(format!("the deadline of the call has passed while it waited: {reason}"))
}

/// Returns the status of a call whose attempt took too long, and that is not repeated.
pub(crate) fn attempt_too_long() -> Status {
    Status::deadline_exceeded("no response arrived within the attempt timeout")
}

/// The result of a call whose connection was ended on this side.
pub(crate) const CUT: (Code, &str, bool) =
    (Code::Unavailable, "this side ended the connection, for example at the drain limit", false);

/// h2 identifies its user errors only by this: no remote peer, no io, no library.
fn is_user(error: &h2::Error) -> bool {
    !error.is_remote() && !error.is_library() && !error.is_io() && error.reason().is_none()
}
