//! How an error describes a certificate.

use std::fmt;

use rustls::pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer, time::ASN1Time};

use crate::error::printable;

/// A certificate, printed with what people look for: its subject, its names, until or from when it
/// is valid, and who issued it.
#[derive(Clone, Debug)]
pub(super) struct Certificate(CertificateDer<'static>);

impl Certificate {
    pub(super) fn new(der: CertificateDer<'_>) -> Self {
        Self(der.into_owned())
    }

    fn print(&self, now: ASN1Time, out: &mut String) -> fmt::Result {
        use fmt::Write;
        let Ok((_, certificate)) = X509Certificate::from_der(&self.0) else {
            return out.write_str("a certificate that cannot be parsed");
        };
        write!(out, "{}", shown(&certificate.subject().to_string()))?;
        let names = names(&certificate);
        if !names.is_empty() {
            write!(out, "; names {}", names.join(", "))?;
        }
        let validity = certificate.validity();
        if now < validity.not_before {
            write!(out, "; not valid before {}", validity.not_before)?;
        } else if now > validity.not_after {
            write!(out, "; expired on {}", validity.not_after)?;
        } else {
            write!(out, "; valid until {}", validity.not_after)?;
        }
        write!(out, "; issuer {}", shown(&certificate.issuer().to_string()))
    }
}

/// The first hosts and addresses for which a certificate is valid.
fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let shown = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(shown(name)),
        GeneralName::IPAddress(bytes) => ip(bytes),
        _ => None,
    });
    shown.take(MOST_NAMES).collect()
}

fn ip(bytes: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(v4).to_string());
    }
    let v6 = <[u8; 16]>::try_from(bytes).ok()?;
    Some(std::net::Ipv6Addr::from(v6).to_string())
}

/// A part of a certificate, cut, and without characters that would disturb a line.
fn shown(part: &str) -> String {
    printable(part).chars().take(MOST_SHOWN).collect()
}

impl fmt::Display for Certificate {
    /// One line of bounded length: a peer chooses the content.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.print(ASN1Time::now(), &mut text)?;
        f.write_str(&text)
    }
}

/// How many names of a certificate are shown.
const MOST_NAMES: usize = 5;
/// How much of each part of a certificate is shown, in characters.
const MOST_SHOWN: usize = 100;

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, date_time_ymd};

    use super::*;

    fn described(change: impl FnOnce(&mut CertificateParams)) -> String {
        let mut params = CertificateParams::new(vec!["orders.internal".to_owned(), "10.0.0.1".to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "orders");
        change(&mut params);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        Certificate::new(certificate.der().clone()).to_string()
    }

    #[test]
    fn a_certificate_is_described_by_its_subject_names_validity_and_issuer() {
        let valid = described(|params| params.not_after = date_time_ymd(2096, 1, 1));
        assert_eq!(
            valid,
            "CN=orders; names orders.internal, 10.0.0.1; valid until Jan  1 00:00:00 2096 +00:00; issuer CN=orders"
        );
        let expired = described(|params| params.not_after = date_time_ymd(2001, 1, 1));
        assert!(expired.contains("; expired on Jan  1 00:00:00 2001 +00:00; "), "{expired}");
        let early = described(|params| params.not_before = date_time_ymd(2095, 1, 1));
        assert!(early.contains("; not valid before Jan  1 00:00:00 2095 +00:00; "), "{early}");
    }

    #[test]
    fn what_a_peer_chooses_is_bounded_and_printable() {
        let long =
            described(|params| params.distinguished_name.push(DnType::OrganizationName, "\u{1b}[31m\n".repeat(900)));
        assert!(long.chars().count() < 500, "{long:?}");
        // The rest is there too.
        assert!(long.contains("; names orders.internal, 10.0.0.1; valid until "), "{long}");
        assert!(!long.contains(char::is_control), "{long:?}");
        assert_eq!(
            Certificate::new(CertificateDer::from(vec![1, 2, 3])).to_string(),
            "a certificate that cannot be parsed"
        );
    }
}
