use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use etcd_client::proto::{
    PbCompare, PbDeleteRequest, PbDeleteResponse, PbEvent, PbKeyValue, PbLeaseGrantRequest, PbLeaseGrantResponse,
    PbPutRequest, PbPutResponse, PbRangeRequest, PbRangeResponse, PbResponseHeader, PbResponseOp, PbTargetUnion,
    PbTxnOpRequest, PbTxnOpResponse, PbTxnRequest, PbTxnResponse,
};
use tonic::Status;

/// The data of an etcd: entries, their history, and leases.
#[derive(Debug)]
pub(super) struct Store {
    revision: i64,
    compacted: i64,
    entries: Entries,
    /// All events so far. Compaction only forbids reading them.
    history: Vec<PbEvent>,
    leases: BTreeMap<i64, Lease>,
}

type Entries = BTreeMap<Vec<u8>, PbKeyValue>;

#[derive(Debug)]
struct Lease {
    ttl: i64,
    ends: Instant,
}

impl Default for Store {
    fn default() -> Self {
        // etcd starts at revision 1.
        Self { revision: 1, compacted: 0, entries: Entries::new(), history: Vec::new(), leases: BTreeMap::new() }
    }
}

impl Store {
    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    pub(super) fn keys(&self) -> Vec<String> {
        self.entries.keys().map(|key| String::from_utf8_lossy(key).into_owned()).collect()
    }

    pub(super) fn leases(&self) -> Vec<i64> {
        self.leases.keys().copied().collect()
    }

    pub(super) fn header(&self) -> PbResponseHeader {
        PbResponseHeader { cluster_id: 7, member_id: 8, revision: self.revision, raft_term: 2 }
    }

    /// Puts entries, or deletes them if the value is `None`, in one revision.
    pub(super) fn write(&mut self, changes: Vec<(Vec<u8>, Option<Vec<u8>>)>, lease: i64) {
        let revision = self.revision + 1;
        for (key, value) in changes {
            let former = self.entries.remove(&key);
            let event = match (value, former) {
                (Some(value), former) => {
                    let (create_revision, version) =
                        former.map_or((revision, 1), |former| (former.create_revision, former.version + 1));
                    let kv = PbKeyValue { key, value, create_revision, mod_revision: revision, version, lease };
                    self.entries.insert(kv.key.clone(), kv.clone());
                    PbEvent { r#type: PUT, kv: Some(kv), prev_kv: None }
                }
                (None, Some(_)) => {
                    let kv = PbKeyValue { key, mod_revision: revision, ..PbKeyValue::default() };
                    PbEvent { r#type: DELETE, kv: Some(kv), prev_kv: None }
                }
                (None, None) => continue,
            };
            self.history.push(event);
            self.revision = revision;
        }
    }

    pub(super) fn compact(&mut self, revision: i64) {
        self.compacted = self.compacted.max(revision.min(self.revision));
    }

    pub(super) fn compacted(&self) -> i64 {
        self.compacted
    }

    /// Returns the events of a range from a revision on.
    pub(super) fn events(&self, key: &[u8], range_end: &[u8], from: i64) -> Vec<PbEvent> {
        let start = self.history.partition_point(|event| revision_of(event) < from);
        let is_of_range = |event: &&PbEvent| event.kv.as_ref().is_some_and(|kv| is_within(&kv.key, key, range_end));
        self.history[start..].iter().filter(is_of_range).cloned().collect()
    }

    pub(super) fn range(&self, asked: &PbRangeRequest) -> Result<PbRangeResponse, Status> {
        if asked.revision > self.revision {
            return Err(Status::out_of_range("etcdserver: mvcc: required revision is a future revision"));
        }
        if asked.revision > 0 && asked.revision < self.compacted {
            return Err(Status::out_of_range("etcdserver: mvcc: required revision has been compacted"));
        }
        let former = (asked.revision > 0 && asked.revision < self.revision).then(|| self.entries_at(asked.revision));
        let entries = former.as_ref().unwrap_or(&self.entries);
        let mut kvs: Vec<_> =
            entries.values().filter(|kv| is_within(&kv.key, &asked.key, &asked.range_end)).cloned().collect();
        match (asked.sort_target, asked.sort_order) {
            (KEY, _) => {}
            (MOD, DESCEND) => kvs.sort_by_key(|kv| std::cmp::Reverse(kv.mod_revision)),
            _ => return Err(Status::unimplemented("only the orders that clients need are supported")),
        }
        let count = kvs.len();
        if asked.count_only {
            kvs.clear();
        }
        let limit = usize::try_from(asked.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let more = kvs.len() > limit;
        kvs.truncate(limit);
        if asked.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value.clear());
        }
        let count = i64::try_from(count).expect("it fits the memory");
        Ok(PbRangeResponse { header: Some(self.header()), kvs, more, count })
    }

    pub(super) fn txn(&mut self, asked: PbTxnRequest) -> Result<PbTxnResponse, Status> {
        let mut succeeded = true;
        for compare in &asked.compare {
            succeeded &= self.holds(compare)?;
        }
        let operations = if succeeded { asked.success } else { asked.failure };
        let mut changes = Vec::new();
        let mut lease = 0;
        let mut responses = Vec::new();
        for operation in operations {
            let response = match operation.request {
                Some(PbTxnOpRequest::RequestRange(asked)) => PbTxnOpResponse::ResponseRange(self.range(&asked)?),
                Some(PbTxnOpRequest::RequestPut(put)) => {
                    self.require(put.lease)?;
                    lease = put.lease;
                    changes.push((put.key, Some(put.value)));
                    PbTxnOpResponse::ResponsePut(PbPutResponse::default())
                }
                Some(PbTxnOpRequest::RequestDeleteRange(delete)) => {
                    let keys = self.within(&delete.key, &delete.range_end);
                    let deleted = i64::try_from(keys.len()).expect("it fits the memory");
                    changes.extend(keys.into_iter().map(|key| (key, None)));
                    PbTxnOpResponse::ResponseDeleteRange(PbDeleteResponse { deleted, ..PbDeleteResponse::default() })
                }
                _ => return Err(Status::unimplemented("nested transactions")),
            };
            responses.push(PbResponseOp { response: Some(response) });
        }
        self.write(changes, lease);
        Ok(PbTxnResponse { header: Some(self.header()), succeeded, responses })
    }

    pub(super) fn put(&mut self, put: PbPutRequest) -> Result<PbPutResponse, Status> {
        self.require(put.lease)?;
        self.write(vec![(put.key, Some(put.value))], put.lease);
        Ok(PbPutResponse { header: Some(self.header()), prev_kv: None })
    }

    pub(super) fn delete(&mut self, delete: &PbDeleteRequest) -> PbDeleteResponse {
        let keys = self.within(&delete.key, &delete.range_end);
        let deleted = i64::try_from(keys.len()).expect("it fits the memory");
        self.write(keys.into_iter().map(|key| (key, None)).collect(), 0);
        PbDeleteResponse { header: Some(self.header()), deleted, prev_kvs: Vec::new() }
    }

    pub(super) fn grant(&mut self, asked: &PbLeaseGrantRequest) -> Result<PbLeaseGrantResponse, Status> {
        let id = if asked.id == 0 { self.leases.len() as i64 + 1 } else { asked.id };
        if self.leases.contains_key(&id) {
            return Err(Status::failed_precondition("etcdserver: lease already exists"));
        }
        self.leases.insert(id, Lease { ttl: asked.ttl, ends: from_now(asked.ttl) });
        Ok(PbLeaseGrantResponse { header: Some(self.header()), id, ttl: asked.ttl, error: String::new() })
    }

    /// Renews a lease and returns its time to live; 0 if it does not exist.
    pub(super) fn renew(&mut self, id: i64) -> i64 {
        self.leases.get_mut(&id).map_or(0, |lease| {
            lease.ends = from_now(lease.ttl);
            lease.ttl
        })
    }

    /// Returns the time that a lease was granted for.
    pub(super) fn granted(&self, id: i64) -> Option<i64> {
        self.leases.get(&id).map(|lease| lease.ttl)
    }

    pub(super) fn revoke(&mut self, id: i64) -> Result<(), Status> {
        self.require(id)?;
        self.leases.remove(&id);
        let under: Vec<_> =
            self.entries.values().filter(|kv| kv.lease == id).map(|kv| (kv.key.clone(), None)).collect();
        self.write(under, 0);
        Ok(())
    }

    /// Ends expired leases.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        let over: Vec<_> = self.leases.iter().filter(|(_, lease)| lease.ends <= now).map(|(id, _)| *id).collect();
        for id in over {
            self.revoke(id).expect("it was there");
        }
    }

