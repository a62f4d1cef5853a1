//! The format of etcd's Go client.

use std::{collections::BTreeMap, fmt};

use discovery_core::{Address, Error, ErrorKind, Instance, InstanceId, Metadata, ServiceName, Weight};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Number, Value};

use super::Layout;

/// The format of etcd's own Go client (`client/v3/naming`).
///
/// Its gRPC resolver finds instances that are registered here, and its instances are found here.
///
/// ```text
/// <prefix>/<service>/<id> {"Op":0,"Addr":"10.0.7.4:50051","Metadata":{"weight":300,"zone":"eu-1"}}
/// ```
///
/// A Go client resolves them with the target `etcd:///<prefix>/<service>`.
///
/// # Writing
///
/// A value has the same bytes as if Go had written it. The weight is the number `weight` in the
/// metadata, and is omitted if it is 100. Empty metadata is written as `null`.
///
/// # Reading
///
/// Values are read as tolerantly as Go reads them: fields may have any order and case, unknown
/// fields and `Op` are ignored, and the last of several equal fields counts. In the metadata,
/// numbers and booleans become text, arrays and objects become JSON text, and `null` is omitted.
/// Metadata that is not an object is kept as text under the key `metadata`. A weight is rounded and
/// clamped to 0 to 10,000.
///
/// These are bad entries: a value above 64 KiB, an address that is missing or refused, metadata
/// beyond the bounds of [`Metadata`], and a weight that is not a number. Such a weight is not
/// guessed, because a guess could send load to an instance that must not get any.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct EtcdNaming {}

impl Layout for EtcdNaming {
    fn range(&self, service: &ServiceName) -> String {
        format!("{service}/")
    }

    fn tail(&self, id: &InstanceId) -> String {
        id.to_string()
    }

    fn id(&self, tail: &str) -> Option<Result<InstanceId, Error>> {
        (!tail.contains('/')).then(|| tail.parse())
    }

    fn subtree<'a>(&self, tail: &'a str) -> Option<&'a str> {
        tail.find('/').map(|slash| &tail[..=slash])
    }

    fn encode(&self, instance: &Instance) -> Vec<u8> {
        let mut metadata: BTreeMap<&str, Value> =
            instance.metadata().iter().map(|(key, value)| (key, Value::from(value))).collect();
        if instance.weight() != Weight::default() {
            metadata.insert(WEIGHT, instance.weight().value().into());
        }
        let written = Written {
            op: 0,
            addr: instance.address().to_string(),
            metadata: (!metadata.is_empty()).then_some(metadata),
        };
        let text = serde_json::to_string(&written).expect("text, numbers and maps with text keys are JSON");
        go_escaped(&text).into_bytes()
    }

    fn decode(&self, id: InstanceId, value: &[u8]) -> Result<Instance, Error> {
        if value.len() > MAX_VALUE_BYTES {
            return Err(invalid(format!("it has {} bytes; at most {MAX_VALUE_BYTES} are read", value.len())));
        }
        let read: Read = serde_json::from_slice(value)
            .map_err(|error| invalid("it is not the expected JSON").with_source(excerpt(&error.to_string())))?;
        let address = read.addr.filter(|text| !text.is_empty()).ok_or_else(|| invalid("it has no Addr"))?;
        let address: Address = address.parse()?;
        let (weight, metadata) = of_metadata(read.metadata)?;
        Ok(Instance::new(address).with_id(id).with_weight(weight).with_metadata(metadata))
    }
}

/// The fields of Go's struct, in its order.
#[derive(Serialize)]
struct Written<'a> {
    #[serde(rename = "Op")]
    op: u8,
    #[serde(rename = "Addr")]
    addr: String,
    #[serde(rename = "Metadata")]
    metadata: Option<BTreeMap<&'a str, Value>>,
}

#[derive(Debug, Default)]
struct Read {
    addr: Option<String>,
    metadata: Value,
}

