//! No password, key or token appears in anything that is printed: `Debug`, errors with all their
//! causes, and the logs of every crate at trace level. These tests have a program of their own,
//! because the global logger is shared by all tests of a program.

use std::{
    error::Error as StdError,
    fmt::Debug,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use discovery_core::{Error, Resolver, Snapshot};
use discovery_etcd::{EtcdBackend, EtcdConfig, EtcdTls};
use support::{
    Certificate, Etcd, Flaw, eventually,
    scene::{SOON, config, count, payments, register, until},
};
use tokio::time::sleep;
use tracing_subscriber::fmt::{MakeWriter, format::FmtSpan};

const PASSWORD: &str = "canary-right";
const WRONG: &str = "canary-wrong";

/// Everything printed so far.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Printed {
    /// Captures the logs of all crates from now on, whether written with `tracing` or with `log`.
    fn logs() -> Self {
        let printed = Self::default();
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_span_events(FmtSpan::FULL)
            .with_ansi(false)
            .with_writer(printed.clone())
            .init();
        log::set_logger(Box::leak(Box::new(printed.clone()))).expect("there is no other logger");
        log::set_max_level(log::LevelFilter::Trace);
        printed
    }

    fn add(&self, text: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(text.as_bytes());
    }

    fn debug(&self, value: &dyn Debug) {
        self.add(&format!("{value:?}\n{value:#?}\n"));
    }

    fn error(&self, error: &Error) {
        self.add(&format!("{error}\n{}\n", error.report()));
        self.debug(error);
        let mut cause = error.source();
        while let Some(one) = cause {
            self.add(&format!("{one}\n"));
            self.debug(&one);
            cause = one.source();
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl io::Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Printed {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl log::Log for Printed {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.add(&format!("{} {} {}\n", record.level(), record.target(), record.args()));
    }

    fn flush(&self) {}
}

/// The forms in which a secret may be printed: as text, as a list of bytes, and in hexadecimal.
fn guises(secret: &[u8]) -> Vec<String> {
    let list = secret.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let lines = secret.iter().map(ToString::to_string).collect::<Vec<_>>().join(",\n");
    let digits: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    vec![String::from_utf8_lossy(secret).into_owned(), list, lines, digits]
}

/// Parts that are unique to a key: of its PEM, and of what the PEM encodes.
fn parts(key: &str) -> Vec<String> {
    let body: String = key.lines().filter(|line| !line.starts_with('-')).collect();
    // The beginning is the same for all keys of a kind.
    let middle = &body[64..96];
    let mut found = guises(middle.as_bytes());
    found.extend(guises(&decode(middle)));
    found
}

/// Decodes Base64 of whole groups.
fn decode(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let group = |four: &[u8]| four.iter().fold(0u32, |all, byte| all << 6 | u32::from(digit(*byte)));
    text.as_bytes().chunks(4).flat_map(|four| group(four).to_be_bytes()[1..].to_vec()).collect()
}

/// Finds a token of etcd's simple kind: 16 letters, a dot and a number.
fn token(text: &str) -> Option<&str> {
    text.match_indices('.').map(|(place, _)| place).find_map(|place| {
        let letters = text.get(place.checked_sub(16)?..place)?;
        let whole = letters.bytes().all(|byte| byte.is_ascii_alphabetic());
        let bounded = place == 16 || !text.as_bytes()[place - 17].is_ascii_alphanumeric();
        let numbered = text.as_bytes().get(place + 1).is_some_and(u8::is_ascii_digit);
        // Random letters are of mixed case.
        let mixed = letters.bytes().skip(1).filter(u8::is_ascii_uppercase).count() > 2;
        (whole && bounded && numbered && mixed).then(|| &text[place - 16..(place + 4).min(text.len())])
    })
}

#[test]
fn tokens_and_disguised_secrets_are_recognized() {
    assert!(token("token: RrkHuTYtwpFAzGQu.42").is_some());
    assert!(token(r#"{"token": "RrkHuTYtwpFAzGQu.42"}"#).is_some());
    assert!(token("discovery_etcd::client 127.0.0.1 etcdserverpbWatc.1").is_none());
    assert_eq!(decode("Y2FuYXJ5"), b"canary");
    assert!(format!("{:?}", b"key").contains(&guises(b"key")[1]));
    assert!(format!("{:#?}", b"key").replace("    ", "").contains(&guises(b"key")[2]));
}

#[tokio::test]
async fn secrets_are_never_printed() {
    let printed = Printed::logs();
    let (etcd, clear) =
        tokio::join!(Etcd::setup().client_certificates().token_ttl(2).start(), Etcd::setup().token_ttl(2).start(),);
    for etcd in [&etcd, &clear] {
        etcd.raw().await.enable_auth(PASSWORD).await;
    }
    // What tests do by hand is not checked: etcd-client is less careful.
    let own = etcd.authority().client("own", Flaw::None);
    let late = etcd.authority().client("late", Flaw::Expired);
    let trusting =
        |own: &Certificate| EtcdTls::new().ca_file(etcd.authority().file()).cert(own.cert.clone()).key(own.key.clone());
    let secured =
        |own: &Certificate, password: &str| config(etcd.members()).tls(trusting(own)).credentials("root", password);

    // What fails: the password, over TLS and in clear; the certificate; the scheme.
    for config in [
        secured(&own, WRONG),
        secured(&late, PASSWORD),
        config(clear.members()).credentials("root", WRONG),
        config(clear.members()).tls(trusting(&own)).credentials("root", PASSWORD),
        config(etcd.members()).credentials("root", PASSWORD),
    ] {
        printed.debug(&config);
        let backend = EtcdBackend::new(config).unwrap();
        printed.error(&backend.list(&payments()).await.unwrap_err());
        printed.debug(&backend);
    }

    // A handle that works, loses its token and its member, and recovers.
    for (etcd, config) in
        [(&etcd, secured(&own, PASSWORD)), (&clear, config(clear.members()).credentials("root", PASSWORD))]
    {
        let backend = EtcdBackend::new(config).unwrap();
        let registration = register(&backend, 1).await;
        let mut updates = backend.watch(&payments()).unwrap();
        let mut set = Snapshot::default();
        until(&mut updates, &mut set, |set| set.len() == 1).await;
        sleep(Duration::from_secs(3)).await;
        etcd.kill(0);
        printed.error(&backend.list(&payments()).await.unwrap_err());
        printed.debug(&registration.status());
        etcd.restart(0).await;
        eventually("listed again", SOON, async || count(&backend).await == Some(1)).await;
        for value in [&backend as &dyn Debug, &registration, &updates, &set] {
            printed.debug(value);
        }
        registration.deregister().await.unwrap();
    }

    // What is rejected before any attempt.
    let json = format!(r#"{{ "members": ["etcd.example"], "user": "root", "password": "{PASSWORD}" }}"#);
    for error in [
        serde_json::from_str::<EtcdConfig>(&json).unwrap_err().to_string(),
        serde_json::from_str::<EtcdConfig>(&json.replace("etcd.example", "root:canary-right@x"))
            .unwrap_err()
            .to_string(),
    ] {
        printed.add(&error);
    }
    for url in ["etcd://root:canary-right@etcd.example", "etcd://root:canary-right@127.0.0.1?password=canary-right"] {
        printed.error(&url.parse::<EtcdConfig>().unwrap_err());
    }
    let bad = EtcdTls::new().ca(own.key.clone()).cert(own.key.clone()).key(own.cert.clone());
    printed.error(&EtcdBackend::new(EtcdConfig::new(["127.0.0.1"]).tls(bad)).unwrap_err());

    let text = printed.text();
    let flat: String = text.lines().map(str::trim_start).collect::<Vec<_>>().join("\n");
    println!("{} bytes were printed, {} lines", text.len(), text.lines().count());
    for known in ["h2::", "hyper", "tonic", "rustls", "discovery_etcd"] {
        assert!(text.contains(known), "{known} printed nothing, so the test proves nothing about it");
    }
    for secret in [PASSWORD, WRONG].iter().flat_map(|password| guises(password.as_bytes())) {
        assert!(!flat.contains(&secret), "a password: {secret}, {:?}", around(&flat, &secret));
    }
    for secret in [&own.key, &late.key].iter().flat_map(|key| parts(key)) {
        assert!(!flat.contains(&secret), "a key: {secret}, {:?}", around(&flat, &secret));
    }
    assert_eq!(token(&flat), None, "a token");
}

/// Returns the line that contains a secret.
fn around<'a>(text: &'a str, secret: &str) -> Option<&'a str> {
    text.lines().find(|line| secret.lines().next().is_some_and(|first| line.contains(first)))
}
