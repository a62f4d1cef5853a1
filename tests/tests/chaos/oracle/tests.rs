//! Hand-written histories: some that keep every promise, and for each promise some that break it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use discovery_core::{Change, Error, ErrorKind, Instance, ServiceName, Snapshot, Update};

use super::check;
use crate::{
    history::{OWNER, Revision, Step, Stored, VERSION},
    log::{ByHand, Disturbance, End, Left, Life, Listing, Log, Recording, Target, Updated, Whom, Word},
};

/// Revision `n` happens at `n` seconds and is recorded at once.
fn second(number: i64) -> Duration {
    Duration::from_secs(number.unsigned_abs())
}

fn payments() -> ServiceName {
    "payments".parse().unwrap()
}

fn key(id: u16) -> String {
    format!("chaos/payments/i{id}")
}

fn instance(id: u16, owner: usize, version: u64) -> Arc<Instance> {
    let metadata = [(OWNER, owner.to_string()), (VERSION, version.to_string())].try_into().unwrap();
    let instance = Instance::new(format!("10.0.0.{id}:80").parse().unwrap());
    Arc::new(instance.with_id(format!("i{id}").parse().unwrap()).with_metadata(metadata))
}

fn set(instances: &[&Arc<Instance>]) -> Snapshot {
    instances.iter().map(|one| Arc::clone(one)).collect()
}

fn reset(instances: &[&Arc<Instance>]) -> Update {
    Update::Reset(set(instances))
}

fn upsert(instance: &Arc<Instance>) -> Update {
    Update::Change(Change::new(vec![Arc::clone(instance)], Vec::new()))
}

fn remove(id: u16) -> Update {
    Update::Change(Change::new(Vec::new(), vec![format!("i{id}").parse().unwrap()]))
}

fn lost(kind: ErrorKind) -> Update {
    Update::Lost(Error::new(kind, "lost"))
}

/// The history of two registrations: `a` with id 1 in process 0 under lease 7, and `b` with id 2 in
/// process 1 under lease 8; then `a` is updated. Everything is given up after 20 s.
struct Story {
    log: Log,
    a: Arc<Instance>,
    a_updated: Arc<Instance>,
    b: Arc<Instance>,
}

impl Story {
    fn new() -> Self {
        let a = instance(1, 0, 0);
        let a_updated = instance(1, 0, 1);
        let b = instance(2, 1, 0);
        let mut story = Self { log: Log::default(), a, a_updated, b };
        story.log.end = End {
            healed: second(18),
            converged: Some(Duration::ZERO),
            registered: Some(Duration::ZERO),
            unhealed: Vec::new(),
            closing: second(20),
            entries: BTreeMap::new(),
            left: Left::default(),
        };
        story.log.recordings.push(Recording {
            name: "0".into(),
            process: 2,
            service: payments(),
            opened: second(1),
            items: vec![(second(1), reset(&[]))],
            ended: false,
            closed: None,
        });
        let a = Arc::clone(&story.a);
        let a_updated = Arc::clone(&story.a_updated);
        let b = Arc::clone(&story.b);
        story.begin(0, 0, 1, second(1));
        story.put(2, 7, &a);
        story.begin(1, 1, 2, second(2));
        story.put(3, 8, &b);
        story.log.lives[0].updates.push(Updated { version: 1, done: Some(second(4)) });
        story.log.lives[0].instance = Some(Arc::clone(&a_updated));
        story.put(4, 7, &a_updated);
        story
    }

    /// Adds a registration that is `Ok` a second after it began.
    fn begin(&mut self, number: usize, process: usize, id: u16, began: Duration) {
        let registered = began + second(1);
        self.log.lives.push(Life {
            number,
            process: (process, 1),
            key: key(id),
            began,
            registered: Some(registered),
            statuses: vec![(registered, Word::Registered)],
            instance: Some(instance(id, number, 0)),
            ..Life::default()
        });
    }

    fn step(&mut self, revision: i64, changes: Vec<(String, Option<Stored>)>) {
        let revision = Revision { epoch: 0, number: revision };
        let at = second(revision.number);
        if at < self.log.end.closing {
            for (key, stored) in &changes {
                match stored {
                    Some(stored) => self.log.end.entries.insert(key.clone(), stored.clone()),
                    None => self.log.end.entries.remove(key),
                };
            }
        }
        self.log.steps.push(Step { revision, at, changes });
    }

    fn put(&mut self, revision: i64, lease: i64, instance: &Instance) {
        let value = support::entry::encode(instance);
        self.step(revision, vec![(format!("chaos/payments/{}", instance.id()), Some(Stored { value, lease }))]);
    }

