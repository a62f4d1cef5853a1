//! Streams of watches, and their messages in types of our own.

use std::{fmt, sync::Arc, time::Duration};

use etcd_client::{
    Client, GetOptions, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream, proto::PbEvent,
};
use tokio::time::timeout;

use super::{
    Failure, MAX_ANSWER_BYTES, Member,
    connection::{Silence, Use},
    is_revision,
};

/// A stream that carries one or more watches, in its two directions.
#[derive(Debug)]
pub(crate) struct WatchStream {
    pub(crate) requests: WatchRequests,
    pub(crate) answers: WatchAnswers,
    pub(crate) connection: StreamConnection,
}

/// The connection that carries a stream.
#[derive(Clone)]
pub(crate) struct StreamConnection {
    client: Client,
    member: Arc<Member>,
    used: Use,
}

#[derive(Debug)]
pub(crate) struct WatchRequests {
    requests: WatchRequestSender,
    member: Arc<Member>,
}

#[derive(Debug)]
pub(crate) struct WatchAnswers {
    answers: WatchResponseStream,
    member: Arc<Member>,
    used: Use,
}

/// A watch of `[from, to)`, or of the key `from` alone if `to` is empty, starting at a revision.
#[derive(Clone, Debug)]
pub(crate) struct WatchRequest {
    pub(crate) from: Vec<u8>,
    pub(crate) to: Vec<u8>,
    pub(crate) revision: i64,
    /// The id that it should have, if the server lets clients choose.
    pub(crate) id: i64,
}

/// One message on a watch stream.
#[derive(Debug, Default)]
pub(crate) struct Message {
    pub(crate) watch: i64,
    pub(crate) cluster: u64,
    pub(crate) revision: i64,
    /// This answers a request for a watch. etcd answers in the sequence of the requests.
    pub(crate) created: bool,
    pub(crate) canceled: Option<Canceled>,
    /// More fragments of this message follow.
    pub(crate) fragment: bool,
    pub(crate) events: Vec<Event>,
}

/// Why etcd canceled a watch. The stream stays open, so waiting for its end would be waiting
/// forever.
#[derive(Debug)]
pub(crate) enum Canceled {
    /// The requested revision is compacted.
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
    Put {
        row: super::KeyValue,
        /// Whether the key did not exist before.
        is_new: bool,
    },
    /// An event that is invalid or unknown to this version: of an unknown type, without an entry,
    /// or with an impossible revision.
    Unknown,
}

impl Event {
    /// The revision of the change; 0 if unknown.
    pub(crate) fn revision(&self) -> i64 {
        match self {
            Self::Delete { revision, .. } => *revision,
            Self::Put { row, .. } => row.revision,
            Self::Unknown => 0,
        }
    }

    /// The key of the entry; empty if unknown.
    pub(crate) fn key(&self) -> &[u8] {
        match self {
            Self::Delete { key, .. } => key,
            Self::Put { row, .. } => &row.key,
            Self::Unknown => &[],
        }
    }
}

impl Member {
    /// Opens a stream with a first watch.
    ///
    /// It must open within `limit`, and within the timeout of a request.
    pub(crate) async fn watch(self: &Arc<Self>, first: WatchRequest, limit: Duration) -> Result<WatchStream, Failure> {
        let open = async |client: Client| {
            let mut watches = client.watch_client().max_decoding_message_size(MAX_ANSWER_BYTES);
            let options = first.options();
            watches.watch(first.from, Some(options)).await.map(|stream| (stream, client))
        };
        let ((stream, client), used) = self.open("watch", limit, Silence::Call, open).await?;
        let (requests, answers) = stream.split();
        Ok(WatchStream {
            requests: WatchRequests { requests, member: Arc::clone(self) },
            answers: WatchAnswers { answers, member: Arc::clone(self), used: used.clone() },
            connection: StreamConnection { client, member: Arc::clone(self), used },
        })
    }
}

impl StreamConnection {
    pub(crate) fn member(&self) -> &Arc<Member> {
        &self.member
    }

