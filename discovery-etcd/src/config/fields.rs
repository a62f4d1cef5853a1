//! The fields that URLs and serde share, by name.

//! The one table of what can be set by name, in a URL and through serde.

use std::time::Duration;

use discovery_core::Error;

use super::{
    EtcdConfig,
    credentials::Credentials,
    settings::invalid,
    tls::{EtcdTls, Pem},
};

/// The names that [`EtcdConfig::set`] knows. They are the parameters of a URL; serde also has
/// fields for the other parts of a URL: `members`, `password`, `prefix` and `user`.
pub(super) const NAMES: [&str; 22] = [
    "allow_plaintext_credentials",
    "audit_interval",
    "backoff_max",
    "backoff_min",
    "ca_file",
    "cert_file",
    "connect_timeout",
    "deeper_paths",
    "discover_members",
    "http2_keep_alive_interval",
    "keep_alive_timeout",
    "key_file",
    "key_template",
    "layout",
    "max_entries",
    "metadata_as_object",
    "operation_timeout",
    "password_file",
    "request_timeout",
    "separator",
    "server_name",
    "ttl",
];

impl EtcdConfig {
    /// Sets the field of this name, or returns `false` if there is none. This only parses the
    /// value; its bounds are checked later, together with everything else.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<bool, Error> {
        let place = match name {
            "allow_plaintext_credentials" | "deeper_paths" | "discover_members" | "metadata_as_object" => {
                let problem = || invalid(format!("invalid {name}: allowed are true and false"));
                let value = value.parse().map_err(|_| problem())?;
                match name {
                    "deeper_paths" => self.layout_options.deeper_paths = Some(value),
                    "discover_members" => self.discover_members = value,
                    "metadata_as_object" => self.layout_options.metadata_as_object = Some(value),
                    _ => self.allow_plaintext_credentials = value,
                }
                return Ok(true);
            }
            "key_template" => {
                self.layout_options.key_template = Some(value.to_owned());
                return Ok(true);
            }
            "layout" => {
                self.layout_options.name = Some(value.to_owned());
                return Ok(true);
            }
            "separator" => {
                let mut chars = value.chars();
                let (Some(separator), None) = (chars.next(), chars.next()) else {
                    return Err(invalid(format!("invalid separator {}: allowed is one character", shown(value))));
                };
                self.separator = Some(separator);
                return Ok(true);
            }
            "ca_file" | "cert_file" | "key_file" | "server_name" => {
                if value.is_empty() {
                    return Err(invalid(format!("invalid {name}: it is empty")));
                }
                let tls = self.tls.get_or_insert_with(EtcdTls::new);
                match name {
                    "ca_file" => tls.ca = Some(Pem::File(value.into())),
                    "cert_file" => tls.cert = Some(Pem::File(value.into())),
                    "key_file" => tls.key = Some(Pem::File(value.into())),
                    _ => tls.server_name = Some(value.to_owned()),
                }
                return Ok(true);
            }
            "password_file" => {
                if value.is_empty() {
                    return Err(invalid("invalid password_file: it is empty"));
                }
                if self.credentials.as_ref().is_some_and(Credentials::has_text) {
                    return Err(invalid(
                        "invalid credentials: a password and a password_file are given; allowed is one of them",
                    ));
                }
                let user = self.credentials.as_ref().map_or("", Credentials::user).to_owned();
                self.credentials = Some(Credentials::with_file(user, value));
                return Ok(true);
            }
            "max_entries" => {
                let problem = || invalid(format!("invalid max_entries {}: allowed are whole numbers", shown(value)));
                self.max_entries = value.parse().map_err(|_| problem())?;
                return Ok(true);
            }
            "audit_interval" => &mut self.audit_interval,
            "backoff_max" => &mut self.backoff_max,
            "backoff_min" => &mut self.backoff_min,
            "connect_timeout" => &mut self.connect_timeout,
            "operation_timeout" => &mut self.operation_timeout,
            "http2_keep_alive_interval" => &mut self.http2_keep_alive_interval,
            "keep_alive_timeout" => &mut self.keep_alive_timeout,
            "request_timeout" => &mut self.request_timeout,
            "ttl" => self.ttl.get_or_insert_default(),
            _ => return Ok(false),
        };
        *place = duration(name, value)?;
        Ok(true)
    }
}

fn duration(name: &str, value: &str) -> Result<Duration, Error> {
    humantime::parse_duration(value)
        .map_err(|_| invalid(format!("invalid {name} {}: allowed are durations such as 15s or 500ms", shown(value))))
}

/// Quotes and escapes a text, cut to 64 characters.
pub(super) fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(64).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_can_be_set() {
        for name in NAMES {
            let set =
                ["true", "5", "5s"].iter().any(|value| matches!(EtcdConfig::new(["a"]).set(name, value), Ok(true)));
            assert!(set, "{name}");
        }
        assert!(!EtcdConfig::new(["a"]).set("password", "x").unwrap(), "it has no parameter");
        assert!(NAMES.is_sorted(), "errors list them in this order");
    }
}
