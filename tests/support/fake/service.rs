use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
};

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbEvent, PbKvService,
    PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse, PbLeaseLeasesRequest,
    PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse, PbLeaseService, PbLeaseStatus,
    PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse, PbPutRequest, PbPutResponse, PbRangeRequest, PbRangeResponse,
    PbRangeStreamResponse, PbTxnRequest, PbTxnResponse, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse,
    PbWatchService,
};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{
    Method, Shared,
    script::{edited, spread},
};

/// The services of the protocol, all on one store.
#[derive(Clone)]
pub(super) struct Services(pub(super) Arc<Shared>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[async_trait]
impl PbKvService for Services {
    type RangeStreamStream = Answers<PbRangeStreamResponse>;

    async fn range(&self, request: Request<PbRangeRequest>) -> Result<Response<PbRangeResponse>, Status> {
        let asked = request.into_inner();
        let method = match asked.revision {
            _ if asked.count_only || asked.keys_only => Method::Count,
            0 => Method::Range,
            _ => Method::Page,
        };
        self.0.begin(method).await?;
        let answer = self.0.store().range(&asked)?;
        edited(&mut self.0.scripts().range, &asked, answer).map(Response::new)
    }

    async fn range_stream(&self, _: Request<PbRangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("range streams"))
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        self.0.begin(Method::Write).await?;
        self.0.write(|store| store.put(request.into_inner())).map(Response::new)
    }

    async fn delete_range(&self, request: Request<PbDeleteRequest>) -> Result<Response<PbDeleteResponse>, Status> {
        self.0.begin(Method::Write).await?;
        Ok(Response::new(self.0.write(|store| store.delete(request.get_ref()))))
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        self.0.begin(Method::Write).await?;
        let asked = request.into_inner();
        let answer = self.0.write(|store| store.txn(asked.clone()))?;
        edited(&mut self.0.scripts().txn, &asked, answer).map(Response::new)
    }

    async fn compact(&self, request: Request<PbCompactionRequest>) -> Result<Response<PbCompactionResponse>, Status> {
        let mut store = self.0.store();
        store.compact(request.get_ref().revision);
        Ok(Response::new(PbCompactionResponse { header: Some(store.header()) }))
    }
}

#[async_trait]
impl PbLeaseService for Services {
    type LeaseKeepAliveStream = Answers<PbLeaseKeepAliveResponse>;

    async fn lease_grant(
        &self,
        request: Request<PbLeaseGrantRequest>,
    ) -> Result<Response<PbLeaseGrantResponse>, Status> {
        self.0.begin(Method::Grant).await?;
        let answer = self.0.write(|store| store.grant(request.get_ref()))?;
        edited(&mut self.0.scripts().grant, &(), answer).map(Response::new)
    }

    async fn lease_revoke(
        &self,
        request: Request<PbLeaseRevokeRequest>,
    ) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        self.0.begin(Method::Revoke).await?;
        self.0.write(|store| store.revoke(request.get_ref().id))?;
        Ok(Response::new(PbLeaseRevokeResponse { header: Some(self.0.store().header()) }))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        self.0.begin(Method::KeepAlive).await?;
        let (answers, receiver) = mpsc::channel(16);
        let shared = Arc::clone(&self.0);
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(PbLeaseKeepAliveRequest { id })) = requests.message().await {
                let honest = {
                    let mut store = shared.store();
                    PbLeaseKeepAliveResponse { ttl: store.renew(id), header: Some(store.header()), id }
                };
                let sent = spread(&mut shared.scripts().renewal, honest);
                if send(&answers, sent).await.is_none() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        self.0.begin(Method::TimeToLive).await?;
        let id = request.get_ref().id;
        let answer = {
            let store = self.0.store();
            let granted_ttl = store.granted(id).unwrap_or(0);
            let ttl = if granted_ttl == 0 { -1 } else { granted_ttl };
            PbLeaseTimeToLiveResponse { header: Some(store.header()), id, ttl, granted_ttl, keys: Vec::new() }
        };
        edited(&mut self.0.scripts().time_to_live, &(), answer).map(Response::new)
    }

    async fn lease_leases(&self, _: Request<PbLeaseLeasesRequest>) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        let store = self.0.store();
        let leases = store.leases().into_iter().map(|id| PbLeaseStatus { id }).collect();
        Ok(Response::new(PbLeaseLeasesResponse { header: Some(store.header()), leases }))
    }
}

