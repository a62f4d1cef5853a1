//! Why a scene failed.

use std::error::Error;

/// Any error, for people to read.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// Fails with this reason unless the promise holds.
pub(crate) fn expect(holds: bool, reason: impl FnOnce() -> String) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(reason().into()) }
}
