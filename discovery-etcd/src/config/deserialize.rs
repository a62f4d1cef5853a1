//! Reads a configuration through serde.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};

use super::{
    EtcdConfig,
    fields::{NAMES, shown},
    settings::Settings,
};

impl<'de> Deserialize<'de> for EtcdConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = EtcdConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the fields of an etcd configuration, or its URL")
    }

    fn visit_str<E: serde::de::Error>(self, url: &str) -> Result<EtcdConfig, E> {
        url.parse().map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<EtcdConfig, A::Error> {
        let mut config = EtcdConfig::new::<String>([]);
        let mut user = String::new();
        let mut password = String::new();
        let mut seen: Vec<String> = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if seen.contains(&name) {
                return Err(A::Error::custom(format_args!("the field {} is given twice", shown(&name))));
            }
            match name.as_str() {
                "members" => config.members = map.next_value::<Members>()?.0,
                "password" => password = map.next_value::<Value>()?.text(&name)?,
                "prefix" => config.prefix = map.next_value::<Value>()?.text(&name)?,
                "user" => user = map.next_value::<Value>()?.text(&name)?,
                name if NAMES.contains(&name) => {
                    let (Value::Number(value) | Value::Text(value)) = map.next_value()?;
                    config.set(name, &value).map_err(A::Error::custom)?;
                }
                name => {
                    let known = NAMES.join(", ");
                    return Err(A::Error::custom(format_args!(
                        "unknown field {}; known are members, password, prefix, user, {known}",
                        shown(name)
                    )));
                }
            }
            seen.push(name);
        }
        let has = |name: &str| seen.iter().any(|seen| seen == name);
        match config.credentials.take() {
            Some(_) if has("password") => {
                let problem = "invalid credentials: a password and a password_file are given; allowed is one of them";
                return Err(A::Error::custom(problem));
            }
            Some(in_file) => config.credentials = Some(in_file.for_user(user)),
            None if has("user") || has("password") => config = config.credentials(user, password),
            None => {}
        }
        config.choose_layout().map_err(A::Error::custom)?;
        Settings::check(&config).map_err(A::Error::custom)?;
        Ok(config)
    }
}

/// The members. Like a [`Value`], they are not left to serde, whose errors quote what they refuse:
/// here it may be a URL with a password.
struct Members(Vec<String>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(List)
    }
}

struct List;

impl<'de> Visitor<'de> for List {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of members")
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Members, E> {
        Err(E::custom("invalid members: allowed is a list of strings, each host:port"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Members, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = list.next_element::<Value>()? {
            members.push(member.text("member")?);
        }
        Ok(Members(members))
    }
}

/// A scalar value, as the various formats represent it.
///
/// It is not left to serde, whose errors quote what they refuse: that may be a password that
/// consists of digits.
enum Value {
    Number(String),
    Text(String),
}

impl Value {
    /// Returns the text. A number or a boolean is refused, because how it was written is lost:
    /// `007` and `7` are the same number.
    fn text<E: serde::de::Error>(self, name: &str) -> Result<String, E> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Number(_) => Err(E::custom(format_args!("invalid {name}: allowed is a quoted string"))),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Scalar)
    }
}

struct Scalar;

