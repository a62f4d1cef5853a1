use crate::connection::link::Link;

/// A second connection to a peer that is silent, and what is to become of it. The pool asks, the
/// driver of the first lane answers.
#[derive(Debug, Default)]
pub(super) enum Check {
    #[default]
    None,
    /// It shall be made, or is being made.
    Pending,
    Failed,
    /// It takes requests.
    Open(Link),
    /// It shall end, or take the place of the others.
    Over {
        replaces: bool,
    },
}

/// What is known of a check.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Checked {
    None,
    Pending,
    Failed,
    /// Whether one of the former connections has answered since, and whether the new one has.
    Open {
        former: bool,
        answered: bool,
    },
}
