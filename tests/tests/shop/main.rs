//! The shop of `examples/shop` as it runs: real processes, a real etcd, TLS everywhere. It is
//! deployed under load, and an operator recognizes what is wrong with it.

mod deployment;
mod diagnosis;
mod http;
mod system;
