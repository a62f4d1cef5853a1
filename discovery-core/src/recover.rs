//! Recovery, the same for every backend: attempts, backoff, time limits and panics.

use std::{
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt, stream};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep, timeout},
};

use crate::{
    Backoff, Error, ErrorKind, InstanceId, Resolver, ServiceName, SkippedEntries, Snapshot, UpdateStream,
    backend::{Entry, Feed, Source},
    reject::Rejects,
    resolver::require_runtime,
    share::{Attempt, Known, Orphanage, Progress, Shared, Subscription, Watches},
    source::Sink,
};

/// Makes a [`Resolver`] of a [`Source`] by adding recovery, sharing and the laws of the stream, the
/// same for every backend.
///
/// One attempt per service runs at a time, however many streams watch it. When it fails, watchers
/// get one [`Lost`](crate::Update::Lost), and the next attempt follows after a [`Backoff`] with
/// full jitter, for as long as anyone watches. Dropping the last stream ends the attempt at once. A
/// panic of the source counts as an error.
///
/// An outage is logged once per service, however many streams there are: `registry lost` (`warn`,
/// with `service` and `error`) when it begins, and `registry regained` (`info`, with `service` and
/// how long the `outage` took) when it is over. Views and channels log neither, so a [`Resolver`]
/// that does not use this type logs its outages itself.
///
/// `list` runs an attempt of its own until the first set.
#[derive(Debug)]
pub struct Recovered<S>(Arc<Hub<S>>);

/// The settings of [`Recovered`]: delays, time limits and bounds.
///
/// ```
/// use std::time::Duration;
/// use discovery_core::{Backoff, backend::Recovery};
///
/// let recovery = Recovery::default()
///     .backoff(Backoff::new(Duration::from_millis(50), Duration::from_secs(2))?)
///     .max_entries(500);
/// # Ok::<(), discovery_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Recovery {
    backoff: Backoff,
    first_set_timeout: Duration,
    backoff_reset_after: Duration,
    queue_capacity: usize,
    max_entries: usize,
}

#[derive(Debug)]
struct Hub<S> {
    source: Arc<S>,
    recovery: Recovery,
    watches: Arc<Watches>,
    rejects: Arc<Rejects>,
}

impl<S: Source> Recovered<S> {
    /// Creates a resolver over a source, with the defaults of [`Recovery`].
    pub fn new(source: impl Into<Arc<S>>) -> Self {
        Self::with_recovery(source, Recovery::default())
    }

    /// Creates a resolver over a source with these settings.
    pub fn with_recovery(source: impl Into<Arc<S>>, recovery: Recovery) -> Self {
        let (watches, rejects) = Default::default();
        Self(Arc::new(Hub { source: source.into(), recovery, watches, rejects }))
    }

    /// Returns the source.
    pub fn source(&self) -> &Arc<S> {
        &self.0.source
    }

    /// Returns how many bad entries were skipped so far, each counted once per revision.
    pub fn skipped(&self) -> u64 {
        self.0.rejects.skipped()
    }

    /// Returns how many labels were dropped so far, each counted once per revision of its entry.
    pub fn dropped_labels(&self) -> u64 {
        self.0.rejects.dropped_labels()
    }
}

impl<S> Clone for Recovered<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl Recovery {
    /// Sets the delays between attempts; default 100 ms to 10 s.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets how long an attempt or a `list` may take until its first set; default 10 s.
    pub fn first_set_timeout(mut self, timeout: Duration) -> Self {
        self.first_set_timeout = timeout;
        self
    }

    /// Sets how long an attempt must have lasted after its first set for the backoff to start over;
    /// default 60 s.
    pub fn backoff_reset_after(mut self, duration: Duration) -> Self {
        self.backoff_reset_after = duration;
        self
    }

    /// Sets how many updates a consumer may fall behind before it gets a `Reset` instead; default
    /// 128, minimum 1.
    pub fn queue_capacity(mut self, updates: usize) -> Self {
        self.queue_capacity = updates.max(1);
        self
    }

