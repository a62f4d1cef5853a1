//! Parses a URL.

use std::str::FromStr;

use discovery_core::Error;
use percent_encoding::percent_decode_str;

use super::{
    EtcdConfig,
    fields::{NAMES, shown},
    settings::{Settings, invalid},
};

impl FromStr for EtcdConfig {
    type Err = Error;

    /// # Errors
    ///
    /// [`InvalidInput`](discovery_core::ErrorKind::InvalidInput), with what is wrong and what is
    /// allowed, but never with the URL, which may hold a password.
    /// [`Unsupported`](discovery_core::ErrorKind::Unsupported) if the URL requires TLS and the
    /// feature `tls` is disabled.
    fn from_str(url: &str) -> Result<Self, Error> {
        let rest = url.strip_prefix("etcd://").ok_or_else(|| invalid("invalid URL: it must begin with etcd://"))?;
        if rest.contains('#') {
            return Err(invalid("invalid URL: it has a fragment, which is not allowed; write # in a password as %23"));
        }
        // A / or ? in a password that is not encoded ends the authority. The user and the start of
        // the password would then be parsed as an address, and quoted by its error.
        if rest.split_once(['/', '?']).is_some_and(|(_, rest)| rest.contains('@')) {
            return Err(invalid(
                "invalid URL: an @ after the members; in a user or a password, write / ? and @ as %2F, %3F and %40",
            ));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (Some(user), hosts),
            None => (None, authority),
        };
        if hosts.split(',').any(|host| matches!(host, "http:" | "https:")) {
            return Err(invalid(
                "invalid URL: members are named without http:// or https://, as in etcd://10.0.0.1:2379; TLS is used if `ca_file` is given",
            ));
        }
        let mut config = Self::new(hosts.split(',').filter(|_| !hosts.is_empty()));
        config.prefix = decode(path, "prefix")?;
        if let Some(user) = user {
            let (user, password) = user.split_once(':').unwrap_or((user, ""));
            config = config.credentials(decode(user, "user")?, decode(password, "password")?);
        }
        let mut seen = Vec::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if seen.contains(&name) {
                return Err(invalid(format!("invalid URL: the parameter {} is given twice", shown(&name))));
            }
            if !config.set(&name, &value)? {
                let known = NAMES.join(", ");
                return Err(invalid(format!("invalid URL: unknown parameter {}; known are {known}", shown(&name))));
            }
            seen.push(name);
        }
        config.choose_layout()?;
        Settings::check(&config)?;
        Ok(config)
    }
}

