//! The memory backend keeps every law, on a paused clock and on the real one.

mod harness;

use discovery_core::conformance::{Capabilities, Harness};
use harness::MemoryHarness;

discovery_core::conformance_tests! { MemoryHarness::new(), #[tokio::test(start_paused = true)] }

mod real_clock {
    use std::time::Duration;

    use discovery_memory::MemoryBackend;

    use super::MemoryHarness;

    fn short() -> MemoryHarness {
        MemoryHarness { memory: MemoryBackend::with_ttl(Duration::from_secs(1)), quiet: Duration::from_millis(200) }
    }

    discovery_core::conformance_tests! { short(), #[tokio::test(flavor = "multi_thread")] }
}

#[test]
fn no_law_is_skipped() {
    assert_eq!(MemoryHarness::new().capabilities(), Capabilities::ALL);
}
