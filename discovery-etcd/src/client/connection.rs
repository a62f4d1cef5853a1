use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use etcd_client::{Client, Error as ClientError};

use super::{Failure, Reason, failure::is_answer};

/// A client of one member, and what is known of its connection. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Connection {
    client: Client,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// It gets no further calls.
    retired: AtomicBool,
    /// Counts the tokens that it had; the lowest bit is set while it needs another.
    token: AtomicU64,
    /// Calls send a token.
    sends_token: AtomicBool,
    /// How many answers came, whatever they were.
    answers: AtomicU64,
    /// How many calls in a row got no answer in time.
    silent: AtomicU32,
    /// Which reading of the files of TLS it was made with.
    files: u64,
}

/// One call, or one stream, on a connection.
#[derive(Clone, Debug)]
pub(super) struct Use {
    state: Arc<State>,
    /// The answers that had come when it began.
    answers: u64,
    /// The token that it began with.
    token: u64,
}

/// What a call shows that gets no answer in time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Silence {
    /// The call may be slow. Two in a row without any answer in between are taken for a dead
    /// connection.
    Call,
    /// The connection may be dead: the call was made to find that out.
    Connection,
}

impl Connection {
    /// A connection without a token, made with this reading of the files of TLS.
    pub(super) fn new(client: Client, files: u64) -> Self {
        Self { client, state: Arc::new(State { files, ..State::default() }) }
    }

    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Whether further calls may be made on it, given the present reading of the files of TLS.
    pub(super) fn is_usable(&self, files: u64) -> bool {
        !self.state.retired.load(Ordering::Acquire) && self.state.files == files
    }

    /// Whether a call was refused for its token, and no other was obtained since.
    pub(super) fn needs_token(&self) -> bool {
        self.state.token.load(Ordering::Acquire) & NEEDED != 0
    }

    /// Whether calls send a token.
    pub(super) fn sends_token(&self) -> bool {
        self.state.sends_token.load(Ordering::Acquire)
    }

    /// Records that calls send another token, or none.
    pub(super) fn renewed(&self, sends_token: bool) {
        self.state.sends_token.store(sends_token, Ordering::Release);
        let token = self.state.token.load(Ordering::Acquire);
        self.state.token.store((token | NEEDED) + NEEDED, Ordering::Release);
    }

    /// Begins a call or a stream.
    pub(super) fn begin(&self) -> Use {
        Use {
            state: Arc::clone(&self.state),
            answers: self.state.answers.load(Ordering::Acquire),
            token: self.state.token.load(Ordering::Acquire),
        }
    }
}

impl Use {
    /// Begins another call on the same connection.
    pub(super) fn again(&self) -> Self {
        Self {
            state: Arc::clone(&self.state),
            answers: self.state.answers.load(Ordering::Acquire),
            token: self.state.token.load(Ordering::Acquire),
        }
    }

    /// Whether a call was refused for its token, and no other was obtained since.
    pub(super) fn needs_token(&self) -> bool {
        self.state.token.load(Ordering::Acquire) & NEEDED != 0
    }

    /// Records the answer to a call, or that there will be none.
    pub(super) fn answered<T>(&self, result: &Result<T, ClientError>) {
        if result.as_ref().err().is_none_or(is_answer) {
            self.state.answers.fetch_add(1, Ordering::AcqRel);
            self.state.silent.store(0, Ordering::Release);
        }
    }

    /// Records what a failure means for the connection.
    pub(super) fn note(&self, failure: &Failure) {
        if failure.is_of_connection() {
            self.retire();
        }
        if failure.reason == Reason::Token {
            // Unless another was obtained since, as happens where many calls are refused at once.
            let needed = self.token | NEEDED;
            let _ = self.state.token.compare_exchange(self.token, needed, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// Records that no answer came in time.
    ///
    /// A connection on which others are answered meanwhile is alive. To give one up for each slow
    /// call would add handshakes, and the checking of passwords, to a load that may be the reason.
    pub(super) fn silent(&self, silence: Silence) {
        if self.state.answers.load(Ordering::Acquire) != self.answers {
            return;
        }
        let in_a_row = self.state.silent.fetch_add(1, Ordering::AcqRel) + 1;
        if silence == Silence::Connection || in_a_row >= MOST_SILENT {
            self.retire();
        }
    }

    /// Ends the connection's use for further calls. Streams that are open on it go on.
    pub(super) fn retire(&self) {
        self.state.retired.store(true, Ordering::Release);
    }
}

/// The bit that is set while a token is needed.
const NEEDED: u64 = 1;
/// So many calls in a row without any answer are taken for the death of a connection.
const MOST_SILENT: u32 = 2;

#[cfg(test)]
mod tests {
    use discovery_core::{Error, ErrorKind};

    use super::*;

    async fn connection() -> Connection {
        let client = Client::connect(["127.0.0.1:1"], None).await.unwrap();
        Connection::new(client, 0)
    }

    fn failure(reason: Reason) -> Failure {
        Failure::new(reason, Error::new(ErrorKind::Unauthenticated, "refused"))
    }

    #[tokio::test]
    async fn one_slow_call_ends_no_connection() {
        let connection = connection().await;
        let answer = || connection.begin().answered(&Ok(()));
        let slow = connection.begin();
        let other = connection.begin();
        other.answered(&Ok(()));
        slow.silent(Silence::Connection);
        assert!(connection.is_usable(0), "others were answered meanwhile");
        connection.begin().silent(Silence::Call);
        assert!(connection.is_usable(0));
        answer();
        connection.begin().silent(Silence::Call);
        assert!(connection.is_usable(0), "not two in a row");
        connection.begin().silent(Silence::Call);
        assert!(!connection.is_usable(0));
    }

    #[tokio::test]
    async fn a_call_that_looks_for_life_ends_a_connection_that_shows_none() {
        let connection = connection().await;
        connection.begin().silent(Silence::Connection);
        assert!(!connection.is_usable(0));
    }

    #[tokio::test]
    async fn many_calls_that_lose_one_token_need_one_other() {
        let connection = connection().await;
        let first = connection.begin();
        let second = connection.begin();
        first.note(&failure(Reason::Token));
        assert!(connection.needs_token() && connection.is_usable(0));
        connection.renewed(true);
        assert!(!connection.needs_token());
        second.note(&failure(Reason::Token));
        assert!(!connection.needs_token(), "its token was another one");
        connection.begin().note(&failure(Reason::Token));
        assert!(connection.needs_token());
        connection.renewed(true);
        connection.renewed(true);
        assert!(!connection.needs_token());
    }

    #[tokio::test]
    async fn other_files_need_another_connection() {
        let connection = connection().await;
        assert!(connection.is_usable(0) && !connection.is_usable(1));
    }
}
