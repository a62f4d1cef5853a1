//! Which watch a message on a stream belongs to.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::client::Message;

/// Decides which watch a message on a stream belongs to, without the I/O. A watch is identified by
/// its turn, since the same watch may be requested on a stream a second time.
///
/// etcd accepts ids chosen by the client. Its grpc-proxy numbers the watches of a stream itself,
/// and may answer a watch that it already has before an earlier one that is new to it. So the first
/// watch of a stream is requested alone. If the server does not accept its id, all further watches
/// are requested one at a time.
#[derive(Debug)]
pub(super) struct Ids {
    numbering: Numbering,
    /// To be requested.
    waiting: VecDeque<u64>,
    /// Requested and not answered yet, in the sequence of the requests.
    asked: VecDeque<u64>,
    /// Those of `asked` that are no longer wanted.
    left: HashSet<u64>,
    by_id: HashMap<i64, u64>,
    ids: HashMap<u64, i64>,
}

/// Who numbers the watches of a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Numbering {
    Client,
    Server,
    Unknown,
}

/// What a message is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Placed {
    Created(u64),
    /// It was not created.
    Refused(u64),
    /// It was created, and ended by the server.
    Canceled(u64),
    Event(u64),
    /// Nobody wants this watch any more: cancel it by its id.
    Unwanted(i64),
    Nobody,
}

impl Ids {
    /// For a stream that was opened with the watch `first`.
    pub(super) fn new(first: u64) -> Self {
        Self {
            numbering: Numbering::Unknown,
            waiting: VecDeque::new(),
            asked: VecDeque::from([first]),
            left: HashSet::new(),
            by_id: HashMap::new(),
            ids: HashMap::new(),
        }
    }

    /// The id that the client chooses for a watch.
    pub(super) fn chosen(turn: u64) -> i64 {
        FIRST.saturating_add_unsigned(turn)
    }

    /// Adds a watch to request, unless the stream was opened with it.
    pub(super) fn add(&mut self, turn: u64) {
        if !self.asked.contains(&turn) {
            self.waiting.push_back(turn);
        }
    }

    /// The watch to request now.
    pub(super) fn next(&self) -> Option<u64> {
        let may_ask = self.asked.is_empty() || self.numbering == Numbering::Client;
        self.waiting.front().copied().filter(|_| may_ask)
    }

    /// Records that the next watch was requested.
    pub(super) fn sent(&mut self) {
        self.asked.extend(self.waiting.pop_front());
    }

    /// Whether an answer is outstanding.
    pub(super) fn is_asking(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Forgets a watch. Returns the id to cancel, if it already has one.
    pub(super) fn leave(&mut self, turn: u64) -> Option<i64> {
        self.waiting.retain(|one| *one != turn);
        if self.asked.contains(&turn) {
            self.left.insert(turn);
        }
        let id = self.ids.remove(&turn)?;
        self.by_id.remove(&id);
        Some(id)
    }

    /// Determines what a message is about.
    pub(super) fn place(&mut self, message: &Message) -> Placed {
        if message.created {
            return self.answered(message);
        }
        let Some(turn) = self.by_id.get(&message.watch).copied() else { return Placed::Nobody };
        if message.canceled.is_some() {
            self.by_id.remove(&message.watch);
            self.ids.remove(&turn);
            return Placed::Canceled(turn);
        }
        Placed::Event(turn)
    }

    fn answered(&mut self, message: &Message) -> Placed {
        let by_id = self.asked.iter().position(|turn| Self::chosen(*turn) == message.watch);
        // A refusal has no id. It answers the oldest request.
        let is_refused = message.canceled.is_some();
        let place = by_id.unwrap_or(0);
        let Some(turn) = self.asked.remove(place) else { return Placed::Nobody };
        if by_id.is_none() && !is_refused {
            self.numbering = Numbering::Server;
        } else if self.numbering == Numbering::Unknown && !is_refused {
            self.numbering = Numbering::Client;
        }
        let is_left = self.left.remove(&turn);
        match (is_refused, is_left) {
            (true, true) => Placed::Nobody,
            (true, false) => Placed::Refused(turn),
            (false, true) => Placed::Unwanted(message.watch),
            (false, false) => {
                self.by_id.insert(message.watch, turn);
                self.ids.insert(turn, message.watch);
                Placed::Created(turn)
            }
        }
    }
}

/// Out of reach of servers that number watches themselves.
const FIRST: i64 = 1 << 40;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Canceled;