impl<'de> Deserialize<'de> for Read {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Read;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with Addr")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Read, A::Error> {
                let mut read = Read::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name.eq_ignore_ascii_case("Addr") {
                        // As in Go, `null` keeps the value of an earlier field of this name.
                        read.addr = map.next_value::<Option<String>>()?.or(read.addr);
                    } else if name.eq_ignore_ascii_case("Metadata") {
                        read.metadata = map.next_value()?;
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(read)
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

fn of_metadata(value: Value) -> Result<(Weight, Metadata), Error> {
    let mut weight = Weight::default();
    let mut metadata = Metadata::default();
    match value {
        Value::Null => {}
        Value::Object(entries) => {
            for (key, value) in entries {
                if key == WEIGHT {
                    weight = of_weight(&value)?;
                } else if let Some(text) = of_value(value) {
                    metadata.insert(key, text)?;
                }
            }
        }
        other => {
            if let Some(text) = of_value(other) {
                metadata.insert("metadata", text)?;
            }
        }
    }
    Ok((weight, metadata))
}

fn of_value(value: Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    }
}

fn of_weight(value: &Value) -> Result<Weight, Error> {
    let number = match value {
        Value::Null => return Ok(Weight::default()),
        Value::Number(number) => Number::as_f64(number),
        Value::String(text) => text.trim().parse::<f64>().ok(),
        _ => None,
    };
    let number = number.filter(|number| number.is_finite());
    let number = number.ok_or_else(|| invalid("its weight is not a number"))?;
    // The cast is exact after rounding and clamping.
    let rounded = number.round().clamp(0.0, f64::from(Weight::MAX.value())) as u16;
    Weight::new(rounded)
}

/// Escapes the characters that Go's encoder escapes and serde_json does not. In JSON they occur
/// only inside strings, so the whole text can be replaced.
fn go_escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out
}

