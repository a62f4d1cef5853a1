//! The laws that every backend keeps, as tests; for authors of backends.
//!
//! Write a [`Harness`], which returns handles on a fresh registry and breaks it on demand. Declare
//! in its [`Capabilities`] what it can do, and let [`conformance_tests!`](crate::conformance_tests)
//! make one test of each law:
//!
//! ```
//! use std::time::Duration;
//! use discovery_core::conformance::{Capabilities, Harness, Process, Timings};
//! # use discovery_core::FixedResolver;
//! # struct MyBackend;
//! # impl MyBackend { fn connect(&self) -> FixedResolver { FixedResolver::new([]) } }
//!
//! struct MyHarness(MyBackend);
//!
//! #[async_trait::async_trait]
//! impl Harness for MyHarness {
//!     fn capabilities(&self) -> Capabilities {
//!         Capabilities { push: true, ..Capabilities::default() }
//!     }
//!
//!     fn timings(&self) -> Timings {
//!         let (quiet, settle) = (Duration::from_millis(200), Duration::from_secs(5));
//!         Timings { queue: 128, quiet, settle, ttl: Duration::from_secs(2) }
//!     }
//!
//!     async fn process(&self) -> Process {
//!         Process::new(self.0.connect())
//!     }
//! }
//!
//! // In tests/conformance.rs; `start_paused = true` only if no socket or file is waited for:
//! discovery_core::conformance_tests! { MyHarness(MyBackend), #[tokio::test] }
//! ```
//!
//! A law, or a part of one, that needs an undeclared capability is skipped. It reports that on
//! standard error, past the capture of the test runner, so that a skipped law never looks like one
//! that passed. The laws are listed at [`Update`](crate::Update) (W1 to W10) and
//! [`Registry`](crate::Registry) (R1 to R6). Every failure begins with the law that is broken, and
//! every wait is bounded.
//!
//! **This module may change in any release**: a new law, or a stricter test of an existing one, is
//! not a change of the library.

// A backend writes a `harness`. `entries`, `registration`, `sharing` and `updates` are the laws by
// subject; `probe` and `log` are the tools with which they observe a backend.
mod entries;
mod harness;
mod log;
mod probe;
mod registration;
mod sharing;
mod updates;

use std::{fmt, pin::Pin};

pub use entries::{w07_skips_bad_entries, w09_keeps_services_apart, w10_treats_an_unknown_service_as_empty};
pub use harness::{Capabilities, Harness, Process, Timings};
pub use registration::{
    r01_ok_means_written, r02_heals, r03_has_one_owner, r04_ends_with_its_handle, r05_updates_in_place,
    r06_leaves_nothing_half_done,
};
pub use sharing::{w06_resets_a_slow_consumer, w08_shares_one_upstream_watch};
pub use updates::{
    w01_starts_with_the_set, w02_shows_only_states_of_the_registry, w03_has_no_gap_and_moves_nothing, w04_never_ends,
    w05_reports_an_outage_once,
};

/// A law and its test, for programs that run the laws in their own way.
#[derive(Clone, Copy)]
pub struct Law {
    /// The name of the test, which begins with the number of the law.
    pub name: &'static str,
    /// The test, which panics if the law is broken.
    pub run: for<'a> fn(&'a dyn Harness) -> Run<'a>,
}

/// One run of a law. It is not `Send`, because only the thread that runs it uses it.
pub type Run<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

impl fmt::Debug for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Law").field(&self.name).finish()
    }
}

/// Returns all laws: W1 to W10 and R1 to R6.
pub fn laws() -> Vec<Law> {
    macro_rules! listed {
        ($($law:ident)+) => { vec![$(Law { name: stringify!($law), run: |harness| Box::pin($law(harness)) }),+] };
    }
    crate::conformance_laws!([listed])
}

/// Makes one test of each law, with the given attributes:
/// `conformance_tests! { harness, #[tokio::test] }`.
///
/// The harness is an expression, evaluated once in each test; it may `.await`. The caller chooses
/// the attribute because a paused clock suits only a backend without I/O: tokio advances a paused
/// clock whenever the runtime is idle, so with sockets every timeout would fire at once.
#[macro_export]
macro_rules! conformance_tests {
    (@test [$harness:expr] [$(#$attribute:tt)+] $law:ident) => {
        $(#$attribute)+
        async fn $law() {
            let harness = $harness;
            $crate::conformance::$law(&harness).await;
        }
    };
    (@each $harness:tt $attributes:tt $($law:ident)+) => {
        $($crate::conformance_tests! { @test $harness $attributes $law })+
    };
    ($harness:expr, $(#$attribute:tt)+) => {
        $crate::conformance_laws! { [$crate::conformance_tests] @each [$harness] [$(#$attribute)+] }
    };
}

/// The only list of the laws, used by the macro above and by [`laws`].
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_laws {
    ([$($then:tt)+] $($before:tt)*) => {
        $($then)+! {
            $($before)*
            w01_starts_with_the_set
            w02_shows_only_states_of_the_registry
            w03_has_no_gap_and_moves_nothing
            w04_never_ends
            w05_reports_an_outage_once
            w06_resets_a_slow_consumer
            w07_skips_bad_entries
            w08_shares_one_upstream_watch
            w09_keeps_services_apart
            w10_treats_an_unknown_service_as_empty
            r01_ok_means_written
            r02_heals
            r03_has_one_owner
            r04_ends_with_its_handle
            r05_updates_in_place
            r06_leaves_nothing_half_done
        }
    };
}
