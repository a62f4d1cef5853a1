//! A configuration is checked here, once.

use std::{sync::Arc, time::Duration};

use discovery_core::{Address, Backoff, Error, ErrorKind, Host};

use super::{Credentials, EtcdConfig, EtcdTls};
use crate::{audit_interval::AuditInterval, layout::Layout};

/// A configuration that was checked. Later code relies on it without further checks.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// At least one, without duplicates.
    pub(crate) members: Vec<Address>,
    /// Empty, or ends in the separator.
    pub(crate) prefix: String,
    pub(crate) credentials: Option<Credentials>,
    /// Whether credentials are sent in clear text, and therefore only to loopback addresses.
    pub(crate) is_loopback_only: bool,
    /// Complete, but its files have not been read yet.
    #[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "TLS is refused without the feature"))]
    pub(crate) tls: Option<EtcdTls>,
    pub(crate) discover_members: bool,
    pub(crate) ttl: Duration,
    pub(crate) operation_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) http2_keep_alive_interval: Duration,
    pub(crate) keep_alive_timeout: Duration,
    pub(crate) backoff: Backoff,
    pub(crate) audit_interval: AuditInterval,
    pub(crate) max_entries: usize,
    pub(crate) layout: Arc<dyn Layout>,
}

impl Settings {
    pub(crate) fn check(config: &EtcdConfig) -> Result<Self, Error> {
        let members = members(&config.members, config.tls.is_some())?;
        config.tls.as_ref().map_or(Ok(()), EtcdTls::check)?;
        let is_loopback_only =
            config.credentials.is_some() && config.tls.is_none() && !config.allow_plaintext_credentials;
        if let Some(credentials) = &config.credentials {
            credentials.check()?;
            if is_loopback_only && !members.iter().all(is_loopback) {
                return Err(invalid(
                    "invalid credentials: they would be sent in clear text; allowed are TLS (`ca_file`), loopback members, or `allow_plaintext_credentials` on a trusted network",
                ));
            }
        }
        let capabilities = config.layout.capabilities();
        let ttl = config.ttl.unwrap_or_else(|| capabilities.default_ttl());
        if !(TTL_MIN..=TTL_MAX).contains(&ttl) || ttl.subsec_nanos() != 0 {
            return Err(invalid(format!("invalid ttl {ttl:?}: allowed are whole seconds from 1 s to 1 day")));
        }
        for (name, value, min) in [
            ("operation_timeout", config.operation_timeout, Duration::from_millis(100)),
            ("connect_timeout", config.connect_timeout, Duration::from_millis(10)),
            ("request_timeout", config.request_timeout, Duration::from_millis(10)),
            ("http2_keep_alive_interval", config.http2_keep_alive_interval, Duration::from_secs(1)),
            ("keep_alive_timeout", config.keep_alive_timeout, Duration::from_millis(10)),
        ] {
            if value < min || value > Duration::from_secs(3600) {
                return Err(invalid(format!("invalid {name} {value:?}: allowed are {min:?} to 1 h")));
            }
        }
        let audit_interval = config.audit_interval;
        if !(AUDIT_MIN..=AUDIT_MAX).contains(&audit_interval) {
            return Err(invalid(format!("invalid audit_interval {audit_interval:?}: allowed are 1 s to 1 day")));
        }
        if !(1..=MAX_ENTRIES).contains(&config.max_entries) {
            let given = config.max_entries;
            return Err(invalid(format!("invalid max_entries {given}: allowed are 1 to {MAX_ENTRIES}")));
        }
        let separator = config.separator.unwrap_or_else(|| capabilities.default_separator());
        Ok(Self {
            members,
            prefix: prefix(&config.prefix, separator)?,
            credentials: config.credentials.clone(),
            is_loopback_only,
            tls: config.tls.clone(),
            discover_members: config.discover_members,
            ttl,
            operation_timeout: config.operation_timeout,
            connect_timeout: config.connect_timeout,
            request_timeout: config.request_timeout,
            http2_keep_alive_interval: config.http2_keep_alive_interval,
            keep_alive_timeout: config.keep_alive_timeout,
            backoff: Backoff::new(config.backoff_min, config.backoff_max)
                .map_err(|error| invalid(error.to_string()))?,
            audit_interval: AuditInterval::new(audit_interval),
            max_entries: config.max_entries,
            layout: Arc::clone(&config.layout),
        })
    }
}

