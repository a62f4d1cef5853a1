//! A `RegisteredServer` as a process.

use std::{collections::BTreeMap, net::TcpListener, time::Duration};

use discovery::{
    Instance, InstanceId, Metadata, RegisteredServer, ServiceName, Status, StatusReceiver, Weight, server::ServerHandle,
};
use greeter::Greeter;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tonic::transport::Server;

use super::lines::{Command, commands, emit, refuse};
use crate::failure::Failure;

/// How a server is started.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct ServeOptions {
    /// The URL of the registry.
    pub(crate) registry: String,
    pub(crate) service: String,
    /// The server's name in its answers.
    pub(crate) name: String,
    /// By default the address.
    pub(crate) id: Option<String>,
    pub(crate) listen: String,
    /// The host to register with the listener's port, by default the listener's.
    pub(crate) host: Option<String>,
    pub(crate) drain_ms: u64,
}

/// What `update` takes.
#[derive(Debug, Deserialize)]
struct Description {
    weight: u16,
    metadata: BTreeMap<String, String>,
}

/// Serves until `stop`, the end of stdin or SIGTERM.
pub(crate) async fn serve(options: ServeOptions) -> Result<(), Failure> {
    let backend = discovery::open(&options.registry)?;
    let service: ServiceName = options.service.parse()?;
    let listener = TcpListener::bind(&options.listen)?;
    let port = listener.local_addr()?.port();
    let id = options.id.map(|id| id.parse::<InstanceId>()).transpose()?;
    let mut builder = RegisteredServer::builder(backend, service)
        .drain_time(Duration::from_millis(options.drain_ms))
        .stop_on_signals()
        .instance(move |instance| match id {
            Some(id) => instance.with_id(id),
            None => instance,
        });
    if let Some(host) = options.host {
        builder = builder.advertise(format!("{host}:{port}").parse()?);
    }
    let server = builder.listen_on(listener)?;
    emit("listening", json!({ "address": server.instance().address().to_string() }));
    let address = server.instance().address().to_string();
    let life = tokio::spawn(report(server.handle().statuses(), address));
    tokio::spawn(attend(server.handle()));
    let router = Server::builder().add_service(Greeter::new(&options.name).into_service());
    server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)).await?;
    life.await?;
    emit("stopped", json!({}));
    Ok(())
}

/// Reports every change of the registration. A repaired one is `registered` again.
async fn report(mut statuses: StatusReceiver, address: String) {
    while let Some(status) = statuses.changed().await {
        match status {
            Status::Registered { .. } => emit("registered", json!({ "address": address })),
            Status::Lost { error, .. } => emit("lost", json!({ "message": error.to_string() })),
            Status::Superseded { .. } => emit("superseded", json!({})),
            Status::Deregistered { .. } => emit("deregistered", json!({})),
            other => emit("status", json!({ "status": format!("{other:?}") })),
        }
    }
}

/// Carries out the commands, until stdin ends.
async fn attend(handle: ServerHandle) {
    let mut commands = commands();
    while let Some(command) = commands.recv().await {
        match command.word.as_str() {
            "update" => update(&handle, &command).await,
            "stop" => handle.stop(),
            _ => refuse(&command, "the commands are update {\"weight\":NUMBER,\"metadata\":{..}} and stop"),
        }
    }
    handle.stop();
}

async fn update(handle: &ServerHandle, command: &Command) {
    let described = async {
        let Description { weight, metadata } = serde_json::from_str(&command.rest)?;
        let weight = Weight::new(weight)?;
        let mut described = Metadata::default();
        for (key, value) in metadata {
            described.insert(key, value)?;
        }
        handle.update(|instance: Instance| instance.with_weight(weight).with_metadata(described)).await?;
        Ok::<_, Failure>(())
    };
    match described.await {
        Ok(()) => emit("updated", json!({})),
        Err(error) => refuse(command, &error.to_string()),
    }
}
