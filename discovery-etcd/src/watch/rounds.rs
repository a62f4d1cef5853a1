//! How fast an attempt may list and watch again.

use std::time::Duration;

/// How fast rounds of list and watch may follow each other within one attempt, without the I/O.
///
/// Most watches that break do so once, because a member went away. A list from another member makes
/// up for it before anybody needs to know. If one round after another breaks, retrying faster does
/// not help, and watchers must be informed.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    /// The number of short watches in a row.
    short: u32,
}

impl Rounds {
    /// Records how long a watch lasted, and returns how long to wait before the next watch. The
    /// list in between is done at once, so that an outage shows while it lasts. Returns `None` if
    /// the attempt has failed and the backoff applies.
    pub(super) fn ended(&mut self, lasted: Duration) -> Option<Duration> {
        self.short = if lasted < STEADY { self.short + 1 } else { 0 };
        (self.short <= MAX_SHORT).then(|| SPACING.saturating_sub(lasted))
    }
}

/// A watch that lasted this long was healthy.
const STEADY: Duration = Duration::from_secs(5);
/// How many watches in a row may be shorter.
const MAX_SHORT: u32 = 3;
/// The least time between the starts of two watches.
const SPACING: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_rounds_are_spaced_and_few() {
        const AT_ONCE: Option<u64> = Some(0);
        for (name, lasted, waits) in [
            ("a long watch is always followed at once", &[5000, 6000, 5000, 9000, 5000][..], &[AT_ONCE; 5][..]),
            ("so is a short one", &[300], &[AT_ONCE]),
            ("but not too many in a row", &[300, 4999, 300, 300], &[AT_ONCE, AT_ONCE, AT_ONCE, None]),
            ("watches that break at once are spaced", &[0, 50, 249, 0], &[Some(250), Some(200), Some(1), None]),
            ("a long one resets it", &[0, 0, 0, 5000, 0], &[Some(250), Some(250), Some(250), AT_ONCE, Some(250)]),
        ] {
            let mut rounds = Rounds::default();
            let got: Vec<_> = lasted.iter().map(|lasted| rounds.ended(Duration::from_millis(*lasted))).collect();
            assert_eq!(got, waits.iter().map(|wait| wait.map(Duration::from_millis)).collect::<Vec<_>>(), "{name}");
        }
    }
}
