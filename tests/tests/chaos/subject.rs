//! The registry under test, as the processes connect to it.

use std::{sync::Arc, time::Duration};

use discovery_core::{Backend, Backoff};
use discovery_etcd::{EtcdBackend, EtcdConfig};

use crate::{
    copy::{Bug, Copy},
    hand::{PASSWORD, USER},
    oracle::{DEADLINE, TTL},
};

/// The registry under test.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Subject {
    /// The harness's own registry, with or without a bug.
    Copy(Option<Bug>),
    Product,
}

impl Subject {
    /// Returns a handle. The runtime of the process must be entered.
    pub(crate) fn connect(self, members: Vec<String>) -> Arc<dyn Backend> {
        match self {
            Self::Copy(bug) => Arc::new(Copy::new(members, bug)),
            Self::Product => Arc::new(EtcdBackend::new(config(members)).expect("the configuration is right")),
        }
    }
}

/// Short times, with nothing turned off.
fn config(members: Vec<String>) -> EtcdConfig {
    let least = Duration::from_millis(50);
    let most = Duration::from_millis(500);
    EtcdConfig::new(members)
        .prefix("chaos")
        // Without effect until authentication is enabled.
        .credentials(USER, PASSWORD)
        .ttl(TTL)
        .request_timeout(Duration::from_secs(1))
        .operation_timeout(DEADLINE)
        .audit_interval(Duration::from_secs(2))
        .connect_timeout(Duration::from_millis(500))
        .backoff(Backoff::new(least, most).expect("50 to 500 ms lies within the bounds"))
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_millis(500))
}
