//! All certificates are replaced under load, those of the authority too.

use std::{fs, time::Duration};

use discovery_core::Resolver;
use discovery_memory::MemoryBackend;
use discovery_tonic::{
    BalancedChannel, ChannelTls, EndpointSettings,
    server::{RegisteredServer, ServerHandle, Stage},
};
use greeter::Greeter;
use support::{
    Authority, Certificate, Flaw, eventually,
    load::{Load, unary_and_streaming},
    scene::SOON,
};
use tokio::{task::JoinHandle, time::sleep};
use tonic::transport::Server;

use super::server_tls;

struct Running {
    handle: ServerHandle,
    task: JoinHandle<()>,
}

async fn serve(backend: &MemoryBackend, name: &str, own: &Certificate, client_authorities: &str) -> Running {
    let server = RegisteredServer::builder(backend.clone(), "greeter".parse().unwrap())
        .drain_time(Duration::from_millis(300))
        .bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let handle = server.handle();
    let router = Server::builder()
        .tls_config(server_tls(own, Some(client_authorities)))
        .unwrap()
        .add_service(Greeter::new(name).into_service());
    let serving = server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway));
    let task = tokio::spawn(async move {
        serving.await.unwrap();
    });
    handle.reached(Stage::Serving).await;
    Running { handle, task }
}

/// Replaces the servers one after the other, as a deployment does.
async fn roll(backend: &MemoryBackend, servers: &mut [Running], own: &Certificate, client_authorities: &str) {
    for server in servers {
        let next = serve(backend, "next", own, client_authorities).await;
        let former = std::mem::replace(server, next);
        former.handle.stop();
        former.task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_rotated_under_load_without_a_failed_call() {
    let old_folder = tempfile::tempdir().unwrap();
    let new_folder = tempfile::tempdir().unwrap();
    let old = Authority::in_folder(old_folder.path());
    let new = Authority::in_folder(new_folder.path());
    let both = format!("{}{}", old.pem(), new.pem());
    let old_server = old.server(Flaw::None);
    let new_server = new.server(Flaw::None);
    let own = old.client("teller", Flaw::None);
    let backend = MemoryBackend::new();
    let mut servers = Vec::new();
    for name in ["one", "two", "three"] {
        servers.push(serve(&backend, name, &old_server, old.pem()).await);
    }
    let tls = ChannelTls::new().ca_file(old.file()).identity_files(&own.cert_file, &own.key_file);
    let settings = EndpointSettings::default().max_connection_age(Duration::from_secs(1)).unwrap();
    let channel = BalancedChannel::builder(backend.clone(), "greeter".parse().unwrap())
        .tls(tls)
        .endpoint_settings(move |_| settings.clone())
        .build()
        .unwrap();
    channel.wait_until_ready(SOON).await.unwrap();
    let load = Load::start(0, 200, unary_and_streaming(channel.clone()));

    // Both sides trust both authorities before anyone presents a certificate of the new one.
    fs::write(old.file(), &both).unwrap();
    sleep(Duration::from_secs(2)).await;
    roll(&backend, &mut servers, &old_server, &both).await;
    roll(&backend, &mut servers, &new_server, &both).await;
    let next = new.client("teller", Flaw::None);
    fs::write(&own.key_file, &next.key).unwrap();
    fs::write(&own.cert_file, &next.cert).unwrap();
    sleep(Duration::from_secs(2)).await;
    // The former authority is trusted by nobody any more.
    fs::write(old.file(), new.pem()).unwrap();
    roll(&backend, &mut servers, &new_server, new.pem()).await;
    sleep(Duration::from_secs(2)).await;

    let outcome = load.stop().await;
    println!("{} calls, {} failed", outcome.calls, outcome.failed.len());
    assert!(outcome.failed.is_empty(), "{:?}", outcome.failed.first());
    let set = backend.list(&"greeter".parse().unwrap()).await.unwrap();
    let ready = async || {
        channel.endpoints().len() == 3
            && channel
                .endpoints()
                .iter()
                .all(|one| one.error.is_none() && set.get(one.instance.id().as_str()).is_some())
    };
    eventually("all endpoints are connected with the new certificates", SOON, ready).await;
    for server in servers {
        server.handle.stop();
        server.task.await.unwrap();
    }
}
