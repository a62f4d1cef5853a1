//! Streams of the memory backend that are broken in one way.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use discovery_core::{Change, Error, ErrorKind, Resolver, ServiceName, Snapshot, Update, UpdateStream};
use futures::{StreamExt, stream};
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    task::AbortHandle,
    time::sleep,
};

use crate::mutant::{Marks, Mutant, Mutation};

/// A stream and its state.
struct Broken {
    updates: UpdateStream,
    mutation: Mutation,
    marks: Arc<Marks>,
    handle: Weak<()>,
    /// Updates that are still to be sent.
    queue: VecDeque<Update>,
    /// The set that the consumer has folded.
    told: Snapshot,
    /// The set of the registry, as far as known.
    held: Snapshot,
    first: bool,
    lost: bool,
    /// Whether it was opened during an outage.
    late: bool,
    place: Arc<AtomicU64>,
}

pub(crate) fn watch(mutant: &Mutant, service: &ServiceName) -> Result<UpdateStream, Error> {
    let updates = mutant.memory.watch(service)?;
    if mutant.mutation == Mutation::UpstreamStays {
        let mut kept = mutant.memory.watch(service)?;
        tokio::spawn(async move { while kept.next().await.is_some() {} });
    }
    let place = Arc::new(AtomicU64::new(0));
    mutant.marks.places.lock().unwrap().push(Arc::downgrade(&place));
    let broken = Broken {
        updates: if mutant.mutation == Mutation::Unbounded { unbounded(updates) } else { updates },
        mutation: mutant.mutation,
        marks: Arc::clone(&mutant.marks),
        handle: Arc::downgrade(&mutant.alive),
        queue: VecDeque::new(),
        told: Snapshot::default(),
        held: Snapshot::default(),
        first: true,
        lost: false,
        late: mutant.marks.outage.load(Ordering::Relaxed),
        place,
    };
    Ok(UpdateStream::new(stream::unfold(broken, |mut broken| async move { Some((broken.next().await?, broken)) })))
}

impl Broken {
    async fn next(&mut self) -> Option<Update> {
        loop {
            if let Some(update) = self.queue.pop_front() {
                self.told = self.told.after(&update);
                return Some(update);
            }
            if self.mutation == Mutation::Lockstep {
                self.wait_for_the_slowest().await;
            }
            let update = self.updates.next().await?;
            if self.mutation == Mutation::EndsWithHandle && self.handle.strong_count() == 0 {
                return None;
            }
            if matches!((&update, self.mutation), (Update::Lost(error), Mutation::EndsOnPanic) if error.kind() == ErrorKind::Internal)
            {
                return None;
            }
            let told = self.tell(&update);
            self.queue.extend(told);
            self.held = self.held.after(&update);
            self.lost = matches!(update, Update::Lost(_));
            self.first = false;
        }
    }

    /// Returns the updates that the consumer gets in place of one.
    fn tell(&self, update: &Update) -> Vec<Update> {
        let as_it_is = vec![update.clone()];
        match (self.mutation, update) {
            (Mutation::SilentUntilReached, Update::Lost(_)) if self.first => Vec::new(),
            (Mutation::HidesOutageFromLateJoiner, Update::Lost(_)) if self.late && !self.first => Vec::new(),
            (Mutation::WipeAsChange, Update::Reset(set)) if set.is_empty() && !self.first && !self.lost => {
                vec![Update::Change(self.held.diff(set))]
            }
            (Mutation::RollsBack, Update::Change(change)) => {
                let next = self.held.after_change(change);
                let back = next.diff(&self.held);
                let changes = !change.upserts().is_empty() && back.removes().is_empty();
                if changes { vec![update.clone(), Update::Change(back), update.clone()] } else { as_it_is }
            }
            (Mutation::IdleUpserts, Update::Change(change)) => {
                let same = self.held.iter().filter(|one| !change.removes().contains(one.id())).cloned();
                let all: Snapshot = same.chain(change.upserts().iter().cloned()).collect();
                vec![Update::Change(Change::new(all.iter().cloned().collect(), change.removes().to_vec()))]
            }
            (Mutation::FreshArcs, Update::Reset(set)) => {
                vec![Update::Reset(set.iter().map(|one| (**one).clone()).collect())]
            }
            (Mutation::Gap, Update::Reset(set)) if self.lost => {
                let seen = set.iter().filter(|one| self.told.get(one.id().as_str()).is_some());
                vec![Update::Reset(seen.cloned().collect())]
            }
            (Mutation::OneKindOnly, Update::Lost(_)) if self.lost => Vec::new(),
            (Mutation::SkipsEqualReset, Update::Reset(set)) if self.lost && *set == self.held => Vec::new(),
            (Mutation::LosesTwice, Update::Lost(_)) => vec![update.clone(), update.clone()],
            (Mutation::BadValueIgnored, Update::Change(change)) => {
                let bad = self.marks.bad.lock().unwrap();
                let removes: Vec<_> = change.removes().iter().filter(|id| !bad.contains(*id)).cloned().collect();
                let rest = Change::new(change.upserts().to_vec(), removes);
                if rest.is_empty() { Vec::new() } else { vec![Update::Change(rest)] }
            }
            _ => as_it_is,
        }
    }

    async fn wait_for_the_slowest(&mut self) {
        let place = self.place.fetch_add(1, Ordering::Relaxed);
        let slowest = || {
            let places = self.marks.places.lock().unwrap();
            places.iter().filter_map(Weak::upgrade).map(|place| place.load(Ordering::Relaxed)).min().unwrap_or(0)
        };
        while slowest() + LOCKSTEP < place {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Returns the same stream with a queue that grows while its consumer is slow.
fn unbounded(mut updates: UpdateStream) -> UpdateStream {
    struct Queue(UnboundedReceiver<Update>, AbortHandle);
    impl Drop for Queue {
        fn drop(&mut self) {
            self.1.abort();
        }
    }
    let (sender, receiver) = unbounded_channel();
    let task = tokio::spawn(async move {
        while let Some(update) = updates.next().await {
            sender.send(update).unwrap();
        }
    });
    let queue = Queue(receiver, task.abort_handle());
    UpdateStream::new(stream::unfold(queue, |mut queue| async move { Some((queue.0.recv().await?, queue)) }))
}

/// How many updates the others may be ahead of the slowest.
const LOCKSTEP: u64 = 32;
