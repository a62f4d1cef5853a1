//! From the contents of files to rustls' configuration.

use std::sync::Arc;

use discovery_core::Error;
use rustls::{
    ClientConfig, RootCertStore,
    client::{Resumption, WebPkiServerVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::{
    certificate::Certificate,
    config::{ChannelTls, Identity, Pem},
    files::{CA, CERTIFICATE, Contents, IdentityContents, KEY, unusable},
};

/// What new connections use.
pub(super) struct Credentials {
    pub(super) config: ClientConfig,
    pub(super) verifier: Arc<WebPkiServerVerifier>,
    /// What the channel presents; `None` if it presents no certificate.
    pub(super) presented: Option<Arc<Presented>>,
}

/// The certificate that the channel presents, as errors describe it.
#[derive(Debug)]
pub(super) struct Presented {
    pub(super) source: Pem,
    pub(super) certificate: Certificate,
}

impl Credentials {
    /// Checks the contents, so that every problem is found before a connection is made.
    pub(super) fn new(
        config: &ChannelTls,
        contents: &Contents,
        native_roots: &[CertificateDer<'static>],
    ) -> Result<Self, Error> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        // The system's list may have certificates that rustls cannot use.
        roots.add_parsable_certificates(native_roots.iter().cloned());
        for (pem, content) in config.authorities.iter().zip(&contents.authorities) {
            for certificate in certificates(pem, CA, content)? {
                let added = roots.add(certificate);
                added
                    .map_err(|error| unusable(pem, CA, "one of its certificates cannot be used").with_source(error))?;
            }
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| invalid("invalid TLS: no authority is trusted").with_source(error))?;
        let (mut built, presented) = match (&config.identity, &contents.identity) {
            (Some(identity), Some(contents)) => with_identity(provider, Arc::clone(&verifier), identity, contents)?,
            _ => (builder(provider, Arc::clone(&verifier)).with_no_client_auth(), None),
        };
        built.alpn_protocols = vec![H2.to_vec()];
        built.resumption = Resumption::disabled();
        Ok(Self { config: built, verifier, presented })
    }
}

fn with_identity(
    provider: Arc<CryptoProvider>,
    verifier: Arc<WebPkiServerVerifier>,
    identity: &Identity,
    contents: &IdentityContents,
) -> Result<(ClientConfig, Option<Arc<Presented>>), Error> {
    let chain = certificates(&identity.cert, CERTIFICATE, &contents.cert)?;
    let certificate = Certificate::new(chain[0].clone());
    // Without the source, which may quote a line of the key.
    let key = PrivateKeyDer::from_pem_slice(&contents.key).map_err(|_| {
        unusable(&identity.key, KEY, "it holds no private key in PEM (PKCS #8, PKCS #1 or SEC 1, not encrypted)")
    })?;
    let config = builder(provider, verifier)
        .with_client_auth_cert(chain, key)
        .map_err(|error| unusable(&identity.key, KEY, "it does not go with the certificate").with_source(error))?;
    Ok((config, Some(Arc::new(Presented { source: identity.cert.clone(), certificate }))))
}

fn builder(
    provider: Arc<CryptoProvider>,
    verifier: Arc<WebPkiServerVerifier>,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions")
        .with_webpki_verifier(verifier)
}

fn certificates(pem: &Pem, role: &str, content: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    // Without the source: the file may be a key by mistake.
    match CertificateDer::pem_slice_iter(content).collect::<Result<Vec<_>, _>>() {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(unusable(pem, role, "it holds no certificate in PEM")),
        Err(_) => Err(unusable(pem, role, "a part of it is no certificate in PEM")),
    }
}

fn invalid(message: &'static str) -> Error {
    Error::new(discovery_core::ErrorKind::InvalidInput, message)
}

/// The ALPN name of HTTP/2.
pub(super) const H2: &[u8] = b"h2";
