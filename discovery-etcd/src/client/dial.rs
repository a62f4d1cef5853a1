//! How to connect to members: timeouts, TLS and credentials.

use std::{fmt, time::Duration};

use discovery_core::{Address, Error};
use etcd_client::ConnectOptions;
use tokio::runtime::Handle;

use super::auth::Authenticator;
#[cfg(feature = "tls")]
use super::tls::Tls;
use crate::config::Settings;

/// How to connect to members, the same for all of them.
pub(crate) struct Dial {
    options: ConnectOptions,
    pub(super) connect_timeout: Duration,
    pub(super) auth: Authenticator,
    /// The handle's own runtime. That of a caller may stall or end while others wait for the
    /// connection.
    pub(super) runtime: Handle,
    /// The password would be sent in plain text, which is allowed only on this machine.
    pub(super) is_loopback_only: bool,
    #[cfg(feature = "tls")]
    tls: Option<Tls>,
}

impl Dial {
    /// Reads the files for TLS and the password.
    pub(crate) fn new(settings: &Settings, runtime: Handle) -> Result<Self, Error> {
        // No user: tokens are obtained separately. etcd-client would request one before each use of
        // a connection, and handles neither watches nor changes of users and roles.
        let options = ConnectOptions::new()
            .with_connect_timeout(settings.connect_timeout)
            .with_keep_alive(settings.http2_keep_alive_interval, settings.keep_alive_timeout)
            // etcd closes connections that are pinged while nothing is open on them.
            .with_keep_alive_while_idle(false)
            .with_tcp_keepalive(settings.http2_keep_alive_interval)
            .with_require_leader(true);
        Ok(Self {
            options,
            connect_timeout: settings.connect_timeout,
            auth: Authenticator::new(settings)?,
            runtime,
            is_loopback_only: settings.is_loopback_only,
            #[cfg(feature = "tls")]
            tls: settings.tls.as_ref().map(|tls| Tls::load(tls, settings.connect_timeout)).transpose()?,
        })
    }

    /// The options for connecting to a member now.
    #[cfg_attr(not(feature = "tls"), expect(unused_variables, reason = "only certificates are for a member's name"))]
    pub(super) fn options(&self, member: &Address) -> ConnectOptions {
        let options = self.options.clone();
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return options.with_tls(tls.options(member));
        }
        options
    }

    /// The current reading of the TLS files. Connections made with an earlier one get no further
    /// calls.
    pub(super) fn files(&self) -> u64 {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return tls.reading();
        }
        0
    }

    pub(super) fn has_tls(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        false
    }
}

impl fmt::Debug for Dial {
    /// Prints nothing: the fields would print the password and the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dial").finish_non_exhaustive()
    }
}