    fn delete(&mut self, revision: i64, id: u16) {
        self.step(revision, vec![(key(id), None)]);
    }

    fn see(&mut self, at: i64, update: Update) {
        self.log.recordings[0].items.push((second(at), update));
    }

    fn list(&mut self, began: i64, instances: &[&Arc<Instance>]) {
        let began = second(began);
        let ended = began + Duration::from_millis(5);
        self.log.listings.push(Listing { service: payments(), began, ended, set: set(instances) });
    }

    /// Lets the stream see all three changes one by one.
    fn see_all(&mut self) {
        let a = self.a.clone();
        let a_updated = self.a_updated.clone();
        let b = self.b.clone();
        self.see(2, upsert(&a));
        self.see(3, upsert(&b));
        self.see(4, upsert(&a_updated));
    }

    fn disturb(&mut self, process: usize, start: i64, end: i64) {
        let whom = Whom::Process(process);
        let start = second(start);
        let end = second(end);
        self.log.disturbances.push(Disturbance { whom, start, end });
    }

    fn rules(&self) -> Vec<&'static str> {
        let broken = check(&self.log);
        for one in &broken {
            // Every violation can be reported.
            assert!(one.report(&self.log).to_string().contains(one.rule));
        }
        broken.iter().map(|one| one.rule).collect()
    }
}

/// Runs stories and compares the rules that the oracle finds broken.
macro_rules! stories {
    ($($name:ident breaks $rules:expr, where |$story:ident| $story_of:block)+) => {
        $(#[test]
        fn $name() {
            let mut $story = Story::new();
            $story_of
            let rules: &[&str] = &$rules;
            assert_eq!($story.rules(), rules);
        })+
    };
}

