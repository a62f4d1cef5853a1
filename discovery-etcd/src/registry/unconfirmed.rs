//! Which unconfirmed writes a handle still watches.

use std::collections::VecDeque;

/// The entries of a handle that have no owner and are watched only because an unanswered write may
/// still be applied, the newest last.
///
/// There are at most [`MOST`], because each costs a task and a watch for as long as the handle's
/// lease lives.
#[derive(Debug, Default)]
pub(super) struct UnconfirmedWrites(VecDeque<String>);

impl UnconfirmedWrites {
    /// Adds an entry, and returns the one to give up if there are too many. That is the oldest,
    /// whose write is the least likely to be applied.
    pub(super) fn enter(&mut self, key: &str) -> Option<String> {
        self.leave(key);
        self.0.push_back(key.to_owned());
        if self.0.len() > MOST { self.0.pop_front() } else { None }
    }

    pub(super) fn leave(&mut self, key: &str) {
        self.0.retain(|one| one != key);
    }
}

/// How many such entries a handle watches.
const MOST: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_given_up_if_there_are_too_many() {
        let mut doubts = UnconfirmedWrites::default();
        let key = |number: usize| format!("payments/{number}");
        for number in 0..MOST {
            assert_eq!(doubts.enter(&key(number)), None);
        }
        assert_eq!(doubts.enter(&key(0)), None, "it was there already, and is now the newest");
        assert_eq!(doubts.enter(&key(MOST)), Some(key(1)));
        doubts.leave(&key(2));
        assert_eq!(doubts.enter(&key(1)), None);
        assert_eq!(doubts.enter(&key(2)), Some(key(3)));
        assert_eq!(doubts.0.len(), MOST);
    }
}
