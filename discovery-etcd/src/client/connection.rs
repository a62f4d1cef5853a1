//! A connection to a member: whether it may be used, and what calls on it report about it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use etcd_client::{Client, Error as ClientError};

use super::{Failure, Reason, failure::is_answer};

/// A client of one member, and the state of its connection. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Connection {
    client: Client,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// It gets no further calls.
    retired: AtomicBool,
    /// Counts its tokens. The lowest bit is set while it needs another one.
    token: AtomicU64,
    /// Whether calls send a token.
    sends_token: AtomicBool,
    /// The number of answers of any kind.
    answers: AtomicU64,
    /// How many calls in a row got no answer in time.
    silent: AtomicU32,
    /// The reading of the TLS files that it was made with.
    files: u64,
}

/// One call or one stream on a connection.
#[derive(Clone, Debug)]
pub(super) struct Use {
    state: Arc<State>,
    /// The number of answers when it began.
    answers: u64,
    /// The token that it began with.
    token: u64,
}

/// What it means if a call gets no answer in time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Silence {
    /// The call may be slow. Two such calls in a row, without any answer in between, count as a
    /// dead connection.
    Call,
    /// The call was made to find out whether the connection is dead, so one is enough.
    Connection,
}

impl Connection {
    /// A connection without a token, made with this reading of the TLS files.
    pub(super) fn new(client: Client, files: u64) -> Self {
        Self { client, state: Arc::new(State { files, ..State::default() }) }
    }

    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Whether further calls may use it, given the current reading of the TLS files.
    pub(super) fn is_usable(&self, files: u64) -> bool {
        !self.state.retired.load(Ordering::Acquire) && self.state.files == files
    }

    /// Whether a call was refused for its token and no new one was obtained since.
    pub(super) fn needs_token(&self) -> bool {
        self.state.token.load(Ordering::Acquire) & NEEDED != 0
    }

    /// Whether calls send a token.
    pub(super) fn sends_token(&self) -> bool {
        self.state.sends_token.load(Ordering::Acquire)
    }

    /// Records that calls now send a new token, or none.
    pub(super) fn renewed(&self, sends_token: bool) {
        self.state.sends_token.store(sends_token, Ordering::Release);
        // Clears the bit and counts up, so that calls with the former token no longer match.
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

    /// Whether a call was refused for its token and no new one was obtained since.
    pub(super) fn needs_token(&self) -> bool {
        self.state.token.load(Ordering::Acquire) & NEEDED != 0
    }

    /// Records the answer to a call, or the failure of the connection.
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
            // The exchange fails if another token was obtained since, for instance because many
            // calls were refused at once.
            let needed = self.token | NEEDED;
            let _ = self.state.token.compare_exchange(self.token, needed, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// Records that no answer came in time.
    ///
    /// A connection on which other calls are answered in the meantime is alive. Giving one up for
    /// each slow call would add handshakes and password checks to a load that may be the cause.
    pub(super) fn silent(&self, silence: Silence) {
        if self.state.answers.load(Ordering::Acquire) != self.answers {
            return;
        }
        let in_a_row = self.state.silent.fetch_add(1, Ordering::AcqRel) + 1;
        if silence == Silence::Connection || in_a_row >= MOST_SILENT {
            self.retire();
        }
    }

    /// Gives the connection no further calls. Streams that are open on it continue.
    pub(super) fn retire(&self) {
        self.state.retired.store(true, Ordering::Release);
    }
}

/// The bit that is set while a token is needed.
const NEEDED: u64 = 1;
/// This many calls in a row without any answer count as a dead connection.
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
    async fn one_slow_call_does_not_end_a_connection() {
        let connection = connection().await;
        let answer = || connection.begin().answered(&Ok(()));
        let slow = connection.begin();
        let other = connection.begin();
        other.answered(&Ok(()));
        slow.silent(Silence::Connection);
        assert!(connection.is_usable(0), "another call was answered in the meantime");
        connection.begin().silent(Silence::Call);
        assert!(connection.is_usable(0));
        answer();
        connection.begin().silent(Silence::Call);
        assert!(connection.is_usable(0), "not two in a row");
        connection.begin().silent(Silence::Call);
        assert!(!connection.is_usable(0));
    }

    #[tokio::test]
    async fn an_unanswered_sign_of_life_ends_the_connection() {
        let connection = connection().await;
        connection.begin().silent(Silence::Connection);
        assert!(!connection.is_usable(0));
    }

    #[tokio::test]
    async fn many_calls_that_lose_a_token_need_one_new_token() {
        let connection = connection().await;
        let first = connection.begin();
        let second = connection.begin();
        first.note(&failure(Reason::Token));
        assert!(connection.needs_token() && connection.is_usable(0));
        connection.renewed(true);
        assert!(!connection.needs_token());
        second.note(&failure(Reason::Token));
        assert!(!connection.needs_token(), "it used an older token");
        connection.begin().note(&failure(Reason::Token));
        assert!(connection.needs_token());
        connection.renewed(true);
        connection.renewed(true);
        assert!(!connection.needs_token());
    }

    #[tokio::test]
    async fn changed_tls_files_need_a_new_connection() {
        let connection = connection().await;
        assert!(connection.is_usable(0) && !connection.is_usable(1));
    }
}
