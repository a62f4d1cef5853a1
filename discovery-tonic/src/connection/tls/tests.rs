//! Handshakes with servers that tonic's own server cannot be.

use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use tokio::io::{AsyncReadExt, duplex};
use tokio_rustls::TlsAcceptor;

use super::{
    client::{TlsClient, server_name},
    config::ChannelTls,
};
use crate::error::report;

/// A server's certificate, which is its own authority.
struct Own {
    pem: String,
    der: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Own {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["orders.internal".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), der: certificate.der().clone(), key: key.serialize_der() }
    }

    fn server(
        &self,
        version: &'static SupportedProtocolVersion,
        requires_client: bool,
        alpn: &[&[u8]],
    ) -> ServerConfig {
        let provider = Arc::new(ring::default_provider());
        let builder =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&[version]).unwrap();
        let builder = if requires_client {
            let mut roots = RootCertStore::empty();
            roots.add(self.der.clone()).unwrap();
            builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap(),
            )
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::Pkcs8(self.key.clone().into());
        let mut config = builder.with_single_cert(vec![self.der.clone()], key).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config
    }
}

/// Shakes hands, reads until the end, and returns the error of either.
async fn error_with(own: &Own, server: ServerConfig) -> String {
    let client = Arc::new(TlsClient::load(ChannelTls::new().ca(own.pem.as_str())).unwrap());
    let (near, far) = duplex(1 << 16);
    let serving = tokio::spawn(async move {
        // Ends the connection as soon as both have shaken hands.
        let _ = TlsAcceptor::from(Arc::new(server)).accept(far).await;
    });
    let shaken = client.shake_hands(Box::new(TokioIo::new(near)), server_name("orders.internal").unwrap()).await;
    let error = match shaken {
        Ok(io) => TokioIo::new(io).read_u8().await.unwrap_err().into(),
        Err(error) => error,
    };
    serving.await.unwrap();
    report(&*error)
}

#[tokio::test]
async fn a_server_must_agree_to_http2() {
    let own = Own::new();
    for version in [&TLS12, &TLS13] {
        let error = error_with(&own, own.server(version, false, &[])).await;
        assert_eq!(error, "the server did not agree to HTTP/2 in the TLS handshake (ALPN h2)");
        let error = error_with(&own, own.server(version, false, &[b"http/1.1"])).await;
        assert!(error.contains("NoApplicationProtocol") || error.contains("no application protocol"), "{error}");
    }
}

#[tokio::test]
async fn a_missing_client_certificate_is_explained_with_each_version() {
    let own = Own::new();
    for version in [&TLS12, &TLS13] {
        let error = error_with(&own, own.server(version, true, &[b"h2"])).await;
        assert!(error.contains("the server refused the channel's TLS; it presented no certificate: "), "{error}");
    }
}

#[tokio::test]
async fn an_end_right_after_the_handshake_is_explained() {
    let own = Own::new();
    let error = error_with(&own, own.server(&TLS13, false, &[b"h2"])).await;
    let expected = "the server closed the connection right after the TLS handshake, perhaps because of the channel's certificate; it presented no certificate";
    assert!(error.starts_with(expected), "{error}");
}