    /// Sets how many entries a service may have, bad ones included; default 20,000.
    ///
    /// A service that has more is not followed: its `list` fails and its watchers get a `Lost`,
    /// both of kind [`ResourceExhausted`](ErrorKind::ResourceExhausted), and the set stays as last
    /// known. A part of the entries would be a state that the registry never had.
    ///
    /// Since each attempt reads that many entries, the next one follows after one to two minutes,
    /// whatever the backoff is. A `list` always tries at once.
    pub fn max_entries(mut self, entries: usize) -> Self {
        self.max_entries = entries;
        self
    }
}

impl Default for Recovery {
    fn default() -> Self {
        Self {
            backoff: Backoff::default(),
            first_set_timeout: Duration::from_secs(10),
            backoff_reset_after: Duration::from_secs(60),
            queue_capacity: 128,
            max_entries: 20_000,
        }
    }
}

#[async_trait]
impl<S: Source> Resolver for Recovered<S> {
    async fn list(&self, service: &ServiceName) -> Result<Snapshot, Error> {
        let (sender, mut told) = oneshot::channel();
        let sink = Once {
            service: service.clone(),
            rejects: Arc::clone(&self.0.rejects),
            limit: self.0.recovery.max_entries,
            sender: Mutex::new(Some(sender)),
        };
        let attempt = pin!(guard(&*self.0.source, service, Feed(Arc::new(sink))));
        let first = async {
            tokio::select! {
                biased;
                Ok(set) = &mut told => set,
                // A set that has arrived counts even if the attempt ends at the same moment.
                error = attempt => told.try_recv().unwrap_or(Err(error)),
            }
        };
        let deadline = self.0.recovery.first_set_timeout;
        let result = timeout(deadline, first).await.unwrap_or_else(|_| Err(no_set(deadline)));
        result.map_err(|error| error.with_operation("list").with_service(service))
    }

    fn watch(&self, service: &ServiceName) -> Result<UpdateStream, Error> {
        let subscription = Subscription::new(self.0.join(service, Known::default())?);
        let first = (Arc::clone(&self.0), subscription);
        Ok(UpdateStream::new(stream::unfold(first, |(hub, mut subscription)| async move {
            // If the watch's runtime is gone, the runtime that polls this stream takes over the
            // watch. If that one is shutting down too, no update follows and the stream is pending,
            // so its task can be dropped.
            if subscription.shared().is_orphaned() && subscription.is_drained() {
                let service = subscription.shared().service().clone();
                let known = subscription.shared().known();
                if let Ok(shared) = hub.join(&service, known) {
                    subscription = Subscription::resumed(shared);
                }
            }
            let update = subscription.next().await;
            Some((update, (hub, subscription)))
        })))
    }

    fn skipped_entries(&self, service: &ServiceName) -> SkippedEntries {
        self.0.rejects.of_service(service)
    }
}

impl<S: Source> Hub<S> {
    /// Joins the service's watch, or starts one that continues from what is `known`.
    fn join(&self, service: &ServiceName, known: Known) -> Result<Arc<Shared>, Error> {
        let runtime = require_runtime("watch")?;
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let running = watches.get(service).and_then(Weak::upgrade);
        let shared = match &running {
            Some(shared) if !shared.is_orphaned() => Arc::clone(shared),
            _ => {
                let shared = Shared::new(service.clone(), known, self.recovery.queue_capacity, &self.watches);
                let orphanage = Orphanage(Arc::downgrade(&shared));
                let source = Arc::clone(&self.source);
                let rejects = Arc::clone(&self.rejects);
                let task = runtime.spawn(run(source, rejects, self.recovery, service.clone(), orphanage));
                shared.own(task.abort_handle());
                watches.insert(service.clone(), Arc::downgrade(&shared));
                shared
            }
        };
        // Unlocked before `running` may drop a watch, because that drop takes this lock.
        drop(watches);
        Ok(shared)
    }
}

