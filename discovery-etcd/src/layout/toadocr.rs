//! The layout of the article that this project grew from.

use std::time::Duration;

use discovery_core::{Address, Error, Instance, ServiceName};
use serde::Serialize;

use super::{Capabilities, Decoded, Layout, Tail, Written, go_json::GoFields, segment};

/// The layout of ToadOCR's article on etcd and gRPC in Go.
///
/// | | |
/// |---|---|
/// | key | `<prefix>/<service>/<address>` |
/// | value | `{"PSM":"<service>","IP":"<address>"}` |
/// | default TTL | 5 s |
/// | id | the address |
/// | weight | always 100 |
/// | metadata | none |
///
/// An instance with another id, a weight or metadata is refused when it is registered. Since the id
/// is the address, a process that starts again at another address does not take over its former
/// entry, which ends with its lease.
///
/// As Go does, a reader ignores unknown fields and the case of names. The address is that of `IP`,
/// and `PSM` is not compared: the key decides.
///
/// The Go programs of the article have limits of their own. They read the keys of `order-history`
/// too if they look for `order`. They keep an instance that was there when they started, even after
/// it has deregistered, until its server closes the connection, so let servers drain. Their servers
/// do not register again after their lease was lost.
///
/// ```
/// use discovery_etcd::{EtcdConfig, ToadOcr};
///
/// let config = EtcdConfig::new(["10.0.0.1"]).layout(ToadOcr::default());
/// let same: EtcdConfig = "etcd://10.0.0.1?layout=toadocr".parse()?;
/// assert_eq!(format!("{config:?}"), format!("{same:?}"));
/// # Ok::<(), discovery_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct ToadOcr {}

#[derive(Serialize)]
struct ServiceInfo<'a> {
    #[serde(rename = "PSM")]
    psm: &'a str,
    #[serde(rename = "IP")]
    ip: &'a str,
}

impl Layout for ToadOcr {
    fn capabilities(&self) -> Capabilities {
        Capabilities::default().without_weights().without_metadata().without_ids().with_default_ttl(TTL)
    }

    fn range(&self, service: &ServiceName) -> String {
        format!("{service}/")
    }

    fn write(&self, service: &ServiceName, instance: &Instance, _: i64) -> Written {
        let info = ServiceInfo { psm: service.as_str(), ip: &instance.address().to_string() };
        // Names and addresses have none of the characters that Go escapes in addition.
        let value = serde_json::to_vec(&info).expect("an object of text is JSON");
        Written { tail: instance.id().to_string(), value }
    }

    fn classify(&self, tail: &str) -> Tail {
        segment::classify(tail)
    }

    fn subtree<'a>(&self, tail: &'a str) -> Option<&'a str> {
        segment::subtree(tail)
    }

    fn read(&self, tail: &str, value: &[u8]) -> Result<Vec<Decoded>, Error> {
        let id = tail.parse()?;
        let read = FIELDS.read(value)?;
        let address: Address = read.address(FIELDS)?.parse()?;
        Ok(vec![Instance::new(address).with_id(id).into()])
    }
}

const FIELDS: GoFields = GoFields { address: "IP", metadata: None };
const TTL: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use discovery_core::ErrorKind;

    use super::*;

    #[test]
    fn the_bytes_are_the_articles() {
        let instance = Instance::new("127.0.0.1:18886".parse().unwrap());
        let written = ToadOcr::default().write(&"toad.ocr.engine".parse().unwrap(), &instance, 0);
        assert_eq!(written.tail, "127.0.0.1:18886");
        assert_eq!(String::from_utf8(written.value).unwrap(), r#"{"PSM":"toad.ocr.engine","IP":"127.0.0.1:18886"}"#);
    }

    #[test]
    fn values_are_read_as_go_reads_them() {
        let read = |value: &str| ToadOcr::default().read("a1", value.as_bytes());
        for value in [
            r#"{"PSM":"toad.ocr.engine","IP":"127.0.0.1:1"}"#,
            r#"{"ip":"127.0.0.1:1","new":[{}]}"#,
            r#" {"IP":"127.0.0.1:2","Ip":"127.0.0.1:1","iP":null} "#,
        ] {
            let instances = read(value).unwrap();
            assert_eq!(instances.len(), 1);
            assert_eq!(instances[0].id().as_str(), "a1");
            assert_eq!(instances[0].instance().unwrap().address().to_string(), "127.0.0.1:1", "{value}");
        }
        for (value, said) in [
            ("", "not the expected JSON"),
            ("{} {}", "not the expected JSON"),
            (r#"{"PSM":"x"}"#, "no IP"),
            (r#"{"IP":""}"#, "no IP"),
            (r#"{"Addr":"127.0.0.1:1"}"#, "no IP"),
            (r#"{"IP":"127.0.0.1"}"#, "no port"),
        ] {
            let error = read(value).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.report().to_string().contains(said), "{value}: {error}");
        }
    }

    #[test]
    fn deeper_keys_are_not_entries() {
        let layout = ToadOcr::default();
        assert!(matches!(layout.classify("10.0.0.1:80"), Tail::Instance(id) if id.as_str() == "10.0.0.1:80"));
        assert!(matches!(layout.classify("eu/a1"), Tail::Other));
        assert!(matches!(layout.classify(""), Tail::Bad(_)));
        assert_eq!(layout.subtree("eu/a1"), Some("eu/"));
    }
}
