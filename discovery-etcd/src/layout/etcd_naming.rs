//! The format of etcd's Go client.

use std::collections::BTreeMap;

use discovery_core::{Address, Error, Instance, InstanceId, Metadata, ServiceName, Weight};
use serde::Serialize;
use serde_json::{Number, Value};

use super::{
    Decoded, Layout, Tail, Written,
    go_json::{GoFields, excerpt, go_escaped, invalid},
    segment,
};

/// The format of etcd's own Go client (`client/v3/naming`).
///
/// Its gRPC resolver finds instances that are registered here, and its instances are found here.
///
/// | | |
/// |---|---|
/// | key | `<prefix>/<service>/<id>` |
/// | value | `{"Op":0,"Addr":"10.0.7.4:50051","Metadata":"{\"weight\":300,\"zone\":\"eu-1\"}"}` |
/// | default TTL | 15 s |
/// | id, weight, metadata | any; with [`deeper_paths`](Self::deeper_paths) not all ids |
///
/// # Go clients
///
/// A Go client resolves a service with the target `etcd:///<prefix>/<service>`. **Below a prefix it
/// must also set an authority**, such as `grpc.WithAuthority("<service>")`. Without one, grpc-go
/// sends the target as `:authority`, written `<prefix>%2F<service>` (with a `/` in old releases),
/// and Rust servers refuse that: the crate `http` accepts neither. The client sees `Internal` with
/// `PROTOCOL_ERROR` for every call, and the server logs it at `debug` only, from the crate `h2`.
/// With the [separator](crate::EtcdConfig::separator) `.` and a prefix of one segment, the target
/// is `etcd:///<prefix>.<service>`, and needs no authority.
///
/// Names overlap in Go clients. A client of `order` also calls what is registered below a prefix
/// `order/`. The naming library of etcd 3.5.0 to 3.5.9, and of 3.4.28 and later 3.4 releases, reads
/// without the separator, so a client of `order` calls `order-history` too. While such clients
/// exist, no service may have the name of a prefix or begin with another one's name.
///
/// Weights are not used by the policies of grpc-go.
///
/// # Writing
///
/// A value has the same bytes as if Go had written it. The weight is the number `weight` in the
/// metadata, and is omitted if it is 100. Empty metadata is written as `null`.
///
/// Metadata is written as a JSON object in a string, as etcd's own grpc-proxy writes it. As an
/// object it would become a Go map, which cannot be compared: it ends Go clients with a panic,
/// those of grpc-go 1.33 with `round_robin` when they resolve the service, and those of grpc-go
/// 1.64 with `pick_first`, the default, when a weight or a label changes. etcd's client from 3.5.27
/// on is safe. [`metadata_as_object`](Self::metadata_as_object) writes the object, for fleets whose
/// own programs read it.
///
/// # Reading
///
/// Values are read as tolerantly as Go reads them: fields may have any order and case, unknown
/// fields and `Op` are ignored, and the last of several equal fields counts. In the metadata,
/// numbers and booleans become text, arrays and objects become JSON text, and `null` is omitted.
/// An object in a string is read like an object. Other metadata is kept as text under the key
/// `metadata`. A weight is rounded and clamped to 0 to 10,000; one between 0 and 1 becomes 1,
/// because 0 means no calls.
///
/// Labels beyond the bounds of [`Metadata`] are dropped and
/// [counted](crate::EtcdBackend::dropped_labels), and the instance is served without them.
///
/// These are bad entries: a key whose id is not allowed, a value above 128 KiB, one that is not
/// JSON (Go would also read lone surrogates and more than 127 levels), an address that is missing
/// or refused, and a weight that is not a number. Such a weight is not guessed, because a guess
/// could send load to an instance that must not get any.
///
/// Keys of deeper paths, such as `<prefix>/<service>/eu/a1`, are not entries. Go's library allows
/// them; [`deeper_paths`](Self::deeper_paths) reads them.
#[derive(Clone, Copy, Debug, Default)]
pub struct EtcdNaming {
    form: Form,
    depth: Depth,
}

/// Which keys are entries.
#[derive(Clone, Copy, Debug, Default)]
enum Depth {
    #[default]
    OneSegment,
    Any,
}

/// How metadata is written.
#[derive(Clone, Copy, Debug, Default)]
enum Form {
    #[default]
    Text,
    Object,
}

impl EtcdNaming {
    /// Writes metadata as a JSON object rather than as one in a string.
    ///
    /// In a URL and through serde it is `metadata_as_object=true`. This ends many Go clients with a
    /// panic; the [type](Self#writing) names them.
    #[must_use]
    pub fn metadata_as_object(mut self) -> Self {
        self.form = Form::Object;
        self
    }