/// The task of a watch: runs attempt after attempt until the last stream aborts it.
async fn run<S: Source>(
    source: Arc<S>,
    rejects: Arc<Rejects>,
    recovery: Recovery,
    service: ServiceName,
    orphanage: Orphanage,
) {
    let mut delays = recovery.backoff.delays();
    loop {
        let Some(number) = orphanage.0.upgrade().map(|shared| shared.begin()) else { return };
        let (error, is_full) = {
            let (progress, mut seen) = watch::channel(Progress::Opening);
            let shared = orphanage.0.clone();
            let rejects = Arc::clone(&rejects);
            let limit = recovery.max_entries;
            let attempt = Attempt { shared, number, rejects, limit, progress };
            let mut attempt = pin!(guard(&*source, &service, Feed(Arc::new(attempt))));
            // Biased, so that a set that arrives at the last moment counts before the timeout does.
            let ended = tokio::select! {
                biased;
                error = &mut attempt => Some(error),
                Ok(_) = seen.wait_for(|progress| *progress != Progress::Opening) => None,
                () = sleep(recovery.first_set_timeout) => Some(no_set(recovery.first_set_timeout)),
            };
            let error = match ended {
                Some(error) => error,
                None => {
                    let since = Instant::now();
                    let error = tokio::select! {
                        biased;
                        Ok(_) = seen.wait_for(|progress| *progress == Progress::Full) => too_many(recovery.max_entries),
                        error = &mut attempt => error,
                    };
                    if since.elapsed() >= recovery.backoff_reset_after {
                        delays.reset();
                    }
                    error
                }
            };
            // Too many entries are reported as such, whatever error the source made of them.
            let is_full = *seen.borrow() == Progress::Full;
            (if is_full { too_many(recovery.max_entries) } else { error }, is_full)
        };
        let Some(shared) = orphanage.0.upgrade() else { return };
        shared.lose(error.with_operation("watch").with_service(&service));
        drop(shared);
        sleep(if is_full { full_delay() } else { delays.next_delay() }).await;
    }
}

/// Returns the delay after an attempt that found too many entries.
fn full_delay() -> Duration {
    FULL_DELAY.mul_f64(1.0 + fastrand::f64())
}

/// Runs one attempt. Whatever ends it, a panic included, is an error.
async fn guard<S: Source>(source: &S, service: &ServiceName, feed: Feed) -> Error {
    // The call is inside the block because a hand-written `follow` may panic before it returns a
    // future.
    match AssertUnwindSafe(async { source.follow(service, feed).await }).catch_unwind().await {
        Ok(Ok(())) => Error::new(ErrorKind::Unavailable, "the registry ended the watch"),
        Ok(Err(error)) => error,
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Error::new(ErrorKind::Internal, format!("the backend panicked: {}", text.escape_debug()))
        }
    }
}

fn no_set(deadline: Duration) -> Error {
    Error::new(ErrorKind::DeadlineExceeded, format!("the registry returned no set within {deadline:?}"))
}

fn too_many(limit: usize) -> Error {
    Error::new(
        ErrorKind::ResourceExhausted,
        format!("the service has more than {limit} entries, so it is not followed"),
    )
}

/// The sink of a `list`, which needs only the first set.
#[derive(Debug)]
struct Once {
    service: ServiceName,
    rejects: Arc<Rejects>,
    limit: usize,
    sender: Mutex<Option<oneshot::Sender<Result<Snapshot, Error>>>>,
}

impl Sink for Once {
    fn limit(&self) -> usize {
        self.limit
    }

    fn reset(&self, entries: Vec<Entry>) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender {
            let set = if entries.len() > self.limit {
                Err(too_many(self.limit))
            } else {
                Ok(self.rejects.of_state(&self.service, entries).into_iter().collect())
            };
            // The caller may have given up.
            let _ = sender.send(set);
        }
    }

    fn replace(&self, _: Vec<Entry>) {}

    fn compare(&self, _: Vec<Entry>) -> bool {
        true
    }

    fn change(&self, _: Vec<Entry>, _: Vec<InstanceId>) {}

    fn forget_bad(&self, _: Vec<String>) {}
}

