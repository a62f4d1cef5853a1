//! What this thread logs, as far as a law needs it.

use std::{
    fmt,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use tracing::{Dispatch, Event, Level, Subscriber, field::Field, subscriber::DefaultGuard};
use tracing_subscriber::{
    layer::{Context, Layer, SubscriberExt},
    registry,
};

/// Counts the warnings of this thread that mention a text, for as long as it lives.
pub(super) struct Log {
    lines: Arc<AtomicUsize>,
    _guard: DefaultGuard,
}

struct Mentions {
    text: &'static str,
    lines: Arc<AtomicUsize>,
}

struct Search<'a> {
    text: &'a str,
    found: bool,
}

impl Log {
    pub(super) fn mentioning(text: &'static str) -> Self {
        LazyLock::force(&OTHERS);
        let lines = Arc::default();
        let mentions = Mentions { text, lines: Arc::clone(&lines) };
        Self { lines, _guard: tracing::subscriber::set_default(registry().with(mentions)) }
    }

    pub(super) fn lines(&self) -> usize {
        self.lines.load(Ordering::Relaxed)
    }
}

impl<S: Subscriber> Layer<S> for Mentions {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut search = Search { text: self.text, found: false };
        event.record(&mut search);
        if search.found && *event.metadata().level() == Level::WARN {
            self.lines.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl tracing::field::Visit for Search<'_> {
    fn record_debug(&mut self, _: &Field, value: &dyn fmt::Debug) {
        self.found |= format!("{value:?}").contains(self.text);
    }
}

/// Subscribers that get nothing. While a process has only one, tracing asks the thread that reaches
/// a callsite first whether anybody listens, and takes its "no" for all threads: a law would miss
/// what another law's thread has logged first.
static OTHERS: LazyLock<[Dispatch; 2]> = LazyLock::new(|| [(); 2].map(|()| Dispatch::new(registry())));
