//! The keys of a watch.

/// The keys that one watch covers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Keys {
    /// One key: an entry of the handle's own.
    One(Vec<u8>),
    /// All keys of `[from, to)`: those of a service.
    Range { from: Vec<u8>, to: Vec<u8> },
}

impl Keys {
    /// The first key.
    pub(crate) fn from(&self) -> &[u8] {
        match self {
            Self::One(key) => key,
            Self::Range { from, .. } => from,
        }
    }

    /// The end of the range as etcd encodes it: empty for one key.
    pub(crate) fn to(&self) -> &[u8] {
        match self {
            Self::One(_) => &[],
            Self::Range { to, .. } => to,
        }
    }

    /// Whether the watch covers a key. Some releases of etcd send events of other keys as well.
    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::One(one) => one == key,
            // etcd's notation for all keys from `from` on.
            Self::Range { from, to } if **to == [0] => **from <= *key,
            Self::Range { from, to } => **from <= *key && *key < **to,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_belong_to_their_watch_alone() {
        let one = Keys::One(b"a/1".to_vec());
        let range = Keys::Range { from: b"a/".to_vec(), to: b"a0".to_vec() };
        let open = Keys::Range { from: vec![0xff], to: vec![0] };
        for (key, is_one, is_in_range, is_above) in [
            (&b"a/1"[..], true, true, false),
            (b"a/10", false, true, false),
            (b"a/", false, true, false),
            (b"a", false, false, false),
            (b"a0", false, false, false),
            (b"\xff\x01", false, false, true),
        ] {
            assert_eq!(one.contains(key), is_one, "{key:?}");
            assert_eq!(range.contains(key), is_in_range, "{key:?}");
            assert_eq!(open.contains(key), is_above, "{key:?}");
        }
    }
}
