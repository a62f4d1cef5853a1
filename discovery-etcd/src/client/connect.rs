//! From an address to a connection that calls can use.

use std::{sync::Arc, time::Duration};

use discovery_core::Address;
use etcd_client::Client;
use tokio::time::timeout;

use super::{Connection, Dial, Failure, Member, Reason, auth::forget};

/// The connection in use.
#[derive(Default)]
pub(super) struct Slot {
    connection: Option<Connection>,
    /// How the member refused the credentials, until it is asked again.
    refused: Option<Failure>,
}

impl Member {
    /// The connection in use, with a token if one is needed, or a new one.
    ///
    /// A member that refused the credentials is not asked again before its turn, however many ask.
    pub(super) async fn connection(&self) -> Result<Connection, Failure> {
        let slot = Arc::clone(&self.slot).lock_owned().await;
        let files = self.dial.files();
        let usable = slot.connection.as_ref().filter(|connection| connection.is_usable(files));
        if let Some(connection) = usable.filter(|connection| !connection.needs_token()) {
            return Ok(connection.clone());
        }
        if let Some(connection) = usable {
            if !connection.sends_token() {
                self.dial.auth.is_required();
            }
            if !self.dial.auth.is_wanted() {
                // Authentication is off, and the token of no use; or there are no credentials, and
                // the call is refused.
                forget(&mut connection.client()).await;
                connection.renewed(false);
                return Ok(connection.clone());
            }
        }
        if self.dial.auth.is_wanted()
            && !self.dial.auth.is_due()
            && let Some(refused) = &slot.refused
        {
            return Err(refused.clone());
        }
        // In a task of its own, which no caller's timeout ends: a busy etcd takes long to check a
        // password, and callers that began anew with each attempt would never be done, and keep it
        // busy.
        let (address, dial) = (self.address.clone(), Arc::clone(&self.dial));
        let limit = 2 * self.request_timeout;
        let connecting = tokio::spawn(async move {
            let mut slot = slot;
            let former = slot.connection.take().filter(|connection| connection.is_usable(files));
            let connected = match former {
                Some(connection) => Ok(connection),
                None => connect(&address, &dial, files).await,
            };
            let connection = connected?;
            // Kept without a token too, so that what follows needs no new connection.
            slot.connection = Some(connection.clone());
            if dial.auth.is_wanted() {
                let result = dial.auth.authenticate(&mut connection.client(), &address, limit).await;
                slot.refused = result.as_ref().err().filter(|failure| failure.reason == Reason::Credentials).cloned();
                match result {
                    Ok(sends_token) => connection.renewed(sends_token),
                    Err(failure) => {
                        connection.begin().note(&failure);
                        return Err(failure);
                    }
                }
            }
            Ok(connection)
        });
        // It fails to end only where its runtime does.
        connecting.await.unwrap_or_else(|_| Err(Failure::ended("connect to etcd", &self.address)))
    }
}

/// Connects, and refuses a member of a version that does not speak this protocol.
///
/// A version that cannot be read is no reason to refuse: newer members tell it to users alone.
async fn connect(address: &Address, dial: &Dial, files: u64) -> Result<Connection, Failure> {
    let client = Client::connect([address.to_string()], Some(dial.options(address))).await;
    let mut client = client.map_err(|error| Failure::from_client(error, OPERATION, address))?;
    // The first request makes the connection, and fails with it: that is waited for.
    match timeout(dial.connect_timeout + GRACE, client.status()).await {
        Ok(Ok(status)) if is_too_old(status.version()) => Err(Failure::too_old(address, status.version())),
        Ok(Err(error)) => {
            let failure = Failure::from_client(error, OPERATION, address);
            if failure.is_of_connection() { Err(failure) } else { Ok(Connection::new(client, files)) }
        }
        Ok(Ok(_)) | Err(_) => Ok(Connection::new(client, files)),
    }
}

/// Whether a version is below the oldest one that this crate is made for.
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
    use super::*;

    #[test]
    fn only_a_version_that_can_be_read_is_too_old() {
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
