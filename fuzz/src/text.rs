use std::{net::IpAddr, str};

use discovery_core::{Address, Error, ErrorKind, Host, Instance, InstanceId, ServiceName};
use discovery_etcd::{EtcdConfig, EtcdNaming, Layout, Tail, Written};

/// An address is refused, or it survives printing and parsing and leads to no forbidden range.
pub fn address(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    match text.parse::<Address>() {
        Ok(address) => {
            let printed = address.to_string();
            assert_eq!(printed.parse::<Address>().expect("a printed address can be parsed"), address);
            assert!(address.port() != 0 && printed.len() <= 260);
            assert!(printed.bytes().all(|byte| byte.is_ascii_graphic() && !b"/@?#%\\".contains(&byte)), "{printed}");
            if let Host::Ip(ip) = address.host() {
                assert!(!is_forbidden(*ip), "{printed}");
            }
            // The system's resolver would read a number as an IPv4 address in an old spelling.
            if let Host::Dns(name) = address.host() {
                let name = name.strip_suffix('.').unwrap_or(name);
                assert!(
                    name.rsplit('.').next().is_some_and(|last| last.contains(|c: char| !c.is_ascii_digit())),
                    "{name}"
                );
            }
        }
        Err(error) => assert_printable(&error),
    }
}

/// The ranges in which no instance can be reached, by their bits.
fn is_forbidden(ip: IpAddr) -> bool {
    let v4 = |[a, b, c, d]: [u8; 4]| {
        [a, b, c, d] == [0; 4] || [a, b, c, d] == [255; 4] || (224..240).contains(&a) || (a, b) == (169, 254)
    };
    match ip {
        IpAddr::V4(ip) => v4(ip.octets()),
        IpAddr::V6(ip) => {
            let bytes = ip.octets();
            let mapped = bytes[..10] == [0; 10] && bytes[10..12] == [255; 2];
            bytes == [0; 16]
                || bytes[0] == 0xff
                || (bytes[0] == 0xfe && bytes[1] & 0xc0 == 0x80)
                || (mapped && v4([bytes[12], bytes[13], bytes[14], bytes[15]]))
        }
    }
}

/// A name is refused, or it is one segment that can be part of a key as it is.
pub fn name(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let service = text.parse::<ServiceName>().map(String::from);
    let id = text.parse::<InstanceId>().map(String::from);
    assert!(service.is_err() || id.is_ok(), "every service name is an id: {text:?}");
    for (parsed, longest) in [(service, 253), (id, 259)] {
        match parsed {
            Ok(name) => {
                assert_eq!(name, text);
                assert!((1..=longest).contains(&name.len()) && name != "." && name != "..");
                assert!(name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/'), "{name}");
            }
            Err(error) => assert_printable(&error),
        }
    }
}

/// A key is an entry, a bad entry, or none; the id of an entry is written at the same key.
pub fn key(data: &[u8]) {
    let Ok(tail) = str::from_utf8(data) else { return };
    let layout = EtcdNaming::default();
    match layout.classify(tail) {
        Tail::Other => assert!(tail.contains('/')),
        Tail::Bad(error) => {
            assert!(!tail.contains('/'));
            assert_printable(&error);
        }
        named => {
            let [id] = &named.into_ids()[..] else { panic!("a key has one instance") };
            let instance = Instance::new("10.0.0.1:80".parse().expect("a valid address")).with_id(id.clone());
            assert_eq!(written(&layout, &instance).tail, tail);
        }
    }
    if let Ok(service) = tail.parse::<ServiceName>() {
        let range = layout.range(&service);
        assert_eq!(range.strip_suffix('/'), Some(tail));
    }
}

/// A value is refused, or its instance survives encoding and decoding.
pub fn value(data: &[u8]) {
    let layout = EtcdNaming::default();
    match layout.read("a1", data) {
        Ok(read) => {
            let [read] = &read[..] else { panic!("an entry has one instance") };
            let instance = read.instance().expect("an entry of one instance is bad as a whole");
            assert_eq!(instance.id().as_str(), "a1");
            assert!(data.len() <= 128 << 10 && instance.metadata().len() <= 64 && instance.weight().value() <= 10_000);
            let value = written(&layout, instance).value;
            let again = layout.read("a1", &value).expect("whatever is an instance can be read once written");
            assert_eq!(again[0].instance().expect("it is good"), instance);
            address(instance.address().to_string().as_bytes());
        }
        Err(error) => assert_printable(&error),
    }
}

fn written(layout: &EtcdNaming, instance: &Instance) -> Written {
    layout.write(&"s".parse().expect("a valid name"), instance, 0)
}

/// A URL, or a configuration through serde, is refused or accepted, and never reveals the password.
pub fn url(data: &[u8]) {
    const CANARY: &str = "hunter2-canary";
    let Ok(text) = str::from_utf8(data) else { return };
    if text.contains("hunter2") {
        return;
    }
    for url in [
        text.to_owned(),
        format!("etcd://{text}"),
        format!("etcd://u:{CANARY}@{text}"),
        format!("etcd://u:{text}{CANARY}@127.0.0.1"),
        format!("fixed://{text}"),
        format!("{text}://u:{CANARY}@h:1"),
    ] {
        let text = match url.parse::<EtcdConfig>() {
            Ok(config) => format!("{config:?}"),
            Err(error) => {
                assert_printable(&error);
                shown(&error)
            }
        };
        assert!(!text.contains("hunter2"), "{text}");
        // Without a runtime nothing is opened, so this tests only the parser.
        let Err(error) = discovery::open(&url) else { panic!("there is no runtime") };
        // `Unsupported` if TLS is not compiled in.
        let kinds = [ErrorKind::InvalidInput, ErrorKind::NoRuntime, ErrorKind::Unsupported];
        assert!(kinds.contains(&error.kind()), "{error:?}");
        assert!(!shown(&error).contains("hunter2"), "{error:?}");
        assert_printable(&error);
    }
    if let Ok(config) = serde_json::from_str::<EtcdConfig>(text) {
        drop(format!("{config:?}"));
    }
}

fn shown(error: &Error) -> String {
    format!("{error} {error:?} {}", error.report())
}

/// Asserts that every form of an error fits in one line of a log, whatever it is about.
fn assert_printable(error: &Error) {
    let text = shown(error);
    let is_hostile = |c: char| {
        c.is_control() || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    assert!(!text.contains(is_hostile) && text.len() < 8000, "{text:?}");
}
