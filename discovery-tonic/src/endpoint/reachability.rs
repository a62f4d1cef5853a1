//! What is logged of an endpoint that cannot be reached.

use std::sync::{Mutex, PoisonError};

/// The reasons of failed attempts to connect since the last one that succeeded.
///
/// An outage of a peer is logged once for each reason, however many attempts it takes. An address
/// that is a name may alternate between reasons.
#[derive(Debug, Default)]
pub(super) struct Reachability(Mutex<Outage>);

#[derive(Debug, Default)]
struct Outage {
    /// Each reason, and whether the endpoint was connected otherwise.
    logged: Vec<(String, bool)>,
    last: Option<String>,
}

impl Reachability {
    /// Records a failed attempt of an endpoint that is connected otherwise, or not; returns whether
    /// its reason is to be logged.
    pub(super) fn failed(&self, reason: &str, is_connected: bool) -> bool {
        let mut outage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        outage.last = Some(reason.to_owned());
        let is_known = outage.logged.iter().any(|(known, was)| known == reason && *was == is_connected);
        if is_known || outage.logged.len() >= MOST {
            return false;
        }
        outage.logged.push((reason.to_owned(), is_connected));
        true
    }

    /// Records an attempt that succeeded; returns whether failed ones were logged before while the
    /// endpoint was not connected.
    pub(super) fn succeeded(&self) -> bool {
        let mut outage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *outage).logged.iter().any(|(_, was_connected)| !was_connected)
    }

    /// The reason of the last attempt, if that failed.
    pub(super) fn error(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).last.clone()
    }
}

/// How many reasons are logged in one outage.
const MOST: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_logged_once_for_each_reason() {
        let reachability = Reachability::default();
        assert!(!reachability.succeeded());
        for outage in 0..2 {
            assert!(reachability.failed("refused", false), "outage {outage}");
            assert!(!reachability.failed("refused", false));
            assert!(reachability.failed("too slow", false));
            assert!(!reachability.failed("refused", false));
            assert!(!reachability.failed("too slow", false));
            assert_eq!(reachability.error().as_deref(), Some("too slow"));
            assert!(reachability.succeeded());
            assert_eq!(reachability.error(), None);
            assert!(!reachability.succeeded());
        }
        let logged = (0..100).filter(|attempt| reachability.failed(&attempt.to_string(), false)).count();
        assert_eq!(logged, MOST);
    }
    /// A connected endpoint that cannot open another connection is no outage, until it loses the
    /// one that it has.
    #[test]
    fn a_connected_endpoint_does_not_become_reachable_again() {
        let reachability = Reachability::default();
        assert!(reachability.failed("refused", true));
        assert!(!reachability.failed("refused", true));
        assert!(!reachability.succeeded());
        assert!(reachability.failed("refused", true));
        assert!(reachability.failed("refused", false), "it has lost its connection");
        assert!(reachability.succeeded());
    }
}