stories! {
    a_faithful_stream_breaks_nothing breaks [], where |story| {
        story.see_all();
        story.list(5, &[&story.a_updated.clone(), &story.b.clone()]);
    }

    a_stream_may_lag_and_jump_by_a_reset breaks [], where |story| {
        let a = story.a.clone();
        let a_updated = story.a_updated.clone();
        let b = story.b.clone();
        story.see(2, upsert(&a));
        story.see(9, reset(&[&a_updated, &b]));
    }

    an_outage_is_reported_once_for_each_kind breaks [], where |story| {
        story.see_all();
        let a_updated = story.a_updated.clone();
        let b = story.b.clone();
        story.see(5, lost(ErrorKind::Unavailable));
        story.see(6, lost(ErrorKind::DeadlineExceeded));
        story.see(7, lost(ErrorKind::Unavailable));
        story.see(8, reset(&[&a_updated, &b]));
    }

    a_change_first breaks ["W1"], where |story| {
        story.log.recordings[0].items.clear();
        let a = story.a.clone();
        story.see(2, upsert(&a));
    }

    no_item_in_time breaks ["W1"], where |story| {
        story.log.recordings[0].items.clear();
    }

    a_set_that_never_was breaks ["W2"], where |story| {
        let b = story.b.clone();
        story.see(3, upsert(&b));
    }

    an_instance_that_never_was breaks ["W2"], where |story| {
        story.see(2, upsert(&instance(9, 9, 0)));
    }

    a_reset_to_a_former_state breaks ["W2"], where |story| {
        story.see_all();
        let a = story.a.clone();
        let b = story.b.clone();
        story.see(5, reset(&[&a, &b]));
    }

    half_of_an_atomic_step breaks ["W2"], where |story| {
        story.see_all();
        story.log.steps.push(Step {
            revision: Revision { epoch: 0, number: 19 },
            at: second(21),
            changes: vec![(key(1), None), (key(2), None)],
        });
        story.log.lives.iter_mut().for_each(|life| life.released = Some(second(20)));
        story.see(21, remove(1));
    }

    a_gap breaks ["W3"], where |story| {
        let a = story.a.clone();
        let b = story.b.clone();
        story.see(3, Update::Change(Change::new(vec![a, b], Vec::new())));
    }

    a_change_reported_twice breaks ["W3"], where |story| {
        story.see_all();
        let a = story.a_updated.clone();
        story.see(5, upsert(&a));
    }

    an_empty_change breaks ["W3"], where |story| {
        story.see(2, Update::Change(Change::default()));
    }

    a_removal_of_nothing breaks ["W3"], where |story| {
        story.see(2, remove(1));
    }

    a_reset_that_moves_what_stayed breaks ["W3"], where |story| {
        story.see_all();
        let b = story.b.clone();
        story.see(5, reset(&[&instance(1, 0, 1), &b]));
    }

    a_stream_that_ends breaks ["W4"], where |story| {
        story.see_all();
        story.log.recordings[0].ended = true;
    }

    a_change_after_a_loss breaks ["W5"], where |story| {
        let a = story.a.clone();
        story.see(2, lost(ErrorKind::Unavailable));
        story.see(2, upsert(&a));
    }

    an_outage_reported_twice breaks ["W5"], where |story| {
        story.see(2, lost(ErrorKind::Unavailable));
        story.see(3, lost(ErrorKind::Unavailable));
    }

    a_bad_value_that_removes_nothing breaks ["W3"], where |story| {
        story.see_all();
        story.step(5, vec![(key(2), Some(Stored { value: b"{".to_vec(), lease: 0 }))]);
        story.put(6, 8, &instance(2, 1, 0));
        story.delete(7, 1);
        story.put(8, 7, &instance(1, 0, 1));
        let by_hand = |id, number| ByHand {
            target: Target::Key(key(id)),
            began: second(4),
            revision: Some(Revision { epoch: 0, number }),
        };
        story.log.by_hand.extend([by_hand(2, 5), by_hand(1, 7)]);
        // The removal that the bad value means was not reported.
        story.see(7, remove(1));
    }

    an_instance_of_a_neighbour breaks ["W9"], where |story| {
        let neighbour = instance(5, 2, 0);
        story.begin(2, 0, 5, second(4));
        story.log.lives[2].key = "chaos/payments-history/i5".into();
        let value = support::entry::encode(&neighbour);
        story.step(5, vec![("chaos/payments-history/i5".into(), Some(Stored { value, lease: 7 }))]);
        story.see_all();
        story.see(5, upsert(&neighbour));
    }

    a_list_without_what_is_registered breaks ["R1"], where |story| {
        // The recorder is too slow for a judgement by time.
        story.log.steps.iter_mut().for_each(|step| step.at = second(10));
        story.list(5, &[]);
        story.log.lives.truncate(1);
        story.log.end.entries.remove(&key(2));
        story.log.steps.remove(1);
    }

    a_stale_list breaks ["R1"], where |story| {
        let a = story.a.clone();
        let b = story.b.clone();
        story.log.lives[0].updates.clear();
        story.list(9, &[&a, &b]);
    }

    a_list_that_never_was breaks ["W2"], where |story| {
        let a = story.a_updated.clone();
        let b = instance(2, 1, 9);
        story.list(9, &[&a, &b]);
    }

    an_entry_that_is_missing_in_the_end breaks ["R2", "R2"], where |story| {
        story.log.by_hand.push(ByHand { target: Target::Key(key(1)), began: second(4), revision: None });
        story.delete(5, 1);
    }

    a_registration_that_stays_lost breaks ["R2"], where |story| {
        story.log.lives[0].statuses.push((second(5), Word::Lost));
    }

    a_lease_that_ends_for_no_reason breaks ["R2"], where |story| {
        story.delete(5, 1);
        story.put(6, 70, &instance(1, 0, 1));
    }

    a_lease_that_ends_for_a_reason breaks [], where |story| {
        story.disturb(0, 3, 4);
        story.delete(5, 1);
        story.put(6, 70, &instance(1, 0, 1));
    }

    a_status_that_hides_a_missing_entry breaks ["R2"], where |story| {
        story.log.by_hand.push(ByHand { target: Target::Key(key(1)), began: second(4), revision: None });
        story.delete(5, 1);
        story.put(12, 7, &instance(1, 0, 1));
    }

    a_registration_healed_too_late breaks ["R2"], where |story| {
        story.log.end.registered = None;
    }

    the_former_owner_overwrites breaks ["R3"], where |story| {
        story.begin(2, 1, 1, second(5));
        story.put(6, 8, &instance(1, 2, 0));
        story.put(7, 7, &instance(1, 0, 1));
        story.put(8, 8, &instance(1, 2, 0));
        story.log.lives[0].statuses.push((second(8), Word::Superseded));
    }

    a_takeover_that_is_given_up_is_undone_by_the_same_process breaks [], where |story| {
        story.begin(2, 0, 1, second(5));
        story.log.lives[2].registered = None;
        story.log.lives[2].released = Some(second(6));
        story.put(6, 7, &instance(1, 2, 0));
        story.put(7, 7, &instance(1, 0, 1));
    }

    a_takeover_breaks_nothing breaks [], where |story| {
        story.begin(2, 1, 1, second(5));
        story.put(6, 8, &instance(1, 2, 0));
        story.log.lives[0].statuses.push((second(6), Word::Superseded));
    }

    the_former_owner_deletes breaks ["R3"], where |story| {
        story.begin(2, 1, 1, second(5));
        story.put(6, 8, &instance(1, 2, 0));
        story.log.lives[0].statuses.push((second(6), Word::Superseded));
        story.delete(7, 1);
        story.put(8, 8, &instance(1, 2, 0));
    }

    somebody_elses_lease breaks ["R3"], where |story| {
        story.put(5, 7, &instance(2, 1, 0));
    }

    superseded_by_nobody breaks ["R3"], where |story| {
        story.log.lives[0].statuses.push((second(6), Word::Superseded));
    }

    a_list_of_what_was_deregistered breaks ["R4"], where |story| {
        let a = story.a_updated.clone();
        let b = story.b.clone();
        story.log.lives[1].released = Some(second(5));
        story.log.lives[1].gone = Some(second(6));
        story.delete(8, 2);
        story.list(7, &[&a, &b]);
    }

    a_superseded_registration_deregisters_without_waiting breaks [], where |story| {
        let a = story.a_updated.clone();
        let b = story.b.clone();
        story.log.lives[1].released = Some(second(6));
        story.log.lives[1].gone = Some(second(6));
        story.begin(2, 1, 2, second(5));
        story.list(7, &[&a, &b]);
        story.put(8, 8, &instance(2, 2, 0));
        story.log.lives[2].registered = Some(second(8));
    }

    an_entry_that_outlives_a_crash_too_long breaks ["R4"], where |story| {
        story.log.lives[1].released = Some(second(5));
        story.delete(12, 2);
    }

    an_entry_that_ends_with_the_lease_after_a_crash breaks [], where |story| {
        story.log.lives[1].released = Some(second(5));
        story.delete(8, 2);
    }

    an_update_through_a_removal breaks ["R3"], where |story| {
        story.delete(5, 1);
        story.put(6, 7, &instance(1, 0, 1));
    }

    an_update_that_is_not_listed breaks ["R5"], where |story| {
        story.log.steps.iter_mut().for_each(|step| step.at = second(10));
        let a = story.a.clone();
        let b = story.b.clone();
        story.list(5, &[&a, &b]);
    }

    an_update_that_is_undone breaks ["R5"], where |story| {
        story.put(5, 7, &instance(1, 0, 0));
    }

    an_entry_without_a_lease breaks ["R6"], where |story| {
        story.put(5, 0, &instance(2, 1, 0));
    }

    an_entry_that_nobody_owns breaks ["R4", "R6"], where |story| {
        story.log.lives[1].released = Some(second(5));
        story.put(15, 7, &instance(1, 0, 1));
    }

    leases_left_over breaks ["R6"], where |story| {
        story.log.end.left.leases = 1;
    }

    watches_left_over breaks ["W8"], where |story| {
        story.log.end.left.watches = 1;
    }

    streams_that_converge_too_late breaks ["W2"], where |story| {
        story.log.end.converged = Some(Duration::from_millis(3001));
    }
}

