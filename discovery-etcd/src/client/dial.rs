use std::fmt;

use discovery_core::Error;
use etcd_client::ConnectOptions;

#[cfg(feature = "tls")]
use super::tls::Tls;
use crate::config::Settings;

/// How members are connected to, the same for all.
pub(crate) struct Dial {
    options: ConnectOptions,
    #[cfg(feature = "tls")]
    tls: Option<Tls>,
}

impl Dial {
    /// Reads the files of TLS.
    pub(crate) fn new(settings: &Settings) -> Result<Self, Error> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(settings.connect_timeout)
            .with_keep_alive(settings.ping_interval, settings.ping_timeout)
            // etcd ends connections that are pinged while nothing is open on them.
            .with_keep_alive_while_idle(false)
            .with_tcp_keepalive(settings.ping_interval)
            .with_require_leader(true);
        // etcd-client's own refreshing of tokens stays off: it knows neither watches nor changes of users and roles, and would
        // ask a member that refuses the password as often as anybody calls.
        if let Some(credentials) = &settings.credentials {
            options = options.with_user(credentials.user(), credentials.password().reveal());
        }
        Ok(Self {
            options,
            #[cfg(feature = "tls")]
            tls: settings.tls.as_ref().map(|tls| Tls::load(tls, settings.connect_timeout)).transpose()?,
        })
    }

    /// What to connect with now.
    pub(super) fn options(&self) -> ConnectOptions {
        let options = self.options.clone();
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return options.with_tls(tls.options());
        }
        options
    }
}

impl fmt::Debug for Dial {
    /// Prints nothing: etcd-client's options would print the password and the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dial").finish_non_exhaustive()
    }
}
