//! One attempt at following a service: a list in pages at one revision, then a watch from the next one.
//!
//! A watch that is cut off says nothing, as one does where nothing happens. So while it runs, small reads on the member that
//! serves it show whether that answers, and whether the watch tells what it should (see [`Pace`]).

mod cursor;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod pulse;
mod rounds;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use discovery_core::{BadEntry, Entry, Error, ErrorKind, Feed, InstanceId, Live, ServiceName, Source};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout},
};
use tracing::debug;

use crate::{
    client::{Event, Failure, Glance, Page, Reason, Row},
    failover::{Chosen, Cluster},
    layout::Layout,
};
use cursor::{Cursor, Ended, Step, WATCH};
#[cfg(fuzzing)]
pub use fuzz::fuzz_watch;
pub(crate) use pulse::Pace;
use pulse::Pulse;
use rounds::Rounds;

/// Reads services from etcd.
#[derive(Debug)]
pub(crate) struct EtcdSource {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) layout: Arc<dyn Layout>,
    pub(crate) prefix: String,
    pub(crate) pace: Pace,
    /// Whether the backend was closed.
    pub(crate) closed: watch::Receiver<bool>,
}

#[async_trait]
impl Source for EtcdSource {
    async fn follow(&self, service: &ServiceName, feed: Feed) -> Result<(), Error> {
        let mut closed = self.closed.clone();
        tokio::select! {
            biased;
            // An error means that the handle is gone, which streams outlive.
            Ok(_) = closed.wait_for(|closed| *closed) => Err(closed_error()),
            result = self.follow_open(service, feed) => result,
        }
    }
}

impl EtcdSource {
    /// Lists and watches; where the watch breaks but some member answers at once, lists anew and goes on. Otherwise the attempt
    /// ends, so that watchers know of the outage while it lasts: what they see after it may be its doing.
    ///
    /// A watch is not resumed on another member: after a restore or a wipe its revisions may mean another history. The list
    /// costs little, and equal instances stay the same ones for all who watch.
    async fn follow_open(&self, service: &ServiceName, feed: Feed) -> Result<(), Error> {
        let range = Range::of(self, service, feed.limit());
        let mut open = Open::Feed(feed);
        let (mut rounds, mut reached) = (Rounds::default(), 0);
        let mut broken: Option<Error> = None;
        let mut wait = Duration::ZERO;
        loop {
            let Listed { entries, keys, revision, cluster } = match (&open, broken.take()) {
                (Open::Feed(_), _) => self.list(&range).await?,
                (_, None) => self.list_within(&range, self.pace.patience()).await?,
                (_, Some(broken)) => match self.list_within(&range, self.pace.relist).await {
                    Ok(listed) => listed,
                    Err(error) if error.is_retryable() => return Err(broken),
                    // More to the point, and nothing that passes.
                    Err(error) => return Err(error),
                },
            };
            let mut pulse = Pulse::new(keys, revision);
            let went_back = revision < reached;
            let mut live = open.put(entries, went_back);
            let mut cursor = Cursor::new(revision, cluster);
            sleep(wait).await;
            let begun = Instant::now();
            let ended = self.watch(&range, &mut live, &mut cursor, &mut pulse).await;
            reached = cursor.reached();
            let is_audit = matches!(ended, Ended::Audit);
            let error = match ended {
                Ended::Audit | Ended::Compacted => None,
                Ended::Broken(error) => Some(error),
            };
            let Some(next) = rounds.ended(begun.elapsed()) else {
                return Err(error.unwrap_or_else(|| {
                    Error::new(ErrorKind::Unavailable, "the history is compacted too fast to follow")
                }));
            };
            let report = error.as_ref().map(|error| error.report().to_string());
            debug!(%service, revision, error = report, "listing anew");
            broken = error;
            open = if is_audit { Open::Audit(live) } else { Open::Live(live) };
            wait = next;
        }
    }

    async fn list_within(&self, range: &Range<'_>, bound: Duration) -> Result<Listed, Error> {
        let listed = timeout(bound, self.list(range)).await;
        listed.unwrap_or_else(|_| {
            let message = format!("no etcd member gave a list within {bound:?}");
            Err(Error::new(ErrorKind::DeadlineExceeded, message).during("list"))
        })
    }

