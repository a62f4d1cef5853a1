//! What is logged of an endpoint that cannot be reached.

use std::sync::{Mutex, PoisonError};

/// The reasons of failed attempts to connect that were logged since the last one that succeeded.
///
/// An outage of a peer is logged once for each reason, however many attempts it takes. An address
/// that is a name may alternate between reasons.
#[derive(Debug, Default)]
pub(super) struct Reachability(Mutex<Vec<String>>);

impl Reachability {
    /// Records a failed attempt; returns whether its reason is to be logged.
    pub(super) fn failed(&self, reason: &str) -> bool {
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.len() >= MOST || logged.iter().any(|known| known == reason) {
            return false;
        }
        logged.push(reason.to_owned());
        true
    }

    /// Records an attempt that succeeded; returns whether failed ones were logged before.
    pub(super) fn succeeded(&self) -> bool {
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !std::mem::take(&mut *logged).is_empty()
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
            assert!(reachability.failed("refused"), "outage {outage}");
            assert!(!reachability.failed("refused"));
            assert!(reachability.failed("too slow"));
            assert!(!reachability.failed("refused"));
            assert!(!reachability.failed("too slow"));
            assert!(reachability.succeeded());
            assert!(!reachability.succeeded());
        }
        let logged = (0..100).filter(|attempt| reachability.failed(&attempt.to_string())).count();
        assert_eq!(logged, MOST);
    }
}
