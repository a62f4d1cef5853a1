//! The state machine behind [`Task`](super::task): which stream carries which watch. It does no I/O
//! and is tested with random sequences of events.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::{Start, keys::Keys};

/// Decides which stream carries which watch, without the I/O.
///
/// New watches start on the main stream. Other streams exist beside it for a while. A watch may be
/// requested on several streams, each time in a new turn. Its owner listens to the latest turn that
/// was created, and the watch is left elsewhere once that is the latest one requested.
#[derive(Debug, Default)]
pub(super) struct Plan {
    watches: BTreeMap<u64, Placement>,
    streams: BTreeMap<u64, Stream>,
    /// The main stream, on which watches start.
    main: Option<u64>,
    last_stream: u64,
    last_turn: u64,
    /// Groups of watches that wait for a stream of their own, beside the main one.
    beside: VecDeque<Group>,
    /// The watches of the group whose stream is being opened.
    opening: BTreeSet<u64>,
}

/// Where a watch is carried.
#[derive(Clone, Copy, Debug)]
struct Placement {
    is_range: bool,
    added: Instant,
    /// Where it was last requested.
    asked: Option<Place>,
    /// Where its owner listens: the place with the latest turn that was created.
    home: Option<Place>,
    /// The last turn that was created: its owner listens to no earlier one.
    heard: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Place {
    stream: u64,
    turn: u64,
}

#[derive(Debug)]
struct Stream {
    opened: Instant,
    /// The watches requested on it and not left, with the last turn of each.
    watches: BTreeMap<u64, u64>,
    /// It was opened to try another token.
    tries_token: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Group {
    numbers: BTreeSet<u64>,
    tries_token: bool,
}

/// A stream to open, with a first watch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Opening {
    pub(super) first: u64,
    pub(super) turn: u64,
    purpose: Purpose,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Purpose {
    /// It becomes the main stream.
    Main,
    /// It replaces the main stream.
    Move,
    Beside(Group),
}

/// What the task must do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Act {
    /// Request a watch on a stream. If a watch is requested in several turns, the last one created
    /// counts.
    Ask {
        stream: u64,
        number: u64,
        turn: u64,
    },
    Leave {
        stream: u64,
        turn: u64,
    },
    Close {
        stream: u64,
    },
    /// Report to the owner of a watch that it is over, and forget it.
    End {
        number: u64,
    },
    /// The watch continues on another stream by itself; read what happened in between.
    Resume {
        number: u64,
    },
}

/// Why a stream ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Break {
    /// An answer for one of its watches was too large. The connection still works, so the history
    /// is the same.
    TooLarge,
    Lost,
}

impl Plan {
    /// Adds a watch.
    pub(super) fn add(&mut self, number: u64, keys: &Keys, start: Start, now: Instant) -> Vec<Act> {
        let is_range = matches!(keys, Keys::Range { .. });
        self.watches.insert(number, Placement { is_range, added: now, asked: None, home: None, heard: 0 });
        match (start, self.main) {
            (Start::Behind, _) => {
                self.open_beside(BTreeSet::from([number]), false);
                Vec::new()
            }
            (Start::Level, Some(main)) => self.ask_next(main, number),
            (Start::Level, None) => Vec::new(),
        }
    }

    /// Forgets a watch that its owner dropped.
    pub(super) fn leave(&mut self, number: u64) -> Vec<Act> {
        if self.watches.remove(&number).is_none() {
            return Vec::new();
        }
        for group in &mut self.beside {
            group.numbers.remove(&number);
        }
        self.beside.retain(|group| !group.numbers.is_empty());
        self.opening.remove(&number);
        let mut acts = self.leave_streams(number, None);
        acts.extend(self.main.and_then(|main| self.close_if_empty(main)));
        acts
    }

    pub(super) fn is_empty(&self) -> bool {
        self.watches.is_empty()
    }

    pub(super) fn main(&self) -> Option<u64> {
        self.main
    }

    /// Whether watches wait for a stream.
    pub(super) fn wants_stream(&self) -> bool {
        self.main.is_none() || !self.beside.is_empty()
    }

    /// The stream that carries a watch, or is about to.
    pub(super) fn stream_of(&self, number: u64) -> Option<u64> {
        let placement = self.watches.get(&number)?;
        placement.home.or(placement.asked).map(|place| place.stream)
    }

    /// Any watch on the main stream.
    pub(super) fn any_on_main(&self) -> Option<u64> {
        self.streams.get(&self.main?)?.watches.keys().next().copied()
    }

