//! TLS on top of a connection's byte stream, with rustls.
//!
//! - [`config`] is what users set: whom to trust, what to present, which name to expect.
//! - [`files`] reads what it names, [`credentials`] turns that into rustls' configuration.
//! - [`client`] reads the files again when they have changed, and shakes hands.
//! - [`stream`] is the connection afterwards. Servers refuse a client's certificate only then, so
//!   it explains that. [`certificate`] describes a certificate for such an error.

mod certificate;
pub(crate) mod client;
pub(crate) mod config;
mod credentials;
mod files;
mod stream;
#[cfg(test)]
mod tests;
