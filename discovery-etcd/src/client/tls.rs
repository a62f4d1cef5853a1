//! From certificates and keys to what etcd-client takes, checked by rustls itself.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use discovery_core::Error;
use etcd_client::{Certificate, Identity, TlsOptions};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tracing::debug;

use crate::config::{EtcdTls, Pem, invalid};

/// What every member is connected to with.
pub(super) struct Tls {
    config: EtcdTls,
    handshake: Duration,
    /// As last read with success.
    last: Mutex<TlsOptions>,
}

impl Tls {
    /// Reads all files and checks what they hold.
    pub(super) fn load(config: &EtcdTls, handshake: Duration) -> Result<Self, Error> {
        let last = Mutex::new(read(config, handshake)?);
        Ok(Self { config: config.clone(), handshake, last })
    }

    /// What to connect with now: files may have changed.
    pub(super) fn options(&self) -> TlsOptions {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match read(&self.config, self.handshake) {
            Ok(options) => *last = options,
            Err(error) => debug!(error = %error.report(), "the former certificates are used"),
        }
        last.clone()
    }
}

fn read(config: &EtcdTls, handshake: Duration) -> Result<TlsOptions, Error> {
    let mut options = TlsOptions::new().timeout(handshake);
    // All of it through rustls once, since tonic passes over certificates that cannot be read, and finds the rest when it connects.
    let mut roots = RootCertStore::empty();
    if let Some(ca) = &config.ca {
        let pem = content(ca, "ca")?;
        for certificate in certificates(ca, "ca", &pem)? {
            roots
                .add(certificate)
                .map_err(|error| bad(ca, "ca", "a certificate in it cannot be used").because(error))?;
        }
        options = options.ca_certificate(Certificate::from_pem(pem));
    }
    let checked = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring does what rustls asks for")
        .with_root_certificates(roots);
    if let (Some(cert), Some(key)) = (&config.cert, &config.key) {
        let (cert_pem, key_pem) = (content(cert, "cert")?, content(key, "key")?);
        let chain = certificates(cert, "cert", &cert_pem)?;
        // Without the cause, which may quote a line of the key.
        let private = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|_| {
            bad(key, "key", "it holds no private key in PEM (PKCS #8, PKCS #1 or SEC 1, not encrypted)")
        })?;
        let checked = checked.with_client_auth_cert(chain, private);
        checked.map_err(|error| bad(key, "key", "it does not go with the certificate").because(error))?;
        options = options.identity(Identity::from_pem(cert_pem, key_pem));
    }
    if let Some(name) = &config.server_name {
        ServerName::try_from(name.as_str())
            .map_err(|_| invalid("invalid server_name: allowed are a host name and an IP address"))?;
        options = options.domain_name(name.as_str());
    }
    Ok(options)
}

fn content(pem: &Pem, name: &str) -> Result<Vec<u8>, Error> {
    match pem {
        Pem::File(path) => {
            let read = fs::read(path);
            read.map_err(|error| bad(pem, name, "it cannot be read").because(error))
        }
        Pem::Text(text) => Ok(text.clone()),
    }
}

fn certificates(pem: &Pem, name: &str, content: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    // Without the cause: a key may have got here.
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(content).collect();
    match read {
        Ok(read) if !read.is_empty() => Ok(read),
        _ => Err(bad(pem, name, "it holds no certificate in PEM")),
    }
}

fn bad(pem: &Pem, name: &str, what: &str) -> Error {
    match pem {
        Pem::File(path) => invalid(format!("invalid {name}_file {path:?}: {what}")),
        Pem::Text(_) => invalid(format!("invalid {name}: {what}")),
    }
}