    /// The stream to open next, if any.
    pub(super) fn next_opening(&mut self) -> Option<Opening> {
        let main = self.unassigned().next().filter(|_| self.main.is_none());
        let (first, purpose) = match main {
            Some(first) => (first, Purpose::Main),
            None => {
                let group = self.beside.pop_front()?;
                self.opening.clone_from(&group.numbers);
                (*group.numbers.first()?, Purpose::Beside(group))
            }
        };
        Some(Opening { first, turn: self.next_turn(), purpose })
    }

    /// The stream to open if the handle moves to another member.
    pub(super) fn next_move(&mut self) -> Option<Opening> {
        let first = self.any_on_main()?;
        Some(Opening { first, turn: self.next_turn(), purpose: Purpose::Move })
    }

    /// Records that a stream was opened. Returns its number, and what to do on it, including the
    /// watch that it was opened with.
    pub(super) fn opened(&mut self, opening: Opening, now: Instant) -> (u64, Vec<Act>) {
        let Opening { first, turn, purpose } = opening;
        self.last_stream += 1;
        let stream = self.last_stream;
        let mut state = Stream { opened: now, watches: BTreeMap::new(), tries_token: false };
        let (numbers, is_main) = match purpose {
            Purpose::Main | Purpose::Move => (BTreeSet::new(), true),
            Purpose::Beside(group) => {
                self.opening.clear();
                state.tries_token = group.tries_token;
                (group.numbers, self.main.is_none())
            }
        };
        self.streams.insert(stream, state);
        let former = if is_main { self.main.replace(stream) } else { None };
        let mut acts = Vec::new();
        let begins = |number: &u64| numbers.contains(number);
        let asked: Vec<u64> = if is_main { self.asked_on(former) } else { Vec::new() };
        let waiting: Vec<u64> = if is_main { self.unassigned().collect() } else { Vec::new() };
        let known: BTreeSet<u64> = self.watches.keys().copied().filter(begins).chain(asked).chain(waiting).collect();
        for number in known {
            // The watch that it was opened with may have been requested elsewhere since.
            let is_first = number == first && self.last_turn_of(number) < turn;
            let turn = if is_first { turn } else { self.next_turn() };
            acts.extend(self.ask(stream, number, turn));
        }
        acts.extend(self.close_if_empty(stream));
        acts.extend(former.and_then(|former| self.close_if_empty(former)));
        (stream, acts)
    }

    /// Records that a stream could not be opened.
    pub(super) fn not_opened(&mut self, opening: &Opening) -> Vec<Act> {
        let numbers: Vec<u64> = match &opening.purpose {
            Purpose::Main => self.unassigned().collect(),
            Purpose::Move => Vec::new(),
            Purpose::Beside(group) => {
                self.opening.clear();
                group.numbers.iter().copied().collect()
            }
        };
        let mut acts = Vec::new();
        for number in numbers {
            match (self.watches.get(&number), self.main) {
                (Some(placement), _) if placement.is_range => acts.extend(self.end(number)),
                // The main stream works for the others, so it is no worse for this one.
                (Some(placement), Some(main)) if placement.asked.is_none() => acts.extend(self.ask_next(main, number)),
                _ => {}
            }
        }
        acts
    }

    /// Records that the server created a watch.
    pub(super) fn created(&mut self, stream: u64, number: u64, turn: u64) -> Vec<Act> {
        let is_carried = self.streams.get(&stream).is_some_and(|state| state.watches.get(&number) == Some(&turn));
        let Some(placement) = self.watches.get_mut(&number) else { return Vec::new() };
        let is_repeated = placement.home == Some(Place { stream, turn });
        let is_late = turn < placement.heard;
        placement.heard = placement.heard.max(turn);
        if is_repeated {
            return Vec::new();
        }
        if is_late || !is_carried {
            return self.lost_turn(stream, number, turn);
        }
        let former = placement.home.replace(Place { stream, turn });
        let is_last = placement.asked.is_none_or(|asked| asked.turn <= turn);
        if is_last {
            placement.asked = placement.home;
        }
        let mut acts = Vec::new();
        if is_last {
            acts.extend(self.leave_streams(number, Some(stream)));
        } else if let Some(former) = former {
            acts.extend(self.leave_stream(former.stream, number));
        }
        // Its token is accepted. That of the main stream may be too old for the next watch.
        let does_token = self.streams.get_mut(&stream).is_some_and(|stream| std::mem::take(&mut stream.tries_token));
        if does_token {
            self.beside.retain(|group| !group.tries_token);
            acts.extend(self.replace_main(stream));
        }
        acts
    }