    /// Reads keys of deeper paths too, as Go's library does.
    ///
    /// In a URL and through serde it is `deeper_paths=true`. An id contains no `/`, so that of
    /// `<service>/eu/a1` is `eu%2Fa1`; a `%` in such a key becomes `%25`. A key of one segment that
    /// contains `%2F` is then a bad entry. The service `eu` below the prefix `<service>` has the
    /// same keys.
    #[must_use]
    pub fn deeper_paths(mut self) -> Self {
        self.depth = Depth::Any;
        self
    }
}

impl Layout for EtcdNaming {
    fn range(&self, service: &ServiceName) -> String {
        format!("{service}/")
    }

    fn write(&self, _: &ServiceName, instance: &Instance, _: i64) -> Written {
        let mut metadata: BTreeMap<&str, Value> =
            instance.metadata().iter().map(|(key, value)| (key, Value::from(value))).collect();
        if instance.weight() != Weight::default() {
            metadata.insert(WEIGHT, instance.weight().value().into());
        }
        let metadata = match self.form {
            _ if metadata.is_empty() => None,
            Form::Object => Some(UpdateMetadata::Object(metadata)),
            Form::Text => {
                let text = serde_json::to_string(&metadata).expect("maps with text keys are JSON");
                Some(UpdateMetadata::Text(go_escaped(&text)))
            }
        };
        let update = Update { op: 0, addr: instance.address().to_string(), metadata };
        let text = serde_json::to_string(&update).expect("text, numbers and maps with text keys are JSON");
        let tail = match self.depth {
            Depth::OneSegment => instance.id().to_string(),
            Depth::Any => path_of(instance.id()),
        };
        Written { tail, value: go_escaped(&text).into_bytes() }
    }

    fn classify(&self, tail: &str) -> Tail {
        let id = match (self.depth, tail.contains('/')) {
            (Depth::OneSegment, true) => return Tail::Other,
            (Depth::Any, true) => tail.replace('%', PERCENT).replace('/', SLASH).parse(),
            (Depth::Any, false) if tail.contains(SLASH) => Err(invalid("the key has the id of a deeper path")),
            (_, false) => tail.parse(),
        };
        id.map_or_else(Tail::Bad, Tail::Instance)
    }

    fn subtree<'a>(&self, tail: &'a str) -> Option<&'a str> {
        match self.depth {
            Depth::OneSegment => segment::subtree(tail),
            Depth::Any => None,
        }
    }

    fn read(&self, tail: &str, value: &[u8]) -> Result<Vec<Decoded>, Error> {
        let id = match self.classify(tail) {
            Tail::Instance(id) => id,
            Tail::Bad(error) => return Err(error),
            Tail::Instances(_) | Tail::Other => return Ok(Vec::new()),
        };
        let read = FIELDS.read(value)?;
        let address: Address = read.address(FIELDS)?.parse()?;
        let (weight, labels) = of_metadata(read.metadata)?;
        let instance = Instance::new(address).with_id(id).with_weight(weight).with_metadata(labels.kept);
        Ok(vec![match labels.error {
            Some(error) => Decoded::without_labels(instance, labels.dropped, error),
            None => instance.into(),
        }])
    }
}

/// The path of an id, if keys of deeper paths are read.
fn path_of(id: &InstanceId) -> String {
    if id.as_str().contains(SLASH) { id.as_str().replace(SLASH, "/").replace(PERCENT, "%") } else { id.to_string() }
}

/// The fields of Go's struct, in its order.
#[derive(Serialize)]
struct Update<'a> {
    #[serde(rename = "Op")]
    op: u8,
    #[serde(rename = "Addr")]
    addr: String,
    #[serde(rename = "Metadata")]
    metadata: Option<UpdateMetadata<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum UpdateMetadata<'a> {
    Text(String),
    Object(BTreeMap<&'a str, Value>),
}

/// The labels of an instance, without those that are not allowed.
#[derive(Debug, Default)]
struct Labels {
    kept: Metadata,
    dropped: u64,
    /// What is wrong with the first one that was dropped.
    error: Option<Error>,
}

impl Labels {
    fn insert(&mut self, key: &str, value: Value) {
        let Some(text) = of_value(value) else { return };
        if let Err(error) = self.kept.insert(key, text) {
            self.dropped += 1;
            self.error.get_or_insert(error);
        }
    }
}

