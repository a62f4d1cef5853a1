use tokio::time::Instant;

/// What the pool is to do with an endpoint.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Orders {
    pub(crate) access: Option<Access>,
    pub(crate) check: Option<CheckOrder>,
    pub(crate) news: Option<News>,
}

/// How an endpoint takes requests from now on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Access {
    Open,
    /// This many on its newest connection and none on the others, until one is answered.
    Tickets(u32),
    /// One more on the connection of a check; the others stay as they are.
    Check,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum CheckOrder {
    Begin,
    /// The former connections stay.
    End,
    /// The new connection takes the place of the others, whose requests continue.
    Replace,
}

/// A change that must be published.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum News {
    Ejected { until: Instant, cause: Cause, again: bool },
    Probed,
    Restored,
}

/// Why an endpoint was ejected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Cause {
    Failing,
    Silent,
    /// The peer did not complete a handshake.
    Unreachable,
}
