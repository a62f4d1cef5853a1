//! The resolving half of the harness's own registry.

use std::{collections::HashMap, time::Duration};

use async_trait::async_trait;
use discovery_core::{
    Address, Error, ErrorKind, InstanceId, ServiceName,
    backend::{BadEntry, Entry, Feed, Live, Source},
};
use discovery_etcd::{EtcdNaming, Layout};
use etcd_client::{Event, EventType, GetOptions, KeyValue, WatchOptions};
use tokio::time::{sleep, timeout};

use super::Bug;
use crate::history::{PREFIX, connect};

/// Lists a service and watches it from the next revision on.
#[derive(Debug)]
pub(super) struct CopySource {
    pub(super) member: String,
    pub(super) bug: Option<Bug>,
}

#[async_trait]
impl Source for CopySource {
    async fn follow(&self, service: &ServiceName, feed: Feed) -> Result<(), Error> {
        let separator = if self.bug == Some(Bug::PrefixWithoutSeparator) { "" } else { "/" };
        let mut reader = Reader { prefix: format!("{PREFIX}{service}{separator}"), bug: self.bug, ids: HashMap::new() };
        let mut client = connect(&self.member).await.map_err(failed)?;
        let listed = client.get(reader.prefix.clone(), Some(GetOptions::new().with_prefix()));
        let listed = timeout(PATIENCE, listed).await.map_err(|_| silent())?.map_err(failed)?;
        let revision = listed.header().map_or(0, |header| header.revision());
        let mut live = feed.reset(listed.kvs().iter().filter_map(|entry| reader.read(entry)).collect::<Vec<_>>());
        let mut next = revision + 1;
        if self.bug == Some(Bug::ListWithoutRevision) {
            // Delay, as on a network between two machines.
            sleep(Duration::from_millis(30)).await;
            next = 0;
        }
        loop {
            match self.watch(&mut reader, &mut live, &mut next).await {
                Err(Over::Compacted(revision)) if self.bug == Some(Bug::IgnoredCompaction) => next = revision,
                Err(_) if self.bug == Some(Bug::IgnoredCompaction) => sleep(Duration::from_millis(50)).await,
                Err(Over::Failed(error)) => return Err(error),
                Err(Over::Compacted(_)) | Ok(()) => return Err(silent()),
            }
        }
    }
}

enum Over {
    Compacted(i64),
    Failed(Error),
}

impl CopySource {
    async fn watch(&self, reader: &mut Reader, live: &mut Live, next: &mut i64) -> Result<(), Over> {
        let mut client = connect(&self.member).await.map_err(|error| Over::Failed(failed(error)))?;
        let options = WatchOptions::new().with_prefix().with_start_revision(*next);
        let opened = timeout(PATIENCE, client.watch(reader.prefix.clone(), Some(options)));
        let opened = opened.await.map_err(|_| Over::Failed(silent()))?;
        let mut stream = opened.map_err(|error| Over::Failed(failed(error)))?;
        while let Some(message) = stream.message().await.map_err(|error| Over::Failed(failed(error)))? {
            if message.canceled() {
                return Err(Over::Compacted(message.compact_revision()));
            }
            for step in message.events().chunk_by(|one, other| revision_of(one) == revision_of(other)) {
                *next = revision_of(&step[0]) + 1;
                let size = if self.bug == Some(Bug::SplitRevisions) { 1 } else { step.len() };
                step.chunks(size).for_each(|part| reader.apply(part, live));
            }
        }
        Ok(())
    }
}

/// Decodes keys and values into instances.
struct Reader {
    prefix: String,
    bug: Option<Bug>,
    /// The addresses of the present entries.
    ids: HashMap<InstanceId, Address>,
}

impl Reader {
    fn id(&self, entry: &KeyValue) -> Option<InstanceId> {
        let tail = entry.key_str().ok()?.strip_prefix(&self.prefix)?;
        let tail = if self.bug == Some(Bug::PrefixWithoutSeparator) { tail.rsplit('/').next()? } else { tail };
        EtcdNaming::default().classify(tail).into_ids().pop()
    }

    fn read(&mut self, entry: &KeyValue) -> Option<Entry> {
        let id = self.id(entry)?;
        Some(match support::entry::decode(&id, entry.value()) {
            Ok(instance) => {
                self.ids.insert(id, instance.address().clone());
                Entry::Valid(instance)
            }
            Err(error) => {
                let key = String::from_utf8_lossy(entry.key()).into_owned();
                let revision = entry.mod_revision();
                Entry::Bad(BadEntry { key, id: Some(id), revision: revision.unsigned_abs(), error })
            }
        })
    }

    fn apply(&mut self, events: &[Event], live: &mut Live) {
        let mut upserts = Vec::new();
        let mut removes = Vec::new();
        for event in events {
            let Some(entry) = event.kv() else { continue };
            if event.event_type() == EventType::Put {
                upserts.extend(self.read(entry));
                continue;
            }
            let Some(id) = self.id(entry) else { continue };
            let Some(address) = self.ids.remove(&id) else { continue };
            if self.bug == Some(Bug::RemovalByValue) {
                removes.extend(self.ids.extract_if(|_, other| *other == address).map(|(id, _)| id));
            }
            removes.push(id);
        }
        live.change(upserts, removes);
    }
}

fn revision_of(event: &Event) -> i64 {
    event.kv().map_or(0, |entry| entry.mod_revision())
}

pub(super) fn failed(error: etcd_client::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "etcd failed").with_source(error)
}

pub(super) fn silent() -> Error {
    Error::new(ErrorKind::DeadlineExceeded, "etcd gave no answer")
}

pub(super) const PATIENCE: Duration = Duration::from_secs(1);