#[async_trait]
impl PbWatchService for Services {
    type WatchStream = Answers<PbWatchResponse>;

    async fn watch(&self, request: Request<Streaming<PbWatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        self.0.begin(Method::Watch).await?;
        let (answers, receiver) = mpsc::channel(16);
        let shared = Arc::clone(&self.0);
        let requests = request.into_inner();
        tokio::spawn(async move {
            shared.watches.fetch_add(1, Ordering::Relaxed);
            // Ends when the client has gone or a script ends the stream.
            let _ = serve_watches(&shared, requests, &answers).await;
            shared.watches.fetch_sub(1, Ordering::Relaxed);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// One watch of a stream.
struct Watch {
    key: Vec<u8>,
    range_end: Vec<u8>,
    next: i64,
    takes_fragments: bool,
}

async fn serve_watches(
    shared: &Shared,
    mut requests: Streaming<PbWatchRequest>,
    answers: &mpsc::Sender<Result<PbWatchResponse, Status>>,
) -> Option<()> {
    let mut changed = shared.changed.subscribe();
    let mut watches = BTreeMap::<i64, Watch>::new();
    loop {
        let mut said = Vec::new();
        tokio::select! {
            request = requests.message() => match request.ok()??.request_union {
                Some(PbWatchRequestUnion::CreateRequest(asked)) => {
                    let store = shared.store();
                    let watch_id =
                        if asked.watch_id == 0 { (0..).find(|id| !watches.contains_key(id))? } else { asked.watch_id };
                    let answer = PbWatchResponse { header: Some(store.header()), watch_id, ..PbWatchResponse::default() };
                    said.push(PbWatchResponse { created: true, ..answer.clone() });
                    let next = if asked.start_revision == 0 { store.revision() + 1 } else { asked.start_revision };
                    if next < store.compacted() {
                        let compact_revision = store.compacted();
                        said.push(PbWatchResponse { canceled: true, compact_revision, ..answer });
                    } else {
                        let key = asked.key;
                        let range_end = asked.range_end;
                        watches.insert(watch_id, Watch { key, range_end, next, takes_fragments: asked.fragment });
                        changed.mark_changed();
                    }
                }
                Some(PbWatchRequestUnion::CancelRequest(asked)) => {
                    let watch_id = asked.watch_id;
                    if watches.remove(&watch_id).is_some() {
                        let header = Some(shared.store().header());
                        said.push(PbWatchResponse { header, watch_id, canceled: true, ..PbWatchResponse::default() });
                    }
                }
                _ => {}
            },
            _ = changed.changed() => {
                let store = shared.store();
                for (watch_id, watch) in &mut watches {
                    let events = store.events(&watch.key, &watch.range_end, watch.next);
                    watch.next = watch.next.max(store.revision() + 1);
                    let whole =
                        PbWatchResponse { header: Some(store.header()), watch_id: *watch_id, events, ..PbWatchResponse::default() };
                    if !whole.events.is_empty() {
                        said.extend(if watch.takes_fragments { fragments(whole) } else { vec![whole] });
                    }
                }
            }
            () = answers.closed() => return None,
        }
        for honest in said {
            let sent = spread(&mut shared.scripts().watch, honest);
            send(answers, sent).await?;
        }
    }
}

/// Splits a large answer into fragments, as etcd does.
fn fragments(mut whole: PbWatchResponse) -> Vec<PbWatchResponse> {
    let size = |event: &PbEvent| event.kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len());
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for event in std::mem::take(&mut whole.events) {
        bytes += size(&event);
        if bytes > FRAGMENT {
            bytes = size(&event);
            parts.push(Vec::new());
        }
        parts.last_mut().expect("there is at least one part").push(event);
    }
    let last = parts.len() - 1;
    let part = |(place, events)| PbWatchResponse { events, fragment: place < last, ..whole.clone() };
    parts.into_iter().enumerate().map(part).collect()
}

/// Sends items up to and including the first error. Returns `None` if the stream is over.
async fn send<T>(answers: &mpsc::Sender<Result<T, Status>>, items: Vec<Result<T, Status>>) -> Option<()> {
    for item in items {
        let is_last = item.is_err();
        answers.send(item).await.ok()?;
        if is_last {
            return None;
        }
    }
    Some(())
}

/// etcd's limit of one answer: the request limit of 1.5 MiB plus 0.5 MiB.
const FRAGMENT: usize = 2 << 20;
