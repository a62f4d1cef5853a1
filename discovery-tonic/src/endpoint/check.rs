use crate::connection::link::Link;

/// A check: a second connection to a silent peer. The pool requests it and decides its outcome; the
/// driver of the first lane carries it out.
#[derive(Clone, Debug, Default)]
pub(super) enum Check {
    #[default]
    None,
    /// It is requested, or being opened.
    Pending,
    Failed,
    /// It takes requests.
    Open(Link),
    /// It takes requests, and is about to replace the others.
    Replacing(Link),
    /// It takes no more requests.
    Ending,
}

/// What the pool knows of a check.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Checked {
    #[default]
    None,
    Pending,
    Failed,
    /// Whether one of the former connections has answered since, and whether the new one has.
    Open {
        former: bool,
        answered: bool,
    },
}