    /// Reads the store's revision linearizably within `limit`, on the connection of the stream: a
    /// sign of life. The handle must be allowed to read the key, which need not exist.
    ///
    /// If the connection fails, so does the stream, although the member may answer on another one.
    pub(crate) async fn revision(&self, key: Vec<u8>, limit: Duration) -> Result<i64, Failure> {
        let used = self.used.again();
        let read = async {
            if used.needs_token() {
                self.member.connection().await?;
            }
            let options = GetOptions::new().with_count_only();
            let answer = self.client.kv_client().get(key, Some(options)).await;
            used.answered(&answer);
            let answer = answer.map_err(|error| Failure::from_client(error, "watch", &self.member.address))?;
            Ok(answer.header().map_or(0, |header| header.revision()))
        };
        match timeout(limit, read).await {
            Ok(result) => {
                let result = self.member.authorized(result);
                if let Err(failure) = &result {
                    used.note(failure);
                    self.member.dial.auth.failed(&self.member.address, failure);
                }
                result
            }
            Err(_) => {
                used.silent(Silence::Connection);
                Err(Failure::silent("watch", &self.member.address, limit))
            }
        }
    }
}

impl fmt::Debug for StreamConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamConnection").field("member", &self.member).finish_non_exhaustive()
    }
}

impl WatchRequest {
    fn options(&self) -> WatchOptions {
        let options = WatchOptions::new().with_start_revision(self.revision).with_watch_id(self.id).with_fragment();
        if self.to.is_empty() { options } else { options.with_range(self.to.clone()) }
    }
}

impl WatchRequests {
    /// Requests a watch. Cancel safe: it is either requested or not.
    pub(crate) async fn watch(&mut self, request: WatchRequest) -> Result<(), Failure> {
        let options = request.options();
        let added = self.requests.watch(request.from, Some(options)).await;
        added.map_err(|error| Failure::from_client(error, "watch", &self.member.address))
    }

    /// Cancels a watch. Cancel safe: it is either requested or not.
    pub(crate) async fn cancel(&mut self, id: i64) -> Result<(), Failure> {
        self.requests.cancel(id).await.map_err(|error| Failure::from_client(error, "watch", &self.member.address))
    }
}

impl WatchAnswers {
    /// Waits for the next message. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Message, Failure> {
        match self.answers.message().await {
            Ok(Some(answer)) => {
                let message = Message::from(answer);
                if let Some(Canceled::Failed(failure)) = &message.canceled {
                    self.used.note(failure);
                }
                Ok(message)
            }
            Ok(None) => Err(Failure::ended("watch", &self.member.address)),
            Err(error) => {
                let failure = Failure::from_client(error, "watch", &self.member.address);
                self.used.note(&failure);
                Err(failure)
            }
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
                Canceled::Failed(Failure::of_cancel(&answer.cancel_reason, "watch"))
            }
        });
        Self {
            watch: answer.watch_id,
            cluster: answer.header.as_ref().map_or(0, |header| header.cluster_id),
            revision: answer.header.as_ref().map_or(0, |header| header.revision),
            created: answer.created,
            canceled,
            fragment: answer.fragment,
            events: answer.events.into_iter().map(Event::from).collect(),
        }
    }
}

impl From<PbEvent> for Event {
    /// Reads the raw message, because etcd-client's own accessor panics on an unknown type.
    fn from(event: PbEvent) -> Self {
        match (event.r#type, event.kv) {
            (_, Some(entry)) if !is_revision(entry.mod_revision) => Self::Unknown,
            (0, Some(entry)) => Self::Put {
                is_new: entry.create_revision == entry.mod_revision,
                row: super::KeyValue {
                    key: entry.key,
                    value: entry.value,
                    lease: entry.lease,
                    revision: entry.mod_revision,
                },
            },
            (1, Some(entry)) => Self::Delete { key: entry.key, revision: entry.mod_revision },
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use etcd_client::proto::PbKeyValue;

    use super::*;

    #[test]
    fn invalid_events_are_unknown() {
        let entry = |create_revision, mod_revision| {
            Some(PbKeyValue { key: b"k".to_vec(), create_revision, mod_revision, ..PbKeyValue::default() })
        };
        let put = |is_new, revision| Event::Put {
            row: super::super::KeyValue { key: b"k".to_vec(), value: Vec::new(), lease: 0, revision },
            is_new,
        };
        for (kind, kv, read) in [
            (0, entry(5, 5), put(true, 5)),
            (0, entry(4, 5), put(false, 5)),
            (1, entry(0, 5), Event::Delete { key: b"k".to_vec(), revision: 5 }),
            (2, entry(5, 5), Event::Unknown),
            (-1, entry(5, 5), Event::Unknown),
            (0, None, Event::Unknown),
            (0, entry(0, 0), Event::Unknown),
            (1, entry(0, -1), Event::Unknown),
            // There could be no next revision.
            (0, entry(5, i64::MAX), Event::Unknown),
        ] {
            assert_eq!(Event::from(PbEvent { r#type: kind, kv, prev_kv: None }), read);
        }
    }
}
