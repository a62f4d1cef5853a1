use std::collections::VecDeque;

/// The entries of a handle that nobody owns and that are watched only because a write may still be
/// done, the newest last.
///
/// At most [`MOST`]: each costs a task and a watch for as long as the handle's lease lives.
#[derive(Debug, Default)]
pub(super) struct UnconfirmedWrites(VecDeque<String>);

impl UnconfirmedWrites {
    /// Takes an entry in, and returns the one to give up for it: what is under way longest is the
    /// least likely to arrive.
    pub(super) fn enter(&mut self, key: &str) -> Option<String> {
        self.leave(key);
        self.0.push_back(key.to_owned());
        if self.0.len() > MOST { self.0.pop_front() } else { None }
    }

    pub(super) fn leave(&mut self, key: &str) {
        self.0.retain(|one| one != key);
    }
}

/// How many entries in doubt a handle watches.
const MOST: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_where_there_are_too_many() {
        let mut doubts = UnconfirmedWrites::default();
        let key = |number: usize| format!("payments/{number}");
        for number in 0..MOST {
            assert_eq!(doubts.enter(&key(number)), None);
        }
        assert_eq!(doubts.enter(&key(0)), None, "it is there, and the newest now");
        assert_eq!(doubts.enter(&key(MOST)), Some(key(1)));
        doubts.leave(&key(2));
        assert_eq!(doubts.enter(&key(1)), None);
        assert_eq!(doubts.enter(&key(2)), Some(key(3)));
        assert_eq!(doubts.0.len(), MOST);
    }
}
