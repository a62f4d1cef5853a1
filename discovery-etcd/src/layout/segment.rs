//! Tails that are one segment of a path, the id of the instance.

use super::Tail;

/// Returns the instance of a tail, unless the tail has further segments.
pub(super) fn classify(tail: &str) -> Tail {
    if tail.contains('/') {
        return Tail::Other;
    }
    tail.parse().map_or_else(Tail::Bad, Tail::Instance)
}

/// Returns the first of several segments, below which there is no entry.
pub(super) fn subtree(tail: &str) -> Option<&str> {
    tail.find('/').map(|slash| &tail[..=slash])
}
