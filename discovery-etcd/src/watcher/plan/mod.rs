use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::{Start, keys::Keys};

/// Which stream carries which watch: the decisions without the I/O.
#[derive(Debug, Default)]
pub(super) struct Plan {
    watches: BTreeMap<u64, Placement>,
    streams: BTreeMap<u64, Stream>,
    /// The stream on which watches begin.
    main: Option<u64>,
    last_stream: u64,
    last_turn: u64,
    /// Watches that want a stream beside it, each group one of its own.
    beside: VecDeque<Group>,
    /// Those of the group whose stream is being opened.
    opening: BTreeSet<u64>,
}

/// Where a watch is.
#[derive(Clone, Copy, Debug)]
struct Placement {
    is_range: bool,
    added: Instant,
    /// Where it was last asked for.
    asked: Option<Place>,
    /// What its owner listens to: the created one that was asked for last.
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
    /// Those that were asked for on it and not left, with the last turn of each.
    watches: BTreeMap<u64, u64>,
    /// It was opened to see whether another token does better.
    tries_token: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Group {
    numbers: BTreeSet<u64>,
    tries_token: bool,
}

/// A stream that is to be opened, with a first watch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Opening {
    pub(super) first: u64,
    pub(super) turn: u64,
    purpose: Purpose,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Purpose {
    /// It is the one on which watches begin.
    Main,
    /// It takes the place of the one on which watches begin.
    Move,
    Beside(Group),
}

/// What is to be done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Act {
    /// Ask for a watch on a stream. Of several turns of a watch, the last one that is created
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
    /// Tell the owner of a watch that it is over, and forget it.
    End {
        number: u64,
    },
    /// The watch goes on with another stream by itself; what happened meanwhile is to be read.
    Resume {
        number: u64,
    },
}

/// Why a stream ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Break {
    /// An answer for one of its watches was too large. The connection, and so the history, are as
    /// they were.
    TooLarge,
    Lost,
}

impl Plan {
    /// Takes a new watch.
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

    /// The stream that carries a watch, or is to.
    pub(super) fn stream_of(&self, number: u64) -> Option<u64> {
        let placement = self.watches.get(&number)?;
        placement.home.or(placement.asked).map(|place| place.stream)
    }

    /// Any watch of the stream on which watches begin.
    pub(super) fn any_on_main(&self) -> Option<u64> {
        self.streams.get(&self.main?)?.watches.keys().next().copied()
    }

    /// The stream to open next, if there is one.
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

    /// The stream to open where the handle moves to another member.
    pub(super) fn next_move(&mut self) -> Option<Opening> {
        let first = self.any_on_main()?;
        Some(Opening { first, turn: self.next_turn(), purpose: Purpose::Move })
    }

    /// A stream was opened. Returns its number, and what to do on it, which includes the watch that
    /// it was opened with.
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
            // The watch that it was opened with may have been asked for elsewhere since.
            let is_first = number == first && self.last_turn_of(number) < turn;
            let turn = if is_first { turn } else { self.next_turn() };
            acts.extend(self.ask(stream, number, turn));
        }
        acts.extend(self.close_if_empty(stream));
        acts.extend(former.and_then(|former| self.close_if_empty(former)));
        (stream, acts)
    }

    /// A stream could not be opened.
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
                // Where the others are, it can be no worse.
                (Some(placement), Some(main)) if placement.asked.is_none() => acts.extend(self.ask_next(main, number)),
                _ => {}
            }
        }
        acts
    }

    /// The server has created a watch.
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
        // Its token does, and that of the others may be too old for the next watch.
        let does_token = self.streams.get_mut(&stream).is_some_and(|stream| std::mem::take(&mut stream.tries_token));
        if does_token {
            self.beside.retain(|group| !group.tries_token);
            acts.extend(self.replace_main(stream));
        }
        acts
    }

    /// A watch was created in a turn that is of no use: its owner listens to a later one, or
    /// listens to this one, whose stream has ended since.
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

    /// The server has refused to create a watch, for its token or permission or for another reason.
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
            // One token is enough for all.
            Some(group) => {
                group.numbers.insert(number);
            }
            None => self.open_beside(BTreeSet::from([number]), true),
        }
        self.close_if_empty(stream).into_iter().collect()
    }

    /// A stream has ended.
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
                // It stays where it was before it was asked for here.
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
                // What is told from here on may be another history, which a list tells.
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

    /// Moves watches that are level with their streams to the one on which watches begin.
    ///
    /// A service that changes all the time is so after a while.
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

    /// What waits for a stream, and in no group.
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

    /// The last turn in which a stream was asked for a watch, 0 where none was.
    fn last_turn_of(&self, number: u64) -> u64 {
        self.streams.values().filter_map(|state| state.watches.get(&number)).copied().max().unwrap_or(0)
    }

    fn next_turn(&mut self) -> u64 {
        self.last_turn += 1;
        self.last_turn
    }

    /// Asks for a watch on a stream, in place of a former turn there that was not created.
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

    /// Those that were last asked for on a stream.
    fn asked_on(&self, stream: Option<u64>) -> Vec<u64> {
        let is_there = |placement: &Placement| placement.asked.is_some_and(|asked| Some(asked.stream) == stream);
        self.watches.iter().filter(|(_, placement)| is_there(placement)).map(|(number, _)| *number).collect()
    }

    /// Makes this the stream on which watches begin, and moves those of the former one there.
    fn replace_main(&mut self, stream: u64) -> Vec<Act> {
        let former = self.main.replace(stream).filter(|former| *former != stream);
        let numbers: Vec<u64> = self.asked_on(former).into_iter().chain(self.unassigned()).collect();
        let mut acts: Vec<Act> = numbers.into_iter().flat_map(|number| self.ask_next(stream, number)).collect();
        acts.extend(former.and_then(|former| self.close_if_empty(former)));
        acts
    }

    /// Of watches whose stream had an answer that was too large: each half gets another stream,
    /// until the one that it was for is alone.
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

    /// Leaves a watch on all streams but one.
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

    /// Closes a stream that carries nothing, and the one on which watches begin where there are
    /// none.
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

/// By then a watch has caught up with whatever it was behind.
const CAUGHT_UP: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
