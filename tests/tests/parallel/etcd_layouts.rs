//! The layouts, with real etcd: what is written, what is refused, what is read.

use std::time::Duration;

use discovery_core::{ErrorKind, Instance, Registry, Resolver, Weight};
use discovery_etcd::{EtcdBackend, EtcdConfig};
use support::{
    Etcd, eventually,
    scene::{SOON, payments},
};

fn open(etcd: &Etcd, path_and_query: &str) -> EtcdBackend {
    let url = format!("etcd://{}{path_and_query}", etcd.members()[0]);
    EtcdBackend::new(url.parse().unwrap()).unwrap()
}

fn at(address: &str) -> Instance {
    Instance::new(address.parse().unwrap())
}

#[tokio::test]
async fn each_layout_writes_its_keys_and_values_and_reads_them() {
    let etcd = Etcd::start().await;
    let mut raw = etcd.raw().await;
    for (url, key, value, ttl) in [
        ("?ttl=15s", "payments/10.0.0.1:80", r#"{"Op":0,"Addr":"10.0.0.1:80","Metadata":null}"#, 15),
        ("/prod?separator=.", "prod.payments/10.0.0.1:80", r#"{"Op":0,"Addr":"10.0.0.1:80","Metadata":null}"#, 15),
        ("?layout=toadocr", "payments/10.0.0.1:80", r#"{"PSM":"payments","IP":"10.0.0.1:80"}"#, 5),
        ("?layout=toadocr&ttl=9s", "payments/10.0.0.1:80", r#"{"PSM":"payments","IP":"10.0.0.1:80"}"#, 9),
        ("//etcdv3_resolver?layout=plain", "/etcdv3_resolver/payments/10.0.0.1:80", "10.0.0.1:80", 15),
        (
            "?layout=plain&key_template=services/{service}/providers/{id}",
            "services/payments/providers/10.0.0.1:80",
            "10.0.0.1:80",
            15,
        ),
    ] {
        let backend = open(&etcd, url);
        let registration = backend.register(&payments(), at("10.0.0.1:80")).await.unwrap();
        let (written, lease) = raw.entry(key).await.unwrap_or_else(|| panic!("{url}: no {key}"));
        assert_eq!(String::from_utf8(written).unwrap(), value, "{url}");
        assert_ne!(lease, 0);
        assert_eq!(backend.granted_ttl(), Some(Duration::from_secs(ttl)), "{url}");
        let listed = backend.list(&payments()).await.unwrap();
        assert_eq!(listed.iter().map(|one| (**one).clone()).collect::<Vec<_>>(), [at("10.0.0.1:80")], "{url}");
        registration.deregister().await.unwrap();
        assert!(raw.keys().await.is_empty(), "{url}");
    }
}

#[tokio::test]
async fn what_a_layout_cannot_express_is_refused_and_nothing_is_written() {
    let etcd = Etcd::start().await;
    let mut raw = etcd.raw().await;
    let heavy = at("10.0.0.1:80").with_weight(Weight::new(7).unwrap());
    let labeled = at("10.0.0.1:80").with_metadata([("zone", "eu")].try_into().unwrap());
    let named = at("10.0.0.1:80").with_id("a1".parse().unwrap());
    let escaped = at("10.0.0.1:80").with_id("eu%2Fa%zz".parse().unwrap());
    for (url, instance, said) in [
        ("?layout=toadocr", &heavy, "cannot express weights"),
        ("?layout=toadocr", &labeled, "cannot express metadata"),
        ("?layout=toadocr", &named, "has no ids"),
        ("?layout=plain", &heavy, "cannot express weights"),
        ("?layout=plain", &labeled, "cannot express metadata"),
        ("?layout=plain", &named, "has no ids"),
        ("?deeper_paths=true", &escaped, "no key for the id"),
    ] {
        let backend = open(&etcd, url);
        let error = backend.register(&payments(), instance.clone()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{url}");
        assert!(!error.is_retryable() && error.report().to_string().contains(said), "{url}: {error}");
        assert!(raw.keys().await.is_empty(), "{url}");

        let plain = at("10.0.0.1:80");
        let registration = backend.register(&payments(), plain.clone()).await.unwrap();
        if url != "?deeper_paths=true" {
            let update = |one: Instance| one.with_weight(heavy.weight()).with_metadata(labeled.metadata().clone());
            assert_eq!(registration.update(update).await.unwrap_err().kind(), ErrorKind::InvalidInput, "{url}");
            assert_eq!(*registration.instance(), plain, "a refused update changes nothing");
        }
        assert!(registration.status().is_registered());
        registration.deregister().await.unwrap();
    }
}

/// The text of labels is escaped twice, so a value may be much longer than its metadata.
#[tokio::test]
async fn the_largest_metadata_can_be_read_by_others() {
    let etcd = Etcd::start().await;
    let backend = open(&etcd, "");
    for text in ["<", "\"", "\u{1}", "\\", "x"] {
        let labels = ["a", "b", "c", "d"].map(|key| (key, text.repeat(4_095)));
        let one = at("10.0.0.1:80").with_metadata(labels.try_into().unwrap());
        let registration = backend.register(&payments(), one.clone()).await.unwrap();
        let listed = backend.list(&payments()).await.unwrap();
        assert_eq!(listed.iter().map(|one| (**one).clone()).collect::<Vec<_>>(), [one], "{text:?}");
        registration.deregister().await.unwrap();
    }
    assert_eq!((backend.skipped(), backend.dropped_labels()), (0, 0));
}

#[test]
fn a_separator_follows_the_prefix_once() {
    for (url, said) in [
        ("etcd://h/prod?separator=.", None),
        ("etcd://h/prod/?separator=/", None),
        ("etcd://h/a/b?separator=~", None),
        ("etcd://h?separator=.", None),
        ("etcd://h/prod.?separator=.", Some("follows it by itself")),
        ("etcd://h/prod/?separator=.", Some("follows it by itself")),
        ("etcd://h/prod?separator=:", Some("allowed are / . - _ ~")),
        ("etcd://h?separator=:", Some("allowed are / . - _ ~")),
        ("etcd://h/prod?separator=..", Some("allowed is one character")),
        ("etcd://h/prod?separator=", Some("allowed is one character")),
    ] {
        let read = url.parse::<EtcdConfig>();
        match (read, said) {
            (Ok(_), None) => {}
            (Err(error), Some(said)) => assert!(error.to_string().contains(said), "{url}: {error}"),
            (read, _) => panic!("{url}: {read:?}"),
        }
    }
}

#[tokio::test]
async fn the_keys_of_deeper_paths_are_read_on_request() {
    let etcd = Etcd::start().await;
    let mut raw = etcd.raw().await;
    let value = r#"{"Op":0,"Addr":"10.0.0.1:80","Metadata":null}"#;
    for key in ["payments/a1", "payments/eu/a1", "payments//a1", "payments-history/a1"] {
        raw.put(key, value).await;
    }
    let ids = async |backend: &EtcdBackend| {
        let listed = backend.list(&payments()).await.unwrap();
        listed.iter().map(|one| one.id().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&open(&etcd, "")).await, ["a1"]);
    let deep = open(&etcd, "?deeper_paths=true");
    assert_eq!(ids(&deep).await, ["%2Fa1", "a1", "eu%2Fa1"]);
    let view = discovery_core::ResolverExt::view(&deep, &payments()).unwrap();
    eventually("all are seen", SOON, async || view.current().len() == 3).await;
    raw.delete("payments/eu/a1").await;
    eventually("the removal is seen", SOON, async || view.current().get("eu%2Fa1").is_none()).await;
    raw.put("payments/eu/a2", value).await;
    eventually("the new one is seen", SOON, async || view.current().get("eu%2Fa2").is_some()).await;
    assert_eq!(deep.skipped(), 0);
    // A bad key without an id is reported until it is gone.
    let skipped = async || deep.skipped_entries(&payments()).count();
    raw.put("payments/eu%2Fa3", value).await;
    eventually("the bad key is reported", SOON, async || skipped().await == 1).await;
    raw.delete("payments/eu%2Fa3").await;
    eventually("it is no longer reported", SOON, async || skipped().await == 0).await;
}

/// W7: a label decides neither over the instance nor over the others.
#[tokio::test]
async fn w7_an_instance_with_bad_labels_stays_and_the_labels_are_counted() {
    let etcd = Etcd::start().await;
    let mut raw = etcd.raw().await;
    let value = |metadata: &str| format!(r#"{{"Op":0,"Addr":"10.0.0.1:80","Metadata":{metadata}}}"#);
    raw.put("payments/a1", value(r#"{"my key":"x","zone":"eu"}"#)).await;
    raw.put("payments/a2", value(r#""{\"naïve\":\"x\",\"\":\"y\",\"weight\":7}""#)).await;
    raw.put("payments/a3", value("null")).await;
    let backend = EtcdBackend::new(EtcdConfig::new(etcd.members())).unwrap();
    let view = discovery_core::ResolverExt::view(&backend, &payments()).unwrap();
    eventually("all are served", SOON, async || view.current().len() == 3).await;
    let set = view.current();
    assert_eq!(set.get("a1").unwrap().metadata().iter().collect::<Vec<_>>(), [("zone", "eu")]);
    assert_eq!(set.get("a2").unwrap().weight().value(), 7);
    assert_eq!((backend.dropped_labels(), backend.skipped()), (3, 0));
    backend.list(&payments()).await.unwrap();
    assert_eq!(backend.dropped_labels(), 3, "the same values again");
    raw.put("payments/a3", value(r#"{"a b":"x"}"#)).await;
    eventually("the new label is counted", SOON, async || backend.dropped_labels() == 4).await;
    assert_eq!(view.current().len(), 3);
    assert_eq!(backend.skipped_entries(&payments()).count(), 0);
    raw.put("payments/a3", "{}").await;
    eventually("the bad entry is gone", SOON, async || view.current().len() == 2).await;
    let skipped = backend.skipped_entries(&payments());
    assert_eq!((skipped.count(), skipped.reason().unwrap().to_string()), (1, "it has no Addr".to_owned()));
}