fn decode(text: &str, what: &'static str) -> Result<String, Error> {
    let decoded = percent_decode_str(text).decode_utf8();
    Ok(decoded.map_err(|_| invalid(format!("invalid {what} in the URL: it is not UTF-8")))?.into_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use discovery_core::ErrorKind;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_url_sets_all_fields() {
        let url = "etcd://us%40er:p%3Aw%2F@127.0.0.1,[::1]:3379/a/b?ttl=20s&operation_timeout=3s&request_timeout=1s500ms&connect_timeout=300ms&http2_keep_alive_interval=6s&keep_alive_timeout=2s";
        let config: EtcdConfig = url.parse().unwrap();
        let settings = Settings::check(&config).unwrap();
        let members: Vec<_> = settings.members.iter().map(ToString::to_string).collect();
        assert_eq!(members, ["127.0.0.1:2379", "[::1]:3379"]);
        assert_eq!(settings.prefix, "a/b/");
        let credentials = settings.credentials.unwrap();
        assert_eq!((credentials.user(), credentials.read_password().unwrap().reveal()), ("us@er", "p:w/"));
        assert_eq!(settings.ttl, Duration::from_secs(20));
        assert_eq!(settings.request_timeout, Duration::from_millis(1500));
    }

    #[test]
    fn a_prefix_is_used_as_given() {
        for (url, prefix) in [("etcd://a", ""), ("etcd://a/", ""), ("etcd://a/p/", "p/"), ("etcd://a//p", "/p/")] {
            let config: EtcdConfig = url.parse().unwrap();
            assert_eq!(Settings::check(&config).unwrap().prefix, prefix, "{url}");
        }
    }

    #[test]
    fn a_bad_url_is_an_error_that_names_what_is_allowed() {
        for (url, said) in [
            ("http://a", "etcd://"),
            ("etcd://", "allowed are 1 to 16"),
            ("etcd://https://a:2379", "without http:// or https://"),
            ("etcd://a,http://b", "without http:// or https://"),
            ("etcd://u:secret@https://a:2379/p", "without http:// or https://"),
            ("etcd://a.,a", "named twice"),
            ("etcd://a..", "invalid address"),
            ("etcd://a?audit_interval=500ms", "allowed are 1 s to 1 day"),
            ("etcd://a?discover_members=yes", "true and false"),
            ("etcd://u:secret@127.0.0.1?password_file=/secret", "allowed is one of them"),
            ("etcd://127.0.0.1?password_file=/secret", "are required"),
            ("etcd:///p", "allowed are 1 to 16"),
            ("etcd://a,,b", "invalid address"),
            ("etcd://a,a:2379", "named twice"),
            ("etcd://a:0", "port"),
            ("etcd://a/p#x", "fragment"),
            ("etcd://a/p//q", "invalid prefix"),
            ("etcd://a/p%00", "invalid prefix"),
            ("etcd://a?ttl=0s", "whole seconds from 1 s to 1 day"),
            ("etcd://a?ttl=1500ms", "whole seconds"),
            ("etcd://a?ttl=15", "durations such as 15s"),
            ("etcd://a?ttl=", "durations such as 15s"),
            ("etcd://a?ttl=5s&ttl=5s", "given twice"),
            ("etcd://a?Ttl=5s", "unknown parameter"),
            ("etcd://a?operation_timeout=0s", "invalid operation_timeout"),
            ("etcd://a?backoff_max=2h", "invalid backoff"),
            ("etcd://a?user=u", "unknown parameter"),
            ("etcd://a?max_entries=0", "allowed are 1 to 1000000"),
            ("etcd://a?max_entries=many", "allowed are whole numbers"),
            ("etcd://a?ca_file=", "invalid ca_file: it is empty"),
            ("etcd://a?server_name=b", "`ca_file` is missing"),
            ("etcd://a?cert_file=c&key_file=k", "`ca_file` is missing"),
            ("etcd://a?ca_file=ca&cert_file=c", "only one of `cert_file` and `key_file`"),
            ("etcd://a?ca_file=ca&key_file=k", "only one of `cert_file` and `key_file`"),
            ("etcd://user@127.0.0.1", "are required"),
            ("etcd://user:@127.0.0.1", "are required"),
            ("etcd://:pw@127.0.0.1", "are required"),
            ("etcd://u:secret/x@127.0.0.1", "an @ after the members"),
            ("etcd://u:secret?x@127.0.0.1", "an @ after the members"),
            ("etcd://u:secret@10.0.0.1", "in clear text"),
            ("etcd://u:secret@127.0.0.1,etcd.example", "in clear text"),
            ("etcd://u:secret@10.0.0.1?allow_plaintext_credentials=maybe", "true and false"),
        ] {
            let error = url.parse::<EtcdConfig>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{url}");
            assert!(error.to_string().contains(said), "{url}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        let many: Vec<_> = (0..17).map(|n| format!("h{n}")).collect();
        assert!(Settings::check(&EtcdConfig::new(many)).is_err());
        let misplaced = EtcdConfig::new(["u:canary@h:1"]);
        let error = Settings::check(&misplaced).unwrap_err();
        assert!(!format!("{misplaced:?} {error}").contains("canary"));
    }

    #[test]
    fn plaintext_credentials_are_allowed_to_loopback() {
        for (host, is_loopback) in [
            ("127.0.0.1", true),
            ("127.9.9.9:3379", true),
            ("[::1]", true),
            ("localhost", true),
            ("LOCALHOST.:2379", true),
            ("localhost.example", false),
            ("not-localhost", false),
            ("10.0.0.1", false),
        ] {
            let read = format!("etcd://u:p@{host}").parse::<EtcdConfig>();
            assert_eq!(read.is_ok(), is_loopback, "{host}");
        }
    }

    #[test]
    fn member_names_may_end_in_a_dot() {
        let config: EtcdConfig = "etcd://etcd-0.etcd.default.svc.cluster.local.,b.:3379".parse().unwrap();
        let settings = Settings::check(&config).unwrap();
        let members: Vec<_> = settings.members.iter().map(ToString::to_string).collect();
        assert_eq!(members, ["etcd-0.etcd.default.svc.cluster.local.:2379", "b.:3379"]);
    }

    #[test]
    fn tls_needs_its_feature() {
        let read = "etcd://u:p@etcd.example?ca_file=/a/ca.pem".parse::<EtcdConfig>();
        if cfg!(feature = "tls") {
            assert!(read.is_ok(), "credentials are allowed over TLS");
        } else {
            let error = read.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains("`etcd-tls`"), "{error}");
        }
    }

    #[tokio::test]
    async fn secrets_are_not_shown() {
        let config: EtcdConfig = "etcd://u:canary@10.0.0.1?allow_plaintext_credentials=true".parse().unwrap();
        let settings = Settings::check(&config).unwrap();
        let cluster = crate::cluster::Cluster::new(&settings, tokio::runtime::Handle::current()).unwrap();
        assert!(!format!("{config:?} {settings:?} {cluster:?}").contains("canary"));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(rest in ".{0,80}") {
            let _ = format!("etcd://{rest}").parse::<EtcdConfig>();
        }
    }
}
