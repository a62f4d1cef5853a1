use std::sync::Arc;

use tokio::time::Instant;

use crate::{
    balance::Load,
    connection::{Connection, executor::Executor},
};

/// The connections of a lane that may have requests in flight; the current one is last.
#[derive(Default)]
pub(super) struct Connections(Vec<RetiredConnection>);

/// What is needed to end a connection.
struct RetiredConnection {
    executor: Executor,
    load: Arc<Load>,
    /// When its remaining requests are aborted; `None` while it may live on.
    until: Option<Instant>,
}

impl Connections {
    /// Adds the current connection, and forgets those without requests in flight.
    pub(super) fn add(&mut self, connection: &Connection) {
        self.0.retain(|retired| retired.load.in_flight() > 0);
        self.0.push(RetiredConnection::new(connection));
    }

    /// Adds a connection beside the current one. It takes no more calls; those in flight go on.
    pub(super) fn add_retired(&mut self, connection: &Connection) {
        connection.load().close();
        let present = self.0.pop();
        self.0.retain(|retired| retired.load.in_flight() > 0);
        self.0.push(RetiredConnection::new(connection));
        self.0.extend(present);
    }

    /// Closes the current connection to new calls. Those in flight may go on until then, if there
    /// is a limit.
    pub(super) fn retire(&mut self, until: Option<Instant>) {
        let present = self.0.last_mut().expect("the current connection is last");
        present.load.close();
        present.until = until;
    }

    /// When the first retired connection must be aborted.
    pub(super) fn overdue(&self) -> Option<Instant> {
        self.0.iter().filter_map(|retired| retired.until).min()
    }

    /// Aborts the retired connections whose time is over.
    pub(super) fn cut_overdue(&mut self) {
        let now = Instant::now();
        for retired in &mut self.0 {
            // Only once: an aborted request counts as in flight until its caller polls the
            // response.
            if retired.until.take_if(|until| *until <= now).is_some() {
                retired.cut();
            }
        }
    }

    /// Aborts all of them, with their requests.
    pub(super) fn cut(&self) {
        self.0.iter().for_each(RetiredConnection::cut);
    }

    /// Whether any of them has requests in flight.
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
