//! The harness that runs the conformance suite on the memory backend, shared by two test programs.

use std::time::Duration;

use async_trait::async_trait;
use discovery_core::{
    Error, ErrorKind, InstanceId, ServiceName,
    conformance::{Capabilities, Harness, Process, Timings},
};
use discovery_memory::MemoryBackend;

/// A new registry in memory. The harness itself holds a handle, which no law uses.
#[derive(Clone, Debug)]
pub(crate) struct MemoryHarness {
    pub(crate) memory: MemoryBackend,
    pub(crate) quiet: Duration,
}

impl MemoryHarness {
    /// Creates a harness for a paused clock, where waiting costs nothing.
    pub(crate) fn new() -> Self {
        Self { memory: MemoryBackend::new(), quiet: Duration::from_secs(3) }
    }
}

#[async_trait]
impl Harness for MemoryHarness {
    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }

    fn timings(&self) -> Timings {
        Timings { queue: 128, quiet: self.quiet, settle: Duration::from_secs(5), ttl: self.memory.ttl() }
    }

    async fn process(&self) -> Process {
        let backend = self.memory.another_process();
        let killed = backend.clone();
        let counted = backend.clone();
        Process::new(backend).killed_by(move || killed.crash()).counting_skipped(move || counted.skipped())
    }

    async fn interrupt(&self) {
        self.memory.interrupt();
    }

    async fn restore(&self) {
        self.memory.restore();
    }

    async fn refuse(&self) {
        self.memory.interrupt_with(Error::new(ErrorKind::PermissionDenied, "the registry refuses"));
    }

    async fn deny(&self) {
        self.memory.interrupt_with(Error::new(ErrorKind::PermissionDenied, "the registry refuses"));
    }

    async fn permit(&self) {
        self.memory.restore();
    }

    async fn expire(&self, service: &ServiceName, id: &InstanceId) {
        assert!(self.memory.expire(service, id.as_str()), "there is no {id} to expire");
    }

    async fn remove(&self, service: &ServiceName, id: &InstanceId) {
        assert!(self.memory.remove(service, id.as_str()), "there is no {id} to remove");
    }

    async fn wipe(&self) {
        self.memory.wipe();
    }

    async fn put_bad(&self, service: &ServiceName, id: &InstanceId) {
        self.memory.put_unreadable(&format!("{service}/{id}"));
    }

    async fn put_deeper(&self, service: &ServiceName) {
        self.memory.put_unreadable(&format!("{service}/deeper/10.9.0.9:80"));
    }

    async fn panic_watches(&self, service: &ServiceName) {
        self.memory.panic_watches(service);
    }

    async fn upstream_watches(&self, service: &ServiceName) -> usize {
        self.memory.watches(service)
    }
}
