use std::{fmt, time::Duration};

use etcd_client::{
    AlarmAction, AlarmOptions, AlarmType, Client, CompactionOptions, ConnectOptions, DeleteOptions, GetOptions,
    Identity, Permission, PutOptions, RoleRevokePermissionOptions, TlsOptions, Txn, TxnOp, UserAddOptions,
};

use crate::{Authority, Flaw};

/// What tests do to etcd by hand, behind the back of the code under test. Panics where etcd refuses.
pub struct Raw(Client);

/// A change of the cluster's members.
#[derive(Debug)]
enum Change {
    /// Another one, by where its peers reach it.
    Add(String),
    /// One less, by its id.
    Remove(u64),
}

impl Raw {
    /// Connects to the members.
    pub async fn connect(members: &[String]) -> Self {
        Self::connect_over(None, members, None).await
    }

    /// Connects over TLS if there is an authority, as a user if there is one.
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

    /// Puts the same value at many keys, 128 in one step, the most that etcd takes.
    pub async fn put_all(&mut self, keys: &[String], value: &[u8]) {
        for keys in keys.chunks(128) {
            let puts: Vec<_> = keys.iter().map(|key| TxnOp::put(key.as_str(), value, None)).collect();
            self.0.txn(Txn::new().and_then(puts)).await.expect("etcd answers");
        }
    }

    /// Deletes all keys with this beginning, in one step.
    pub async fn delete_below(&mut self, prefix: &str) {
        self.0.delete(prefix, Some(DeleteOptions::new().with_prefix())).await.expect("etcd answers");
    }

    /// Puts up to 128 values in one step, without a lease.
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

    /// The value and the lease of a key; the lease is 0 where it has none.
    pub async fn entry(&mut self, key: &str) -> Option<(Vec<u8>, i64)> {
        let answer = self.0.get(key, None).await.expect("etcd answers");
        answer.kvs().first().map(|entry| (entry.value().to_vec(), entry.lease()))
    }

    /// All keys.
    pub async fn keys(&mut self) -> Vec<String> {
        let options = GetOptions::new().with_all_keys().with_keys_only();
        let answer = self.0.get("", Some(options)).await.expect("etcd answers");
        answer.kvs().iter().map(|entry| String::from_utf8_lossy(entry.key()).into_owned()).collect()
    }

    /// All leases.
    pub async fn leases(&mut self) -> Vec<i64> {
        let answer = self.0.leases().await.expect("etcd answers");
        answer.leases().iter().map(|lease| lease.id()).collect()
    }

    /// Grants a lease.
    pub async fn grant(&mut self, ttl: i64) -> i64 {
        self.0.lease_grant(ttl, None).await.expect("etcd answers").id()
    }

    /// Ends a lease.
    pub async fn revoke(&mut self, lease: i64) {
        self.0.lease_revoke(lease).await.expect("etcd answers");
    }

    /// Forgets all history up to now.
    pub async fn compact(&mut self) {
        let revision = self.revision().await;
        self.compact_at(revision).await;
    }

    /// Forgets the history below a revision.
    pub async fn compact_at(&mut self, revision: i64) {
        let options = CompactionOptions::new().with_physical();
        self.0.compact(revision, Some(options)).await.expect("etcd answers");
    }

    /// Puts until the store of a cluster with a quota is full.
    pub async fn fill(&mut self) {
        for number in 0..10_000 {
            if self.0.put(format!("{FILLER}{number}"), vec![7; 100_000], None).await.is_err() {
                return;
            }
        }
        panic!("a quota of less than a gigabyte is set");
    }

    /// Takes away what filled the store of the one member, and has it write again.
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

    /// Makes a user that may do everything, unless there is one, and lets in nobody but users. This
    /// client is shut out then.
    pub async fn enable_auth(&mut self, password: &str) {
        if self.0.user_get("root").await.is_err() {
            self.0.user_add("root", password, None).await.expect("etcd answers");
            self.0.user_grant_role("root", "root").await.expect("etcd answers");
        }
        self.0.auth_enable().await.expect("etcd answers");
    }

    /// Lets everybody in again.
    pub async fn disable_auth(&mut self) {
        self.0.auth_disable().await.expect("etcd answers");
    }

    /// Adds a user with the roles; without a password it can only come by certificate.
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

    /// Gives a user another password.
    pub async fn change_password(&mut self, name: &str, password: &str) {
        self.0.user_change_password(name, password).await.expect("etcd answers");
    }

    /// Gives a role to a user.
    pub async fn give_role(&mut self, user: &str, role: &str) {
        self.0.user_grant_role(user, role).await.expect("etcd answers");
    }

    /// Takes a role from a user.
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

    /// Withdraws the permission that a role has on a prefix.
    pub async fn withdraw(&mut self, role: &str, prefix: &str) {
        let options = RoleRevokePermissionOptions::new().with_prefix();
        self.0.role_revoke_permission(role, prefix, Some(options)).await.expect("etcd answers");
    }

    /// Lets a role read and write all keys with a prefix.
    pub async fn allow_write(&mut self, role: &str, prefix: &str) {
        self.permit(role, Permission::read_write(prefix).with_prefix()).await;
    }

    /// Adds a role that may do nothing.
    pub async fn add_role(&mut self, role: &str) {
        self.0.role_add(role).await.expect("etcd answers");
    }

    /// Tries to put a value; the error is etcd's.
    pub async fn try_put(&mut self, key: &str, value: &str) -> Result<(), String> {
        self.0.put(key, value, None).await.map(drop).map_err(|error| error.to_string())
    }

    /// Tries to delete a key; the error is etcd's.
    pub async fn try_delete(&mut self, key: &str) -> Result<(), String> {
        self.0.delete(key, None).await.map(drop).map_err(|error| error.to_string())
    }

    async fn permit(&mut self, role: &str, permission: Permission) {
        self.0.role_grant_permission(role, permission).await.expect("etcd answers");
    }

    /// Takes a member out of the cluster, known by its name; waits until the others agree to do
    /// without it.
    pub async fn remove_member(&mut self, name: &str) {
        let id = {
            let listed = self.0.member_list().await.expect("etcd answers");
            listed.members().iter().find(|member| member.name() == name).expect("there is such a member").id()
        };
        self.change_members(Change::Remove(id)).await;
    }

    /// Puts a member into the cluster, which is to be reached by its peers at a URL.
    pub async fn add_member(&mut self, peer: &str) {
        self.change_members(Change::Add(peer.to_owned())).await;
    }

    /// Tries until etcd, which refuses to change members while some of them are not well, does it.
    async fn change_members(&mut self, change: Change) {
        let mut last = None;
        // A cluster counts as healthy once all its members were connected for 5 s.
        for _ in 0..60 {
            let tried = async {
                match &change {
                    Change::Add(peer) => self.0.member_add([peer.as_str()], None).await.map(drop),
                    Change::Remove(id) => self.0.member_remove(*id).await.map(drop),
                }
            };
            // Where that was the leader, what is asked while another one is elected may never be
            // answered.
            match tokio::time::timeout(Duration::from_secs(3), tried).await {
                Ok(Ok(())) => return,
                // An earlier attempt was done.
                Ok(Err(error)) if error.to_string().contains("member not found") => return,
                Ok(Err(error)) if error.to_string().contains("Peer URLs already exists") => return,
                Ok(Err(error)) => last = Some(error),
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        panic!("etcd does not {change:?}: {last:?}");
    }

    /// The revision of the store.
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

/// What the keys begin with that fill a store.
const FILLER: &str = "filler/";
