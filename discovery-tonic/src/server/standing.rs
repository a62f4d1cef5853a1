//! Where the registrations of a server stand, one by one and together.

use std::{
    cmp::Reverse,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use discovery_core::{Claim, Error, ErrorKind, Status, StatusReceiver};
use futures::{StreamExt, stream::FuturesUnordered};

/// Where the registration under one service stands.
#[derive(Clone, Debug)]
pub(super) enum Standing {
    /// There is no registration, and the status has the reason.
    Absent(Status),
    Registration {
        statuses: StatusReceiver,
        history: Arc<History>,
    },
}

/// What a server has left in the registry under one service.
#[derive(Debug, Default)]
pub(super) struct History {
    was_registered: AtomicBool,
    /// Whether an entry whose removal was not confirmed may still be there.
    has_leftover: AtomicBool,
}

/// What a server that has not served yet makes of the statuses of its registrations.
#[derive(Debug)]
pub(super) enum Start {
    /// The registration of this number cannot be written, and a retry does not help.
    Failed(usize, Error),
    Served,
    Waiting,
}

impl Standing {
    /// Returns the current status, and records it.
    pub(super) fn observe(&self) -> Status {
        let (statuses, history) = match self {
            Self::Absent(status) => return status.clone(),
            Self::Registration { statuses, history } => (statuses, history),
        };
        let status = statuses.current();
        match status {
            Status::Registered { .. } => history.registered(),
            Status::Superseded { .. } if history.has_leftover() => {
                let message = "the entry that this server left behind is not gone yet";
                return Status::lost(Error::new(ErrorKind::Unavailable, message).with_operation("register"));
            }
            _ => {}
        }
        status
    }

    pub(super) fn was_registered(&self) -> bool {
        matches!(self, Self::Registration { history, .. } if history.was_registered())
    }

    /// Returns whether the registration gave way to an entry that may be the server's own.
    pub(super) fn is_blocked_by_leftover(&self) -> bool {
        let Self::Registration { statuses, history } = self else { return false };
        history.has_leftover() && matches!(statuses.current(), Status::Superseded { .. })
    }

    /// Waits until the status of one of them changes.
    pub(super) async fn any_changed(standings: &mut [Self]) {
        let changes = standings.iter_mut().filter_map(|standing| match standing {
            Self::Absent(_) => None,
            Self::Registration { statuses, .. } => Some(async {
                if statuses.changed().await.is_none() {
                    std::future::pending::<()>().await;
                }
            }),
        });
        if changes.collect::<FuturesUnordered<_>>().next().await.is_none() {
            std::future::pending().await
        }
    }
}

impl History {
    pub(super) fn registered(&self) {
        self.was_registered.store(true, Ordering::Relaxed);
        self.has_leftover.store(false, Ordering::Relaxed);
    }

    pub(super) fn left_behind(&self) {
        self.has_leftover.store(true, Ordering::Relaxed);
    }

    pub(super) fn was_registered(&self) -> bool {
        self.was_registered.load(Ordering::Relaxed)
    }

    pub(super) fn has_leftover(&self) -> bool {
        self.has_leftover.load(Ordering::Relaxed)
    }
}

/// Combines the statuses of all registrations into that of the server, which is the worst: it is
/// registered only while all are.
///
/// A superseded registration never returns, so it decides; then one that ended with its backend;
/// then one that is lost, and among those one whose error needs somebody's intervention. The loss
/// began with the first of them, and the server is registered since the last was.
pub(super) fn combined(statuses: &[Status]) -> Status {
    let severity = |status: &&Status| match status {
        Status::Superseded { .. } => 4,
        Status::Deregistered { .. } => 3,
        Status::Lost { error, .. } if !error.is_retryable() => 2,
        Status::Registered { .. } => 0,
        _ => 1,
    };
    let worst = statuses.iter().min_by_key(|status| Reverse(severity(status))).expect("a server has a service");
    let losses = statuses.iter().filter_map(|status| match status {
        Status::Lost { since, .. } => Some(*since),
        _ => None,
    });
    let registered = statuses.iter().filter_map(|status| match status {
        Status::Registered { since } => Some(*since),
        _ => None,
    });
    match worst {
        Status::Lost { since, error } => Status::Lost { since: losses.min().unwrap_or(*since), error: error.clone() },
        Status::Registered { since } => Status::Registered { since: registered.max().unwrap_or(*since) },
        final_status => final_status.clone(),
    }
}

/// Decides how the start of a server stands, by each registration's status and whether that was
/// ever written. `if_supported` lets it serve without the registrations that the backend does not
/// support.
pub(super) fn start(statuses: &[(Status, bool)], claim: Claim, if_supported: bool) -> Start {
    let mut is_waiting = false;
    for (number, (status, was_registered)) in statuses.iter().enumerate() {
        match status {
            // What was written before is restored, or was taken over, as after the start.
            _ if *was_registered => {}
            Status::Lost { error, .. } if is_missing(error, if_supported) => {}
            Status::Lost { error, .. } if !error.is_retryable() => return Start::Failed(number, error.clone()),
            Status::Superseded { .. } if claim == Claim::IfAbsent => {
                let error = Error::new(ErrorKind::Conflict, "another owner's entry exists");
                return Start::Failed(number, error.with_operation("register"));
            }
            // Only closing the backend ends a registration that was never written.
            Status::Deregistered { .. } => {
                let error = Error::new(ErrorKind::Closed, "the backend was closed");
                return Start::Failed(number, error.with_operation("register"));
            }
            // A superseded registration was written before.
            Status::Registered { .. } | Status::Superseded { .. } => {}
            _ => is_waiting = true,
        }
    }
    if is_waiting { Start::Waiting } else { Start::Served }
}

/// Returns whether a server goes without what this error refuses.
pub(super) fn is_missing(error: &Error, if_supported: bool) -> bool {
    if_supported && error.kind() == ErrorKind::Unsupported
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Statuses by letter: R registered, L lost, P lost for want of a permission, U unsupported, S
    /// superseded, D deregistered. The nth began n seconds after the base.
    fn statuses(letters: &str, base: Instant) -> Vec<Status> {
        let status = |(n, letter)| {
            let since = base + Duration::from_secs(n);
            let lost = |kind| Status::Lost { since, error: Error::new(kind, format!("number {n}")) };
            match letter {
                'D' => Status::Deregistered { since },
                'L' => lost(ErrorKind::Unavailable),
                'P' => lost(ErrorKind::PermissionDenied),
                'R' => Status::Registered { since },
                'S' => Status::Superseded { since },
                'U' => lost(ErrorKind::Unsupported),
                other => panic!("{other} is no status"),
            }
        };
        (0..).zip(letters.chars()).map(status).collect()
    }

    #[test]
    fn the_worst_status_is_that_of_the_server() {
        let base = Instant::now();
        // The expected letter, second of its start, and number of its error.
        for (letters, expected, second, number) in [
            ("R", 'R', 0, None),
            ("RR", 'R', 1, None),
            ("RL", 'L', 1, Some(1)),
            ("LR", 'L', 0, Some(0)),
            ("LRL", 'L', 0, Some(0)),
            ("LPP", 'P', 0, Some(1)),
            ("PLR", 'P', 0, Some(0)),
            ("RSL", 'S', 1, None),
            ("DSS", 'S', 1, None),
            ("DDL", 'D', 0, None),
            ("RD", 'D', 1, None),
        ] {
            let (letter, since, error) = match combined(&statuses(letters, base)) {
                Status::Deregistered { since } => ('D', since, None),
                Status::Lost { since, error } if error.is_retryable() => ('L', since, Some(error)),
                Status::Lost { since, error } => ('P', since, Some(error)),
                Status::Registered { since } => ('R', since, None),
                Status::Superseded { since } => ('S', since, None),
                other => panic!("{letters}: {other:?}"),
            };
            assert_eq!((letter, since), (expected, base + Duration::from_secs(second)), "{letters}");
            let number = number.map(|number: u32| format!("number {number}"));
            assert_eq!(error.map(|error| error.to_string()), number, "{letters}");
        }
    }

    #[test]
    fn a_server_serves_once_each_registration_is_written_and_fails_with_the_first_that_cannot_be() {
        // A letter in lower case is the status of a registration that was written before.
        for (letters, claim, if_supported, expected) in [
            ("R", Claim::TakeOver, false, Ok(true)),
            ("RR", Claim::TakeOver, false, Ok(true)),
            ("RL", Claim::TakeOver, false, Ok(false)),
            ("LL", Claim::TakeOver, false, Ok(false)),
            ("lR", Claim::TakeOver, false, Ok(true)),
            ("lL", Claim::TakeOver, false, Ok(false)),
            ("pR", Claim::TakeOver, false, Ok(true)),
            ("LP", Claim::TakeOver, false, Err((1, ErrorKind::PermissionDenied))),
            ("RP", Claim::TakeOver, true, Err((1, ErrorKind::PermissionDenied))),
            ("SR", Claim::TakeOver, false, Ok(true)),
            ("RS", Claim::IfAbsent, false, Err((1, ErrorKind::Conflict))),
            ("LS", Claim::IfAbsent, false, Err((1, ErrorKind::Conflict))),
            ("sR", Claim::IfAbsent, false, Ok(true)),
            ("sL", Claim::IfAbsent, false, Ok(false)),
            ("DR", Claim::TakeOver, false, Err((0, ErrorKind::Closed))),
            ("U", Claim::TakeOver, false, Err((0, ErrorKind::Unsupported))),
            ("U", Claim::TakeOver, true, Ok(true)),
            ("UU", Claim::IfAbsent, true, Ok(true)),
            ("UR", Claim::TakeOver, true, Ok(true)),
            ("UL", Claim::TakeOver, true, Ok(false)),
        ] {
            let was_registered = letters.chars().map(|letter| letter.is_lowercase());
            let statuses = statuses(&letters.to_uppercase(), Instant::now());
            let statuses: Vec<_> = statuses.into_iter().zip(was_registered).collect();
            let result = match start(&statuses, claim, if_supported) {
                Start::Failed(number, error) => Err((number, error.kind())),
                Start::Served => Ok(true),
                Start::Waiting => Ok(false),
            };
            assert_eq!(result, expected, "{letters} {claim:?} {if_supported}");
        }
    }
}
