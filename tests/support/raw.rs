use std::{fmt, time::Duration};

use etcd_client::{
    AlarmAction, AlarmOptions, AlarmType, Client, CompactionOptions, ConnectOptions, DeleteOptions, GetOptions,
    Identity, Permission, PutOptions, RoleRevokePermissionOptions, TlsOptions, Txn, TxnOp, UserAddOptions,
};

use crate::{Authority, Flaw};

/// A client for what tests do to etcd by hand, behind the back of the code under test. Panics if
/// etcd refuses.
pub struct Raw(Client);

/// A change of the cluster's members.
#[derive(Debug)]
enum Change {
    /// Adds the member whose peers reach it at this URL.
    Add(String),
    /// Removes the member with this id.
    Remove(u64),
}

impl Raw {
    /// Connects to the members.
    pub async fn connect(members: &[String]) -> Self {
        Self::connect_over(None, members, None).await
    }

    /// Connects over TLS if there is an authority, and as a user if there are credentials.
    pub async fn connect_over(
        authority: Option<&Authority>,
        members: &[String],
        credentials: Option<(&str, &str)>,
    ) -> Self {
        let mut options = ConnectOptions::default();
        if let Some(authority) = authority {
            let own = authority.client("root", Flaw::None);
            let ca = etcd_client::Certificate::from_pem(authority.pem());
            let identity = Identity::from_pem(own.cert, own.key);
            options = options.with_tls(TlsOptions::new().ca_certificate(ca).identity(identity));
        }
        if let Some((user, password)) = credentials {
            options = options.with_user(user, password).with_auto_token_refresh(true);
        }
        Self(Client::connect(members, Some(options)).await.expect("etcd answers"))
    }

    /// Puts a value, without a lease.
    pub async fn put(&mut self, key: &str, value: impl Into<Vec<u8>>) {
        self.0.put(key, value, None).await.expect("etcd answers");
    }

    /// Puts a value at a key of any bytes, without a lease.
    pub async fn put_at(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.0.put(key, value, None).await.expect("etcd answers");
    }

    /// Puts the same value at many keys, in transactions of 128, the most that etcd takes.
    pub async fn put_all(&mut self, keys: &[String], value: &[u8]) {
        for keys in keys.chunks(128) {
            let puts: Vec<_> = keys.iter().map(|key| TxnOp::put(key.as_str(), value, None)).collect();
            self.0.txn(Txn::new().and_then(puts)).await.expect("etcd answers");
        }
    }

    /// Deletes all keys with this prefix in one step.
    pub async fn delete_below(&mut self, prefix: &str) {
        self.0.delete(prefix, Some(DeleteOptions::new().with_prefix())).await.expect("etcd answers");
    }

    /// Puts up to 128 values in one transaction, without a lease.
    pub async fn put_together(&mut self, entries: impl IntoIterator<Item = (String, impl Into<Vec<u8>>)>) {
        let puts: Vec<_> = entries.into_iter().map(|(key, value)| TxnOp::put(key, value, None)).collect();
        self.0.txn(Txn::new().and_then(puts)).await.expect("etcd answers");
    }

    /// Puts a value under a lease.
    pub async fn put_leased(&mut self, key: &str, value: impl Into<Vec<u8>>, lease: i64) {
        self.0.put(key, value, Some(PutOptions::new().with_lease(lease))).await.expect("etcd answers");
    }

    /// Deletes a key.
    pub async fn delete(&mut self, key: &str) {
        self.0.delete(key, None).await.expect("etcd answers");
    }

    /// Returns the value and the lease of a key; the lease is 0 if it has none.
    pub async fn entry(&mut self, key: &str) -> Option<(Vec<u8>, i64)> {
        let answer = self.0.get(key, None).await.expect("etcd answers");
        answer.kvs().first().map(|entry| (entry.value().to_vec(), entry.lease()))
    }

    /// Returns all keys.
    pub async fn keys(&mut self) -> Vec<String> {
        let options = GetOptions::new().with_all_keys().with_keys_only();
        let answer = self.0.get("", Some(options)).await.expect("etcd answers");
        answer.kvs().iter().map(|entry| String::from_utf8_lossy(entry.key()).into_owned()).collect()
    }

    /// Returns all leases.
    pub async fn leases(&mut self) -> Vec<i64> {
        let answer = self.0.leases().await.expect("etcd answers");
        answer.leases().iter().map(|lease| lease.id()).collect()
    }

    /// Grants a lease and returns its id.
    pub async fn grant(&mut self, ttl: i64) -> i64 {
        self.0.lease_grant(ttl, None).await.expect("etcd answers").id()
    }

    /// Revokes a lease.
    pub async fn revoke(&mut self, lease: i64) {
        self.0.lease_revoke(lease).await.expect("etcd answers");
    }

    /// Compacts all history up to now.
    pub async fn compact(&mut self) {
        let revision = self.revision().await;
        self.compact_at(revision).await;
    }

    /// Compacts the history below a revision.
    pub async fn compact_at(&mut self, revision: i64) {
        let options = CompactionOptions::new().with_physical();
        self.0.compact(revision, Some(options)).await.expect("etcd answers");
    }

    /// Puts values until the store of a cluster with a quota is full.
    pub async fn fill(&mut self) {
        for number in 0..10_000 {
            if self.0.put(format!("{FILLER}{number}"), vec![7; 100_000], None).await.is_err() {
                return;
            }
        }
        panic!("the store is not full: set a quota of less than a gigabyte");
    }

