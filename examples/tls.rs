//! TLS on both sides, from the same kind of files: each side proves who it is.
//!
//! ```sh
//! cargo run --example tls --features memory,server,tls
//! ```

use std::{fs, path::Path};

use discovery::{BalancedChannel, MemoryBackend, RegisteredServer, channel::ChannelTls};
use greeter::{GreetRequest, Greeter, GreeterClient};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    issue(folder.path())?;
    let file = |name: &str| folder.path().join(name);

    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(fs::read(file("greeter.pem"))?, fs::read(file("greeter.key"))?))
        .client_ca_root(Certificate::from_pem(fs::read(file("ca.pem"))?)); // clients need a certificate
    let router = Server::builder().tls_config(tls)?.add_service(Greeter::new("one").into_service());
    let backend = MemoryBackend::new();
    let server = RegisteredServer::builder(backend.clone(), "greeter".parse()?).bind("127.0.0.1:0".parse()?).await?;
    tokio::spawn(server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)));

    let tls = ChannelTls::new()
        .ca_file(file("ca.pem"))
        .identity_files(file("client.pem"), file("client.key")) // read again when they change
        .server_name("greeter.internal"); // instead of the address, for which no certificate is issued
    let channel = BalancedChannel::builder(backend, "greeter".parse()?).tls(tls).build()?;
    println!("{}", GreeterClient::new(channel).greet(GreetRequest::default()).await?.into_inner().message);
    Ok(())
}

/// Writes an authority, and what it issues for a server and a client. In production these files
/// come from your own authority.
fn issue(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(folder.join("ca.pem"), params.self_signed(&key)?.pem())?;
    let authority = Issuer::new(params, key);
    for name in ["greeter", "client"] {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![format!("{name}.internal")])?.signed_by(&key, &authority)?;
        fs::write(folder.join(format!("{name}.pem")), certificate.pem())?;
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}
