//! Tests a layout against what it declares.

use discovery_core::{Instance, InstanceId, ServiceName, Weight};

use super::{Capabilities, Layout, Tail, Written};
use crate::config::{EtcdConfig, Settings};

/// Tests a layout; for authors of one. Needs the feature `conformance`.
///
/// It checks that instances survive writing and reading as far as the layout
/// [declares](Layout::capabilities) to express them, that ranges of services are disjoint, that
/// tails are classified as they are written, that the defaults are allowed ones, and that nobody's
/// keys and values make it panic or invent an instance. A layout may refuse ids, by classifying
/// their tails otherwise, but not all of them.
///
/// ```
/// # #[cfg(feature = "conformance")]
/// discovery_etcd::check_layout(&discovery_etcd::EtcdNaming::default());
/// ```
///
/// # Panics
///
/// If the layout breaks a rule; the message names the rule and the instance or the key.
pub fn check_layout(layout: &dyn Layout) {
    check_defaults(layout.capabilities());
    for service in SERVICES.map(service) {
        check_ranges(layout, &service);
        let is_accepted = |instance: &Instance| {
            let tail = layout.write(&service, instance, LEASE).tail;
            let ids = layout.classify(&tail).into_ids();
            ids == [instance.id().clone()] || (layout.capabilities().has_leases_in_entries() && ids.len() == 1)
        };
        let accepted: Vec<Instance> = instances(layout).into_iter().filter(is_accepted).collect();
        assert!(!accepted.is_empty(), "of no id is the tail classified as the instance written there");
        for instance in accepted {
            check_round_trip(layout, &service, &instance);
        }
    }
    check_tolerance(layout);
    check_subtrees(layout);
}

/// A configuration without its own settings must be a valid one.
fn check_defaults(capabilities: Capabilities) {
    let config = EtcdConfig::new(["127.0.0.1"])
        .prefix("prod")
        .ttl(capabilities.default_ttl())
        .separator(capabilities.default_separator());
    assert!(Settings::check(&config).is_ok(), "the default TTL or separator is not allowed: {capabilities:?}");
}

/// The range of one service holds no other one's keys, and it ends in a separator.
fn check_ranges(layout: &dyn Layout, service: &ServiceName) {
    let range = layout.range(service);
    assert!(!range.is_empty() && range.is_ascii(), "the range of {service} must be ASCII and not empty: {range:?}");
    for other in SERVICES.map(self::service) {
        let other_range = layout.range(&other);
        let is_own = *service == other;
        assert!(
            is_own || !other_range.starts_with(&range),
            "the range of {service}, {range:?}, must not hold that of {other}, {other_range:?}"
        );
    }
}

fn check_round_trip(layout: &dyn Layout, service: &ServiceName, instance: &Instance) {
    let Written { tail, value } = layout.write(service, instance, LEASE);
    assert!(layout.subtree(&tail).is_none(), "the entry {tail:?} must not be in a subtree without entries");
    let read = layout.read(&tail, &value).unwrap_or_else(|error| panic!("cannot read what it wrote: {error:?}"));
    assert_eq!(read.len(), 1, "one instance was written at {tail:?}");
    let same = read[0].instance().unwrap_or_else(|error| panic!("cannot read what it wrote: {error:?}"));
    // A layout with leases has other ids.
    let written = instance.clone().with_id(read[0].id().clone());
    assert_eq!(*same, written, "the instance read at {tail:?} must be the one written");
    assert_eq!(read[0].dropped_labels(), 0, "no label that was written at {tail:?} may be dropped");

    let address = "10.9.9.9:99".parse().expect("a valid address");
    let other = Instance::new(address).with_id(instance.id().clone());
    let other_tail = layout.write(service, &other, LEASE).tail;
    assert_eq!(other_tail, tail, "a tail must depend on the id alone, since a restarted process keeps its id");
}

/// Whatever is read, no instance may be invented and nothing may panic.
fn check_tolerance(layout: &dyn Layout) {
    for tail in TAILS {
        let ids = layout.classify(tail).into_ids();
        for value in VALUES {
            let Ok(read) = layout.read(tail, value) else { continue };
            for one in read {
                assert!(
                    ids.contains(one.id()),
                    "the instance {} was read at {tail:?}, which is classified as {ids:?}",
                    one.id()
                );
            }
        }
    }
}

fn check_subtrees(layout: &dyn Layout) {
    for tail in TAILS {
        let Some(subtree) = layout.subtree(tail) else { continue };
        assert!(
            !subtree.is_empty() && tail.starts_with(subtree),
            "a subtree must begin its tail {tail:?}: {subtree:?}"
        );
        for rest in ["", "x", "/", "x/y"] {
            let inside = format!("{subtree}{rest}");
            assert!(matches!(layout.classify(&inside), Tail::Other), "{inside:?} is in a subtree without entries");
            assert_eq!(layout.subtree(&inside), Some(subtree), "all of a subtree is the same subtree");
        }
    }
}

