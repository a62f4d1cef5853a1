mod credentials;
mod deserialize;
mod fields;
mod parse;
mod settings;
mod tls;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use discovery_core::Backoff;

pub(crate) use credentials::Credentials;
#[cfg(feature = "tls")]
pub(crate) use settings::invalid;
pub(crate) use settings::{Settings, TTL_MAX, is_loopback, member as member_address};
pub use tls::EtcdTls;
#[cfg(feature = "tls")]
pub(crate) use tls::Pem;

use crate::layout::{EtcdNaming, Layout};

/// How to reach etcd and how to keep entries there: filled by setters, or read from a URL or through serde.
///
/// ```text
/// etcd://user:password@10.0.0.1:2379,10.0.0.2:2379/prod?ttl=15s&ca_file=/etc/etcd/ca.pem
/// ```
///
/// Members without a port get 2379. The path is the prefix of all keys. User and password are percent-encoded. Parameters are
/// the setters' names without `with_`, those of [`EtcdTls`] among them, and durations are written as `15s` or `500ms`. What is not
/// known is refused.
///
/// Through serde the fields have the same names; `members` is a list of texts, and `prefix`, `user` and `password` are fields too:
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
/// A member may be written with `https://` or `http://`, as etcdctl takes it. That decides nothing, and is refused where it
/// contradicts [TLS](Self::tls) or its absence.
///
/// [`EtcdBackend::new`](crate::EtcdBackend::new) checks everything in one step; reading a URL or fields checks all but the
/// contents of files. No error of this crate quotes a password or a key; a format may quote the line that it stands in, as
/// the crate `toml` does.
///
/// ```
/// use std::time::Duration;
/// use discovery_etcd::EtcdConfig;
///
/// let config = EtcdConfig::new(["10.0.0.1:2379", "10.0.0.2:2379"]).prefix("prod").ttl(Duration::from_secs(10));
/// let same: EtcdConfig = "etcd://10.0.0.1,10.0.0.2/prod?ttl=10s".parse()?;
/// assert_eq!(format!("{config:?}"), format!("{same:?}"));
///
/// let same: EtcdConfig =
///     serde_json::from_str(r#"{ "members": ["10.0.0.1", "10.0.0.2"], "prefix": "prod", "ttl": "10s" }"#)?;
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
    pub(crate) ttl: Duration,
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
}

impl EtcdConfig {
    /// A configuration with defaults, for the members of one cluster, each written `host:port`.
    pub fn new<M: Into<String>>(members: impl IntoIterator<Item = M>) -> Self {
        Self {
            members: members.into_iter().map(Into::into).collect(),
            prefix: String::new(),
            credentials: None,
            allow_plaintext_credentials: false,
            tls: None,
            discover_members: false,
            ttl: Duration::from_secs(15),
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
        }
    }

    /// Sets what all keys begin with, one or more path segments; by default nothing.
    ///
    /// It is taken as it is, so that a leading `/` is part of the keys; in a URL that takes a second `/`.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets the user and the password.
    ///
    /// Without [TLS](Self::tls) they travel in clear. So they are refused then, unless all
    /// members are loopback addresses (`localhost` is one), or
    /// [`allow_plaintext_credentials`](Self::allow_plaintext_credentials) states that the
    /// network is trusted.
    ///
    /// While authentication is off in etcd they are not used, which is logged once; they are as
    /// soon as it is on.
    #[must_use]
    pub fn credentials(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.credentials = Some(Credentials::with_password(user.into(), password.into()));
        self
    }

    /// Sets the user and the file that holds the password, which is read again whenever a password
    /// is needed.
    ///
    /// Line breaks at its end do not belong to the password. By name they are `user` and
    /// `password_file`; in a URL the user stands before the members, as in
    /// `etcd://payments@10.0.0.1?password_file=/run/secrets/etcd`.
    #[must_use]
    pub fn password_file(mut self, user: impl Into<String>, file: impl Into<PathBuf>) -> Self {
        self.credentials = Some(Credentials::with_file(user.into(), file));
        self
    }

    /// Allows credentials to travel in clear to members that are not loopback addresses.
    #[must_use]
    pub fn allow_plaintext_credentials(mut self, allow: bool) -> Self {
        self.allow_plaintext_credentials = allow;
        self
    }

