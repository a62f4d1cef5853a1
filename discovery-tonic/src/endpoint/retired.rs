use std::sync::Arc;

use tokio::time::Instant;

use crate::{
    balance::Load,
    connection::{AbortableExecutor, Connection},
};

/// The connections of a lane whose requests may still be in flight, the present one last.
#[derive(Default)]
pub(super) struct Connections(Vec<RetiredConnection>);

/// A connection as far as its end is concerned.
struct RetiredConnection {
    executor: AbortableExecutor,
    load: Arc<Load>,
    /// When what is left on it is cut; `None` while that is the peer's to say.
    until: Option<Instant>,
}

impl Connections {
    /// Takes the present connection, and forgets those on which nothing is in flight.
    pub(super) fn add(&mut self, connection: &Connection) {
        self.0.retain(|retired| retired.load.in_flight() > 0);
        self.0.push(RetiredConnection::new(connection));
    }

    /// Takes a connection beside the present one, which takes no more calls; those on it go on.
    pub(super) fn add_retired(&mut self, connection: &Connection) {
        connection.load().close();
        let present = self.0.pop();
        self.0.retain(|retired| retired.load.in_flight() > 0);
        self.0.push(RetiredConnection::new(connection));
        self.0.extend(present);
    }

    /// Lets the present connection take no more calls; those on it may go on until then, if there
    /// is a limit.
    pub(super) fn retire(&mut self, until: Option<Instant>) {
        let present = self.0.last_mut().expect("the present connection is the last");
        present.load.close();
        present.until = until;
    }

    /// When the time of the first retired connection is over.
    pub(super) fn overdue(&self) -> Option<Instant> {
        self.0.iter().filter_map(|retired| retired.until).min()
    }

    /// Cuts the retired connections whose time is over.
    pub(super) fn cut_overdue(&mut self) {
        let now = Instant::now();
        for retired in &mut self.0 {
            // Once, since it counts as in flight until the caller looks at what it got.
            if retired.until.take_if(|until| *until <= now).is_some() {
                retired.cut();
            }
        }
    }

    /// Cuts all of them, with everything on them.
    pub(super) fn cut(&self) {
        self.0.iter().for_each(RetiredConnection::cut);
    }

    /// Whether anything is in flight on them.
    pub(super) fn has_calls(&self) -> bool {
        self.0.iter().any(|retired| retired.load.in_flight() > 0)
    }
}

impl RetiredConnection {
    fn new(connection: &Connection) -> Self {
        Self { executor: connection.executor(), load: Arc::clone(connection.load()), until: None }
    }

    fn cut(&self) {
        self.load.cut();
        self.executor.abort();
    }
}
