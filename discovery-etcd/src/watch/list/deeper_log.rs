//! Logs keys below a service that are not entries of it.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use discovery_core::ServiceName;
use tracing::info;

use super::Listed;

/// Logs that a service has keys that belong to no instance, once per service.
#[derive(Debug, Default)]
pub(crate) struct DeeperLog(Mutex<HashSet<ServiceName>>);

impl DeeperLog {
    /// Logs what a list of a service found, unless it was logged before.
    pub(in crate::watch) fn note(&self, service: &ServiceName, listed: &Listed) {
        if listed.deeper > 0 && self.is_news(service) {
            let keys = listed.keys;
            let deeper = listed.deeper;
            info!(%service, keys, deeper, "keys of deeper paths belong to no instance");
        }
    }

    fn is_news(&self, service: &ServiceName) -> bool {
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Bounded, because callers may pass names from untrusted sources.
        logged.len() < MAX_SERVICES && logged.insert(service.clone())
    }
}

/// Beyond this number, no further services are logged.
const MAX_SERVICES: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_news_once() {
        let log = DeeperLog::default();
        let name = |number: usize| format!("s{number}").parse::<ServiceName>().unwrap();
        let news = |number| log.is_news(&name(number));
        assert!(news(0) && news(1));
        assert!(!news(0) && !news(1));
        assert!((2..MAX_SERVICES).all(news));
        assert!(!news(MAX_SERVICES), "the log is bounded");
    }
}
