use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// A certificate authority for one test, and the folder with its files.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    folder: PathBuf,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Certificate {
    /// The certificate.
    pub cert: String,
    /// The key.
    pub key: String,
    /// The file with the certificate.
    pub cert_file: PathBuf,
    /// The file with the key.
    pub key_file: PathBuf,
}

/// A flaw of a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "tests name them")]
pub enum Flaw {
    /// The certificate was valid until 2001.
    Expired,
    /// The certificate is good.
    None,
    /// The certificate is valid from 2095.
    NotYetValid,
    /// The certificate is for another host.
    OtherHost,
}

impl Authority {
    /// Creates an authority with its files in an existing folder.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        let key = KeyPair::generate().expect("a key");
        // Clients distinguish authorities by their names.
        let mut params = params(&format!("authority of {}", folder.display()), &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).expect("a certificate").pem();
        fs::write(folder.join("ca.pem"), &pem).expect("the folder is there");
        Self { issuer: Issuer::new(params, key), pem, folder }
    }

    /// Returns the authority's own certificate, in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Returns the file with the authority's own certificate.
    pub fn file(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// Signs a certificate for servers on 127.0.0.1.
    pub fn server(&self, flaw: Flaw) -> Certificate {
        let hosts: &[&str] = if flaw == Flaw::OtherHost { &["elsewhere.test"] } else { &["127.0.0.1", "localhost"] };
        self.sign("server", hosts, flaw)
    }

    /// Signs a certificate for servers with these names.
    pub fn server_named(&self, names: &[&str]) -> Certificate {
        self.sign("server", names, Flaw::None)
    }

    /// Signs a certificate for a client with this common name.
    pub fn client(&self, name: &str, flaw: Flaw) -> Certificate {
        self.sign(name, &[], flaw)
    }

    /// Signs a certificate for a program that is a server of this name, and a client.
    pub fn program(&self, name: &str, flaw: Flaw) -> Certificate {
        self.sign(name, &[name], flaw)
    }

    fn sign(&self, name: &str, hosts: &[&str], flaw: Flaw) -> Certificate {
        let key = KeyPair::generate().expect("a key");
        let mut params = params(name, hosts);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // etcd is also a client of itself.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        match flaw {
            Flaw::Expired => params.not_after = date_time_ymd(2001, 1, 1),
            Flaw::NotYetValid => params.not_before = date_time_ymd(2095, 1, 1),
            Flaw::None | Flaw::OtherHost => {}
        }
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Certificate::write(&self.folder, name, cert, key.serialize_pem())
    }
}

impl Certificate {
    fn write(folder: &Path, name: &str, cert: String, key: String) -> Self {
        let cert_file = folder.join(format!("{name}.pem"));
        let key_file = folder.join(format!("{name}.key"));
        fs::write(&cert_file, &cert).expect("the folder is there");
        fs::write(&key_file, &key).expect("the folder is there");
        Self { cert, key, cert_file, key_file }
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("cert_file", &self.cert_file).finish_non_exhaustive()
    }
}

fn params(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).expect("valid names");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
