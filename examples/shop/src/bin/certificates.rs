//! Issues certificates for trying out TLS. In production they come from your own authority.
//!
//! ```sh
//! cargo run -p shop --bin certificates -- FOLDER
//! ```
//!
//! Writes the folders `orders`, `inventory`, `gateway` and `worker`, one for `SHOP_TLS` of each
//! program. The authority's key is not kept, so running it again replaces all of them.

use std::{fs, path::PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use shop::BoxError;

fn main() -> Result<(), BoxError> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: certificates FOLDER")?);
    let key = KeyPair::generate()?;
    let mut params = named("authority of the shop", Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key)?.pem();
    let authority = Issuer::new(params, key);
    for program in ["orders", "inventory", "gateway", "worker"] {
        let key = KeyPair::generate()?;
        let certificate = named(program, vec![program.to_owned()])?.signed_by(&key, &authority)?;
        let own = folder.join(program);
        fs::create_dir_all(&own)?;
        fs::write(own.join("ca.pem"), &ca)?;
        fs::write(own.join("cert.pem"), certificate.pem())?;
        fs::write(own.join("key.pem"), key.serialize_pem())?;
    }
    println!("certificates are in {}", folder.display());
    Ok(())
}

fn named(name: &str, hosts: Vec<String>) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}
