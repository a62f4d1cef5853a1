use std::sync::Arc;

use async_trait::async_trait;
use discovery_core::{
    Error, ServiceName,
    backend::{Feed, Source},
};

use crate::{
    lease::keep,
    state::{Event, Store},
};

/// The source of one handle.
#[derive(Debug)]
pub(crate) struct MemorySource {
    pub(crate) store: Arc<Store>,
    pub(crate) process: u64,
}

/// Closes an upstream watch when its attempt ends.
struct Open<'a>(&'a Store, u64);

#[async_trait]
impl Source for MemorySource {
    async fn follow(&self, service: &ServiceName, feed: Feed) -> Result<(), Error> {
        keep(&self.store);
        let (entries, number, mut events) = {
            let mut state = self.store.lock();
            state.reach(self.process)?;
            let (number, events) = state.open(self.process, service);
            (state.read(service), number, events)
        };
        let _open = Open(&self.store, number);
        let mut live = feed.reset(entries);
        while let Some(event) = events.recv().await {
            match event {
                Event::Change(upserts, removes) => live.change(upserts, removes),
                Event::End(error) => return Err(error),
                // Bypasses the panic hook, which would print it.
                Event::Panic => std::panic::resume_unwind(Box::new("a panic on demand")),
                Event::Reset(entries) => live.reset(entries),
            }
        }
        Ok(())
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.lock().close(self.1);
    }
}
