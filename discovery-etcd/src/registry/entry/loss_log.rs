//! The log of lost registrations.

use std::time::Duration;

use discovery_core::Error;
use tokio::time::Instant;
use tracing::{info, warn};

use super::Place;

/// Logs losses of one registration, at most one per minute, because somebody may delete the entry
/// as often as it is written.
#[derive(Debug, Default)]
pub(super) struct LossLog {
    reported: Option<Instant>,
    /// The number of losses since then.
    unreported: u32,
    /// Whether the last loss was logged, so that its end must be logged too.
    is_open: bool,
}

impl LossLog {
    /// Logs that the registration was lost and will be written again.
    pub(super) fn lost(&mut self, place: &Place, error: &Error) {
        self.is_open = self.is_due();
        if self.is_open {
            let times = std::mem::take(&mut self.unreported);
            warn!(service = %place.service, id = %place.id, times, error = %error.report(), "registration lost");
        }
    }

    /// Logs that the registration was restored, if its loss was logged.
    pub(super) fn restored(&mut self, place: &Place) {
        if std::mem::take(&mut self.is_open) {
            info!(service = %place.service, id = %place.id, "registered again");
        }
    }

    fn is_due(&mut self) -> bool {
        self.unreported += 1;
        let is_due = self.reported.is_none_or(|reported| reported.elapsed() >= SPACING);
        if is_due {
            self.reported = Some(Instant::now());
        }
        is_due
    }
}

const SPACING: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn losses_are_logged_at_most_once_a_minute() {
        let mut log = LossLog::default();
        assert!(log.is_due());
        for _ in 0..10 {
            advance(Duration::from_secs(5)).await;
            assert!(!log.is_due());
        }
        advance(Duration::from_secs(10)).await;
        assert!(log.is_due());
        assert_eq!(log.unreported, 12, "all losses are counted");
    }
}
