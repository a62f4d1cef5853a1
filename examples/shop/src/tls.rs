//! Mutual TLS: each program has one certificate, for its clients and for the servers that it calls.

use std::{fs, io, path::Path};

use discovery::channel::ChannelTls;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use crate::{BoxError, Settings};

/// The TLS of a channel. The files are read again when they change.
pub(crate) fn client(folder: &Path, service: &str) -> ChannelTls {
    ChannelTls::new()
        .ca_file(folder.join("ca.pem"))
        .identity_files(folder.join("cert.pem"), folder.join("key.pem"))
        .server_name(service) // certificates are issued for services, not for addresses
}

/// Returns the builder of a tonic server that requires certificates of its clients, or of one in
/// plain text without [`Settings::tls`]. It uses the files as they are now: tonic does not read
/// them again, so a renewed certificate comes into use when the server is restarted.
///
/// # Errors
///
/// If a file cannot be read or used.
pub fn server(settings: &Settings) -> Result<Server, BoxError> {
    let Some(folder) = &settings.tls else { return Ok(Server::builder()) };
    let read = |name: &str| -> io::Result<Vec<u8>> {
        let path = folder.join(name);
        fs::read(&path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    };
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(read("cert.pem")?, read("key.pem")?))
        .client_ca_root(Certificate::from_pem(read("ca.pem")?));
    Ok(Server::builder().tls_config(tls)?)
}