    fn message(watch: i64) -> Message {
        Message { watch, ..Message::default() }
    }

    fn created(watch: i64) -> Message {
        Message { created: true, ..message(watch) }
    }

    fn canceled(watch: i64, created: bool) -> Message {
        Message { created, canceled: Some(Canceled::Compacted), ..message(watch) }
    }

    fn asking(turns: std::ops::Range<u64>) -> Ids {
        let mut ids = Ids::new(turns.start);
        turns.skip(1).for_each(|turn| ids.add(turn));
        ids
    }

    fn send_all(ids: &mut Ids) -> Vec<u64> {
        let mut sent = Vec::new();
        while let Some(turn) = ids.next() {
            ids.sent();
            sent.push(turn);
        }
        sent
    }

    #[test]
    fn a_server_that_accepts_our_ids_gets_many_requests_at_once() {
        let mut ids = asking(1..5);
        assert_eq!(ids.next(), None, "only once it is known who numbers them");
        assert_eq!(ids.place(&created(Ids::chosen(1))), Placed::Created(1));
        assert_eq!(send_all(&mut ids), [2, 3, 4]);
        assert_eq!(ids.place(&created(Ids::chosen(3))), Placed::Created(3), "in any order");
        assert_eq!(ids.place(&canceled(-1, true)), Placed::Refused(2), "the oldest without an answer");
        assert_eq!(ids.place(&message(Ids::chosen(3))), Placed::Event(3));
        assert_eq!(ids.place(&message(Ids::chosen(4))), Placed::Nobody, "not answered yet");
        assert_eq!(ids.place(&created(Ids::chosen(4))), Placed::Created(4));
        assert_eq!(ids.place(&canceled(Ids::chosen(4), false)), Placed::Canceled(4));
        assert_eq!(ids.place(&message(Ids::chosen(4))), Placed::Nobody);
    }

    #[test]
    fn a_server_with_ids_of_its_own_gets_one_request_at_a_time() {
        let mut ids = asking(7..10);
        assert_eq!(ids.place(&created(0)), Placed::Created(7));
        assert_eq!(send_all(&mut ids), [8]);
        assert_eq!(ids.place(&created(1)), Placed::Created(8));
        assert_eq!(send_all(&mut ids), [9]);
        assert_eq!(ids.place(&canceled(-1, true)), Placed::Refused(9));
        assert_eq!(ids.place(&message(0)), Placed::Event(7));
        assert_eq!(ids.place(&message(1)), Placed::Event(8));
        assert!(!ids.is_asking());
    }

    #[test]
    fn a_refusal_does_not_show_who_numbers_the_watches() {
        let mut ids = asking(1..4);
        assert_eq!(ids.place(&canceled(-1, true)), Placed::Refused(1));
        assert_eq!(send_all(&mut ids), [2], "still one at a time");
        assert_eq!(ids.place(&created(0)), Placed::Created(2));
    }

    #[test]
    fn a_watch_left_before_its_answer_is_canceled_on_it() {
        let mut ids = asking(1..5);
        ids.place(&created(Ids::chosen(1)));
        ids.next();
        ids.sent();
        assert_eq!(ids.leave(2), None, "no id yet");
        assert_eq!(ids.leave(3), None, "not even requested");
        assert_eq!(send_all(&mut ids), [4]);
        assert_eq!(ids.place(&created(Ids::chosen(2))), Placed::Unwanted(Ids::chosen(2)));
        assert_eq!(ids.leave(1), Some(Ids::chosen(1)));
        assert_eq!(ids.place(&message(Ids::chosen(1))), Placed::Nobody);
        assert_eq!(ids.place(&canceled(Ids::chosen(1), false)), Placed::Nobody, "our own cancel");
    }
}