    /// The whole range, as it was at one revision. Rows are read page by page, so that no more than one page of raw values is
    /// held.
    async fn list(&self, range: &Range<'_>) -> Result<Listed, Error> {
        let mut limit = FIRST_PAGE;
        let mut restarts = 0;
        'anew: loop {
            let (mut entries, mut keys, mut revision, mut cluster) = (Vec::new(), 0, 0, 0);
            let mut from = range.from.clone();
            loop {
                let page = self.cluster.run(|member| {
                    let (from, to) = (from.clone(), range.to.clone());
                    async move { member.page(from, to, limit, revision).await }
                });
                let page: Page = match page.await {
                    Ok(page) => page,
                    Err(failure) if failure.reason == Reason::TooLarge && limit > 1 => {
                        limit = (limit / 8).max(1);
                        continue;
                    }
                    // One that large may take etcd longer than a request may.
                    Err(failure) if failure.error.kind() == ErrorKind::DeadlineExceeded && limit > FIRST_PAGE => {
                        limit = FIRST_PAGE;
                        continue;
                    }
                    // Compacted in between, or gone back on another member.
                    Err(failure) if revision != 0 && restarts < MAX_RESTARTS && is_of_history(&failure) => {
                        restarts += 1;
                        continue 'anew;
                    }
                    Err(failure) => return Err(failure.error),
                };
                if cluster != 0 && page.cluster != cluster {
                    return Err(Error::new(ErrorKind::Unavailable, "the members belong to different clusters"));
                }
                cluster = page.cluster;
                if revision == 0 {
                    revision = page.revision;
                }
                let last = page.rows.last().map(|row| row.key.clone());
                keys += page.rows.len();
                limit = next_page(&page.rows, limit);
                entries.extend(page.rows.into_iter().filter_map(|row| range.entry(row)));
                match last {
                    Some(mut last) if page.more && entries.len() <= range.limit => {
                        // The least key after the last one.
                        last.push(0);
                        from = last;
                    }
                    _ => return Ok(Listed { entries, keys, revision, cluster }),
                }
            }
        }
    }

    /// Passes on changes until the watch ends or cannot be trusted.
    async fn watch(&self, range: &Range<'_>, live: &mut Live, cursor: &mut Cursor, pulse: &mut Pulse) -> Ended {
        let chosen = self.cluster.choose(&[]);
        let (from, to) = (range.from.clone(), range.to.clone());
        // From what is known already, whose events are dropped: where history is compacted up to the first change that is not, some
        // releases take a watch from there and leave a removal out, and only one from before it is told.
        let opened = chosen.member.watch(from, to, cursor.reached(), WATCH, self.pace.patience()).await;
        let mut stream = match opened {
            Ok(stream) => stream,
            Err(failure) => return self.broken(&chosen, failure),
        };
        let audit = sleep_until(Instant::now() + AUDIT.mul_f64(0.8 + 0.4 * fastrand::f64()));
        tokio::pin!(audit);
        let mut ticks = interval_at(Instant::now() + self.pace.interval, self.pace.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut beat: Option<Beat<'_>> = None;
        loop {
            let message = tokio::select! {
                // What the watch has said already counts when it is judged.
                biased;
                () = &mut audit => return Ended::Audit,
                message = stream.next() => message,
                seen = answer(&mut beat), if beat.is_some() => {
                    beat = None;
                    match self.judge(&chosen, seen, cursor, pulse).await {
                        Some(ended) => return ended,
                        None => continue,
                    }
                }
                _ = ticks.tick(), if beat.is_none() => {
                    let newest = pulse.beat(cursor.reached());
                    let (from, to) = (range.from.clone(), range.to.clone());
                    beat = Some(Box::pin(chosen.member.glance(from, to, newest, self.pace.deadline)));
                    continue;
                }
            };
            let is_part = message.as_ref().is_ok_and(|message| message.fragment);
            match message.map(|message| cursor.advance(message)) {
                Ok(Ok(steps)) => {
                    if is_part {
                        pulse.hear();
                    }
                    for step in steps {
                        pulse.step(step.first().map_or(0, Event::revision), range.growth(&step));
                        range.apply(step, live);
                    }
                }
                Ok(Err(cursor::Stop::Canceled(failure))) | Err(failure) => return self.broken(&chosen, failure),
                Ok(Err(cursor::Stop::Compacted)) => return Ended::Compacted,
                Ok(Err(cursor::Stop::Strange(error))) => {
                    self.cluster.failed(&chosen);
                    return Ended::Broken(error);
                }
            }
        }
    }

    /// Whether a beat's answer, or the lack of one, ends the watch.
    async fn judge(
        &self,
        chosen: &Chosen,
        seen: Result<Glance, Failure>,
        cursor: &Cursor,
        pulse: &mut Pulse,
    ) -> Option<Ended> {
        let wrong = match seen {
            Ok(seen) if seen.cluster != cursor.cluster() => "the member belongs to another cluster by now",
            Ok(seen) => pulse.answered(&seen, cursor.reached()).err()?,
            // etcd goes on telling changes to those whose credentials or permission it has withdrawn; who watches is told.
            Err(failure)
                if failure.is_member()
                    || failure.error.kind() == ErrorKind::PermissionDenied
                    || (failure.reason == Reason::Token && pulse.lock_out()) =>
            {
                return Some(self.broken(chosen, failure));
            }
            // The member answers, if only that it is too busy. What lasts is found by the audit.
            Err(failure) => {
                debug!(error = %failure.error.report(), "the watch could not be checked");
                return None;
            }
        };
        self.cluster.failed(chosen);
        Some(Ended::Broken(Error::new(ErrorKind::Unavailable, wrong).during("watch")))
    }

    fn broken(&self, chosen: &Chosen, failure: Failure) -> Ended {
        if !matches!(failure.reason, Reason::Refused | Reason::Token) {
            self.cluster.failed(chosen);
        }
        Ended::Broken(failure.error)
    }
}

