//! The contents of the files that a configuration names.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

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
        Pem::File(path) => read(path).map_err(|error| unusable(pem, role, "it cannot be read").with_source(error)),
        Pem::Text(text) => Ok(text.clone()),
    }
}

/// Reads a regular file of bounded size. Anything else, such as a FIFO, may never end.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut content = Vec::new();
    File::open(path)?.take(MOST + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MOST {
        return Err(io::Error::other("it has more than 1 MiB"));
    }
    Ok(content)
}

/// Returns an error about one of the files; `role` is one of the constants below.
pub(super) fn unusable(pem: &Pem, role: &str, why: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("invalid TLS {role} {pem:?}: {why}"))
}

/// The largest file that is read, in bytes. A system's whole list of authorities has 220 KB.
const MOST: u64 = 1 << 20;

pub(super) const CA: &str = "authority";
pub(super) const CERTIFICATE: &str = "certificate";
pub(super) const KEY: &str = "key";
