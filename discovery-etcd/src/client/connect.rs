//! From an address to a connection that calls can use.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use discovery_core::Address;
use etcd_client::Client;
use tokio::{runtime::Handle, sync::OwnedMutexGuard, time::timeout};

use super::{Connection, Dial, Failure, Member, auth::forget};

/// The connection in use.
pub(super) type Slot = Option<Connection>;

impl Member {
    /// Returns the connection in use or a new one, with a token if one is needed.
    pub(super) async fn connection(&self) -> Result<Connection, Failure> {
        let slot = Arc::clone(&self.slot).lock_owned().await;
        let files = self.dial.files();
        let usable = slot.as_ref().filter(|connection| connection.is_usable(files));
        if let Some(connection) = usable.filter(|connection| !connection.needs_token()) {
            return Ok(connection.clone());
        }
        if let Some(connection) = usable {
            if !connection.sends_token() {
                self.dial.auth.is_required();
            }
            if !self.dial.auth.is_wanted() {
                // Either authentication is off, and the token is useless. Or there are no
                // credentials, and the call will be refused.
                forget(&mut connection.client()).await;
                connection.renewed(false);
                return Ok(connection.clone());
            }
        }
        // Boxed, because the future is large and rarely needed.
        if let Some(connected) = Box::pin(self.connect_on(&self.dial.runtime, slot, files)).await {
            return connected;
        }
        // The handle's runtime was shut down; use the caller's.
        let slot = Arc::clone(&self.slot).lock_owned().await;
        let connected = Box::pin(self.connect_on(&Handle::current(), slot, files)).await;
        connected.unwrap_or_else(|| Err(Failure::ended(OPERATION, &self.address)))
    }

    /// Connects in a task of its own, which no caller's timeout cancels. A busy etcd takes long to
    /// check a password: callers that started again with each attempt would never finish, and would
    /// keep it busy. `None` if the runtime was shut down.
    async fn connect_on(
        &self,
        runtime: &Handle,
        slot: OwnedMutexGuard<Slot>,
        files: u64,
    ) -> Option<Result<Connection, Failure>> {
        let address = self.address.clone();
        let dial = Arc::clone(&self.dial);
        let limit = 2 * self.request_timeout;
        let connecting = runtime.spawn(slot_filled(slot, address, dial, files, limit));
        *self.connecting.lock().unwrap_or_else(PoisonError::into_inner) = Some(connecting.abort_handle());
        connecting.await.ok()
    }
}

/// Makes the connection of a slot usable, or replaces it.
async fn slot_filled(
    mut slot: OwnedMutexGuard<Slot>,
    address: Address,
    dial: Arc<Dial>,
    files: u64,
    limit: Duration,
) -> Result<Connection, Failure> {
    let connection = match slot.take().filter(|connection| connection.is_usable(files)) {
        Some(connection) => connection,
        None => connect(&address, &dial, files).await?,
    };
    // Keep it even without a token, so that the next attempt needs no new connection.
    *slot = Some(connection.clone());
    if !dial.auth.is_wanted() {
        return Ok(connection);
    }
    match dial.auth.authenticate(&mut connection.client(), &address, limit).await {
        Ok(sends_token) => {
            connection.renewed(sends_token);
            Ok(connection)
        }
        Err(failure) => {
            connection.begin().note(&failure);
            Err(failure)
        }
    }
}

/// Connects, and rejects a member whose version does not speak this protocol.
///
/// An unreadable version is no reason to reject: newer members report it to authenticated users
/// only.
async fn connect(address: &Address, dial: &Dial, files: u64) -> Result<Connection, Failure> {
    let client = Client::connect([address.to_string()], Some(dial.options(address))).await;
    let mut client = client.map_err(|error| Failure::from_client(error, OPERATION, address))?;
    // The first request establishes the connection and fails with it, so wait for it.
    match timeout(dial.connect_timeout + GRACE, client.status()).await {
        Ok(Ok(status)) if is_too_old(status.version()) => Err(Failure::too_old(address, status.version())),
        Ok(Err(error)) => {
            let failure = Failure::from_client(error, OPERATION, address);
            if failure.is_of_connection() { Err(failure) } else { Ok(Connection::new(client, files)) }
        }
        Ok(Ok(_)) | Err(_) => Ok(Connection::new(client, files)),
    }
}

/// Whether a version is older than the oldest one that this crate supports.
fn is_too_old(version: &str) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) < OLDEST,
        _ => false,
    }
}

/// The operation that errors name.
const OPERATION: &str = "connect to etcd";
const OLDEST: (u32, u32) = (3, 4);
const GRACE: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use tokio::{
        net::TcpListener,
        time::{Instant, sleep},
    };

    use super::*;
    use crate::config::{EtcdConfig, Settings};

    /// A caller's timeout does not cancel connecting, but dropping the member does.
    #[tokio::test]
    async fn the_connecting_task_ends_with_the_member() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: Address = silent.local_addr().unwrap().to_string().parse().unwrap();
        let settings = Settings::check(&EtcdConfig::new([address.to_string()])).unwrap();
        let dial = Arc::new(Dial::new(&settings, Handle::current()).unwrap());
        let member = Member::new(address, Arc::clone(&dial), Duration::from_secs(60));
        assert!(timeout(Duration::from_millis(100), member.connection()).await.is_err());
        let holders = Arc::strong_count(&dial);
        assert_eq!(holders, 3, "the task continues");
        drop(member);
        let dropped = Instant::now();
        while Arc::strong_count(&dial) > 1 {
            assert!(dropped.elapsed() < Duration::from_secs(1));
            sleep(Duration::from_millis(1)).await;
        }
    }

    #[test]
    fn an_unreadable_version_is_not_too_old() {
        for (version, too_old) in [
            ("3.4.0", false),
            ("3.4", false),
            ("3.10.1", false),
            ("4.0.0-alpha.0", false),
            ("3.3.27", true),
            ("3.2.32", true),
            ("2.3.8", true),
            ("3", false),
            ("", false),
            ("not_decided", false),
            ("v3.2.0", false),
            ("3.x", false),
        ] {
            assert_eq!(is_too_old(version), too_old, "{version:?}");
        }
    }
}
