//! The configuration of a handle: setters, a URL or serde's fields, checked in one step.
//!
//! [`parse`] reads a URL and [`deserialize`] reads fields; both set them by name ([`fields`]).
//! [`settings`] then checks the result, whether it was read or set in code. [`file`] reads the
//! files that it names.

mod credentials;
mod deserialize;
mod fields;
pub(crate) mod file;
mod parse;
mod settings;
mod tls;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use discovery_core::{Backoff, Error};

pub(crate) use credentials::Credentials;
#[cfg(feature = "tls")]
pub(crate) use settings::invalid;
pub(crate) use settings::{Settings, TTL_MAX, is_loopback, member as member_address};
pub use tls::EtcdTls;
#[cfg(feature = "tls")]
pub(crate) use tls::Pem;

use crate::layout::{EtcdNaming, Layout, LayoutOptions, by_name};

/// How to reach etcd and how to keep entries there.
///
/// A configuration is made by setters, or read from a URL or through serde:
///
/// ```text
/// etcd://user:password@10.0.0.1:2379,10.0.0.2:2379/prod?ttl=15s&ca_file=/etc/etcd/ca.pem
/// ```
///
/// The default port of a member is 2379. The path is the prefix of all keys. User and password are
/// percent-encoded. The parameters have the names of the setters, including those of [`EtcdTls`];
/// the exceptions are [`backoff`](Self::backoff), which is `backoff_min` and `backoff_max`, and
/// [`layout`](Self::layout), which is a name and options. Durations are written like `15s` or
/// `500ms`. Unknown parameters are errors.
///
/// Through serde the fields have the same names. `members` is a list of strings, and `prefix`,
/// `user` and `password` are fields too. A URL in a single string is also accepted.
///
/// ```toml
/// members = ["etcd-1.internal", "etcd-2.internal", "etcd-3.internal"]
/// prefix = "prod"
/// user = "payments"
/// password = "…"
/// ca_file = "/etc/etcd/ca.pem"
/// ttl = "10s"
/// backoff_max = "2s"
/// ```
///
/// A member may be written with `https://` or `http://`, as for etcdctl. The scheme neither enables
/// nor disables [TLS](Self::tls), and is an error if it contradicts that setting.
///
/// [`EtcdBackend::new`](crate::EtcdBackend::new) checks everything. Reading a URL or fields checks
/// everything except the contents of files. No error of this crate quotes a password or a key; the
/// parser of a format may quote the line that contains one, as the crate `toml` does.
///
/// ```
/// use std::time::Duration;
/// use discovery_etcd::EtcdConfig;
///
/// let config = EtcdConfig::new(["10.0.0.1:2379", "10.0.0.2:2379"])
///     .prefix("prod")
///     .ttl(Duration::from_secs(10));
/// let same: EtcdConfig = "etcd://10.0.0.1,10.0.0.2/prod?ttl=10s".parse()?;
/// assert_eq!(format!("{config:?}"), format!("{same:?}"));
///
/// let same: EtcdConfig = serde_json::from_str(
///     r#"{ "members": ["10.0.0.1", "10.0.0.2"], "prefix": "prod", "ttl": "10s" }"#,
/// )?;
/// assert_eq!(format!("{config:?}"), format!("{same:?}"));
///
/// let error = "etcd://10.0.0.1/prod?lifetime=10s".parse::<EtcdConfig>().unwrap_err();
/// assert!(error.to_string().contains("unknown parameter"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct EtcdConfig {
    pub(crate) members: Vec<String>,
    pub(crate) prefix: String,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) allow_plaintext_credentials: bool,
    pub(crate) tls: Option<EtcdTls>,
    pub(crate) discover_members: bool,
    pub(crate) separator: Option<char>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) operation_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) http2_keep_alive_interval: Duration,
    pub(crate) keep_alive_timeout: Duration,
    pub(crate) backoff_min: Duration,
    pub(crate) backoff_max: Duration,
    pub(crate) audit_interval: Duration,
    pub(crate) max_entries: usize,
    pub(crate) layout: Arc<dyn Layout>,
    /// What was set by name. [`choose_layout`](Self::choose_layout) makes a layout of it.
    layout_options: LayoutOptions,
}

impl EtcdConfig {
    /// Creates a configuration with defaults for the members of one cluster, each written
    /// `host:port` or `host`.
    pub fn new<M: Into<String>>(members: impl IntoIterator<Item = M>) -> Self {
        Self {
            members: members.into_iter().map(Into::into).collect(),
            prefix: String::new(),
            credentials: None,
            allow_plaintext_credentials: false,
            tls: None,
            discover_members: false,
            separator: None,
            ttl: None,
            operation_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
            http2_keep_alive_interval: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(3),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            audit_interval: Duration::from_secs(600),
            max_entries: 20_000,
            layout: Arc::new(EtcdNaming::default()),
            layout_options: LayoutOptions::default(),
        }
    }