impl Visitor<'_> for Scalar {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: serde_json::Value) -> Result<EtcdConfig, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn fields_match_the_url() {
        let fields = json!({
            "members": ["127.0.0.1", "[::1]:3379"], "prefix": "a/b", "user": "us@er", "password": "p:w/",
            "allow_plaintext_credentials": true, "audit_interval": "2m", "backoff_max": "4s", "discover_members": true, "backoff_min": "50ms", "connect_timeout": "300ms",
            "operation_timeout": "3s", "max_entries": "500", "http2_keep_alive_interval": "6s", "keep_alive_timeout": "2s", "request_timeout": "1s 500ms", "ttl": "20s",
        });
        let url = "etcd://us%40er:p%3Aw%2F@127.0.0.1,[::1]:3379/a/b?allow_plaintext_credentials=true&audit_interval=2m&discover_members=true&backoff_max=4s&backoff_min=50ms&connect_timeout=300ms&operation_timeout=3s&max_entries=500&http2_keep_alive_interval=6s&keep_alive_timeout=2s&request_timeout=1s500ms&ttl=20s";
        let config = read(fields).unwrap();
        let same = url.parse::<EtcdConfig>().unwrap();
        assert_eq!(format!("{config:?}"), format!("{same:?}"));
        let password = |config: EtcdConfig| config.credentials.unwrap().read_password().unwrap().reveal().to_owned();
        assert_eq!(password(config), password(same));
        assert!(read(json!({ "members": ["etcd.example"] })).is_ok(), "the other fields have defaults");
        let fields = json!({
            "members": ["h"], "prefix": "prod", "separator": ".", "layout": "plain", "key_template": "{service}/{id}",
        });
        let same = "etcd://h/prod?separator=.&layout=plain&key_template={service}/{id}".parse::<EtcdConfig>().unwrap();
        assert_eq!(format!("{:?}", read(fields).unwrap()), format!("{same:?}"));
        let fields = json!({ "members": ["h"], "metadata_as_object": true, "deeper_paths": true });
        let same = "etcd://h?layout=etcd-naming&metadata_as_object=true&deeper_paths=true";
        assert_eq!(format!("{:?}", read(fields).unwrap()), format!("{:?}", same.parse::<EtcdConfig>().unwrap()));
    }

    #[test]
    fn a_password_file_is_read_whenever_a_password_is_needed() {
        let file = std::env::temp_dir().join(format!("discovery-password-{}", std::process::id()));
        std::fs::write(&file, "pass word\r\n").unwrap();
        let fields = json!({ "members": ["127.0.0.1"], "user": "u", "password_file": file });
        let url = format!("etcd://u@127.0.0.1?password_file={}", file.display());
        for config in [read(fields.clone()).unwrap(), url.parse::<EtcdConfig>().unwrap()] {
            let credentials = config.credentials.unwrap();
            assert_eq!((credentials.user(), credentials.read_password().unwrap().reveal()), ("u", "pass word"));
            std::fs::write(&file, "another").unwrap();
            assert_eq!(credentials.read_password().unwrap().reveal(), "another", "it is read again");
            std::fs::write(&file, "\n").unwrap();
            assert!(credentials.read_password().unwrap_err().to_string().contains("holds no password"));
            std::fs::write(&file, "pass word\r\n").unwrap();
        }
        std::fs::remove_file(&file).unwrap();
        let gone = read(fields).unwrap().credentials.unwrap().read_password().unwrap_err();
        assert!(gone.to_string().contains("password_file: it cannot be read"), "{gone}");
    }

    #[cfg(feature = "tls")]
    #[test]
    fn fields_of_tls_match_the_url() {
        let fields = json!({
            "members": ["https://etcd.example"], "user": "u", "password": "p",
            "ca_file": "/a/ca.pem", "cert_file": "/a/c.pem", "key_file": "/a/k.pem", "server_name": "etcd",
        });
        let url = "etcd://u:p@etcd.example?ca_file=/a/ca.pem&cert_file=/a/c.pem&key_file=%2Fa%2Fk.pem&server_name=etcd";
        let same = url.parse::<EtcdConfig>().unwrap();
        assert_eq!(format!("{:?}", read(fields).unwrap()), format!("{same:?}"));
    }

    #[test]
    fn a_bad_field_is_an_error_that_names_what_is_allowed() {
        for (fields, said) in [
            (json!([]), "the fields of an etcd configuration"),
            (json!({}), "allowed are 1 to 16"),
            (json!({ "members": [] }), "allowed are 1 to 16"),
            (json!({ "members": "a" }), "allowed is a list"),
            (json!({ "members": ["a", "u:secret@b"] }), "credentials are set separately"),
            (json!({ "members": ["a"], "Ttl": "5s" }), "unknown field \"Ttl\"; known are members, password, "),
            (json!({ "members": ["a"], "tls": { "ca_file": "x" } }), "unknown field \"tls\""),
            (json!({ "members": ["a"], "ttl": 15 }), "durations such as 15s"),
            (json!({ "members": ["a"], "ttl": "15" }), "durations such as 15s"),
            (json!({ "members": ["a"], "ttl": "0s" }), "whole seconds from 1 s to 1 day"),
            (json!({ "members": ["a"], "ttl": null }), "one value"),
            (json!({ "members": ["a"], "backoff_min": "9s" }), "the shorter first"),
            (json!({ "members": ["a"], "allow_plaintext_credentials": "maybe" }), "allowed are true and false"),
            (json!({ "members": ["127.0.0.1"], "user": "u" }), "are required"),
            (json!({ "members": ["127.0.0.1"], "password": "secret" }), "are required"),
            (json!({ "members": ["127.0.0.1"], "password_file": "/secret" }), "are required"),
            (
                json!({ "members": ["127.0.0.1"], "user": "u", "password_file": "" }),
                "invalid password_file: it is empty",
            ),
            (
                json!({ "members": ["127.0.0.1"], "user": "u", "password": "secret", "password_file": "/secret" }),
                "allowed is one of them",
            ),
            (
                json!({ "members": ["127.0.0.1"], "password": 5_313_373 }),
                "invalid password: allowed is a quoted string",
            ),
            (json!({ "members": ["a"], "user": "u", "password": "secret" }), "in clear text"),
            (json!({ "members": ["a"], "cert_file": "c", "key_file": "k" }), "`ca_file` is missing"),
            (json!({ "members": ["a"], "ca_file": "ca", "cert_file": "c" }), "both are required"),
            (json!({ "members": ["a"], "ca_file": "ca", "key_file": "k" }), "both are required"),
            (json!({ "members": ["a"], "ca_file": "" }), "invalid ca_file: it is empty"),
            (json!({ "members": ["https://a"] }), "needs `ca_file`"),
            (json!({ "members": "etcd://u:secret@h" }), "allowed is a list"),
            (json!({ "members": [5] }), "invalid member: allowed is a quoted string"),
            (json!("etcd://u:secret@10.0.0.1"), "in clear text"),
            (
                json!({ "members": ["a"], "ca_file": "ca", "cert_file": "c", "key_file": "-----BEGIN secret" }),
                "but a PEM is given",
            ),
            (json!({ "members": ["http://a"], "ca_file": "ca" }), "not allowed with TLS"),
        ] {
            let given = fields.to_string();
            let error = read(fields).unwrap_err();
            assert!(error.contains(said), "{given}: {error}");
            assert!(!error.contains("secret") && !error.contains("5313373"), "{error}");
        }
        let twice = r#"{ "members": ["a"], "ttl": "5s", "ttl": "5s" }"#;
        assert!(serde_json::from_str::<EtcdConfig>(twice).unwrap_err().to_string().contains("given twice"));
    }
}
