//! One member of the cluster: every call with its own deadline, in types of our own.
//!
//! Nothing outside this folder names etcd-client. One client never holds two members, because its balancer sends a share of the
//! calls to a dead one for ever; choosing a member is the work of `failover`.

mod failure;
mod kv;
mod lease;
mod watch;

use std::{fmt, time::Duration};

use discovery_core::Address;
use etcd_client::{Client, ConnectOptions};
use tokio::{sync::Mutex, time::timeout};

pub(crate) use failure::{Failure, Reason};
pub(crate) use kv::{Glance, Guard, Page, Put, Row};
pub(crate) use lease::Renewals;
pub(crate) use watch::{Canceled, Event, Message, WatchStream};

use crate::config::Settings;

/// One member, connected to when it is first asked.
pub(crate) struct Member {
    address: Address,
    options: ConnectOptions,
    request_timeout: Duration,
    /// Held while connecting, which only waits where credentials are sent.
    slot: Mutex<Slot>,
}

/// The client in use. Each has a number, so that who failed with one does not throw away the next.
#[derive(Default)]
struct Slot {
    number: u64,
    client: Option<Client>,
}

impl Member {
    pub(crate) fn new(address: Address, settings: &Settings) -> Self {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(settings.connect_timeout)
            .with_keep_alive(settings.ping_interval, settings.ping_timeout)
            // etcd ends connections that are pinged while nothing is open on them.
            .with_keep_alive_while_idle(false)
            .with_tcp_keepalive(settings.ping_interval)
            .with_require_leader(true);
        if let Some(credentials) = &settings.credentials {
            options =
                options.with_user(credentials.user(), credentials.password().reveal()).with_auto_token_refresh(true);
        }
        Self { address, options, request_timeout: settings.request_timeout, slot: Mutex::default() }
    }

    /// Authenticates anew with the next call: what is done where a stream, that etcd-client does not mind, lost its token.
    pub(crate) async fn forget_token(&self) {
        self.slot.lock().await.client = None;
    }

    /// Runs a call under the deadline of a request, connecting included.
    async fn call<T, F>(&self, operation: &'static str, call: impl FnOnce(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.call_within(operation, self.request_timeout, call).await
    }

    /// Runs a call that may have less time than others.
    async fn call_within<T, F>(
        &self,
        operation: &'static str,
        deadline: Duration,
        call: impl FnOnce(Client) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let deadline = deadline.min(self.request_timeout);
        let mut number = 0;
        let work = async {
            let client;
            (number, client) = self.client().await?;
            call(client).await
        };
        let result = match timeout(deadline, work).await {
            Ok(result) => result.map_err(|error| Failure::from_client(error, operation, &self.address)),
            Err(_) => Err(Failure::silent(operation, &self.address, deadline)),
        };
        if result.as_ref().is_err_and(|failure| matches!(failure.reason, Reason::Member | Reason::Token)) {
            self.forget(number);
        }
        result
    }

    async fn client(&self) -> Result<(u64, Client), etcd_client::Error> {
        let mut slot = self.slot.lock().await;
        if let Some(client) = &slot.client {
            return Ok((slot.number, client.clone()));
        }
        let connected = Client::connect([self.address.to_string()], Some(self.options.clone())).await?;
        slot.number += 1;
        slot.client = Some(connected.clone());
        Ok((slot.number, connected))
    }

    /// Makes the next call connect anew: a client does not come back by itself once its token, or the runtime that it was made
    /// in, is gone. Streams that are open on it go on.
    fn forget(&self, number: u64) {
        // Who connects at this moment makes a new one anyway.
        if let Ok(mut slot) = self.slot.try_lock()
            && slot.number == number
        {
            slot.client = None;
        }
    }
}

impl fmt::Debug for Member {
    /// Prints the address alone: etcd-client's options would print the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The largest answer that is decoded; a page that is larger is asked for in smaller ones.
const MAX_ANSWER_BYTES: usize = 32 << 20;