    /// Sets the prefix of all keys, one or more path segments; default none.
    ///
    /// It is used as given, so a leading `/` is part of the keys. In a URL, write a second `/` for
    /// that.
    ///
    /// A Go client of the service `order` also calls what is registered below the prefix `order`,
    /// so give no service the name of a prefix while there are such clients.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets the character between the prefix and the names of services: `/`, `.`, `-`, `_` or `~`;
    /// default that of the [layout](Self::layout), `/`.
    ///
    /// With the prefix `prod` and the separator `.`, the keys of the service `orders` begin with
    /// `prod.orders/`. If the prefix has one segment, Go clients of such a service need no
    /// authority of their own; [`EtcdNaming`] explains why. Without a prefix it has no effect.
    ///
    /// Names may contain `.`, `-` and `_`, so with these the service `eu.orders` of the prefix
    /// `prod` and the service `orders` of the prefix `prod.eu` are the same, and a role for
    /// `prod-` covers `prod-eu-`. Use them with prefixes that do not begin one another.
    #[must_use]
    pub fn separator(mut self, separator: char) -> Self {
        self.separator = Some(separator);
        self
    }

    /// Sets the user and the password.
    ///
    /// Without [TLS](Self::tls) they are sent in clear text. They are then refused, unless all
    /// members are loopback addresses (`localhost` is one) or
    /// [`allow_plaintext_credentials`](Self::allow_plaintext_credentials) declares the network
    /// trusted.
    ///
    /// While authentication is off in etcd they are not used, which is logged once. As soon as etcd
    /// requires them, they are used.
    #[must_use]
    pub fn credentials(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.credentials = Some(Credentials::with_password(user.into(), password.into()));
        self
    }

    /// Sets the user and the file that holds the password.
    ///
    /// The file is read whenever a password is needed. Line breaks at its end are not part of the
    /// password. The names through serde are `user` and `password_file`; in a URL the user comes
    /// before the members, as in `etcd://payments@10.0.0.1?password_file=/run/secrets/etcd`.
    #[must_use]
    pub fn password_file(mut self, user: impl Into<String>, file: impl Into<PathBuf>) -> Self {
        self.credentials = Some(Credentials::with_file(user.into(), file));
        self
    }

    /// Sets whether credentials may be sent in clear text to members that are not loopback
    /// addresses; default `false`.
    #[must_use]
    pub fn allow_plaintext_credentials(mut self, allow: bool) -> Self {
        self.allow_plaintext_credentials = allow;
        self
    }

    /// Sets TLS for the connections to members; default none.
    ///
    /// In a URL and through serde, `ca_file` enables TLS; `cert_file`, `key_file` and `server_name`
    /// are its other options.
    #[must_use]
    pub fn tls(mut self, tls: EtcdTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets whether to find members through the cluster's own list of members; default `false`.
    ///
    /// The handle starts with the configured members. It then uses those that etcd lists, except
    /// learners, at the addresses that they advertise to clients, so that members may be replaced
    /// one by one without a change of any configuration. The list is read about every 30 s, or
    /// every twentieth of the [audit interval](Self::audit_interval) if that is shorter, and soon
    /// after a member fails.
    ///
    /// Turn it on only if clients can reach the advertised addresses (`--advertise-client-urls`).
    /// With or without it, the DNS name of a member is resolved again for each new connection.
    #[must_use]
    pub fn discover_members(mut self, discover: bool) -> Self {
        self.discover_members = discover;
        self
    }

    /// Sets how long entries outlive a process that died, in whole seconds from 1 s to 1 day;
    /// default that of the [layout](Self::layout), 15 s for [`EtcdNaming`].
    ///
    /// etcd grants at least 1.5 times its election timeout. The granted time is the one that
    /// applies, and is returned by [`granted_ttl`](crate::EtcdBackend::granted_ttl).
    ///
    /// The TTL also determines how soon watchers notice an outage, so set it to the same value in
    /// processes that only watch. While a handle watches anything it sends one small read per sixth
    /// of the TTL, and at least one every 3.75 s.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Sets how long one operation of a caller may take, including retries, from 100 ms to 1 h;
    /// default 10 s.
    ///
    /// `register`, `update`, `deregister` and `list` keep trying for this long while etcd cannot be
    /// reached or cannot answer.
    #[must_use]
    pub fn operation_timeout(mut self, timeout: Duration) -> Self {
        self.operation_timeout = timeout;
        self
    }

    /// Sets how long connecting to a member may take, and how long the TLS handshake after it may
    /// take, from 10 ms to 1 h; default 2 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how long a member may take to answer one request, from 10 ms to 1 h; default 5 s.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Sets the interval of HTTP/2 pings on connections with open streams, from 1 s to 1 h; default
    /// 10 s. It also sets the TCP keepalive.
    ///
    /// Watches and leases detect a frozen member without pings; pings close its connections. etcd
    /// closes connections that are pinged more often than its `--grpc-keepalive-min-time`, 5 s by
    /// default.
    #[must_use]
    pub fn http2_keep_alive_interval(mut self, interval: Duration) -> Self {
        self.http2_keep_alive_interval = interval;
        self
    }

    /// Sets how long a ping may stay unanswered before the connection counts as lost, from 10 ms to
    /// 1 h; default 3 s.
    #[must_use]
    pub fn keep_alive_timeout(mut self, timeout: Duration) -> Self {
        self.keep_alive_timeout = timeout;
        self
    }

    /// Sets the backoff between attempts, with full jitter; default 100 ms to 5 s.
    ///
    /// The names in a URL and through serde are `backoff_min` and `backoff_max`.
    ///
    /// A member that cannot be reached is retried at least once a second, unless `backoff_min` is
    /// longer, so that registrations are restored soon after etcd returns. One that is overloaded
    /// or does not answer in time is retried with the whole backoff.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff_min = backoff.min();
        self.backoff_max = backoff.max();
        self
    }