    /// Reaches the members over TLS.
    ///
    /// In a URL and through serde there is TLS where `ca_file` is given; `cert_file`, `key_file` and `server_name` go with it.
    #[must_use]
    pub fn tls(mut self, tls: EtcdTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Finds members at new addresses by the cluster's own list of them; by default off.
    ///
    /// The members that were configured are where to begin. Then those are used that etcd lists, at
    /// the addresses that they advertise to clients, learners left out: so members may be replaced
    /// one by one without anybody's configuration. The list is read every 30 s, and soon after a
    /// member fails.
    ///
    /// Turn it on only where clients reach the advertised addresses (`--advertise-client-urls`).
    /// Without it, members that are configured by DNS names are looked up again with every new
    /// connection.
    #[must_use]
    pub fn discover_members(mut self, discover: bool) -> Self {
        self.discover_members = discover;
        self
    }

    /// Sets how long entries outlive a process that died, in whole seconds from 1 s to 1 day; by default 15 s.
    ///
    /// etcd grants no less than 1.5 times its election timeout. What it granted is what counts, and what
    /// [`granted_ttl`](crate::EtcdBackend::granted_ttl) returns.
    ///
    /// It also rules how fast watchers notice an outage: give those that only watch the ttl of those that register. Each watched
    /// service costs one small read per quarter of the ttl, and one every 3.75 s at the least.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets how long an operation of a caller may take in all, retries included; by default 10 s.
    ///
    /// `register`, `update`, `deregister` and `list` go on for as long while etcd cannot be reached
    /// or cannot answer.
    #[must_use]
    pub fn operation_timeout(mut self, timeout: Duration) -> Self {
        self.operation_timeout = timeout;
        self
    }

    /// Sets how long connecting to a member may take, and how long the TLS handshake after that; by default 2 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how long a member may take to answer one request; by default 5 s.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Sets how often a connection with open streams is pinged; by default every 10 s.
    ///
    /// Watches and leases notice a frozen member by themselves; pings clear its connections away. etcd ends connections that are pinged more often than its
    /// `--grpc-keepalive-min-time`, by default 5 s.
    #[must_use]
    pub fn http2_keep_alive_interval(mut self, interval: Duration) -> Self {
        self.http2_keep_alive_interval = interval;
        self
    }

    /// Sets how long a ping may stay unanswered before the connection counts as lost; by default 3 s.
    #[must_use]
    pub fn keep_alive_timeout(mut self, timeout: Duration) -> Self {
        self.keep_alive_timeout = timeout;
        self
    }

    /// Sets the waits between attempts; by default 100 ms to 5 s, with full jitter. By name they are `backoff_min` and
    /// `backoff_max`.
    ///
    /// A member that cannot be reached is tried at least once a second, unless the first wait is
    /// longer, so that registrations are back soon after etcd is. One that has too much to do, or
    /// does not answer in time, gets the whole wait.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff_min = backoff.min();
        self.backoff_max = backoff.max();
        self
    }

    /// Sets how often the handle chooses its member anew, give or take a fifth, so that handles
    /// spread over the members again after those were restarted; by default every 10 min, from 1 s
    /// to 1 day.
    ///
    /// Each watched service is audited ten times as often: etcd is asked for the number of its keys
    /// and for the newest of them.
    #[must_use]
    pub fn audit_interval(mut self, interval: Duration) -> Self {
        self.audit_interval = interval;
        self
    }

    /// Sets how many entries a service may have, bad ones included, from 1 to 1,000,000; by default 20,000.
    ///
    /// A service that has more is not followed: `list` fails and watchers get one `Lost`, both of
    /// the kind [`ResourceExhausted`](discovery_core::ErrorKind::ResourceExhausted), and the set
    /// stands as last known until there are fewer, which watchers learn within two minutes. So
    /// nobody who may write there can fill the memory of those who read.
    #[must_use]
    pub fn max_entries(mut self, entries: usize) -> Self {
        self.max_entries = entries;
        self
    }

    /// Sets how instances are written as keys and values; by default [`EtcdNaming`]. It has no name in a URL.
    #[must_use]
    pub fn layout(mut self, layout: impl Layout) -> Self {
        self.layout = Arc::new(layout);
        self
    }
}

impl fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Members as the settings have them; raw ones may hold a password in the wrong place.
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
