//! The deadline of a call: read from its `grpc-timeout` header, and written for each further
//! attempt.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

/// Returns the deadline of a call from its `grpc-timeout` header; a malformed one is ignored, as in
/// tonic.
pub(crate) fn from_headers(headers: &HeaderMap) -> Option<Instant> {
    let timeout = parse(headers.get(&NAME)?.to_str().ok()?)?;
    // A timeout that the clock cannot represent means no deadline.
    Instant::now().checked_add(timeout)
}

/// Gives a call the channel's default timeout, and returns its deadline.
pub(crate) fn set(headers: &mut HeaderMap, timeout: Duration) -> Instant {
    headers.insert(NAME, print(timeout));
    Instant::now() + timeout
}

/// Sets the header of a further attempt to the time that is left.
pub(crate) fn rewrite(headers: &mut HeaderMap, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    headers.insert(NAME, print(left));
}

/// Parses `TimeoutValue TimeoutUnit` of the gRPC protocol: at most eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

/// Formats a timeout in the finest unit that fits into eight digits, rounded up so that the server
/// does not give up before its client.
fn print(timeout: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let units = [(1, 'n'), (1_000, 'u'), (1_000_000, 'm'), (1_000_000_000, 'S')];
    let in_unit = |(nanos, unit)| (timeout.as_nanos().div_ceil(nanos), unit);
    let (value, unit) = units.map(in_unit).into_iter().find(|(value, _)| *value <= MOST).unwrap_or((MOST, 'S'));
    HeaderValue::try_from(format!("{value}{unit}")).expect("digits and a letter make a header value")
}

const NAME: HeaderName = HeaderName::from_static("grpc-timeout");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_units_are_parsed_and_anything_else_is_none() {
        for (text, nanos) in
            [("1n", 1), ("2u", 2_000), ("3m", 3_000_000), ("4S", 4_000_000_000), ("1M", 60_000_000_000)]
        {
            assert_eq!(parse(text), Some(Duration::from_nanos(nanos)));
        }
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for text in ["", "S", "1", "1s", "123456789S", "-1S", "1.5S", "1ä", "+1S"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_printed_timeout_is_parsed_to_within_one_unit(nanos in 0u64..99_999_999_000_000_000) {
            let timeout = Duration::from_nanos(nanos);
            let read = parse(print(timeout).to_str().unwrap()).unwrap();
            prop_assert!(read >= timeout);
            prop_assert!(read - timeout < Duration::from_secs(1));
            prop_assert!(read - timeout <= timeout / 1_000);
        }
    }
}
