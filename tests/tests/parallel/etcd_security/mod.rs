//! Access to etcd and permissions in it: TLS, certificates, users, roles and tokens, on real etcd
//! processes.

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

/// Waits for the next loss of a stream, whatever comes before it.
async fn lost(updates: &mut UpdateStream) -> Error {
    let lost = async {
        loop {
            if let Update::Lost(error) = updates.next().await.expect("streams do not end") {
                return error;
            }
        }
    };
    timeout(SOON, lost).await.expect("a loss is reported")
}

/// Waits for the next full set of a stream and returns its size.
async fn reset(updates: &mut UpdateStream) -> usize {
    let reset = async {
        loop {
            if let Update::Reset(set) = updates.next().await.expect("streams do not end") {
                return set.len();
            }
        }
    };
    timeout(SOON, reset).await.expect("a set arrives")
}

/// Returns the kind of error with which a list fails.
async fn refusal(backend: &EtcdBackend) -> ErrorKind {
    backend.list(&payments()).await.expect_err("it is refused").kind()
}

/// Returns how many times a member was asked to check a password.
fn authenticated(etcd: &Etcd) -> u64 {
    let name =
        r#"grpc_server_started_total{grpc_method="Authenticate",grpc_service="etcdserverpb.Auth",grpc_type="unary"}"#;
    etcd.metric(0, name).expect("etcd counts calls") as u64
}
