//! What has been published and is still to be taken, by readers that each go at their own pace.
//!
//! Unlike tokio's `broadcast`, whose ring takes its memory in advance, this queue takes memory only
//! for readers that will still take something. A process may watch a thousand services, and most of
//! them rest.

use std::collections::VecDeque;

/// Items in the order in which they were published. Each reader takes each of them once.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    items: VecDeque<Item<T>>,
    /// The position of the first item.
    first: u64,
    capacity: usize,
    /// Those that are not behind.
    readers: usize,
}

#[derive(Debug)]
struct Item<T> {
    value: T,
    /// How many readers are still to take it; never 0.
    readers: usize,
}

/// Where a reader is: the position of the item that it takes next.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Position(u64);

/// What a reader finds.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Taken<T> {
    /// The reader is so far behind that the next item was dropped. It must leave and join again.
    Behind,
    Item(T),
    /// It has taken everything.
    Nothing,
}

impl Position {
    /// Whether a reader has taken everything, given the [end](Queue::end) of its queue.
    pub(crate) fn is_at(&self, end: u64) -> bool {
        self.0 == end
    }
}

impl<T: Clone> Queue<T> {
    /// Creates a queue that holds at most `capacity` items for readers that are behind.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { items: VecDeque::new(), first: 0, capacity, readers: 0 }
    }

    /// The position after the last item. It grows with each item that is published.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.items.len() as u64
    }

    /// Adds a reader of what is published from now on.
    pub(crate) fn join(&mut self) -> Position {
        self.readers += 1;
        Position(self.end())
    }

    /// Removes a reader.
    pub(crate) fn leave(&mut self, position: &Position) {
        // A reader that is behind was removed already.
        let Some(next) = self.index(position) else { return };
        self.readers -= 1;
        for item in self.items.iter_mut().skip(next) {
            item.readers -= 1;
        }
        self.forget();
    }

    /// Publishes an item. If the queue is full, the oldest item makes room.
    pub(crate) fn push(&mut self, value: T) {
        if self.items.len() == self.capacity {
            self.drop_oldest();
        }
        if self.readers > 0 {
            self.items.push_back(Item { value, readers: self.readers });
        } else {
            self.first += 1;
        }
    }

    /// Takes the next item of a reader.
    pub(crate) fn take(&mut self, position: &mut Position) -> Taken<T> {
        let Some(index) = self.index(position) else { return Taken::Behind };
        let Some(item) = self.items.get_mut(index) else { return Taken::Nothing };
        let value = item.value.clone();
        item.readers -= 1;
        position.0 += 1;
        self.forget();
        Taken::Item(value)
    }

    /// How many items are kept.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> usize {
        self.items.len()
    }

    /// The index of a reader's next item; `None` if it was dropped.
    fn index(&self, position: &Position) -> Option<usize> {
        let index = position.0.checked_sub(self.first)?;
        Some(usize::try_from(index).expect("a position is at most one past the items"))
    }

    /// Drops the oldest item. Its readers are behind then, so they take no other item either, and
    /// nothing is kept for them.
    fn drop_oldest(&mut self) {
        let Some(dropped) = self.items.pop_front() else { return };
        self.first += 1;
        self.readers -= dropped.readers;
        for item in &mut self.items {
            item.readers -= dropped.readers;
        }
        self.forget();
    }

    /// Drops the items that all readers have taken, and the memory with the last one.
    fn forget(&mut self) {
        while self.items.front().is_some_and(|item| item.readers == 0) {
            self.items.pop_front();
            self.first += 1;
        }
        if self.items.is_empty() {
            self.items = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes all that a reader can take.
    fn all(queue: &mut Queue<u32>, position: &mut Position) -> Vec<u32> {
        let next = || match queue.take(position) {
            Taken::Item(item) => Some(item),
            Taken::Behind | Taken::Nothing => None,
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn each_reader_takes_what_was_published_since_it_joined() {
        let mut queue = Queue::new(8);
        queue.push(0);
        let mut first = queue.join();
        queue.push(1);
        let mut second = queue.join();
        queue.push(2);
        assert_eq!(all(&mut queue, &mut first), [1, 2]);
        assert!(first.is_at(queue.end()) && !second.is_at(queue.end()));
        assert_eq!(all(&mut queue, &mut second), [2]);
        assert_eq!(queue.take(&mut second), Taken::Nothing);
        assert_eq!(queue.items.capacity(), 0, "nobody is behind");
    }

    #[test]
    fn a_reader_that_is_too_far_behind_notices() {
        let mut queue = Queue::new(2);
        let mut slow = queue.join();
        let mut quick = queue.join();
        for item in 0..3 {
            queue.push(item);
            assert_eq!(queue.take(&mut quick), Taken::Item(item), "the slow one does not matter");
        }
        assert_eq!(queue.items.capacity(), 0, "nothing is kept for the slow one");
        assert_eq!(queue.take(&mut slow), Taken::Behind);
        assert_eq!(queue.take(&mut slow), Taken::Behind);
        queue.leave(&slow);
        let mut again = queue.join();
        queue.push(3);
        assert_eq!(all(&mut queue, &mut again), [3]);
    }

    #[test]
    fn nothing_is_kept_without_readers() {
        let mut queue = Queue::new(2);
        let position = queue.join();
        queue.push(0);
        queue.leave(&position);
        queue.push(1);
        assert_eq!((queue.items.capacity(), queue.end()), (0, 2));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Join,
        Leave(usize),
        Push,
        Take(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            1 => Just(Step::Join),
            1 => (0..8usize).prop_map(Step::Leave),
            4 => Just(Step::Push),
            6 => (0..8usize).prop_map(Step::Take),
        ]
    }

    proptest! {
        /// Compares with a reader that counts for itself. All items are numbered from 0.
        #[test]
        fn no_item_is_missed_repeated_or_kept(capacity in 1..4usize, steps in prop::collection::vec(step(), 0..200)) {
            let mut queue = Queue::new(capacity);
            let mut readers: Vec<(Position, u32)> = Vec::new();
            let mut published = 0;
            for step in steps {
                match step {
                    Step::Join => readers.push((queue.join(), published)),
                    Step::Leave(reader) if reader < readers.len() => {
                        let (position, _) = readers.swap_remove(reader);
                        queue.leave(&position);
                    }
                    Step::Push => {
                        queue.push(published);
                        published += 1;
                    }
                    Step::Take(reader) if reader < readers.len() => {
                        let (position, next) = &mut readers[reader];
                        let wanted = if *next == published {
                            Taken::Nothing
                        } else if published - *next > capacity as u32 {
                            Taken::Behind
                        } else {
                            *next += 1;
                            Taken::Item(*next - 1)
                        };
                        prop_assert_eq!(queue.take(position), wanted);
                    }
                    Step::Leave(_) | Step::Take(_) => {}
                }
                prop_assert_eq!(queue.end(), u64::from(published));
                let left = readers.iter().map(|(_, next)| (published - next) as usize);
                let kept = left.filter(|left| *left <= capacity).max().unwrap_or(0);
                prop_assert_eq!(queue.items.len(), kept);
            }
        }
    }
}