    /// Handles a watch that was created in a useless turn: its owner listens to a later one, or to
    /// this one, whose stream has ended since.
    fn lost_turn(&mut self, stream: u64, number: u64, turn: u64) -> Vec<Act> {
        let is_carried = self.streams.get(&stream).is_some_and(|state| state.watches.get(&number) == Some(&turn));
        let Some(placement) = self.watches.get_mut(&number) else { return Vec::new() };
        let is_heard = |place: &Place| place.turn >= placement.heard && (place.turn != turn || is_carried);
        let home = placement.home.filter(is_heard);
        let asked = placement.asked.filter(is_heard);
        placement.home = home;
        placement.asked = asked;
        let mut acts = if is_carried { self.leave_stream(stream, number) } else { Vec::new() };
        if home.is_none()
            && asked.is_none()
            && let Some(main) = self.main
        {
            acts.extend(self.ask_next(main, number));
        }
        acts
    }

    /// Records that the server refused to create a watch, because of its token or permission or for
    /// another reason.
    pub(super) fn refused(&mut self, stream: u64, number: u64, is_for_token: bool) -> Vec<Act> {
        let Some(placement) = self.watches.get_mut(&number) else { return Vec::new() };
        let Some(state) = self.streams.get_mut(&stream) else { return Vec::new() };
        state.watches.remove(&number);
        placement.home = placement.home.filter(|home| home.stream != stream);
        let may_be_old = !state.tries_token && (state.opened < placement.added || placement.home.is_some());
        if !(is_for_token && may_be_old) {
            return self.end(number).into_iter().chain(self.close_if_empty(stream)).collect();
        }
        placement.asked = placement.home;
        match self.beside.iter_mut().find(|group| group.tries_token) {
            // One token is enough for all of them.
            Some(group) => {
                group.numbers.insert(number);
            }
            None => self.open_beside(BTreeSet::from([number]), true),
        }
        self.close_if_empty(stream).into_iter().collect()
    }

    /// Records that a stream has ended.
    pub(super) fn broken(&mut self, stream: u64, why: Break) -> Vec<Act> {
        let Some(state) = self.streams.remove(&stream) else { return Vec::new() };
        if self.main == Some(stream) {
            self.main = None;
        }
        let mut acts = vec![Act::Close { stream }];
        let mut lost = Vec::new();
        for number in state.watches.into_keys() {
            let Some(placement) = self.watches.get_mut(&number) else { continue };
            let is_elsewhere = |place: Option<Place>| place.is_some_and(|place| place.stream != stream);
            if is_elsewhere(placement.home) {
                // It stays where it was before it was requested here.
                if !is_elsewhere(placement.asked) {
                    placement.asked = placement.home;
                }
                continue;
            }
            placement.home = None;
            if !is_elsewhere(placement.asked) {
                placement.asked = None;
            }
            let is_range = placement.is_range;
            let is_asked = placement.asked.is_some();
            match why {
                Break::TooLarge if is_asked => {}
                Break::TooLarge => lost.push(number),
                // The next member may have another history; only a list shows that.
                Break::Lost if is_range => acts.extend(self.end(number)),
                Break::Lost => acts.push(Act::Resume { number }),
            }
        }
        acts.extend(self.separate(&lost));
        if self.main.is_none()
            && let Some(other) = self.streams.keys().next().copied()
        {
            acts.extend(self.replace_main(other));
        }
        if let Some(main) = self.main {
            let waiting: Vec<u64> = self.unassigned().collect();
            acts.extend(waiting.into_iter().flat_map(|number| self.ask_next(main, number)));
        }
        acts
    }

    /// Moves watches that are level with their streams to the main stream.
    ///
    /// A stream that has been open for [`CAUGHT_UP`] counts as level: a service that changes all
    /// the time never looks so.
    pub(super) fn gather(&mut self, now: Instant, is_level: impl Fn(u64) -> bool) -> Vec<Act> {
        let mut acts = Vec::new();
        let beside: Vec<u64> = self.streams.keys().copied().filter(|stream| Some(*stream) != self.main).collect();
        for stream in beside {
            let is_settled = |number: &u64| {
                let placement = &self.watches[number];
                placement.asked == placement.home && placement.home.is_some_and(|home| home.stream == stream)
            };
            let numbers: Vec<u64> = self.streams[&stream].watches.keys().copied().filter(is_settled).collect();
            let is_old = now.duration_since(self.streams[&stream].opened) >= CAUGHT_UP;
            if !is_old && numbers.iter().any(|number| !is_level(*number)) {
                continue;
            }
            match self.main {
                None => acts.extend(self.replace_main(stream)),
                Some(main) => acts.extend(numbers.into_iter().flat_map(|number| self.ask_next(main, number))),
            }
        }
        acts
    }