/// The shortest delay after an attempt that found too many entries; the longest is twice that.
const FULL_DELAY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        task::{Context, Waker},
    };

    use futures::StreamExt;

    use super::*;
    use crate::backend::Live;

    #[derive(Debug)]
    struct Steady;

    #[async_trait]
    impl Source for Steady {
        async fn follow(&self, _: &ServiceName, feed: Feed) -> Result<(), Error> {
            let _live: Live = feed.reset([]);
            std::future::pending().await
        }
    }

    /// Has as many instances as the test asks for, and sends the difference as one step.
    #[derive(Debug)]
    struct Growing(watch::Receiver<u8>);

    #[async_trait]
    impl Source for Growing {
        async fn follow(&self, _: &ServiceName, feed: Feed) -> Result<(), Error> {
            let entry = |number: u8| Entry::Valid(crate::Instance::new(format!("10.0.0.{number}:80").parse().unwrap()));
            let mut wanted = self.0.clone();
            let mut held = *wanted.borrow_and_update();
            let mut live = feed.reset((0..held).map(entry));
            loop {
                let wanted = *wanted.wait_for(|wanted| *wanted != held).await.unwrap();
                if wanted > held {
                    live.change((held..wanted).map(entry), []);
                } else {
                    live.replace((0..wanted).map(entry));
                }
                held = wanted;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_with_too_many_entries_is_lost_and_its_set_stays() {
        let (wanted, seen) = watch::channel(2);
        let resolver = Recovered::with_recovery(Growing(seen), Recovery::default().max_entries(3));
        let service: ServiceName = "payments".parse().unwrap();
        let mut updates = resolver.watch(&service).unwrap();
        let mut set = Snapshot::default();
        for (number, count) in [(2, 2), (3, 3), (4, 3), (2, 2), (5, 2), (3, 3)] {
            wanted.send_replace(number);
            let update = updates.next().await.unwrap();
            set = set.after(&update);
            assert_eq!(set.len(), count, "{update:?}");
            let listed = resolver.list(&service).await;
            if number > 3 {
                let crate::Update::Lost(error) = update else { panic!("{update:?}") };
                assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
                assert_eq!(listed.unwrap_err().kind(), ErrorKind::ResourceExhausted);
                // Reported once, however often it is tried.
                let more = timeout(Duration::from_secs(60), updates.next()).await;
                assert!(more.is_err(), "{more:?}");
            } else {
                assert_eq!(listed.unwrap(), set);
            }
        }
    }

    /// Ends right after its first set.
    #[derive(Debug)]
    struct Brief;

    #[async_trait]
    impl Source for Brief {
        async fn follow(&self, _: &ServiceName, feed: Feed) -> Result<(), Error> {
            let _live = feed.reset([]);
            Err(Error::new(ErrorKind::Unavailable, "the source ended by itself"))
        }
    }

    #[tokio::test]
    async fn a_list_returns_the_set_of_an_attempt_that_ends_at_once() {
        let service: ServiceName = "payments".parse().unwrap();
        let listed = Recovered::new(Brief).list(&service).await;
        assert_eq!(listed.unwrap(), Snapshot::default());
    }

    /// Has too many instances, and counts the attempts.
    #[derive(Debug, Default)]
    struct Crowded(AtomicU32);

    #[async_trait]
    impl Source for Crowded {
        async fn follow(&self, _: &ServiceName, feed: Feed) -> Result<(), Error> {
            self.0.fetch_add(1, Ordering::Relaxed);
            let entry = |number| Entry::Valid(crate::Instance::new(format!("10.0.0.{number}:80").parse().unwrap()));
            let _live = feed.reset((1..=4).map(entry));
            Err(Error::new(ErrorKind::Unavailable, "the source ended by itself"))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_with_too_many_entries_is_retried_every_one_to_two_minutes() {
        let resolver = Recovered::with_recovery(Crowded::default(), Recovery::default().max_entries(3));
        let service: ServiceName = "payments".parse().unwrap();
        let mut updates = resolver.watch(&service).unwrap();
        let lost = updates.next().await.unwrap();
        assert!(
            matches!(&lost, crate::Update::Lost(error) if error.kind() == ErrorKind::ResourceExhausted),
            "{lost:?}"
        );
        let attempts = || resolver.source().0.load(Ordering::Relaxed);
        let hour = Duration::from_secs(3600);
        let lasting = Instant::now();
        let mut former = Duration::ZERO;
        for number in 2.. {
            while attempts() < number && lasting.elapsed() < hour {
                sleep(Duration::from_millis(100)).await;
            }
            if lasting.elapsed() >= hour {
                break;
            }
            let wait = lasting.elapsed() - former;
            assert!((Duration::from_secs(59)..=Duration::from_secs(121)).contains(&wait), "attempt {number}: {wait:?}");
            former = lasting.elapsed();
        }
        assert!((30..=60).contains(&attempts()), "{}", attempts());
        assert_eq!(
            resolver.list(&service).await.unwrap_err().kind(),
            ErrorKind::ResourceExhausted,
            "a list is tried at once"
        );
        assert!(lasting.elapsed() < hour + Duration::from_secs(1));
    }

    /// Panics before there is a future.
    #[derive(Debug)]
    struct Panics;

    impl Source for Panics {
        fn follow<'life0, 'life1, 'async_trait>(
            &'life0 self,
            _: &'life1 ServiceName,
            _: Feed,
        ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'async_trait>>
        where
            'life0: 'async_trait,
            'life1: 'async_trait,
            Self: 'async_trait,
        {
            panic!("no future")
        }
    }

    #[tokio::test]
    async fn a_stream_wakes_when_its_runtime_shuts_down_after_a_panic() {
        let resolver = Recovered::new(Panics);
        let service: ServiceName = "payments".parse().unwrap();
        assert_eq!(resolver.list(&service).await.unwrap_err().kind(), ErrorKind::Internal);
        let asked = resolver.clone();
        let watched = service.clone();
        let start = move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let updates = runtime.block_on(async {
                let mut updates = asked.watch(&watched).unwrap();
                updates.next().await.unwrap();
                updates
            });
            runtime.shutdown_timeout(Duration::from_secs(5));
            updates
        };
        let mut updates = std::thread::spawn(start).join().unwrap();
        let next = timeout(Duration::from_secs(5), updates.next()).await.expect("the stream wakes").unwrap();
        assert!(matches!(next, crate::Update::Lost(_)), "{next:?}");
    }

    /// On a runtime that has shut down, every task dies at once, the watch's included. If the
    /// stream rejoined again and again within one poll, the task that polls it could never be
    /// dropped.
    #[test]
    fn a_stream_is_pending_on_a_runtime_that_has_shut_down() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let handle = runtime.handle().clone();
        let resolver = Recovered::new(Steady);
        let mut updates = runtime.block_on(async { resolver.watch(&"payments".parse().unwrap()).unwrap() });
        runtime.shutdown_timeout(Duration::from_secs(5));
        let _entered = handle.enter();
        let mut context = Context::from_waker(Waker::noop());
        assert!((0..1_000).any(|_| updates.poll_next_unpin(&mut context).is_pending()), "the stream is never pending");
    }

    #[tokio::test]
    async fn a_watch_continues_after_its_runtime_has_shut_down() {
        let resolver = Recovered::new(Steady);
        let service: ServiceName = "payments".parse().unwrap();
        let asked = resolver.clone();
        let watched = service.clone();
        let start = move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let updates = runtime.block_on(async { asked.watch(&watched).unwrap() });
            runtime.shutdown_timeout(Duration::from_secs(5));
            updates
        };
        let mut updates = std::thread::spawn(start).join().unwrap();
        let mut seen = Vec::new();
        while seen.len() < 2 || !matches!(seen.last(), Some(crate::Update::Reset(_))) {
            seen.push(timeout(Duration::from_secs(5), updates.next()).await.unwrap().unwrap());
        }
        assert!(seen.iter().any(|update| matches!(update, crate::Update::Lost(_))), "{seen:?}");
    }
}