/// A small read that is on its way.
type Beat<'a> = Pin<Box<dyn Future<Output = Result<Glance, Failure>> + Send + 'a>>;

/// The answer to a beat. Cancel safe.
async fn answer(beat: &mut Option<Beat<'_>>) -> Result<Glance, Failure> {
    match beat {
        Some(beat) => beat.await,
        None => std::future::pending().await,
    }
}

/// What a range held at one revision.
struct Listed {
    entries: Vec<Entry>,
    /// All of the range, those of deeper paths included.
    keys: usize,
    revision: i64,
    cluster: u64,
}

/// The keys of one service, and how they are read.
struct Range<'a> {
    layout: &'a dyn Layout,
    from: Vec<u8>,
    to: Vec<u8>,
    /// With more entries, a list is not read to its end.
    limit: usize,
}

impl<'a> Range<'a> {
    fn of(source: &'a EtcdSource, service: &ServiceName, limit: usize) -> Self {
        Self::new(&*source.layout, &source.prefix, service, limit)
    }

    fn new(layout: &'a dyn Layout, prefix: &str, service: &ServiceName, limit: usize) -> Self {
        let from = format!("{prefix}{}", layout.range(service)).into_bytes();
        let to = end_of_prefix(&from);
        Self { layout, from, to, limit }
    }

    /// Whose entry a key is: nothing where it is none of the service's, no id where it is a broken one.
    fn id(&self, key: &[u8]) -> Option<Result<InstanceId, Error>> {
        let tail = key.strip_prefix(&*self.from)?;
        match std::str::from_utf8(tail) {
            Ok(tail) => self.layout.id(tail),
            Err(_) => Some(Err(Error::new(ErrorKind::InvalidInput, "the key is not UTF-8"))),
        }
    }

    fn entry(&self, row: Row) -> Option<Entry> {
        let id = self.id(&row.key)?;
        let read = id.clone().and_then(|id| self.layout.decode(id, &row.value));
        Some(read.map_or_else(
            |error| {
                let revision = row.revision.unsigned_abs();
                Entry::Bad(BadEntry { key: name_of_key(&row.key), id: id.ok(), revision, error })
            },
            Entry::Valid,
        ))
    }

    /// How many more entries there are after a step than before.
    fn growth(&self, step: &Step) -> i64 {
        let of_event = |event: &Event| match event {
            _ if !event.key().starts_with(&self.from) => 0,
            Event::Delete { .. } => -1,
            Event::Put { is_new, .. } => i64::from(*is_new),
            Event::Unknown => 0,
        };
        step.iter().map(of_event).sum()
    }

    /// Passes on all changes of one revision as one.
    fn apply(&self, step: Step, live: &mut Live) {
        let (upserts, removes) = self.changes(step);
        if !upserts.is_empty() || !removes.is_empty() {
            live.change(upserts, removes);
        }
    }