/// Instances that the layout declares to express.
fn instances(layout: &dyn Layout) -> Vec<Instance> {
    let capabilities = layout.capabilities();
    let mut instances = Vec::new();
    for address in ["10.0.0.1:80", "[2001:db8::7]:50051", "orders.internal:65535"] {
        let plain = Instance::new(address.parse().expect("a valid address"));
        if capabilities.has_ids() {
            instances.extend(["a1", "host:1@x", "%25", "~"].map(|id| plain.clone().with_id(self::id(id))));
        }
        if capabilities.has_weights() {
            instances.extend([0, 1, 10_000].map(|weight| {
                let weight = Weight::new(weight).expect("a weight within bounds");
                plain.clone().with_weight(weight)
            }));
        }
        if capabilities.has_metadata() {
            let most = "<".repeat(4_000);
            let most = ["k1", "k2", "k3", "k4"].map(|key| (key, most.clone()));
            let most = most.try_into().expect("metadata within bounds");
            instances.push(plain.clone().with_metadata(most));
            let metadata = [("zone", "eu-1"), ("Text", "<a> & \"b\"\n\u{2028}ü"), ("empty", "")];
            let metadata = metadata.try_into().expect("metadata within bounds");
            instances.push(plain.clone().with_metadata(metadata));
        }
        instances.push(plain);
    }
    instances
}

fn service(name: &str) -> ServiceName {
    name.parse().expect("a valid name")
}

fn id(id: &str) -> InstanceId {
    id.parse().expect("a valid id")
}

const LEASE: i64 = 7_587_851_893_787_585_061;
const SERVICES: [&str; 4] = ["order", "order-history", "orders", "toad.ocr.engine"];
const TAILS: [&str; 13] =
    ["", "/", "//", "a1", "a1/", "eu/a1", "/a1", "a b", "..", "\u{202e}", "10.0.0.1:80", "7587862/1", "%2F"];
const VALUES: [&[u8]; 12] = [
    b"",
    b"null",
    b"{}",
    b"[]",
    b"\xff\xfe",
    b"10.0.0.1:80",
    b"\"10.0.0.1:80\"",
    b"http://10.0.0.1:80",
    br#"{"Addr":"10.0.0.1:80"}"#,
    br#"{"PSM":"order","IP":"10.0.0.1:80"}"#,
    br#"{"Op":0,"Addr":"10.0.0.1:80","Metadata":{"weight":"x"}}"#,
    br#"{"id":"0","name":"order","version":"","metadata":null,"endpoints":["grpc://10.0.0.1:80"]}"#,
];

#[cfg(test)]
mod tests {
    use discovery_core::Error;

    use super::*;
    use crate::layout::{Decoded, EtcdNaming, Plain, ToadOcr};

    #[test]
    fn the_layouts_of_this_crate_keep_the_rules() {
        check_layout(&EtcdNaming::default());
        check_layout(&EtcdNaming::default().metadata_as_object());
        check_layout(&EtcdNaming::default().deeper_paths());
        check_layout(&ToadOcr::default());
        check_layout(&Plain::new());
        check_layout(&Plain::with_key("services/{service}/providers/{id}").unwrap());
        check_layout(&std::sync::Arc::new(Plain::new()));
    }

    /// A layout with one fault.
    #[derive(Clone, Copy, Debug, Eq, PartialEq)]
    enum Faulty {
        DeclaresTooMuch,
        HasAnOddDefault,
        HasNoSeparator,
        InventsIds,
        MovesWithItsAddress,
        SkipsEntries,
    }

    impl Layout for Faulty {
        fn capabilities(&self) -> Capabilities {
            match self {
                Self::DeclaresTooMuch | Self::MovesWithItsAddress => Capabilities::default(),
                Self::HasAnOddDefault => Plain::new().capabilities().with_default_separator(':'),
                _ => Plain::new().capabilities(),
            }
        }

        fn range(&self, service: &ServiceName) -> String {
            if *self == Self::HasNoSeparator { service.to_string() } else { Plain::new().range(service) }
        }

        fn write(&self, service: &ServiceName, instance: &Instance, lease: i64) -> Written {
            let mut written = match self {
                Self::MovesWithItsAddress => EtcdNaming::default().write(service, instance, lease),
                _ => Plain::new().write(service, instance, lease),
            };
            if *self == Self::MovesWithItsAddress {
                written.tail = format!("{}@{}", written.tail, instance.address());
            }
            written
        }

        fn classify(&self, tail: &str) -> Tail {
            let tail = match self {
                Self::MovesWithItsAddress => tail.rsplit_once('@').map_or(tail, |(id, _)| id),
                _ => tail,
            };
            Plain::new().classify(tail)
        }

        fn subtree<'a>(&self, tail: &'a str) -> Option<&'a str> {
            if *self == Self::SkipsEntries { tail.get(..1) } else { Plain::new().subtree(tail) }
        }

        fn read(&self, tail: &str, value: &[u8]) -> Result<Vec<Decoded>, Error> {
            match self {
                Self::InventsIds if tail == "eu/a1" => Plain::new().read("a1", value),
                Self::MovesWithItsAddress => {
                    EtcdNaming::default().read(tail.rsplit_once('@').map_or(tail, |(id, _)| id), value)
                }
                _ => Plain::new().read(tail, value),
            }
        }
    }

    #[test]
    fn each_fault_is_found() {
        use Faulty::{DeclaresTooMuch, HasAnOddDefault, HasNoSeparator, InventsIds, MovesWithItsAddress, SkipsEntries};
        for (faulty, said) in [
            (DeclaresTooMuch, "must be the one written"),
            (HasNoSeparator, "must not hold that of"),
            (InventsIds, "was read at"),
            (HasAnOddDefault, "is not allowed"),
            (MovesWithItsAddress, "must depend on the id alone"),
            (SkipsEntries, "must not be in a subtree"),
        ] {
            let found = std::panic::catch_unwind(|| check_layout(&faulty)).unwrap_err();
            let found = found.downcast_ref::<String>().cloned().unwrap_or_default();
            assert!(found.contains(said), "{faulty:?}: {found}");
        }
    }
}
