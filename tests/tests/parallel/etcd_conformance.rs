//! The laws of every backend, on real etcd processes.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use discovery_core::{
    Backoff, Error, Instance, InstanceId, ServiceName,
    conformance::{Capabilities, Harness, Process, Timings},
};
use discovery_etcd::{Decoded, EtcdBackend, EtcdConfig, EtcdNaming, Layout, Tail, Written};
use support::{Etcd, Fault, GrpcProxy, Proxy};
use tokio::runtime::{Builder, Runtime};

discovery_core::conformance_tests! { EtcdHarness::start().await, #[tokio::test] }

/// The same laws for processes that know only etcd's own gRPC proxy.
mod through_grpc_proxy {
    use super::EtcdHarness;

    discovery_core::conformance_tests! { EtcdHarness::start_with_grpc_proxy().await, #[tokio::test] }
}

/// One etcd behind a proxy. Its processes are handles, each on its own runtime so that it can be
/// killed.
struct EtcdHarness {
    etcd: Etcd,
    /// Between the proxy and etcd.
    grpc_proxy: Option<GrpcProxy>,
    proxy: Proxy,
    runtimes: Mutex<Vec<Slot>>,
}

/// A runtime until a kill or the end of the test takes it. It is shut down in the background,
/// because a plain drop would block.
type Slot = Arc<Mutex<Option<Runtime>>>;

fn end(slot: &Slot) {
    if let Some(runtime) = slot.lock().unwrap_or_else(PoisonError::into_inner).take() {
        runtime.shutdown_background();
    }
}

impl Drop for EtcdHarness {
    fn drop(&mut self) {
        self.runtimes.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(end);
    }
}

impl EtcdHarness {
    async fn start() -> Self {
        let etcd = Etcd::start().await;
        let proxy = Proxy::to(etcd.address()).await;
        Self { etcd, grpc_proxy: None, proxy, runtimes: Mutex::default() }
    }

    async fn start_with_grpc_proxy() -> Self {
        let etcd = Etcd::start().await;
        let grpc_proxy = GrpcProxy::before(&etcd).await;
        let proxy = Proxy::to(grpc_proxy.address()).await;
        Self { etcd, grpc_proxy: Some(grpc_proxy), proxy, runtimes: Mutex::default() }
    }
}

#[async_trait]
impl Harness for EtcdHarness {
    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }

    fn timings(&self) -> Timings {
        let quiet = Duration::from_millis(500);
        let settle = Duration::from_secs(10);
        Timings { queue: 128, quiet, settle, ttl: Duration::from_secs(2) }
    }

    async fn process(&self) -> Process {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let config = EtcdConfig::new([self.proxy.address()])
            .ttl(Duration::from_secs(2))
            .request_timeout(Duration::from_secs(1))
            .operation_timeout(Duration::from_secs(5))
            .backoff(Backoff::new(Duration::from_millis(50), Duration::from_secs(1)).unwrap())
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_millis(500))
            .layout(Explosive(EtcdNaming::default()));
        let backend = {
            let _guard = runtime.enter();
            EtcdBackend::new(config).unwrap()
        };
        let reader = backend.clone();
        let slot: Slot = Arc::new(Mutex::new(Some(runtime)));
        self.runtimes.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&slot));
        Process::new(backend).counting_skipped(move || reader.skipped()).killed_by(move || end(&slot))
    }

    async fn interrupt(&self) {
        self.proxy.set(Fault::Refuse);
    }

    async fn refuse(&self) {
        // Silence is another kind of outage than refused connections.
        self.proxy.set(Fault::BlackHole);
    }

    async fn restore(&self) {
        self.proxy.set(Fault::None);
    }

    async fn deny(&self) {
        // The processes have no user.
        self.etcd.raw().await.enable_auth("canary").await;
    }

    async fn permit(&self) {
        self.etcd.raw_as("root", "canary").await.disable_auth().await;
    }

    async fn expire(&self, service: &ServiceName, id: &InstanceId) {
        let mut raw = self.etcd.raw().await;
        let (_, lease) = raw.entry(&format!("{service}/{id}")).await.expect("the entry is there");
        raw.revoke(lease).await;
    }

    async fn remove(&self, service: &ServiceName, id: &InstanceId) {
        self.etcd.raw().await.delete(&format!("{service}/{id}")).await;
    }

    async fn wipe(&self) {
        self.etcd.wipe().await;
    }

    async fn put_bad(&self, service: &ServiceName, id: &InstanceId) {
        self.etcd.raw().await.put(&format!("{service}/{id}"), "{").await;
    }

    async fn put_deeper(&self, service: &ServiceName) {
        let value = support::entry::encode(&Instance::new("10.9.9.9:80".parse().unwrap()));
        self.etcd.raw().await.put(&format!("{service}/deeper/10.9.9.9:80"), value).await;
    }

    async fn panic_watches(&self, service: &ServiceName) {
        let mut raw = self.etcd.raw().await;
        let key = format!("{service}/explosive");
        raw.put(&key, EXPLOSIVE).await;
        raw.delete(&key).await;
    }

    async fn upstream_watches(&self, _: &ServiceName) -> usize {
        // A watch is opened just after the first set.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let all = self.etcd.metric(0, "etcd_debugging_mvcc_watcher_total").expect("etcd counts its watchers") as usize;
        // The gRPC proxy has two watches of its own, by which it learns whether there is a leader.
        let own = if self.grpc_proxy.is_some() { 2 } else { 0 };
        // Each registration watches its own entry.
        all.saturating_sub(self.etcd.raw().await.keys().await.len() + own)
    }
}

/// etcd's format, with one value that makes its reader panic.
#[derive(Debug)]
struct Explosive(EtcdNaming);

const EXPLOSIVE: &str = "explosive";

impl Layout for Explosive {
    fn range(&self, service: &ServiceName) -> String {
        self.0.range(service)
    }

    fn write(&self, service: &ServiceName, instance: &Instance, lease: i64) -> Written {
        self.0.write(service, instance, lease)
    }

    fn classify(&self, tail: &str) -> Tail {
        self.0.classify(tail)
    }

    fn read(&self, tail: &str, value: &[u8]) -> Result<Vec<Decoded>, Error> {
        assert!(value != EXPLOSIVE.as_bytes(), "this value makes the layout panic");
        self.0.read(tail, value)
    }
}
