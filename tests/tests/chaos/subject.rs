use std::{sync::Arc, time::Duration};

use discovery_core::{Backend, Backoff};
use discovery_etcd::{EtcdBackend, EtcdConfig};

use crate::{
    copy::{Bug, Copy},
    hand::{PASSWORD, USER},
    oracle::{DEADLINE, TTL},
};

/// What is put to the test.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Subject {
    /// The harness's own registry, without a bug or with one.
    Copy(Option<Bug>),
    Product,
}

impl Subject {
    /// A handle, for a process whose runtime is entered.
    pub(crate) fn connect(self, members: Vec<String>) -> Arc<dyn Backend> {
        match self {
            Self::Copy(bug) => Arc::new(Copy::new(members, bug)),
            Self::Product => Arc::new(EtcdBackend::connect(config(members)).expect("the configuration is right")),
        }
    }
}

/// Short, but with nothing turned off.
fn config(members: Vec<String>) -> EtcdConfig {
    let (least, most) = (Duration::from_millis(50), Duration::from_millis(500));
    EtcdConfig::new(members)
        .with_prefix("chaos")
        // Of no use until authentication is switched on.
        .with_credentials(USER, PASSWORD)
        .with_ttl(TTL)
        .with_request_timeout(Duration::from_secs(1))
        .with_deadline(DEADLINE)
        .with_audit_interval(Duration::from_secs(2))
        .with_connect_timeout(Duration::from_millis(500))
        .with_backoff(Backoff::new(least, most).expect("50 to 500 ms lies within the bounds"))
        .with_ping_interval(Duration::from_secs(1))
        .with_ping_timeout(Duration::from_millis(500))
}