/// Streams also drop what a wipe removed, and never show it again.
#[test]
fn a_wipe_resets_streams_and_is_final() {
    let rules_of = |items: &[Update]| {
        let mut story = Story::new();
        story.see_all();
        let begin = Step { revision: Revision { epoch: 1, number: 1 }, at: second(6), changes: Vec::new() };
        story.log.steps.push(begin);
        let value = support::entry::encode(&story.a_updated);
        let changes = vec![(key(1), Some(Stored { value, lease: 70 }))];
        story.log.steps.push(Step { revision: Revision { epoch: 1, number: 2 }, at: second(8), changes });
        story.log.lives[1].released = Some(second(5));
        story.log.end.entries.remove(&key(2));
        items.iter().for_each(|item| story.see(9, item.clone()));
        story.rules()
    };
    let a = instance(1, 0, 1);
    let b = instance(2, 1, 0);
    let gone = lost(ErrorKind::Unavailable);
    assert!(rules_of(&[gone.clone(), reset(&[]), upsert(&a)]).is_empty());
    assert_eq!(rules_of(&[remove(1), remove(2)]), ["W2"], "a wipe does not remove instances one by one");
    assert_eq!(rules_of(&[gone, reset(&[]), reset(&[&a, &b])]), ["W2"], "the state before the wipe does not come back");
}
