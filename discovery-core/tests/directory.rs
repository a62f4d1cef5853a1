//! A backend as a third party could write it keeps the laws that it declares, on real files and the
//! real clock.

#[path = "../examples/directory/backend.rs"]
mod backend;

use std::{
    fs::{self, File},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use backend::Directory;
use discovery_core::{
    InstanceId, ServiceName,
    conformance::{Capabilities, Harness, Process, Timings},
};

discovery_core::conformance_tests! { Root::new(), #[tokio::test] }

/// A directory of its own, removed at the end of the test.
struct Root {
    path: PathBuf,
    polls: Mutex<Vec<Arc<AtomicUsize>>>,
}

impl Root {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("discovery-directory-{:016x}", fastrand::u64(..)));
        Directory::create(&path.join("registry")).unwrap();
        Self { path, polls: Mutex::default() }
    }

    fn file(&self, service: &ServiceName, id: &str) -> PathBuf {
        self.path.join("registry/services").join(service.as_str()).join(id)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[async_trait]
impl Harness for Root {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            bad_entries: true,
            deeper_keys: true,
            expiry: true,
            leases: true,
            outages: true,
            removal: true,
            skip_count: true,
            upstream_watches: true,
            ..Capabilities::default()
        }
    }

    fn timings(&self) -> Timings {
        let quiet = Duration::from_millis(300);
        let settle = Duration::from_secs(5);
        Timings { queue: 128, quiet, settle, ttl: Duration::from_secs(1) }
    }

    async fn process(&self) -> Process {
        let directory = Arc::new(Directory::open(&self.path.join("registry"), self.timings().ttl).unwrap());
        self.polls.lock().unwrap().push(directory.polls());
        let killed = Arc::clone(&directory);
        let counted = Arc::downgrade(&directory);
        let skipped = move || counted.upgrade().map_or(0, |directory| directory.skipped());
        Process::new(directory).killed_by(move || killed.abandon()).counting_skipped(skipped)
    }

    async fn interrupt(&self) {
        fs::rename(self.path.join("registry"), self.path.join("away")).unwrap();
    }

    async fn restore(&self) {
        fs::rename(self.path.join("away"), self.path.join("registry")).unwrap();
    }

    async fn expire(&self, service: &ServiceName, id: &InstanceId) {
        File::open(self.file(service, id.as_str())).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }

    async fn remove(&self, service: &ServiceName, id: &InstanceId) {
        fs::remove_file(self.file(service, id.as_str())).unwrap();
    }

    async fn put_bad(&self, service: &ServiceName, id: &InstanceId) {
        fs::write(self.file(service, id.as_str()), "nobody\nnothing").unwrap();
        // No owner touches it, so it gets a time that does not expire during the test.
        let later = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 33);
        File::open(self.file(service, id.as_str())).unwrap().set_modified(later).unwrap();
    }

    async fn put_deeper(&self, service: &ServiceName) {
        fs::create_dir_all(self.file(service, "deeper")).unwrap();
        fs::write(self.file(service, "deeper/10.9.0.9:80"), "nobody\nnothing").unwrap();
    }

    async fn upstream_watches(&self, _: &ServiceName) -> usize {
        self.polls.lock().unwrap().iter().map(|polls| polls.load(Ordering::Relaxed)).sum()
    }
}
