use crate::connection::link::Link;

/// A second connection to a peer that is silent. The pool asks for it, and decides what becomes of
/// it; the driver of the first lane does it.
#[derive(Clone, Debug, Default)]
pub(super) enum Check {
    #[default]
    None,
    /// It shall be made, or is being made.
    Pending,
    Failed,
    /// It takes requests.
    Open(Link),
    /// It takes requests, and is about to take the place of the others.
    Replacing(Link),
    /// It takes no more requests.
    Ending,
}

/// What is known of a check.
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