fn of_metadata(value: Value) -> Result<(Weight, Labels), Error> {
    let mut weight = Weight::default();
    let mut labels = Labels::default();
    let value = match &value {
        Value::String(text) => match serde_json::from_str(text) {
            Ok(Value::Object(entries)) => Value::Object(entries),
            Err(error) if text.contains(QUOTED_WEIGHT) => {
                return Err(invalid("its weight cannot be read").with_source(excerpt(&error.to_string())));
            }
            _ => value,
        },
        _ => value,
    };
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                if key == WEIGHT {
                    weight = of_weight(&value)?;
                } else {
                    labels.insert(&key, value);
                }
            }
        }
        other => labels.insert("metadata", other),
    }
    Ok((weight, labels))
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
    // A positive weight must not become 0, which means no calls.
    let least = if number > 0.0 { 1.0 } else { 0.0 };
    // The cast is exact after rounding and clamping.
    let rounded = number.round().clamp(least, f64::from(Weight::MAX.value())) as u16;
    Weight::new(rounded)
}

const FIELDS: GoFields = GoFields { address: "Addr", metadata: Some("Metadata") };
const WEIGHT: &str = "weight";
const QUOTED_WEIGHT: &str = "\"weight\"";
/// How a `/` and a `%` of a deeper path are written in an id.
const SLASH: &str = "%2F";
const PERCENT: &str = "%25";

#[cfg(test)]
mod tests {
    use discovery_core::ErrorKind;
    use proptest::prelude::*;

    use super::*;

    fn decode(value: &str) -> Result<Instance, Error> {
        read(EtcdNaming::default(), "a1", value.as_bytes())
    }

    fn read(layout: EtcdNaming, tail: &str, value: &[u8]) -> Result<Instance, Error> {
        layout.read(tail, value).map(|mut read| {
            assert_eq!(read.len(), 1);
            read.remove(0).instance().unwrap().clone()
        })
    }

    fn encode(layout: EtcdNaming, instance: &Instance) -> Vec<u8> {
        layout.write(&"payments".parse().unwrap(), instance, 0).value
    }

    #[test]
    fn the_bytes_are_the_same_as_gos() {
        let plain = Instance::new("127.0.0.1:2000".parse().unwrap());
        let text = |instance: &Instance| String::from_utf8(encode(EtcdNaming::default(), instance)).unwrap();
        assert_eq!(text(&plain), r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":null}"#);
        let heavy = plain.clone().with_weight(Weight::new(200).unwrap());
        assert_eq!(text(&heavy), r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":"{\"weight\":200}"}"#);
        let full = heavy.with_metadata([("zone", "a<b>&\"\n\u{2028}"), ("Az", "")].try_into().unwrap());
        let wanted = r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":"{\"Az\":\"\",\"weight\":200,\"zone\":\"a\\u003cb\\u003e\\u0026\\\"\\n\\u2028\"}"}"#;
        assert_eq!(text(&full), wanted);
        let object = encode(EtcdNaming::default().metadata_as_object(), &full);
        let wanted = r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":{"Az":"","weight":200,"zone":"a\u003cb\u003e\u0026\"\n\u2028"}}"#;
        assert_eq!(String::from_utf8(object).unwrap(), wanted);
    }

