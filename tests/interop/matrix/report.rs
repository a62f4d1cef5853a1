//! What a client reports of its calls.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
};

use serde::{Deserialize, Serialize};

/// The calls since the former report.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Report {
    pub(crate) calls: u64,
    pub(crate) failed: u64,
    /// The calls that succeeded, by the name of the server.
    pub(crate) by_server: BTreeMap<String, u64>,
    /// The calls that succeeded, by gRPC's kind.
    pub(crate) by_kind: BTreeMap<String, u64>,
    /// The calls that failed, by their error.
    pub(crate) errors: BTreeMap<String, u64>,
    /// When every server that ever answered last did.
    pub(crate) last_at_unix_ns: BTreeMap<String, u64>,
}

impl Report {
    /// Returns whether exactly these servers answered.
    pub(crate) fn is_from(&self, servers: &[&str]) -> bool {
        self.by_server.len() == servers.len() && servers.iter().all(|server| self.by_server.contains_key(*server))
    }

    /// Adds the calls of a later report.
    pub(crate) fn add(&mut self, later: &Self) {
        self.calls += later.calls;
        self.failed += later.failed;
        for (sums, counts) in [
            (&mut self.by_server, &later.by_server),
            (&mut self.by_kind, &later.by_kind),
            (&mut self.errors, &later.errors),
        ] {
            for (name, count) in counts {
                *sums.entry(name.clone()).or_default() += count;
            }
        }
        self.last_at_unix_ns.extend(later.last_at_unix_ns.clone());
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} calls failed; answers: {:?}", self.failed, self.calls, self.by_server)?;
        if !self.errors.is_empty() {
            write!(f, "; errors: {:?}", self.errors)?;
        }
        f.write_char('.')
    }
}
