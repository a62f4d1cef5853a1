//! Who may reach etcd, and what they may do there: TLS, certificates, users, roles and tokens, on real etcd processes.

mod roles;
mod tls;
mod tokens;

use discovery_core::{Error, ErrorKind, Resolver, Update, UpdateStream};
use discovery_etcd::EtcdBackend;
use futures::StreamExt;
use support::{
    Etcd,
    scene::{SOON, payments},
};
use tokio::time::timeout;

/// The next loss of a stream, whatever comes before it.
async fn lost(updates: &mut UpdateStream) -> Error {
    let lost = async {
        loop {
            if let Update::Lost(error) = updates.next().await.expect("streams do not end") {
                return error;
            }
        }
    };
    timeout(SOON, lost).await.expect("a loss is told")
}

/// Waits for the next whole set of a stream, and returns how many instances it has.
async fn reset(updates: &mut UpdateStream) -> usize {
    let reset = async {
        loop {
            if let Update::Reset(set) = updates.next().await.expect("streams do not end") {
                return set.len();
            }
        }
    };
    timeout(SOON, reset).await.expect("a set comes")
}

/// The kind of the error that a list ends with.
async fn refusal(backend: &EtcdBackend) -> ErrorKind {
    backend.list(&payments()).await.expect_err("it is refused").kind()
}

/// How often a member was asked to check a password.
fn authenticated(etcd: &Etcd) -> u64 {
    let name =
        r#"grpc_server_started_total{grpc_method="Authenticate",grpc_service="etcdserverpb.Auth",grpc_type="unary"}"#;
    etcd.metric(0, name).expect("etcd counts calls") as u64
}
