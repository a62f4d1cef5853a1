//! The contents of the files that a configuration names.

use std::fs;

use discovery_core::{Error, ErrorKind};

use super::config::{ChannelTls, Identity, Pem};

/// What the files of a configuration contain. Compared to learn whether they have changed.
#[derive(Eq, PartialEq)]
pub(super) struct Contents {
    pub(super) authorities: Vec<Vec<u8>>,
    pub(super) identity: Option<IdentityContents>,
}

#[derive(Eq, PartialEq)]
pub(super) struct IdentityContents {
    pub(super) cert: Vec<u8>,
    pub(super) key: Vec<u8>,
}

impl Contents {
    /// Reads all files. Blocks.
    pub(super) fn read(config: &ChannelTls) -> Result<Self, Error> {
        let authorities = config.authorities.iter().map(|pem| content(pem, CA)).collect::<Result<_, _>>()?;
        let read = |Identity { cert, key }: &Identity| {
            Ok::<_, Error>(IdentityContents { cert: content(cert, CERTIFICATE)?, key: content(key, KEY)? })
        };
        let identity = config.identity.as_ref().map(read).transpose()?;
        Ok(Self { authorities, identity })
    }
}

fn content(pem: &Pem, role: &str) -> Result<Vec<u8>, Error> {
    match pem {
        Pem::File(_) if pem.is_misplaced() => {
            Err(unusable(pem, role, "the path of a file is expected, and this is a PEM"))
        }
        Pem::File(path) => fs::read(path).map_err(|error| unusable(pem, role, "it cannot be read").with_source(error)),
        Pem::Text(text) => Ok(text.clone()),
    }
}

/// Returns an error about one of the files; `role` is one of the constants below.
pub(super) fn unusable(pem: &Pem, role: &str, why: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("invalid TLS {role} {pem:?}: {why}"))
}

pub(super) const CA: &str = "authority";
pub(super) const CERTIFICATE: &str = "certificate";
pub(super) const KEY: &str = "key";
