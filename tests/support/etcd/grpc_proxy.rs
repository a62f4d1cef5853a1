use std::{
    env,
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Etcd, Process, START, http_get, missing, program};
use crate::port::Port;

/// etcd's own gRPC proxy, running as a separate process in front of a cluster without TLS. Killed
/// on drop.
///
/// Clients treat it as a member. It merges watches: the cluster sees one watch for all watches of
/// the same range, and the proxy assigns its own watch ids.
#[derive(Debug)]
pub struct GrpcProxy {
    /// The port it listens on. It needs no other port, because it serves health there too.
    port: Port,
    endpoints: Vec<String>,
    process: Mutex<Option<Process>>,
}

impl GrpcProxy {
    /// Starts a proxy in front of all members of a cluster and waits until it answers.
    pub async fn before(etcd: &Etcd) -> Self {
        Self::before_members(etcd.members()).await
    }

    /// Starts a proxy in front of these members, `host:port`, and waits until it answers.
    pub async fn before_members(members: impl IntoIterator<Item = String>) -> Self {
        let endpoints: Vec<String> = members.into_iter().collect();
        // A process that is no test may take the port between finding it free and using it.
        for _ in 0..5 {
            let port = Port::reserve();
            let proxy = Self { port, endpoints: endpoints.clone(), process: Mutex::default() };
            proxy.run();
            if proxy.try_ready().await {
                return proxy;
            }
        }
        panic!("the proxy did not start in five attempts; set ETCD_LOG=1 to see its messages");
    }

    /// Returns the address it listens on, `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Kills it: SIGKILL.
    pub fn kill(&self) {
        self.process().take();
    }

    /// Starts the killed proxy on its former port and waits until it answers.
    pub async fn restart(&self) {
        self.run();
        assert!(self.try_ready().await, "the proxy did not restart; set ETCD_LOG=1 to see its messages");
    }

    /// Freezes it; its connections stay open: SIGSTOP.
    pub fn pause(&self) {
        self.process().as_ref().expect("the proxy runs").signal("STOP");
    }

    /// Wakes it: SIGCONT.
    pub fn resume(&self) {
        self.process().as_ref().expect("the proxy runs").signal("CONT");
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let address = self.address();
        let mut command = Command::new(program());
        command
            .args(["grpc-proxy", "start", "--endpoints", &self.endpoints.join(",")])
            // The address it reports in the cluster's list of members. By default that is a port on
            // which nothing listens.
            .args(["--listen-addr", &address, "--advertise-client-url", &address])
            .env_clear()
            .stdin(Stdio::null());
        if env::var_os("ETCD_LOG").is_none() {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        let child = command.spawn().unwrap_or_else(|error| missing(&error));
        *self.process() = Some(Process(child));
    }

    /// Returns whether it answers before it exits or the time is up.
    async fn try_ready(&self) -> bool {
        let start = Instant::now();
        while start.elapsed() < START {
            if self.process().as_mut().is_none_or(|process| !process.is_running()) {
                return false;
            }
            // It asks the cluster for this. With authentication enabled the answer is that it is
            // unhealthy.
            if http_get(&self.port, "/health").is_some_and(|answer| answer.contains("health")) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Raw;

    #[tokio::test]
    async fn a_proxy_serves_the_cluster_until_it_is_killed() {
        let etcd = Etcd::start().await;
        let proxy = GrpcProxy::before(&etcd).await;
        let mut behind = etcd.raw().await;
        let mut through = Raw::connect(&[proxy.address()]).await;
        through.put("key", "through it").await;
        assert_eq!(behind.entry("key").await, Some((b"through it".to_vec(), 0)));
        proxy.pause();
        let asked = tokio::time::timeout(Duration::from_millis(500), through.entry("key")).await;
        assert!(asked.is_err(), "a frozen proxy returned {asked:?}");
        proxy.resume();
        assert!(through.entry("key").await.is_some());
        proxy.kill();
        assert!(through.try_put("key", "without it").await.is_err());
        proxy.restart().await;
        let mut again = Raw::connect(&[proxy.address()]).await;
        again.put("key", "through it again").await;
        assert_eq!(behind.entry("key").await, Some((b"through it again".to_vec(), 0)));
    }
}
