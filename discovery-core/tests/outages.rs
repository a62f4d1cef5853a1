//! What is logged of an outage: two lines per service, however many streams follow it.

use std::{
    fmt::{self, Write},
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use discovery_core::{
    Error, ErrorKind, Resolver, ResolverExt, ServiceName, Update, UpdateStream,
    backend::{Feed, Recovered, Source},
};
use futures::StreamExt;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{Dispatch, Event, Subscriber, field::Field, subscriber::DefaultGuard};
use tracing_subscriber::{
    layer::{Context, Layer, SubscriberExt},
    registry,
};

/// A registry that can be reached, or fails with an error of this kind.
#[derive(Debug)]
struct Registry(watch::Receiver<Option<ErrorKind>>);

#[async_trait]
impl Source for Registry {
    async fn follow(&self, _: &ServiceName, feed: Feed) -> Result<(), Error> {
        let mut failure = self.0.clone();
        let mut feed = Some(feed);
        let mut live = None;
        loop {
            if let Some(kind) = *failure.borrow_and_update() {
                return Err(Error::new(kind, "the test cut it off"));
            }
            live = live.or_else(|| Some(feed.take()?.reset([])));
            failure.changed().await.unwrap();
        }
    }
}

/// Keeps what this thread logs, a line for each event, and may panic at each.
#[derive(Clone, Default)]
struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    panics: bool,
}

struct Line(String);

impl Log {
    fn install(&self) -> DefaultGuard {
        LazyLock::force(&OTHERS);
        tracing::subscriber::set_default(registry().with(self.clone()))
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.lines.lock().unwrap())
    }
}

impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.lines.lock().unwrap().push(line.0);
        assert!(!self.panics, "a fault of the subscriber");
    }
}

impl tracing::field::Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {}={value:?}", field.name()).unwrap();
    }
}

/// Takes one update of each stream.
async fn take(streams: &mut [UpdateStream]) -> Vec<Update> {
    let mut taken = Vec::new();
    for stream in streams {
        taken.push(timeout(Duration::from_secs(60), stream.next()).await.unwrap().unwrap());
    }
    taken
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_logged_once_per_service() {
    let log = Log::default();
    let _guard = log.install();
    let (fail, failure) = watch::channel(None);
    let resolver = Recovered::new(Registry(failure));
    let payments: ServiceName = "payments".parse().unwrap();
    let orders: ServiceName = "orders".parse().unwrap();
    let mut streams = [&payments, &payments, &orders].map(|service| resolver.watch(service).unwrap());
    let view = resolver.view(&payments).unwrap();
    take(&mut streams).await;
    assert_eq!(log.take(), Vec::<String>::new());

    for _ in 0..2 {
        fail.send_replace(Some(ErrorKind::Unavailable));
        assert!(take(&mut streams).await.iter().all(|update| matches!(update, Update::Lost(_))));
        let mut lines = log.take();
        lines.sort();
        let lost = |service| {
            let error = format!("watch: the test cut it off (service {service})");
            format!("WARN message=registry lost service={service} error={error}")
        };
        assert_eq!(lines, [lost("orders"), lost("payments")]);

        sleep(Duration::from_secs(20)).await;
        fail.send_replace(Some(ErrorKind::PermissionDenied));
        assert!(take(&mut streams).await.iter().all(|update| matches!(update, Update::Lost(_))));
        assert_eq!(view.lost().unwrap().kind(), ErrorKind::PermissionDenied);
        assert_eq!(log.take(), Vec::<String>::new(), "the error changed its kind");

        fail.send_replace(None);
        assert!(take(&mut streams).await.iter().all(|update| matches!(update, Update::Reset(_))));
        let mut lines = log.take();
        lines.sort();
        assert_eq!(lines.len(), 2, "{lines:?}");
        for (line, service) in lines.iter().zip(["orders", "payments"]) {
            let outage = line.strip_prefix(&format!("INFO message=registry regained service={service} outage="));
            let outage = outage.and_then(|outage| outage.strip_suffix('s')).map(str::parse::<f64>);
            assert!(matches!(outage, Some(Ok(20.0..60.0))), "{line}");
        }
    }
}

/// A panic of the subscriber is no fault of the backend, and does not end the watch.
#[tokio::test(start_paused = true)]
async fn a_subscriber_that_panics_changes_no_update() {
    let log = Log { panics: true, ..Log::default() };
    let _guard = log.install();
    let (fail, failure) = watch::channel(None);
    let resolver = Recovered::new(Registry(failure));
    let mut streams = [resolver.watch(&"payments".parse().unwrap()).unwrap()];
    take(&mut streams).await;
    for _ in 0..2 {
        fail.send_replace(Some(ErrorKind::Unavailable));
        let lost = take(&mut streams).await;
        assert!(matches!(&lost[..], [Update::Lost(error)] if error.kind() == ErrorKind::Unavailable), "{lost:?}");
        fail.send_replace(None);
        let regained = take(&mut streams).await;
        assert!(matches!(regained[..], [Update::Reset(_)]), "{regained:?}");
        assert_eq!(log.take().len(), 2);
    }
    assert!(timeout(Duration::from_secs(60), streams[0].next()).await.is_err(), "no further update");
}

/// A runtime that shuts down is mostly the end of the program, which is no outage. A stream that
/// goes on elsewhere has an outage in common with the former watch.
#[test]
fn the_end_of_a_runtime_is_no_outage() {
    let log = Log::default();
    let _guard = log.install();
    let (fail, failure) = watch::channel(None);
    let resolver = Recovered::new(Registry(failure));
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let service = "payments".parse().unwrap();

    let first = runtime();
    let mut stream = first.block_on(async { resolver.watch(&service).unwrap() });
    first.block_on(async { stream.next().await.unwrap() });
    drop(first);
    let second = runtime();
    let next = |stream: &mut UpdateStream| {
        second.block_on(async { timeout(Duration::from_secs(10), stream.next()).await }).unwrap().unwrap()
    };
    assert!(matches!(next(&mut stream), Update::Lost(_)));
    assert!(matches!(next(&mut stream), Update::Reset(_)));
    assert_eq!(log.take(), Vec::<String>::new());

    fail.send_replace(Some(ErrorKind::Unavailable));
    assert!(matches!(next(&mut stream), Update::Lost(_)));
    assert_eq!(log.take().len(), 1);
    drop(second);
    fail.send_replace(None);
    let third = runtime();
    let until_reset = async { while !matches!(stream.next().await, Some(Update::Reset(_))) {} };
    third.block_on(async { timeout(Duration::from_secs(10), until_reset).await }).unwrap();
    let lines = log.take();
    assert!(matches!(&lines[..], [line] if line.starts_with("INFO message=registry regained")), "{lines:?}");
}

/// Subscribers that get nothing. While a process has only one, tracing asks the thread that reaches
/// a callsite first whether anybody listens, and takes its "no" for all threads.
static OTHERS: LazyLock<[Dispatch; 2]> = LazyLock::new(|| [(); 2].map(|()| Dispatch::new(registry())));
