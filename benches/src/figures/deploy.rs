use std::time::Duration;

use discovery_memory::MemoryBackend;
use discovery_tonic::server::{RegisteredServer, ServerHandle, Stage};
use futures::future::join;
use greeter::Greeter;
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic::transport::Server;

use crate::{
    Failure,
    caller::Caller,
    clients,
    load::{Ended, steady},
    table::Row,
};

/// L3: six servers are replaced in turn, three times over, under load.
pub(super) async fn rows() -> Result<Vec<Row>, Failure> {
    let backend = MemoryBackend::new();
    let mut servers = Vec::new();
    for _ in 0..SERVERS {
        servers.push(deploy(&backend).await?);
    }
    let ours = clients::ours_following(&backend, SERVERS, |builder| builder).await?;
    let tonic = clients::tonic_following(&backend).await?;
    let (over, rolled) = oneshot::channel::<()>();
    let roll = async {
        for _ in 0..ROUNDS * SERVERS {
            servers.push(deploy(&backend).await?);
            let (handle, task) = servers.remove(0);
            handle.stop();
            task.await??;
        }
        sleep(DRAIN).await;
        drop(over);
        Ok::<_, Failure>(())
    };
    let ours = Caller::new(ours, DEADLINE);
    let tonic = Caller::new(tonic, DEADLINE);
    let ours = steady(&ours, RATE, || WORK, roll);
    // Dropping `over` ends the load.
    let tonic = steady(&tonic, RATE, || WORK, async { drop(rolled.await) });
    let ((ours, roll), (tonic, ())) = join(ours, tonic).await;
    roll?;
    let failed = |calls: &[Ended]| calls.iter().filter(|call| call.failed()).count() as f64;
    let what = format!("failed of {} calls, 6 servers replaced one after the other, 3 times", ours.len());
    Ok(vec![Row::new("L3", what, failed(&ours)).against("tonic `balance_channel`", failed(&tonic)).most(0.0)])
}

/// Starts a server in this process and waits until it is serving and registered.
async fn deploy(backend: &MemoryBackend) -> Result<(ServerHandle, JoinHandle<Result<(), Failure>>), Failure> {
    let builder = RegisteredServer::builder(backend.another_process(), clients::service()).drain_time(DRAIN);
    let server = builder.bind("127.0.0.1:0".parse()?).await?;
    let handle = server.handle();
    let router = Server::builder().add_service(Greeter::new("here").into_service());
    let task = tokio::spawn(async move {
        server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)).await?;
        Ok(())
    });
    timeout(Duration::from_secs(10), handle.reached(Stage::Serving)).await?;
    Ok((handle, task))
}

const SERVERS: usize = 6;
const ROUNDS: usize = 3;
/// How long a server keeps serving after it has deregistered, chosen so that there are more than
/// 20,000 calls.
const DRAIN: Duration = Duration::from_millis(2_200);
/// Calls per second, and how long each takes.
const RATE: u32 = 500;
const WORK: Duration = Duration::from_millis(10);
const DEADLINE: Option<Duration> = Some(Duration::from_secs(10));
