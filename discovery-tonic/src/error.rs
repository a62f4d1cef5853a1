//! Errors of others, and how a line of a log names them.

use std::{error::Error as StdError, sync::Arc};

pub(crate) type BoxError = Box<dyn StdError + Send + Sync>;

pub(crate) type SharedError = Arc<dyn StdError + Send + Sync>;

/// An error and what caused it, in one line.
pub(crate) fn report(error: &dyn StdError) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        line.extend([": ", &cause.to_string()]);
        next = cause.source();
    }
    line
}
