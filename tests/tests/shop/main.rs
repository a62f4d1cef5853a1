//! The shop of `examples/shop` as it runs: real processes, a real etcd, TLS everywhere. It is
//! deployed under load, and an operator recognizes what is wrong with it.

mod http;
mod system;
mod timed;