/// Whether data sent to this member stays on this machine.
pub(crate) fn is_loopback(member: &Address) -> bool {
    match member.host() {
        Host::Dns(name) => name.trim_end_matches('.') == "localhost",
        Host::Ip(ip) => ip.is_loopback(),
    }
}

/// Parses a member. The default port is 2379; a scheme must agree with `has_tls`.
pub(crate) fn member(text: &str, has_tls: bool) -> Result<Address, Error> {
    // The text before the @ may be a password, which no error may quote.
    if text.contains('@') {
        return Err(invalid("invalid member: it contains an @; credentials are set separately"));
    }
    let text = match text.split_once("://") {
        Some(("https", text)) if has_tls => text,
        Some(("https", _)) => {
            return Err(invalid("invalid member: https:// needs `ca_file`, the certificate authorities to trust"));
        }
        Some(("http", _)) if has_tls => {
            return Err(invalid("invalid member: http:// is not allowed with TLS; allowed are host:port and https://"));
        }
        Some(("http", text)) => text,
        _ => text,
    };
    let has_port = text.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
        && !text.ends_with(']');
    if has_port { text.parse() } else { format!("{text}:2379").parse() }
}

fn members(texts: &[String], has_tls: bool) -> Result<Vec<Address>, Error> {
    if texts.is_empty() || texts.len() > MAX_MEMBERS {
        return Err(invalid(format!("invalid list of {} members: allowed are 1 to {MAX_MEMBERS}", texts.len())));
    }
    let mut members = Vec::with_capacity(texts.len());
    for text in texts {
        let member = member(text, has_tls)?;
        let is_same = |other: &Address| other.without_trailing_dot() == member.without_trailing_dot();
        if members.iter().any(is_same) {
            return Err(invalid(format!("invalid list of members: {member} is named twice")));
        }
        members.push(member);
    }
    Ok(members)
}

fn prefix(text: &str, separator: char) -> Result<String, Error> {
    if !SEPARATORS.contains(&separator) {
        return Err(invalid(format!("invalid separator {separator:?}: allowed are / . - _ ~")));
    }
    if text.is_empty() {
        return Ok(String::new());
    }
    let text = if separator == '/' { text.strip_suffix('/').unwrap_or(text) } else { text };
    if text.ends_with(['/', separator]) {
        let shown: String = text.chars().take(64).collect();
        return Err(invalid(format!("invalid prefix {shown:?}: the separator {separator:?} follows it by itself")));
    }
    let segments = text.strip_prefix('/').unwrap_or(text).split('/');
    let is_segment =
        |one: &str| !one.is_empty() && !matches!(one, "." | "..") && one.bytes().all(|byte| byte.is_ascii_graphic());
    if text.len() > MAX_PREFIX_BYTES || !segments.into_iter().all(is_segment) {
        return Err(invalid(format!(
            "invalid prefix {:?}: allowed are at most {MAX_PREFIX_BYTES} bytes of path segments of printable ASCII",
            text.chars().take(64).collect::<String>()
        )));
    }
    Ok(format!("{text}{separator}"))
}

pub(crate) fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidInput, message).with_operation("configure etcd")
}

const TTL_MIN: Duration = Duration::from_secs(1);
/// The longest TTL that is requested from etcd.
pub(crate) const TTL_MAX: Duration = Duration::from_secs(24 * 3600);
const AUDIT_MIN: Duration = Duration::from_secs(1);
const AUDIT_MAX: Duration = Duration::from_secs(24 * 3600);
const MAX_ENTRIES: usize = 1_000_000;
const MAX_MEMBERS: usize = 16;
const MAX_PREFIX_BYTES: usize = 512;
/// The characters that neither a segment of a path nor the authority of a Go client's target must
/// escape, and `/`.
const SEPARATORS: [char; 5] = ['/', '.', '-', '_', '~'];