    /// Sets how often the handle chooses a member again, give or take a fifth, from 1 s to 1 day;
    /// default 10 min.
    ///
    /// Choosing again spreads handles over the members after these were restarted.
    ///
    /// Each watched service is audited ten times as often: the handle asks etcd for the number of
    /// the service's keys and for the newest of them.
    #[must_use]
    pub fn audit_interval(mut self, interval: Duration) -> Self {
        self.audit_interval = interval;
        self
    }

    /// Sets how many entries a service may have, including bad ones, from 1 to 1,000,000; default
    /// 20,000. The limit protects the memory of readers from anyone who may write there.
    ///
    /// A service with more entries is not followed: `list` fails and watchers get one `Lost`, both
    /// of the kind [`ResourceExhausted`](discovery_core::ErrorKind::ResourceExhausted). The set
    /// stays as last known. Watchers follow the service again within two minutes after it has few
    /// enough entries.
    #[must_use]
    pub fn max_entries(mut self, entries: usize) -> Self {
        self.max_entries = entries;
        self
    }

    /// Sets how instances are written as keys and values; default [`EtcdNaming`].
    ///
    /// A URL and serde set it by name: `layout` is `etcd-naming`, with the options
    /// `metadata_as_object` and `deeper_paths`; `plain`, with the option `key_template`; or
    /// `toadocr`.
    #[must_use]
    pub fn layout(mut self, layout: impl Layout) -> Self {
        self.layout = Arc::new(layout);
        self
    }
}

impl EtcdConfig {
    /// Sets the layout that was chosen by name, once all options are known.
    fn choose_layout(&mut self) -> Result<(), Error> {
        let chosen = by_name(&self.layout_options).map_err(|error| error.with_operation("configure etcd"))?;
        if let Some(layout) = chosen {
            self.layout = layout;
        }
        Ok(())
    }
}

impl fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Show checked members only: the text of others may hold a misplaced password.
        let members =
            self.members.iter().map(|text| settings::member(text, self.tls.is_some()).map(|one| one.to_string()));
        let members: Vec<_> = members.map(|one| one.unwrap_or_else(|_| "(invalid)".to_owned())).collect();
        f.debug_struct("EtcdConfig")
            .field("members", &members)
            .field("prefix", &self.prefix)
            .field("credentials", &self.credentials)
            .field("allow_plaintext_credentials", &self.allow_plaintext_credentials)
            .field("tls", &self.tls)
            .field("discover_members", &self.discover_members)
            .field("separator", &self.separator)
            .field("ttl", &self.ttl)
            .field("operation_timeout", &self.operation_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("http2_keep_alive_interval", &self.http2_keep_alive_interval)
            .field("keep_alive_timeout", &self.keep_alive_timeout)
            .field("backoff_min", &self.backoff_min)
            .field("backoff_max", &self.backoff_max)
            .field("audit_interval", &self.audit_interval)
            .field("max_entries", &self.max_entries)
            .field("layout", &self.layout)
            .finish()
    }
}