    /// Deletes what filled the store of the only member and lets it accept writes again.
    pub async fn make_room(&mut self) {
        self.0.delete(FILLER, Some(DeleteOptions::new().with_prefix())).await.expect("etcd answers");
        self.compact().await;
        self.0.defragment().await.expect("etcd answers");
        let alarms = self.0.alarm(AlarmAction::Get, AlarmType::None, None).await.expect("etcd answers");
        for alarm in alarms.alarms() {
            let mut options = AlarmOptions::new();
            options.with_member(alarm.member_id());
            self.0.alarm(AlarmAction::Deactivate, alarm.alarm(), Some(options)).await.expect("etcd answers");
        }
    }

    /// Creates the user `root`, unless it exists, and enables authentication. This client is shut
    /// out from then on.
    pub async fn enable_auth(&mut self, password: &str) {
        if self.0.user_get("root").await.is_err() {
            self.0.user_add("root", password, None).await.expect("etcd answers");
            self.0.user_grant_role("root", "root").await.expect("etcd answers");
        }
        self.0.auth_enable().await.expect("etcd answers");
    }

    /// Disables authentication.
    pub async fn disable_auth(&mut self) {
        self.0.auth_disable().await.expect("etcd answers");
    }

    /// Adds a user with these roles. A user without a password can only authenticate by
    /// certificate.
    pub async fn add_user(&mut self, name: &str, password: Option<&str>, roles: &[&str]) {
        let options = UserAddOptions::new();
        let options = if password.is_some() { options } else { options.with_no_pwd() };
        self.0.user_add(name, password.unwrap_or_default(), Some(options)).await.expect("etcd answers");
        for role in roles {
            self.0.user_grant_role(name, *role).await.expect("etcd answers");
        }
    }

    /// Deletes a user.
    pub async fn delete_user(&mut self, name: &str) {
        self.0.user_delete(name).await.expect("etcd answers");
    }

    /// Changes a user's password.
    pub async fn change_password(&mut self, name: &str, password: &str) {
        self.0.user_change_password(name, password).await.expect("etcd answers");
    }

    /// Grants a role to a user.
    pub async fn give_role(&mut self, user: &str, role: &str) {
        self.0.user_grant_role(user, role).await.expect("etcd answers");
    }

    /// Revokes a role from a user.
    pub async fn take_role(&mut self, user: &str, role: &str) {
        self.0.user_revoke_role(user, role).await.expect("etcd answers");
    }

    /// Adds a role that may read all keys with a prefix.
    pub async fn add_reader(&mut self, role: &str, prefix: &str) {
        self.add_role(role).await;
        self.permit(role, Permission::read(prefix).with_prefix()).await;
    }

    /// Adds a role that may read and write all keys with a prefix.
    pub async fn add_writer(&mut self, role: &str, prefix: &str) {
        self.add_role(role).await;
        self.allow_write(role, prefix).await;
    }

    /// Revokes the permission that a role has on a prefix.
    pub async fn withdraw(&mut self, role: &str, prefix: &str) {
        let options = RoleRevokePermissionOptions::new().with_prefix();
        self.0.role_revoke_permission(role, prefix, Some(options)).await.expect("etcd answers");
    }

    /// Lets a role read and write all keys with a prefix.
    pub async fn allow_write(&mut self, role: &str, prefix: &str) {
        self.permit(role, Permission::read_write(prefix).with_prefix()).await;
    }

    /// Adds a role without permissions.
    pub async fn add_role(&mut self, role: &str) {
        self.0.role_add(role).await.expect("etcd answers");
    }

    /// Tries to put a value and returns etcd's error.
    pub async fn try_put(&mut self, key: &str, value: &str) -> Result<(), String> {
        self.0.put(key, value, None).await.map(drop).map_err(|error| error.to_string())
    }

    /// Tries to delete a key and returns etcd's error.
    pub async fn try_delete(&mut self, key: &str) -> Result<(), String> {
        self.0.delete(key, None).await.map(drop).map_err(|error| error.to_string())
    }

    async fn permit(&mut self, role: &str, permission: Permission) {
        self.0.role_grant_permission(role, permission).await.expect("etcd answers");
    }

    /// Removes the member with this name from the cluster and waits until the others agree.
    pub async fn remove_member(&mut self, name: &str) {
        let id = {
            let listed = self.0.member_list().await.expect("etcd answers");
            listed.members().iter().find(|member| member.name() == name).expect("there is such a member").id()
        };
        self.change_members(Change::Remove(id)).await;
    }

    /// Adds a member to the cluster; its peers reach it at this URL.
    pub async fn add_member(&mut self, peer: &str) {
        self.change_members(Change::Add(peer.to_owned())).await;
    }

    /// Retries until etcd accepts the change, which it refuses while some members are unhealthy.
    async fn change_members(&mut self, change: Change) {
        let mut last = None;
        // etcd considers a cluster healthy once all members have been connected for 5 s.
        for _ in 0..60 {
            let tried = async {
                match &change {
                    Change::Add(peer) => self.0.member_add([peer.as_str()], None).await.map(drop),
                    Change::Remove(id) => self.0.member_remove(*id).await.map(drop),
                }
            };
            // If the leader was removed, requests may stay unanswered until another is elected.
            match tokio::time::timeout(Duration::from_secs(3), tried).await {
                Ok(Ok(())) => return,
                // An earlier attempt succeeded.
                Ok(Err(error)) if error.to_string().contains("member not found") => return,
                Ok(Err(error)) if error.to_string().contains("Peer URLs already exists") => return,
                Ok(Err(error)) => last = Some(error),
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        panic!("etcd did not accept {change:?}: {last:?}");
    }

    /// Returns the revision of the store.
    pub async fn revision(&mut self) -> i64 {
        let answer = self.0.get("any", None).await.expect("etcd answers");
        answer.header().expect("answers have headers").revision()
    }
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raw").finish_non_exhaustive()
    }
}

/// The prefix of the keys that fill a store.
const FILLER: &str = "filler/";
