//! When a lease ends its entries, worded for the caller of a removal that etcd did not confirm.

use std::{fmt, time::Duration};

use tokio::time::Instant;

use super::clock::LeaseClock;

/// When etcd ends a lease, as far as can be known without etcd.
///
/// A new leader of etcd begins every lease again with its full TTL, whatever was left of it, and so
/// does an etcd that was down and is back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum LeaseEnd {
    /// It was due to end this long ago. It has ended unless etcd was down or changed its leader.
    Due { ago: Duration, granted: Duration },
    /// There is no lease: it was revoked, or none was granted.
    NoLease,
    /// It is still renewed for other registrations.
    Renewed,
    /// It is no longer renewed, and ends within this time if etcd is up.
    Within { left: Duration, granted: Duration },
}

impl LeaseEnd {
    /// Returns when a lease ends that is no longer renewed.
    pub(super) fn of(clock: &LeaseClock, now: Instant) -> Self {
        let granted = clock.granted();
        let end = clock.ends_latest() + SLACK;
        if end > now { Self::Within { left: end - now, granted } } else { Self::Due { ago: now - end, granted } }
    }
}

impl fmt::Display for LeaseEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let again = |granted: &Duration| format!("{} after it has a leader again", humanly(*granted + SLACK));
        match self {
            Self::Due { ago, granted } => {
                let ago = humanly(*ago);
                write!(f, "the lease was due to end {ago} ago, or, if etcd is down, ends at most {}", again(granted))
            }
            Self::NoLease => f.write_str("no lease is left that could keep an entry"),
            Self::Renewed => {
                f.write_str("the backend keeps trying to remove it; its lease is still renewed for other registrations")
            }
            Self::Within { left, granted } => {
                let left = humanly(*left);
                write!(
                    f,
                    "the lease is no longer renewed and ends in at most {left}, or, if etcd is down, {}",
                    again(granted)
                )
            }
        }
    }
}

/// Formats a duration to the millisecond, and one above 10 s to the second.
fn humanly(duration: Duration) -> impl fmt::Display {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let shown =
        if millis < 10_000 { Duration::from_millis(millis) } else { Duration::from_secs(millis.div_ceil(1000)) };
    humantime::format_duration(shown)
}

/// etcd counts from when it received the renewal, and checks for expired leases twice a second.
const SLACK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(15);

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_lease_is_right_at_any_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut clock = LeaseClock::new(TTL, start);
        let within = |left| LeaseEnd::Within { left: Duration::from_secs(left), granted: TTL };
        let due = |ago| LeaseEnd::Due { ago: Duration::from_secs(ago), granted: TTL };
        assert_eq!(LeaseEnd::of(&clock, at(0)), within(16));
        assert_eq!(LeaseEnd::of(&clock, at(15)), within(1));
        assert_eq!(LeaseEnd::of(&clock, at(16)), due(0));
        assert_eq!(LeaseEnd::of(&clock, at(316)), due(300));
        // etcd may have received a renewal although its answer is missing.
        clock.ask(at(5));
        assert_eq!(LeaseEnd::of(&clock, at(15)), within(6));
        assert_eq!(clock.ends(), at(15), "which is not relied upon");
        clock.confirm(TTL, at(5));
        clock.ask(at(2));
        assert_eq!(LeaseEnd::of(&clock, at(15)), within(6));
    }

    #[test]
    fn the_end_of_a_lease_is_worded_for_people() {
        let millis = Duration::from_millis;
        for (end, text) in [
            (
                LeaseEnd::Within { left: millis(12_345), granted: TTL },
                "the lease is no longer renewed and ends in at most 13s, or, if etcd is down, 16s after it has a leader again",
            ),
            (
                LeaseEnd::Within { left: millis(2_345), granted: TTL },
                "the lease is no longer renewed and ends in at most 2s 345ms, or, if etcd is down, 16s after it has a leader again",
            ),
            (
                LeaseEnd::Due { ago: millis(200_000), granted: TTL },
                "the lease was due to end 3m 20s ago, or, if etcd is down, ends at most 16s after it has a leader again",
            ),
        ] {
            assert_eq!(end.to_string(), text);
        }
    }
}
