//! Turns certificates and keys into the options of etcd-client, after checking them with rustls.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use discovery_core::{Address, Error, Host};
use etcd_client::{Certificate, Identity, TlsOptions};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tracing::{info, warn};

use crate::config::{EtcdTls, Pem, file, invalid};

/// The TLS settings for all members.
pub(super) struct Tls {
    config: EtcdTls,
    handshake: Duration,
    state: Mutex<State>,
}

struct State {
    /// From the last successful reading.
    options: TlsOptions,
    /// Counts the successful readings.
    reading: u64,
    /// The contents of the files at that reading, and when they were last compared.
    files: Files,
    compared: Instant,
    /// Why the files cannot be used, as it was logged.
    unusable: Option<String>,
}

/// The contents of the certificates and the key.
#[derive(Eq, PartialEq)]
struct Files {
    ca: Option<Vec<u8>>,
    cert: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
}

impl Tls {
    /// Reads all files and checks their contents.
    pub(super) fn load(config: &EtcdTls, handshake: Duration) -> Result<Self, Error> {
        let files = Files::read(config)?;
        let options = files.options(config, handshake)?;
        let state = State { options, reading: 0, files, compared: Instant::now(), unusable: None };
        Ok(Self { config: config.clone(), handshake, state: Mutex::new(state) })
    }

    /// The options for connecting to a member now.
    pub(super) fn options(&self, member: &Address) -> TlsOptions {
        let options = self.current().options.clone();
        if self.config.server_name.is_some() {
            return options;
        }
        // Certificates name hosts without the final dot of an absolute name.
        match member.host() {
            Host::Dns(name) if name.ends_with('.') => options.domain_name(name.trim_end_matches('.')),
            _ => options,
        }
    }

    /// The number of the current reading of the files.
    pub(super) fn reading(&self) -> u64 {
        self.current().reading
    }

    /// Reads the files again if they have changed. Looks at most once a second.
    fn current(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.compared.elapsed() < COMPARE {
            return state;
        }
        state.compared = Instant::now();
        let result = Files::read(&self.config).and_then(|files| {
            if files != state.files {
                state.options = files.options(&self.config, self.handshake)?;
                state.reading += 1;
                state.files = files;
                info!("the TLS files changed, new connections use them");
            }
            Ok(())
        });
        // The files may be half written. The next comparison reads them again.
        let unusable = result.err().map(|error| error.report().to_string());
        if let Some(error) = unusable.as_ref().filter(|_| unusable != state.unusable) {
            warn!(error, "the TLS files cannot be used, the former ones stay in use");
        }
        state.unusable = unusable;
        state
    }
}

impl Files {
    fn read(config: &EtcdTls) -> Result<Self, Error> {
        let read = |pem: &Option<Pem>, name| pem.as_ref().map(|pem| content(pem, name)).transpose();
        Ok(Self { ca: read(&config.ca, "ca")?, cert: read(&config.cert, "cert")?, key: read(&config.key, "key")? })
    }

    /// Checks everything with rustls once. tonic ignores certificates that cannot be read, and
    /// finds other problems only when it connects.
    fn options(&self, config: &EtcdTls, handshake: Duration) -> Result<TlsOptions, Error> {
        let mut options = TlsOptions::new().timeout(handshake);
        let mut roots = RootCertStore::empty();
        if let (Some(ca), Some(pem)) = (&config.ca, &self.ca) {
            for certificate in certificates(ca, "ca", pem)? {
                roots
                    .add(certificate)
                    .map_err(|error| bad(ca, "ca", "a certificate in it cannot be used").with_source(error))?;
            }
            options = options.ca_certificate(Certificate::from_pem(pem));
        }
        let checked = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring supports the default protocol versions")
            .with_root_certificates(roots);
        if let (Some(cert), Some(key), Some(cert_pem), Some(key_pem)) =
            (&config.cert, &config.key, &self.cert, &self.key)
        {
            let chain = certificates(cert, "cert", cert_pem)?;
            // Without the source, which may quote a line of the key.
            let private = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| {
                bad(key, "key", "it holds no private key in PEM (PKCS #8, PKCS #1 or SEC 1, not encrypted)")
            })?;
            let checked = checked.with_client_auth_cert(chain, private);
            checked.map_err(|error| bad(key, "key", "it does not go with the certificate").with_source(error))?;
            options = options.identity(Identity::from_pem(cert_pem, key_pem));
        }
        if let Some(name) = &config.server_name {
            ServerName::try_from(name.as_str())
                .map_err(|_| invalid("invalid server_name: allowed are a host name and an IP address"))?;
            options = options.domain_name(name.as_str());
        }
        Ok(options)
    }
}

fn content(pem: &Pem, name: &str) -> Result<Vec<u8>, Error> {
    match pem {
        Pem::File(path) => {
            let read = file::read(path);
            read.map_err(|error| bad(pem, name, "it cannot be read").with_source(error))
        }
        Pem::Text(text) => Ok(text.clone()),
    }
}

fn certificates(pem: &Pem, name: &str, content: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    // Without the source: the file may be a key by mistake.
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

/// The shortest time between two comparisons of the files.
const COMPARE: Duration = Duration::from_secs(1);