/// Escapes and cuts the error of a parser, which may quote the value.
fn excerpt(text: &str) -> String {
    text.chars().take(MAX_SHOWN).flat_map(char::escape_debug).collect()
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

const WEIGHT: &str = "weight";
const MAX_VALUE_BYTES: usize = 64 << 10;
/// How many characters of a parser's error are kept.
const MAX_SHOWN: usize = 200;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(value: &str) -> Result<Instance, Error> {
        EtcdNaming::default().decode("a1".parse().unwrap(), value.as_bytes())
    }

    #[test]
    fn the_bytes_are_the_same_as_gos() {
        let plain = Instance::new("127.0.0.1:2000".parse().unwrap());
        let text = |instance: &Instance| String::from_utf8(EtcdNaming::default().encode(instance)).unwrap();
        assert_eq!(text(&plain), r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":null}"#);
        let heavy = plain.clone().with_weight(Weight::new(200).unwrap());
        assert_eq!(text(&heavy), r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":{"weight":200}}"#);
        let full = heavy.with_metadata([("zone", "a<b>&\"\n\u{2028}"), ("Az", "")].try_into().unwrap());
        let wanted = r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":{"Az":"","weight":200,"zone":"a\u003cb\u003e\u0026\"\n\u2028"}}"#;
        assert_eq!(text(&full), wanted);
    }

    #[test]
    fn values_of_go_programs_are_read() {
        for (value, weight, metadata) in [
            (r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":null}"#, 100, vec![]),
            (r#"{"Op":1,"Addr":"127.0.0.1:2000"}"#, 100, vec![]),
            (r#"{"ADDR":"127.0.0.1:2000","new":[1,{}]}"#, 100, vec![]),
            (r#"{"Addr":"1.1.1.1:1","addr":"127.0.0.1:2000","aDDr":null}"#, 100, vec![]),
            (r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":"x"}"#, 100, vec![("metadata", "x")]),
            (
                r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":"{\"name\":\"h\"}"}"#,
                100,
                vec![("metadata", r#"{"name":"h"}"#)],
            ),
            (
                r#"{"Addr":"127.0.0.1:2000","Metadata":{"a":1,"b":true,"c":null,"d":[1],"weight":"7"}}"#,
                7,
                vec![("a", "1"), ("b", "true"), ("d", "[1]")],
            ),
            (r#"{"Addr":"127.0.0.1:2000","Metadata":{"weight":-3}}"#, 0, vec![]),
            (r#"{"Addr":"127.0.0.1:2000","Metadata":{"weight":1e9}}"#, 10_000, vec![]),
            (r#"{"Addr":"127.0.0.1:2000","Metadata":{"weight":2.6}}"#, 3, vec![]),
        ] {
            let instance = decode(value).unwrap_or_else(|error| panic!("{value}: {error:?}"));
            assert_eq!(instance.address().to_string(), "127.0.0.1:2000", "{value}");
            assert_eq!(instance.weight().value(), weight, "{value}");
            assert_eq!(instance.metadata().iter().collect::<Vec<_>>(), metadata, "{value}");
        }
    }

    #[test]
    fn a_bad_value_is_an_error_that_names_the_problem() {
        for (value, said) in [
            ("", "not the expected JSON"),
            ("null", "not the expected JSON"),
            ("[]", "not the expected JSON"),
            ("{}", "no Addr"),
            (r#"{"Addr":""}"#, "no Addr"),
            (r#"{"Addr":7}"#, "not the expected JSON"),
            (r#"{"Addr":":56449"}"#, "host is empty"),
            (r#"{"Addr":"127.0.0.1"}"#, "no port"),
            (r#"{"Addr":"unix:/var/run/x.sock"}"#, "invalid address"),
            (r#"{"Addr":"169.254.169.254:80"}"#, "link-local"),
            (r#"{"Addr":"127.0.0.1:2000","Metadata":{"weight":"heavy"}}"#, "weight is not a number"),
            (r#"{"Addr":"127.0.0.1:2000","Metadata":{"weight":"NaN"}}"#, "weight is not a number"),
            (r#"{"Addr":"127.0.0.1:2000","Metadata":{"a b":""}}"#, "invalid metadata key"),
            (&format!(r#"{{"Addr":"127.0.0.1:2000","x":"{}"}}"#, "x".repeat(65_536)), "at most 65536"),
            (&"[".repeat(60_000), "not the expected JSON"),
            (&format!("\"{}\u{1b}\u{202e}\"", "x".repeat(60_000)), "not the expected JSON"),
            ("\"\u{202e}\"", r"\u{202e}"),
        ] {
            let error = decode(value).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            let text = error.report().to_string();
            assert!(text.contains(said), "{}: {text}", value.chars().take(80).collect::<String>());
            assert!(text.len() < 500 && !text.contains(char::is_control), "{text}");
        }
    }

    #[test]
    fn keys_of_deeper_paths_are_not_entries() {
        let layout = EtcdNaming::default();
        for (tail, subtree) in [("x/y", "x/"), ("x/", "x/"), ("x/y/z", "x/"), ("/", "/"), ("//x", "/"), ("ä/x", "ä/")]
        {
            assert!(layout.id(tail).is_none());
            assert_eq!(layout.subtree(tail), Some(subtree), "{tail}");
        }
        for tail in ["", "a b", "10.0.0.1:80"] {
            assert_eq!(layout.subtree(tail), None, "{tail}");
        }
        assert!(layout.id("").unwrap().is_err());
        assert!(layout.id("a b").unwrap().is_err());
        assert_eq!(layout.id("10.0.0.1:80").unwrap().unwrap().as_str(), "10.0.0.1:80");
    }

    proptest! {
        #[test]
        fn an_instance_survives_encoding_and_decoding(
            weight in 0u16..=10_000,
            entries in proptest::collection::btree_map("[!-~]{1,20}", ".{0,40}", 0..8),
        ) {
            prop_assume!(!entries.contains_key(WEIGHT));
            let instance = Instance::new("[2001:db8::7]:50051".parse().unwrap())
                .with_id("a1".parse().unwrap())
                .with_weight(Weight::new(weight).unwrap())
                .with_metadata(entries.try_into().unwrap());
            let layout = EtcdNaming::default();
            prop_assert_eq!(layout.decode("a1".parse().unwrap(), &layout.encode(&instance)).unwrap(), instance);
        }

        #[test]
        fn decoding_any_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = EtcdNaming::default().decode("a1".parse().unwrap(), &bytes);
        }

        #[test]
        fn decoding_any_json_never_panics(
            addr in "[a-z0-9.:\\[\\]]{0,20}",
            metadata in "(null|[0-9]{1,400}|\"[a-z]{0,9}\"|\\{\"weight\":[0-9]{1,30}(e[0-9]{1,3})?\\})",
        ) {
            let _ = decode(&format!(r#"{{"Addr":"{addr}","Metadata":{metadata}}}"#));
        }
    }
}
