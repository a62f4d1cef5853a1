//! Errors and panics of other code, and how one line of a log shows them.

use std::{any::Any, error::Error as StdError, sync::Arc};

pub(crate) type BoxError = Box<dyn StdError + Send + Sync>;

pub(crate) type SharedError = Arc<dyn StdError + Send + Sync>;

/// Formats an error and its sources in one line.
pub(crate) fn report(error: &dyn StdError) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        line.extend([": ", &cause.to_string()]);
        next = cause.source();
    }
    line
}

/// Escapes what a peer may have chosen, so that it stays on its line. Quotes are left as they are.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\'' | '"' => shown.push(c),
            _ => shown.extend(c.escape_debug()),
        }
    }
    shown
}

/// Returns a message that includes the cause of the error.
pub(crate) fn with_cause(message: String, cause: Option<&BoxError>) -> String {
    match cause {
        Some(cause) => format!("{message}: {}", report(&**cause)),
        None => message,
    }
}

/// Returns the message of a panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref().cloned()).unwrap_or_else(|| "without a message".to_owned());
    text.escape_debug().collect()
}
