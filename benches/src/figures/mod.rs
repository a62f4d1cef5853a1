//! The measured figures and their targets. Each file measures one figure or a few related ones and
//! returns rows of the table.

mod calls;
mod deploy;
mod failing;
mod faulty;
mod idle;
mod killed;
mod list;
mod lost;
mod pick;
mod propagation;
mod registrations;
mod roll;
mod slow;
mod traffic;
mod waiting;

use crate::{Failure, table::Row};

/// The names of the figures, as they appear in the table.
pub const NAMES: [&str; 19] = [
    "F1", "F3", "F7", "F9", "F10", "F12", "F13", "F14", "F15", "F16", "F17", "F18", "F19", "F20", "L1", "L2", "L3",
    "L4", "L5",
];

/// Measures one of [`NAMES`].
///
/// # Errors
///
/// If a part of the measurement fails. A missed target is not an error.
pub async fn measure(name: &str) -> Result<Vec<Row>, Failure> {
    match name {
        "F1" => pick::rows(),
        "F3" => calls::rows(),
        "F7" => faulty::rows().await,
        "F9" => propagation::rows(),
        "F10" => roll::rows(),
        "F12" => registrations::rate(),
        "F13" => idle::rows().await,
        "F14" => waiting::rows().await,
        "F15" => slow::rows().await,
        "F16" => failing::share().await,
        "F17" => registrations::overload(),
        "F18" => list::rows(),
        "F19" => failing::cost(),
        "F20" => traffic::rows(),
        "L1" => lost::refusing().await,
        "L2" => lost::silent_and_hung().await,
        "L3" => deploy::rows().await,
        "L4" => killed::removed_later().await,
        "L5" => killed::registry_lost().await,
        other => Err(format!("no figure {other}").into()),
    }
}
