//! What the harness does to etcd by itself, past all proxies: writes by hand, compaction,
//! authentication.

use std::{collections::BTreeMap, time::Duration};

use etcd_client::{Client, CompactionOptions, Compare, CompareOp, GetOptions, Txn, TxnOp};
use tokio::time::timeout;

use crate::{
    history::{PREFIX, Revision, Stored, connect},
    log::{ByHand, Journal, Target},
};

/// What the harness itself does to etcd, over connections that no fault affects. Gives up if etcd
/// does not answer.
#[derive(Clone)]
pub(crate) struct Hand {
    pub(crate) members: Vec<String>,
    pub(crate) journal: Journal,
}

impl Hand {
    /// Puts and deletes keys in one transaction, without a lease, and records it in the log.
    pub(crate) async fn change(&self, epoch: u32, changes: Vec<(String, Option<Vec<u8>>)>) {
        let began = self.journal.now();
        let keys: Vec<String> = changes.iter().map(|(key, _)| key.clone()).collect();
        let ops: Vec<TxnOp> = changes
            .into_iter()
            .map(|(key, value)| match value {
                Some(value) => TxnOp::put(key, value, None),
                None => TxnOp::delete(key, None),
            })
            .collect();
        let mut client = self.client().await;
        let answer = match &mut client {
            Some(client) => timeout(PATIENCE, client.txn(Txn::new().and_then(ops))).await.ok().and_then(Result::ok),
            None => return,
        };
        let number = answer.and_then(|answer| answer.header().map(|header| header.revision()));
        let revision = number.map(|number| Revision { epoch, number });
        let notes = keys.into_iter().map(|key| ByHand { target: Target::Key(key), began, revision });
        self.journal.open().by_hand.extend(notes);
    }

    /// Deletes a key if it still has this value, and records it in the log.
    pub(crate) async fn clear(&self, epoch: u32, key: &str, stored: &Stored) {
        let began = self.journal.now();
        let Some(mut client) = self.client().await else { return };
        let unchanged = Compare::value(key, CompareOp::Equal, stored.value.clone());
        let txn = Txn::new().when([unchanged]).and_then([TxnOp::delete(key, None)]);
        let answer = timeout(PATIENCE, client.txn(txn)).await.ok().and_then(Result::ok);
        let number = answer.and_then(|answer| answer.header().map(|header| header.revision()));
        let revision = number.map(|number| Revision { epoch, number });
        self.journal.open().by_hand.push(ByHand { target: Target::Key(key.to_owned()), began, revision });
    }

    /// Revokes the lease of an entry and records it in the log.
    pub(crate) async fn revoke(&self, key: &str) {
        let Some(entry) = self.entries().await.and_then(|(mut entries, _)| entries.remove(key)) else { return };
        if entry.lease == 0 {
            return;
        }
        let Some(mut client) = self.client().await else { return };
        let began = self.journal.now();
        self.journal.open().by_hand.push(ByHand { target: Target::Lease(entry.lease), began, revision: None });
        let _ = timeout(PATIENCE, client.lease_revoke(entry.lease)).await;
    }

    /// Enables authentication for the user of the processes; `None` if etcd does not.
    pub(crate) async fn enable_authentication(&self) -> Option<()> {
        let mut client = self.client().await?;
        let enabled = timeout(PATIENCE * 3, async {
            if client.user_get(USER).await.is_err() {
                client.user_add(USER, PASSWORD, None).await.ok()?;
                client.user_grant_role(USER, "root").await.ok()?;
            }
            client.auth_enable().await.ok()
        });
        enabled.await.ok()?.map(drop)
    }

    /// Disables authentication, however long that takes.
    pub(crate) async fn disable_authentication(&self) {
        loop {
            let tried = timeout(PATIENCE * 3, async {
                let mut client = self.client().await?;
                match client.auth_disable().await {
                    Ok(_) => Some(()),
                    Err(error) => error.to_string().contains("authentication is not enabled").then_some(()),
                }
            });
            if let Ok(Some(())) = tried.await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Compacts the history up to a revision.
    pub(crate) async fn compact(&self, revision: i64) {
        if let Some(mut client) = self.client().await {
            let options = CompactionOptions::new().with_physical();
            let _ = timeout(PATIENCE, client.compact(revision, Some(options))).await;
        }
    }

    /// Returns all entries, read linearizably, and the revision.
    pub(crate) async fn entries(&self) -> Option<(BTreeMap<String, Stored>, i64)> {
        let mut client = self.client().await?;
        let options = GetOptions::new().with_prefix();
        let mut answer = timeout(PATIENCE, client.get(PREFIX, Some(options))).await.ok()?.ok()?;
        let revision = answer.header()?.revision();
        let entries = answer.take_kvs().into_iter().map(|entry| {
            let lease = entry.lease();
            let (key, value) = entry.into_key_value();
            (String::from_utf8_lossy(&key).into_owned(), Stored { value, lease })
        });
        Some((entries.collect(), revision))
    }

    /// Returns how many leases there are.
    pub(crate) async fn leases(&self) -> Option<usize> {
        let mut client = self.client().await?;
        let answer = timeout(PATIENCE, client.leases()).await.ok()?.ok()?;
        Some(answer.leases().len())
    }

    /// Returns a client of the first member that answers a linearizable read.
    async fn client(&self) -> Option<Client> {
        for member in &self.members {
            let tried = timeout(PATIENCE, async {
                let mut client = connect(member).await.ok()?;
                client.get("any", None).await.ok()?;
                Some(client)
            });
            if let Ok(Some(client)) = tried.await {
                return Some(client);
            }
        }
        None
    }
}

/// A user with all rights.
pub(crate) const USER: &str = "root";
pub(crate) const PASSWORD: &str = "canary";
const PATIENCE: Duration = Duration::from_secs(1);
