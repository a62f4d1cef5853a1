use std::{sync::Arc, time::Duration};

use etcd_client::{WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream};

use super::{Failure, MAX_ANSWER_BYTES, Member, Origin, failure::of_cancel};

/// A stream that carries one or more watches.
#[derive(Debug)]
pub(crate) struct WatchStream {
    requests: WatchRequestSender,
    answers: WatchResponseStream,
    origin: Origin,
}

/// One answer on a watch stream.
#[derive(Debug, Default)]
pub(crate) struct Message {
    pub(crate) watch: i64,
    pub(crate) cluster: u64,
    pub(crate) revision: i64,
    pub(crate) canceled: Option<Canceled>,
    /// More parts of this answer follow.
    pub(crate) fragment: bool,
    pub(crate) events: Vec<Event>,
}

/// Why etcd canceled a watch. The stream stays open, so waiting for its end would be waiting for ever.
#[derive(Debug)]
pub(crate) enum Canceled {
    /// What was asked for is compacted.
    Compacted,
    Failed(Failure),
}

/// One change of one entry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Event {
    Delete {
        key: Vec<u8>,
        revision: i64,
    },
    Put(super::Row),
    /// Of a type that this version does not know.
    Unknown,
}

impl Member {
    /// Opens a stream with a watch of `[from, to)`, or of the key `from` alone where `to` is empty, from `revision` on.
    ///
    /// That may take no longer than `deadline`, nor than any request.
    pub(crate) async fn watch(
        self: &Arc<Self>,
        from: Vec<u8>,
        to: Vec<u8>,
        revision: i64,
        id: i64,
        deadline: Duration,
    ) -> Result<WatchStream, Failure> {
        let opened = self.open("watch", deadline, async |client| {
            let mut client = client.watch_client().max_decoding_message_size(MAX_ANSWER_BYTES);
            client.watch(from, Some(options(to, revision, id))).await
        });
        let (stream, number) = opened.await?;
        let (requests, answers) = stream.split();
        Ok(WatchStream { requests, answers, origin: Origin { member: Arc::clone(self), number } })
    }
}

impl WatchStream {
    /// Adds a watch of one key under an id of the caller's. Cancel safe: either asked or not.
    pub(crate) async fn add(&mut self, key: Vec<u8>, revision: i64, id: i64) -> Result<(), Failure> {
        let added = self.requests.watch(key, Some(options(Vec::new(), revision, id))).await;
        added.map_err(|error| Failure::from_client(error, "watch", &self.origin.member.address))
    }

    /// Ends one watch. Cancel safe: either asked or not.
    pub(crate) async fn cancel(&mut self, id: i64) -> Result<(), Failure> {
        self.requests
            .cancel(id)
            .await
            .map_err(|error| Failure::from_client(error, "watch", &self.origin.member.address))
    }

    /// The next answer. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Message, Failure> {
        match self.answers.message().await {
            Ok(Some(answer)) => {
                let mut message = Message::from(answer);
                if let Some(Canceled::Failed(failure)) = message.canceled {
                    message.canceled = Some(Canceled::Failed(self.origin.note(failure)));
                }
                Ok(message)
            }
            Ok(None) => Err(Failure::ended("watch", &self.origin.member.address)),
            Err(error) => Err(self.origin.note(Failure::from_client(error, "watch", &self.origin.member.address))),
        }
    }
}

impl From<WatchResponse> for Message {
    fn from(answer: WatchResponse) -> Self {
        let answer = answer.0;
        let canceled = answer.canceled.then(|| {
            if answer.compact_revision > 0 {
                Canceled::Compacted
            } else {
                Canceled::Failed(of_cancel(&answer.cancel_reason, "watch"))
            }
        });
        // Read raw, because etcd-client's own accessor panics on a type that it does not know.
        let event = |event: etcd_client::proto::PbEvent| match (event.r#type, event.kv) {
            (0, Some(entry)) => Event::Put(super::Row {
                key: entry.key,
                value: entry.value,
                lease: entry.lease,
                revision: entry.mod_revision,
            }),
            (1, Some(entry)) => Event::Delete { key: entry.key, revision: entry.mod_revision },
            _ => Event::Unknown,
        };
        Self {
            watch: answer.watch_id,
            cluster: answer.header.as_ref().map_or(0, |header| header.cluster_id),
            revision: answer.header.as_ref().map_or(0, |header| header.revision),
            canceled,
            fragment: answer.fragment,
            events: answer.events.into_iter().map(event).collect(),
        }
    }
}

fn options(to: Vec<u8>, revision: i64, id: i64) -> WatchOptions {
    let options = WatchOptions::new().with_start_revision(revision).with_watch_id(id).with_fragment();
    if to.is_empty() { options } else { options.with_range(to) }
}
