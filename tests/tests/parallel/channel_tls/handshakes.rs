//! What the handshake accepts and refuses, and what the errors explain.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use discovery_core::{Backoff, FixedResolver, Instance};
use discovery_tonic::{BalancedChannel, EndpointSettings, TcpConnector};
use greeter::Greeter;
use http::{Request, Uri};
use support::{Authority, Flaw, scene::SOON};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{body::Body, transport::Server};
use tower::ServiceExt;

use super::{TlsServer, greet, refusal, server_tls, trusting};

fn often() -> Backoff {
    Backoff::new(Duration::from_millis(20), Duration::from_millis(100)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_prove_who_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::in_folder(folder.path());
    let own = authority.client("teller", Flaw::None);
    let server = TlsServer::start(&authority.server(Flaw::None), Some(authority.pem())).await;
    let files = trusting("").identity_files(&own.cert_file, &own.key_file);
    // An empty PEM is refused, so that nobody trusts nobody by mistake.
    let error = server.channel().tls(files).build().unwrap_err();
    assert!(error.to_string().contains("it holds no certificate in PEM"), "{error}");

    let from_files = trusting(authority.pem()).identity_files(&own.cert_file, &own.key_file);
    let in_memory = trusting(authority.pem()).identity(own.cert, own.key);
    for tls in [from_files, in_memory] {
        let channel = server.channel().tls(tls).build().unwrap();
        assert_eq!(greet(&channel).await.unwrap(), "tls");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_server_certificate_is_named_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let other_folder = tempfile::tempdir().unwrap();
    let authority = Authority::in_folder(folder.path());
    let stranger = Authority::in_folder(other_folder.path());
    let cases = [
        (Flaw::OtherHost, &authority, "it is not valid for the name 127.0.0.1 (CN=server; names elsewhere.test;"),
        (
            Flaw::Expired,
            &authority,
            "it has expired (CN=server; names 127.0.0.1, localhost; expired on Jan  1 00:00:00 2001",
        ),
        (
            Flaw::NotYetValid,
            &authority,
            "it is not valid yet (CN=server; names 127.0.0.1, localhost; not valid before Jan  1 00:00:00 2095",
        ),
        (Flaw::None, &stranger, "no trusted authority has signed it (CN=server;"),
    ];
    for (flaw, signer, expected) in cases {
        let server = TlsServer::start(&signer.server(flaw), None).await;
        let channel = server.channel().tls(trusting(authority.pem())).build().unwrap();
        let status = greet(&channel).await.unwrap_err();
        assert!(status.message().contains("the server's certificate is refused"), "{flaw:?}: {status}");
        assert!(status.message().contains(expected), "{flaw:?}: {status}");
        refusal(&channel, expected).await;
    }
    // The system's authorities are the default, and do not know the test's.
    let server = TlsServer::start(&authority.server(Flaw::None), None).await;
    let channel = server.channel().tls(discovery_tonic::ChannelTls::new()).build().unwrap();
    refusal(&channel, "no trusted authority has signed it").await;
    let both = discovery_tonic::ChannelTls::new().with_native_roots().ca_file(authority.file());
    greet(&server.channel().tls(both).build().unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_client_certificate_is_named_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let other_folder = tempfile::tempdir().unwrap();
    let authority = Authority::in_folder(folder.path());
    let stranger = Authority::in_folder(other_folder.path());
    let server = TlsServer::start(&authority.server(Flaw::None), Some(authority.pem())).await;
    let cases = [
        (None, "it presented no certificate"),
        (Some((&authority, Flaw::Expired)), "late.pem\" (CN=late; expired on Jan  1 00:00:00 2001"),
        (Some((&authority, Flaw::NotYetValid)), "late.pem\" (CN=late; not valid before Jan  1 00:00:00 2095"),
        (Some((&stranger, Flaw::None)), "late.pem\" (CN=late; valid until"),
    ];
    for (own, expected) in cases {
        let tls = trusting(authority.pem());
        let tls = match own {
            None => tls,
            Some((signer, flaw)) => {
                let own = signer.client("late", flaw);
                tls.identity_files(own.cert_file, own.key_file)
            }
        };
        let channel = server.channel().tls(tls).backoff(often()).build().unwrap();
        greet(&channel).await.unwrap_err();
        let table = refusal(&channel, expected).await;
        let known = ["the server refused the channel's TLS; ", "right after the TLS handshake, perhaps because of"];
        assert!(known.iter().any(|known| table.contains(known)), "{table}");
        refusal(&channel, "received fatal alert").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_no_tls_fails_the_attempt_and_hangs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::in_folder(folder.path());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let instance = Instance::new(listener.local_addr().unwrap().try_into().unwrap());
    let router = Server::builder().add_service(Greeter::new("plain").into_service());
    let plain = tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = Instance::new(silent.local_addr().unwrap().try_into().unwrap());
    for instance in [instance, silent] {
        let channel = BalancedChannel::builder(FixedResolver::new([instance]), "greeter".parse().unwrap())
            .tls(trusting(authority.pem()))
            .build()
            .unwrap();
        tokio::time::timeout(SOON, greet(&channel)).await.unwrap().unwrap_err();
    }
    plain.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_is_the_most_specific_one_and_becomes_the_authority() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::in_folder(folder.path());
    let own = authority.server_named(&["one.internal", "orders.internal", "origin.internal", "127.0.0.1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let authorities: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&authorities);
    let router = Server::builder()
        .tls_config(server_tls(&own, None))
        .unwrap()
        .layer(tower::util::MapRequestLayer::new(move |request: Request<Body>| {
            let authority = request.uri().authority().map(ToString::to_string);
            seen.lock().unwrap().extend(authority);
            request
        }))
        .add_service(Greeter::new("tls").into_service());
    let serving = tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));

    let default = EndpointSettings::default;
    let own_name = default().server_name("one.internal").unwrap();
    let with_origin = default().origin("https://origin.internal:7").unwrap();
    let named_origin = with_origin.clone().server_name("one.internal").unwrap();
    let cases = [
        (default(), None, address.to_string()),
        (default(), Some("orders.internal"), "orders.internal".to_owned()),
        (own_name, Some("elsewhere.test"), "one.internal".to_owned()),
        (with_origin, None, "origin.internal:7".to_owned()),
        (named_origin, Some("elsewhere.test"), "origin.internal:7".to_owned()),
    ];
    for (settings, name, expected) in cases {
        let tls = trusting(authority.pem());
        let tls = match name {
            Some(name) => tls.server_name(name),
            None => tls,
        };
        let instances = [Instance::new(address.try_into().unwrap())];
        let channel = BalancedChannel::builder(FixedResolver::new(instances), "greeter".parse().unwrap())
            .tls(tls)
            .endpoint_settings(move |_| settings.clone())
            .build()
            .unwrap();
        greet(&channel).await.unwrap();
        assert_eq!(authorities.lock().unwrap().pop(), Some(expected));
    }
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_in_clear_text_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::in_folder(folder.path());
    let server = TlsServer::start(&authority.server(Flaw::None), None).await;
    let settings = EndpointSettings::default().origin("http://orders.internal").unwrap();
    let channel = server.channel().tls(trusting(authority.pem())).endpoint_settings(move |_| settings.clone());
    refusal(&channel.build().unwrap(), "an http origin over TLS: allowed is https").await;
    let settings = EndpointSettings::default().origin("https://orders.internal").unwrap();
    let channel = server.channel().endpoint_settings(move |_| settings.clone());
    refusal(&channel.build().unwrap(), "an https origin over plain TCP: give the channel's builder `tls`").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_runs_on_top_of_a_custom_connector() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::in_folder(folder.path());
    let server = TlsServer::start(&authority.server(Flaw::None), None).await;
    let forwarded = Uri::try_from(format!("http://{}/", server.address)).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let connector = TcpConnector::new().map_request(move |uri: Uri| {
        assert_eq!(uri, "http://10.255.255.1:80/");
        count.fetch_add(1, Ordering::Relaxed);
        forwarded.clone()
    });
    let instance = Instance::new("10.255.255.1:80".parse().unwrap());
    let channel = BalancedChannel::builder(FixedResolver::new([instance]), "greeter".parse().unwrap())
        .connector(connector)
        .tls(trusting(authority.pem()).server_name("localhost"))
        .build()
        .unwrap();
    greet(&channel).await.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

/// Nothing meant for TLS is sent in clear text: without TLS, https URIs need a connector that has
/// it.
#[tokio::test]
async fn https_uris_are_never_called_in_clear_text() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("https://{}", listener.local_addr().unwrap());
    let error = BalancedChannel::from_uris([&uri]).unwrap().tls(None).build().unwrap_err();
    assert!(error.to_string().contains("https URIs without TLS: allowed are"), "{error}");

    let (sender, mut targets) = tokio::sync::mpsc::unbounded_channel();
    let connector = TcpConnector::new().map_request(move |target: Uri| {
        let _ = sender.send(target.clone());
        target
    });
    let _channel = BalancedChannel::from_uris([&uri]).unwrap().tls(None).connector(connector).build().unwrap();
    assert_eq!(targets.recv().await.unwrap(), format!("{uri}/").parse::<Uri>().unwrap());
}