    fn changes(&self, step: Step) -> (Vec<Entry>, Vec<InstanceId>) {
        let (mut upserts, mut removes) = (Vec::new(), Vec::new());
        for event in step {
            match event {
                Event::Put { row, .. } => upserts.extend(self.entry(row)),
                Event::Delete { key, .. } => removes.extend(self.id(&key).and_then(Result::ok)),
                Event::Unknown => unreachable!("the cursor stops at what it does not know"),
            }
        }
        (upserts, removes)
    }
}

/// Where the next set goes.
enum Open {
    /// To one where nothing should have been missed, so that only differences are news.
    Audit(Live),
    Feed(Feed),
    /// To one where changes may have been missed.
    Live(Live),
}

impl Open {
    fn put(self, entries: Vec<Entry>, went_back: bool) -> Live {
        match self {
            Self::Feed(feed) => feed.reset(entries),
            Self::Audit(mut live) if !went_back => {
                live.replace(entries);
                live
            }
            Self::Audit(mut live) | Self::Live(mut live) => {
                live.reset(entries);
                live
            }
        }
    }
}

/// A key as text, different for different keys. etcd takes any bytes, up to more than a megabyte of them.
fn name_of_key(key: &[u8]) -> String {
    match std::str::from_utf8(key) {
        Ok(text) if key.len() <= MAX_KEY_BYTES => text.to_owned(),
        _ => {
            let shown = &key[..key.len().min(MAX_KEY_BYTES)];
            let mut hasher = DefaultHasher::new();
            key.hash(&mut hasher);
            format!("{} ({} bytes, {:016x})", String::from_utf8_lossy(shown), key.len(), hasher.finish())
        }
    }
}

/// The error of every call on a backend that was closed.
pub(crate) fn closed_error() -> Error {
    Error::new(ErrorKind::Closed, "the backend was closed")
}

/// How many rows to ask for next, as far as the last ones tell how large they are.
fn next_page(rows: &[Row], limit: i64) -> i64 {
    let bytes: usize = rows.iter().map(|row| row.key.len() + row.value.len()).sum();
    let fitting = rows.len() * PAGE_BYTES / bytes.max(1);
    i64::try_from(fitting).unwrap_or(i64::MAX).clamp(1, limit.saturating_mul(8).min(PAGE))
}

fn is_of_history(failure: &Failure) -> bool {
    matches!(failure.reason, Reason::Compacted | Reason::Member)
}

/// The least key that is above all with this prefix, which ends in a separator and so below 0xff.
fn end_of_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // All keys above.
    vec![0]
}

/// Small enough to fit the decoder, whatever the values: etcd takes 1.5 MiB in one request.
const FIRST_PAGE: i64 = 16;
/// Large enough for few round trips.
const PAGE: i64 = 500;
/// What later pages are made to fit, roughly.
const PAGE_BYTES: usize = 8 << 20;
/// Longer than the key of any instance.
const MAX_KEY_BYTES: usize = 1100;
/// How often one list starts anew because its revision was compacted in between.
const MAX_RESTARTS: u32 = 3;
/// How long a watch is trusted without a fresh list, give or take a fifth: it finds lost events and withdrawn permissions.
const AUDIT: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_grow_with_small_rows_and_shrink_with_large_ones() {
        let rows = |count, bytes| vec![Row { key: vec![], value: vec![b'x'; bytes], lease: 0, revision: 1 }; count];
        for (count, bytes, limit, next) in [
            (16, 1_000, 16, 128),
            (128, 1_000, 128, 500),
            (500, 1_000, 500, 500),
            (500, 60_000, 500, 139),
            (16, 1_500_000, 16, 5),
            (1, 50_000_000, 1, 1),
            (5, 10, 5, 40),
            (0, 0, 16, 1),
        ] {
            assert_eq!(next_page(&rows(count, bytes), limit), next, "{count} rows of {bytes} bytes");
        }
    }

    #[test]
    fn names_of_keys_are_short_and_tell_keys_apart() {
        assert_eq!(name_of_key("payments/ä".as_bytes()), "payments/ä");
        let (one, other) = (vec![b'a'; 1_400_000], vec![b'a'; 1_400_001]);
        let names =
            [&one[..], &other, b"payments/\xfe", b"payments/\xff", "payments/\u{fffd}".as_bytes()].map(name_of_key);
        for (place, name) in names.iter().enumerate() {
            assert!(name.len() < 1200 && !names[..place].contains(name), "{name}");
        }
    }
}