    /// The watches that wait for a stream and are in no group.
    fn unassigned(&self) -> impl Iterator<Item = u64> {
        let in_group = |number: &u64| {
            self.opening.contains(number) || self.beside.iter().any(|group| group.numbers.contains(number))
        };
        let waits = |(_, placement): &(&u64, &Placement)| placement.asked.is_none() && placement.home.is_none();
        self.watches.iter().filter(waits).map(|(number, _)| *number).filter(move |number| !in_group(number))
    }

    fn open_beside(&mut self, numbers: BTreeSet<u64>, tries_token: bool) {
        self.beside.push_back(Group { numbers, tries_token });
    }

    /// The last turn in which a watch was requested on an open stream, 0 if there is none.
    fn last_turn_of(&self, number: u64) -> u64 {
        self.streams.values().filter_map(|state| state.watches.get(&number)).copied().max().unwrap_or(0)
    }

    fn next_turn(&mut self) -> u64 {
        self.last_turn += 1;
        self.last_turn
    }

    /// Requests a watch on a stream, in place of a former turn there that was not created.
    fn ask(&mut self, stream: u64, number: u64, turn: u64) -> Vec<Act> {
        let Some(placement) = self.watches.get_mut(&number) else { return Vec::new() };
        let Some(state) = self.streams.get_mut(&stream) else { return Vec::new() };
        let former = state.watches.get(&number).map(|turn| Place { stream, turn: *turn });
        if former.is_some() && former == placement.home {
            placement.asked = former;
            return Vec::new();
        }
        placement.asked = Some(Place { stream, turn });
        state.watches.insert(number, turn);
        let leave = former.map(|former| Act::Leave { stream, turn: former.turn });
        leave.into_iter().chain([Act::Ask { stream, number, turn }]).collect()
    }

    fn ask_next(&mut self, stream: u64, number: u64) -> Vec<Act> {
        let turn = self.next_turn();
        self.ask(stream, number, turn)
    }

    /// The watches last requested on a stream.
    fn asked_on(&self, stream: Option<u64>) -> Vec<u64> {
        let is_there = |placement: &Placement| placement.asked.is_some_and(|asked| Some(asked.stream) == stream);
        self.watches.iter().filter(|(_, placement)| is_there(placement)).map(|(number, _)| *number).collect()
    }

    /// Makes a stream the main one, and moves the watches of the former one there.
    fn replace_main(&mut self, stream: u64) -> Vec<Act> {
        let former = self.main.replace(stream).filter(|former| *former != stream);
        let numbers: Vec<u64> = self.asked_on(former).into_iter().chain(self.unassigned()).collect();
        let mut acts: Vec<Act> = numbers.into_iter().flat_map(|number| self.ask_next(stream, number)).collect();
        acts.extend(former.and_then(|former| self.close_if_empty(former)));
        acts
    }

    /// Splits the watches of a stream that received an answer too large to decode. Each half gets a
    /// stream, until the watch that the answer was for is alone.
    fn separate(&mut self, lost: &[u64]) -> Vec<Act> {
        if let [number] = lost {
            return self.end(*number);
        }
        let (first, second) = lost.split_at(lost.len() / 2);
        for half in [first, second] {
            if !half.is_empty() {
                self.open_beside(half.iter().copied().collect(), false);
            }
        }
        Vec::new()
    }

    fn end(&mut self, number: u64) -> Vec<Act> {
        let mut acts = self.leave(number);
        acts.push(Act::End { number });
        acts
    }

    /// Leaves a watch on all streams except one.
    fn leave_streams(&mut self, number: u64, but: Option<u64>) -> Vec<Act> {
        let carries = |(stream, state): &(&u64, &Stream)| Some(**stream) != but && state.watches.contains_key(&number);
        let streams: Vec<u64> = self.streams.iter().filter(carries).map(|(stream, _)| *stream).collect();
        streams.into_iter().flat_map(|stream| self.leave_stream(stream, number)).collect()
    }

    fn leave_stream(&mut self, stream: u64, number: u64) -> Vec<Act> {
        let Some(state) = self.streams.get_mut(&stream) else { return Vec::new() };
        let Some(turn) = state.watches.remove(&number) else { return Vec::new() };
        vec![self.close_if_empty(stream).unwrap_or(Act::Leave { stream, turn })]
    }

    /// Closes a stream that carries nothing. The main stream stays open as long as there are
    /// watches.
    fn close_if_empty(&mut self, stream: u64) -> Option<Act> {
        let is_empty = self.streams.get(&stream).is_some_and(|state| state.watches.is_empty());
        let is_kept = self.main == Some(stream) && !self.watches.is_empty();
        if !is_empty || is_kept {
            return None;
        }
        self.streams.remove(&stream);
        if self.main == Some(stream) {
            self.main = None;
        }
        Some(Act::Close { stream })
    }
}

/// By this time a watch has caught up with whatever it was behind.
const CAUGHT_UP: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