    #[test]
    fn values_of_go_programs_are_read() {
        for (value, weight, metadata) in [
            (r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":null}"#, 100, vec![]),
            (r#"{"Op":1,"Addr":"127.0.0.1:2000"}"#, 100, vec![]),
            (r#"{"ADDR":"127.0.0.1:2000","new":[1,{}]}"#, 100, vec![]),
            (r#"{"Addr":"1.1.1.1:1","addr":"127.0.0.1:2000","aDDr":null}"#, 100, vec![]),
            (r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":"x"}"#, 100, vec![("metadata", "x")]),
            (r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":"{\"name\":\"h\"}"}"#, 100, vec![("name", "h")]),
            (
                r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":"{\"weight\":200,\"zone\":\"eu-1\"}"}"#,
                200,
                vec![("zone", "eu-1")],
            ),
            (r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":"[1]"}"#, 100, vec![("metadata", "[1]")]),
            (r#"{"Op":0,"Addr":"127.0.0.1:2000","Metadata":"\"{}\""}"#, 100, vec![("metadata", "\"{}\"")]),
            (
                r#"{"Addr":"127.0.0.1:2000","Metadata":{"a":1,"b":true,"c":null,"d":[1],"weight":"7"}}"#,
                7,
                vec![("a", "1"), ("b", "true"), ("d", "[1]")],
            ),
            (r#"{"Addr":"127.0.0.1:2000","Metadata":"{text"}"#, 100, vec![("metadata", "{text")]),
            (r#"{"Addr":"127.0.0.1:2000","Metadata":{"weight":-3}}"#, 0, vec![]),
            (r#"{"Addr":"127.0.0.1:2000","Metadata":{"weight":1e9}}"#, 10_000, vec![]),
            (r#"{"Addr":"127.0.0.1:2000","Metadata":{"weight":2.6}}"#, 3, vec![]),
            (r#"{"Addr":"127.0.0.1:2000","Metadata":{"weight":0.25}}"#, 1, vec![]),
            (r#"{"Addr":"127.0.0.1:2000","Metadata":"{\"weight\":\"1e-9\"}"}"#, 1, vec![]),
            (r#"{"Addr":"127.0.0.1:2000","Metadata":{"weight":0}}"#, 0, vec![]),
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
            (&format!(r#"{{"Addr":"127.0.0.1:2000","x":"{}"}}"#, "x".repeat(131_072)), "at most 131072"),
            (r#"{"Addr":"127.0.0.1:2000","Metadata":"{\"weight\":0,\"x\":1e999}"}"#, "weight cannot be read"),
            (r#"{"Addr":"127.0.0.1:2000","Metadata":"{\"weight\":0,}"}"#, "weight cannot be read"),
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
    fn a_label_that_is_not_allowed_is_dropped_and_the_instance_stays() {
        let many: BTreeMap<String, u32> = (0..70).map(|n| (format!("k{n:02}"), n)).collect();
        let many = serde_json::to_string(&many).unwrap();
        let long = format!(r#"{{"a":"{}","b":"1"}}"#, "x".repeat(5000));
        let in_text = serde_json::to_string(r#"{"my key":"x","zone":"eu"}"#).unwrap();
        for (metadata, kept, dropped) in [
            (r#"{"my key":"x","zone":"eu"}"#, 1, 1),
            (&in_text, 1, 1),
            (r#"{"naïve":"x","zone":"eu"}"#, 1, 1),
            (r#"{"":"x","":"y","zone":"eu"}"#, 1, 1),
            (r#"{"a\nb":"x","a b":"y","a/b":"z"}"#, 1, 2),
            (&many, 64, 6),
            (&long, 1, 1),
            (&format!("\"{}\"", "x".repeat(5000)), 0, 1),
            (r#"{"weight":7,"my key":null}"#, 0, 0),
        ] {
            let value = format!(r#"{{"Addr":"127.0.0.1:2000","Metadata":{metadata}}}"#);
            let read = EtcdNaming::default().read("a1", value.as_bytes()).unwrap();
            let shown: String = metadata.chars().take(60).collect();
            assert_eq!(
                (read[0].instance().unwrap().metadata().len(), read[0].dropped_labels()),
                (kept, dropped),
                "{shown}"
            );
        }
    }

    #[test]
    fn keys_of_deeper_paths_are_not_entries() {
        let layout = EtcdNaming::default();
        for (tail, subtree) in [("x/y", "x/"), ("x/", "x/"), ("x/y/z", "x/"), ("/", "/"), ("//x", "/"), ("ä/x", "ä/")]
        {
            assert!(matches!(layout.classify(tail), Tail::Other));
            assert_eq!(layout.subtree(tail), Some(subtree), "{tail}");
        }
        for tail in ["", "a b", "10.0.0.1:80"] {
            assert_eq!(layout.subtree(tail), None, "{tail}");
        }
        assert!(matches!(layout.classify(""), Tail::Bad(_)));
        assert!(matches!(layout.classify("a b"), Tail::Bad(_)));
        assert!(matches!(layout.classify("10.0.0.1:80"), Tail::Instance(id) if id.as_str() == "10.0.0.1:80"));
    }

    #[test]
    fn keys_of_deeper_paths_are_entries_on_request() {
        let layout = EtcdNaming::default().deeper_paths();
        for (tail, id) in [
            ("a1", "a1"),
            ("a%b", "a%b"),
            ("eu/a1", "eu%2Fa1"),
            ("10.0.0.1:80/7587862", "10.0.0.1:80%2F7587862"),
            ("/a1", "%2Fa1"),
            ("a/b/c", "a%2Fb%2Fc"),
            ("a%2F/b%", "a%252F%2Fb%25"),
        ] {
            let read = layout.classify(tail).into_ids();
            assert_eq!(read.iter().map(InstanceId::as_str).collect::<Vec<_>>(), [id], "{tail}");
            assert_eq!(layout.subtree(tail), None);
            let instance = Instance::new("127.0.0.1:2000".parse().unwrap()).with_id(id.parse().unwrap());
            assert_eq!(layout.write(&"payments".parse().unwrap(), &instance, 0).tail, tail);
        }
        for tail in ["", "eu%2Fa1", "eu/a 1", &"a/".repeat(100)] {
            assert!(matches!(layout.classify(tail), Tail::Bad(_)), "{tail}");
        }
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
            for layout in [EtcdNaming::default(), EtcdNaming::default().metadata_as_object()] {
                let read = read(layout, "a1", &encode(layout, &instance)).unwrap();
                prop_assert_eq!(&read, &instance);
            }
        }

        #[test]
        fn decoding_any_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = EtcdNaming::default().read("a1", &bytes);
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