    fn require(&self, lease: i64) -> Result<(), Status> {
        if lease == 0 || self.leases.contains_key(&lease) {
            return Ok(());
        }
        Err(Status::not_found("etcdserver: requested lease not found"))
    }

    fn holds(&self, compare: &PbCompare) -> Result<bool, Status> {
        let entry = self.entries.get(&compare.key);
        // Result 0 is equality.
        match (&compare.target_union, compare.result) {
            (Some(PbTargetUnion::CreateRevision(wanted)), 0) => Ok(entry.map_or(0, |kv| kv.create_revision) == *wanted),
            (Some(PbTargetUnion::ModRevision(wanted)), 0) => Ok(entry.map_or(0, |kv| kv.mod_revision) == *wanted),
            (Some(PbTargetUnion::Lease(wanted)), 0) => Ok(entry.map_or(0, |kv| kv.lease) == *wanted),
            _ => Err(Status::unimplemented("only the comparisons that clients need are supported")),
        }
    }

    fn within(&self, key: &[u8], range_end: &[u8]) -> Vec<Vec<u8>> {
        self.entries.keys().filter(|one| is_within(one, key, range_end)).cloned().collect()
    }

    fn entries_at(&self, revision: i64) -> Entries {
        let mut entries = Entries::new();
        for event in self.history.iter().take_while(|event| revision_of(event) <= revision) {
            let Some(kv) = &event.kv else { continue };
            if event.r#type == PUT {
                entries.insert(kv.key.clone(), kv.clone());
            } else {
                entries.remove(&kv.key);
            }
        }
        entries
    }
}

fn is_within(one: &[u8], key: &[u8], range_end: &[u8]) -> bool {
    match range_end {
        [] => one == key,
        [0] => one >= key,
        _ => one >= key && one < range_end,
    }
}

fn revision_of(event: &PbEvent) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

fn from_now(seconds: i64) -> Instant {
    Instant::now() + Duration::from_secs(seconds.unsigned_abs())
}

const PUT: i32 = 0;
const DELETE: i32 = 1;
const KEY: i32 = 0;
const MOD: i32 = 3;
const DESCEND: i32 = 2;
