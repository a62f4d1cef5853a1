use discovery_core::{Claim, backend::StatusWriter};
use proptest::prelude::*;
use tokio::{sync::oneshot, time::advance};

use super::*;
use crate::client::{Delete, Failure, KeyReading, KeyValue, Put, Reason};

type Answer = oneshot::Receiver<Result<(), Error>>;

const KEY: &str = "payments/a";

fn entry() -> Entry {
    let place =
        Place { service: "payments".parse().unwrap(), id: "a".parse().unwrap(), key: KEY.to_owned(), lease: None };
    Entry::new(place, Lease::new(), Backoff::default())
}

fn held(lease: &Lease) -> LeaseState {
    LeaseState::Held { id: lease.new_id() }
}

fn id_of(state: &LeaseState) -> i64 {
    match state {
        LeaseState::Held { id } => *id,
        _ => panic!("not held"),
    }
}

fn lost() -> LeaseState {
    LeaseState::Lost { error: Error::new(ErrorKind::Unavailable, "no etcd") }
}

fn claim(entry: &mut Entry, number: u64, value: &str, claim: Claim) -> (StatusWriter, Answer) {
    let status = StatusWriter::new(Status::lost(Error::new(ErrorKind::DeadlineExceeded, "waiting")));
    let (reply, answer) = oneshot::channel();
    entry.take(Command::Claim { number, value: value.into(), claim, status: status.clone(), reply });
    (status, answer)
}

fn release(entry: &mut Entry, number: u64) -> Answer {
    let (reply, answer) = oneshot::channel();
    entry.take(Command::Release { number: Some(number), reply: Some(reply) });
    answer
}

fn row(lease: i64, value: &str, revision: i64) -> KeyValue {
    KeyValue { key: KEY.into(), value: value.into(), lease, revision }
}

/// Whether there is nothing to do but to wait for news.
fn is_at_rest(next: &Next) -> bool {
    matches!(next, Next::Wait(None))
}

fn no_answer() -> Failure {
    Failure::new(Reason::Member, Error::new(ErrorKind::DeadlineExceeded, "no answer"))
}

/// Registers under a lease, at revision 5.
fn registered(entry: &mut Entry, lease: &LeaseState) -> StatusWriter {
    let (status, mut answer) = claim(entry, 1, "v", Claim::TakeOver);
    assert!(matches!(entry.next(lease), Next::Write { revision: 0, .. }));
    entry.written(id_of(lease), Ok(Put::Written(5)));
    assert!(answer.try_recv().unwrap().is_ok() && status.current().is_registered());
    assert!(matches!(entry.next(lease), Next::Watch(5)));
    assert!(is_at_rest(&entry.next(lease)));
    status
}

/// Its key holds the lease, so under another one it would be an entry that no reader expects.
#[tokio::test(start_paused = true)]
async fn an_entry_that_holds_its_lease_is_written_under_no_other() {
    let mut entry = entry();
    let lease = held(&entry.lease);
    entry.place.lease = Some(id_of(&lease));
    let status = registered(&mut entry, &lease);
    let next_lease = held(&entry.lease);
    assert!(is_at_rest(&entry.next(&next_lease)), "{:?}", status.current());
    entry.next(&lost());
    assert!(is_at_rest(&entry.next(&next_lease)));
}

#[tokio::test(start_paused = true)]
async fn a_registration_is_written_and_removed() {
    let mut entry = entry();
    assert!(matches!(entry.next(&LeaseState::Idle), Next::Exit));
    let lease = held(&entry.lease);
    let status = registered(&mut entry, &lease);
    let mut gone = release(&mut entry, 1);
    assert!(matches!(status.current(), Status::Deregistered { .. }));
    assert!(matches!(entry.next(&lease), Next::Remove { lease: id, revision: 5 } if id == id_of(&lease)));
    assert!(gone.try_recv().is_err(), "not before the removal is answered");
    entry.removed(Ok(Delete::Gone(6)));
    assert!(gone.try_recv().unwrap().is_ok());
    assert!(matches!(entry.next(&lease), Next::Exit));
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_is_repaired_and_another_owner_is_left_alone() {
    let mut entry = entry();
    let first = held(&entry.lease);
    let status = registered(&mut entry, &first);
    assert!(matches!(entry.next(&lost()), Next::Wait(None)));
    assert!(matches!(status.current(), Status::Lost { .. }));
    let second = held(&entry.lease);
    assert!(matches!(entry.next(&second), Next::Write { revision: 0, .. }));
    // etcd was only unreachable, and still has the entry under the former lease.
    entry.written(id_of(&second), Ok(Put::Refused(Some(row(id_of(&first), "v", 5)))));
    assert!(matches!(entry.next(&second), Next::Write { revision: 5, .. }));
    // Its data was wiped too: revisions start over, and so must the watch.
    entry.written(id_of(&second), Ok(Put::Written(2)));
    assert!(status.current().is_registered());
    assert!(matches!(entry.next(&second), Next::Watch(2)));

    entry.next(&lost());
    let third = held(&entry.lease);
    assert!(matches!(entry.next(&third), Next::Write { revision: 0, .. }));
    entry.written(id_of(&third), Ok(Put::Refused(Some(row(77, "w", 9)))));
    assert!(matches!(entry.next(&third), Next::Exit), "there is nothing left to do or to remove");
    assert!(matches!(status.current(), Status::Superseded { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_removal_is_repaired_and_a_takeover_is_final() {
    let mut entry = entry();
    let lease = held(&entry.lease);
    let status = registered(&mut entry, &lease);
    entry.changed(5, None);
    assert!(is_at_rest(&entry.next(&lease)), "older than the last write");
    entry.changed(6, Some(row(id_of(&lease), "v", 6)));
    assert!(is_at_rest(&entry.next(&lease)), "as wanted");
    entry.changed(7, None);
    assert!(matches!(status.current(), Status::Lost { .. }));
    assert!(matches!(entry.next(&lease), Next::Write { revision: 0, .. }));
    entry.written(id_of(&lease), Ok(Put::Written(8)));
    assert!(status.current().is_registered());
    entry.changed(9, Some(row(77, "v", 9)));
    assert!(matches!(entry.next(&lease), Next::Exit));
    assert!(matches!(status.current(), Status::Superseded { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ended_begins_again_at_the_revision_of_the_reading() {
    let mut entry = entry();
    let lease = held(&entry.lease);
    let status = registered(&mut entry, &lease);
    let read = |entry: &mut Entry, row: Option<KeyValue>, revision: i64| {
        entry.unwatched();
        entry.watched.recheck_now();
        assert!(matches!(entry.next(&lease), Next::Read));
        entry.read(Ok(KeyReading { row, revision }));
    };
    // The history in between may be compacted.
    read(&mut entry, Some(row(id_of(&lease), "v", 5)), 30);
    assert!(matches!(entry.next(&lease), Next::Watch(30)));
    entry.changed(30, None);
    assert!(status.current().is_registered(), "known when it was read");
    // etcd was restored to a time before the entry, and counts on from there.
    read(&mut entry, None, 3);
    assert!(matches!(status.current(), Status::Lost { .. }));
    assert!(matches!(entry.next(&lease), Next::Write { revision: 0, .. }));
    entry.written(id_of(&lease), Ok(Put::Written(4)));
    assert!(status.current().is_registered());
    assert!(matches!(entry.next(&lease), Next::Watch(4)));
    entry.changed(5, None);
    assert!(matches!(status.current(), Status::Lost { .. }));
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_is_removed_while_it_cannot_be_written_is_lost() {
    let full = || Failure::new(Reason::Refused, Error::new(ErrorKind::ResourceExhausted, "no space"));
    for (what, is_claim) in [("an update", false), ("another claim", true)] {
        for by_watch in [true, false] {
            for (stands, is_lost) in [(None, true), (Some(0), true), (Some(1), false), (Some(77), false)] {
                let mut entry = entry();
                let lease = held(&entry.lease);
                let status = registered(&mut entry, &lease);
                let _other = is_claim.then(|| claim(&mut entry, 2, "w", Claim::TakeOver));
                if !is_claim {
                    let (reply, _answer) = oneshot::channel();
                    entry.take(Command::Update { number: 1, value: b"w".to_vec(), reply });
                    entry.next(&lease);
                    entry.written(id_of(&lease), Err(full()));
                }
                assert!(status.current().is_registered(), "{what}: with the former value");
                let stands = stands.map(|id| row(if id == 1 { id_of(&lease) } else { id }, "v", 6));
                let case = format!("{what}, {stands:?}, by the watch: {by_watch}");
                if by_watch {
                    entry.changed(6, stands);
                } else {
                    entry.written(id_of(&lease), Ok(Put::Refused(stands)));
                }
                assert_eq!(matches!(status.current(), Status::Lost { .. }), is_lost, "{case}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_that_the_watch_misses_is_found_by_an_audit() {
    let mut entry = entry();
    let lease = held(&entry.lease);
    let status = registered(&mut entry, &lease);
    assert!(matches!(entry.next(&lease), Next::Wait(None)));
    let stands = KeyReading { row: Some(row(id_of(&lease), "v", 5)), revision: 30 };
    advance(Duration::from_secs(15)).await;
    entry.audited(Instant::now(), 5, stands);
    assert!(status.current().is_registered());
    assert_eq!(entry.known(), 30);
    advance(Duration::from_secs(15)).await;
    entry.audited(Instant::now(), 30, KeyReading { row: None, revision: 40 });
    assert!(matches!(status.current(), Status::Lost { .. }));
    assert!(matches!(entry.next(&lease), Next::Write { revision: 0, .. }));
    entry.written(id_of(&lease), Ok(Put::Written(41)));
    assert!(status.current().is_registered());
    assert!(matches!(entry.next(&lease), Next::Watch(41)), "the former watch missed the removal");
}

#[tokio::test(start_paused = true)]
async fn an_outdated_audit_is_ignored() {
    // Outdated by news from the watch.
    let mut first = entry();
    let lease = held(&first.lease);
    let status = registered(&mut first, &lease);
    let stands = || KeyReading { row: Some(row(id_of(&lease), "v", 5)), revision: 8 };
    advance(Duration::from_secs(1)).await;
    let asked = Instant::now();
    first.changed(9, None);
    first.audited(asked, 5, stands());
    assert!(!status.current().is_registered());
    assert!(matches!(first.next(&lease), Next::Write { revision: 0, .. }));
    // Outdated by a write.
    advance(Duration::from_secs(1)).await;
    first.written(id_of(&lease), Ok(Put::Written(10)));
    first.audited(asked, 5, KeyReading { row: None, revision: 9 });
    assert!(status.current().is_registered());
    // Not outdated: etcd was restored from an older copy of its data.
    advance(Duration::from_secs(1)).await;
    first.audited(Instant::now(), 10, KeyReading { row: None, revision: 3 });
    assert!(!status.current().is_registered());
}

#[tokio::test(start_paused = true)]
async fn the_latest_claim_of_a_handle_owns_the_entry() {
    let mut entry = entry();
    let lease = held(&entry.lease);
    let first = registered(&mut entry, &lease);
    let (_, mut refused) = claim(&mut entry, 2, "w", Claim::IfAbsent);
    assert_eq!(refused.try_recv().unwrap().unwrap_err().kind(), ErrorKind::Conflict);
    assert!(first.current().is_registered());
    let (second, _answer) = claim(&mut entry, 3, "w", Claim::TakeOver);
    assert!(first.current().is_registered(), "not superseded yet");
    assert!(matches!(entry.next(&lease), Next::Write { value, revision: 0, .. } if value == b"w"));
    entry.written(id_of(&lease), Ok(Put::Written(6)));
    assert!(second.current().is_registered());
    assert!(matches!(first.current(), Status::Superseded { .. }));
    assert!(release(&mut entry, 1).try_recv().unwrap().is_ok(), "a superseded owner is answered at once");
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_never_written_leaves_the_former_owner() {
    let mut entry = entry();
    let lease = held(&entry.lease);
    let first = registered(&mut entry, &lease);
    let (second, mut refused) = claim(&mut entry, 2, "w", Claim::TakeOver);
    assert!(matches!(entry.next(&lease), Next::Write { revision: 0, .. }));
    let (reply, mut updated) = oneshot::channel();
    entry.take(Command::Update { number: 1, value: b"x".to_vec(), reply });
    let denied = Error::new(ErrorKind::PermissionDenied, "no");
    entry.written(id_of(&lease), Err(Failure::new(Reason::Refused, denied)));
    assert_eq!(refused.try_recv().unwrap().unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert!(matches!(second.current(), Status::Deregistered { .. }));
    assert!(first.current().is_registered());
    // It is unknown whether the other claim was written. An entry under the handle's own lease is
    // overwritten.
    assert!(matches!(entry.next(&lease), Next::Write { value, revision: 0, .. } if value == b"x"));
    entry.written(id_of(&lease), Ok(Put::Refused(Some(row(id_of(&lease), "w", 6)))));
    assert!(matches!(entry.next(&lease), Next::Write { revision: 6, .. }));
    entry.written(id_of(&lease), Ok(Put::Written(7)));
    assert!(updated.try_recv().unwrap().is_ok());
    assert!(first.current().is_registered());
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_leaves_during_a_claim_is_gone_once_the_claim_is_written() {
    let mut entry = entry();
    let lease = held(&entry.lease);
    let first = registered(&mut entry, &lease);
    let (_second, _answer) = claim(&mut entry, 2, "w", Claim::TakeOver);
    let mut gone = release(&mut entry, 1);
    assert!(matches!(first.current(), Status::Deregistered { .. }));
    assert!(gone.try_recv().is_err(), "its entry is still there");
    entry.next(&lease);
    entry.written(id_of(&lease), Ok(Put::Written(6)));
    assert!(gone.try_recv().unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_claim_if_absent_yields_to_an_existing_owner() {
    let mut entry = entry();
    let lease = held(&entry.lease);
    let (_, mut answer) = claim(&mut entry, 1, "v", Claim::IfAbsent);
    assert!(matches!(entry.next(&lease), Next::Write { revision: 0, .. }));
    entry.written(id_of(&lease), Err(no_answer()));
    assert!(matches!(entry.next(&lease), Next::Wait(Some(_))));
    advance(Duration::from_secs(1)).await;
    assert!(matches!(entry.next(&lease), Next::Write { revision: 0, .. }));
    entry.written(id_of(&lease), Ok(Put::Refused(Some(row(77, "w", 3)))));
    // The first attempt may still be applied after the other owner has left.
    assert!(matches!(entry.next(&lease), Next::Watch(3)));
    assert!(matches!(entry.next(&LeaseState::Idle), Next::Exit));
    assert_eq!(answer.try_recv().unwrap().unwrap_err().kind(), ErrorKind::Conflict);
}

/// Somebody keeps writing the entry, each time with another lease than was read.
#[tokio::test(start_paused = true)]
async fn an_entry_that_keeps_changing_is_not_written_without_pause() {
    let mut entry = entry();
    let lease = held(&entry.lease);
    let former = entry.lease.new_id();
    let (_, _answer) = claim(&mut entry, 1, "v", Claim::IfAbsent);
    let mut writes = 0;
    for step in 0..1000 {
        match entry.next(&lease) {
            Next::Write { .. } => {
                writes += 1;
                let stands = if step % 2 == 0 { id_of(&lease) } else { former };
                entry.written(id_of(&lease), Ok(Put::Refused(Some(row(stands, "w", step)))));
            }
            Next::Wait(Some(_)) => advance(Duration::from_millis(10)).await,
            next => panic!("{next:?}"),
        }
    }
    assert!((2..60).contains(&writes), "{writes} in 10 s");
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_given_up_and_applied_late_is_removed_while_its_lease_lives() {
    let mut entry = entry();
    let lease = held(&entry.lease);
    let (_, _answer) = claim(&mut entry, 1, "v", Claim::TakeOver);
    entry.next(&lease);
    entry.written(id_of(&lease), Err(no_answer()));
    let mut gone = release(&mut entry, 1);
    assert!(matches!(entry.next(&lease), Next::Remove { .. }));
    entry.removed(Ok(Delete::Gone(5)));
    assert!(gone.try_recv().unwrap().is_ok(), "a caller does not wait for a write that may never be applied");
    for revision in [5, 7] {
        assert!(matches!(entry.next(&lease), Next::Watch(from) if from == revision));
        assert!(is_at_rest(&entry.next(&lease)));
        entry.changed(revision + 1, Some(row(id_of(&lease), "v", revision + 1)));
        let next = entry.next(&lease);
        assert!(matches!(next, Next::Remove { revision: of, .. } if of == revision + 1), "{next:?}");
        // The worker does the same.
        entry.leave();
        entry.removed(Ok(Delete::Gone(revision + 2)));
    }
    entry.next(&lease);
    assert!(matches!(entry.next(&LeaseState::Idle), Next::Exit), "nothing can be written under a lease that has ended");
}

#[tokio::test(start_paused = true)]
async fn only_a_write_that_may_have_been_sent_is_watched_for_and_only_until_it_is_forgotten() {
    for (unsent, is_in_doubt) in [(true, false), (false, true)] {
        let mut entry = entry();
        let lease = held(&entry.lease);
        let (_, _answer) = claim(&mut entry, 1, "v", Claim::TakeOver);
        entry.next(&lease);
        let failure = if unsent { no_answer().before_sending() } else { no_answer() };
        entry.written(id_of(&lease), Err(failure));
        entry.take(Command::Forget);
        assert!(!entry.is_in_doubt(), "it has an owner");
        release(&mut entry, 1);
        entry.next(&lease);
        entry.removed(Ok(Delete::Gone(5)));
        assert_eq!(entry.is_in_doubt(), is_in_doubt);
        assert_eq!(matches!(entry.next(&lease), Next::Exit), !is_in_doubt);
        entry.take(Command::Forget);
        assert!(matches!(entry.next(&lease), Next::Exit));
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_is_guarded_by_the_revision_before_it() {
    let mut entry = entry();
    let lease = held(&entry.lease);
    registered(&mut entry, &lease);
    let update = |entry: &mut Entry, value: &str| {
        let (reply, answer) = oneshot::channel();
        entry.take(Command::Update { number: 1, value: value.into(), reply });
        answer
    };
    let _lost = update(&mut entry, "w");
    assert!(matches!(entry.next(&lease), Next::Write { revision: 5, .. }));
    entry.written(id_of(&lease), Err(no_answer()));
    // Nobody waits for the answer any more, but the write may still be applied.
    let mut written = update(&mut entry, "x");
    assert!(matches!(entry.next(&lease), Next::Write { revision: 5, .. }), "a late write overwrites nothing newer");
    entry.written(id_of(&lease), Ok(Put::Refused(Some(row(id_of(&lease), "w", 6)))));
    assert!(matches!(entry.next(&lease), Next::Write { revision: 6, .. }));
    entry.written(id_of(&lease), Ok(Put::Written(7)));
    assert!(written.try_recv().unwrap().is_ok());
    // The unanswered write is guarded by revision 5, which no longer exists.
    let _next = update(&mut entry, "y");
    assert!(matches!(entry.next(&lease), Next::Write { revision: 7, .. }));

    // If the entry is gone, one more write is needed.
    entry.written(id_of(&lease), Err(no_answer()));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(matches!(entry.next(&lease), Next::Write { revision: 7, .. }));
    entry.written(id_of(&lease), Ok(Put::Refused(None)));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(matches!(entry.next(&lease), Next::Write { revision: 0, .. }));
}

/// A revision that belongs to another owner's entry must not guard the write of a repair.
#[tokio::test(start_paused = true)]
async fn a_repair_does_not_overwrite_another_owners_entry() {
    const OTHER: i64 = 77;
    let pass = || tokio::time::sleep(Duration::from_secs(10));
    let foreign = || row(OTHER, "theirs", 9);

    // Another owner took over while the lease was lost, and the first write after that is not
    // answered.
    let mut first = entry();
    let lease = held(&first.lease);
    registered(&mut first, &lease);
    first.unwatched();
    pass().await;
    assert!(matches!(first.next(&lease), Next::Read));
    first.read(Ok(KeyReading { row: Some(foreign()), revision: 9 }));
    assert!(matches!(first.next(&lost()), Next::Wait(_)));
    let next = held(&first.lease);
    for _ in 0..2 {
        assert!(matches!(first.next(&next), Next::Write { revision: 0, .. }));
        first.written(id_of(&next), Err(no_answer()));
        pass().await;
    }
    assert!(matches!(first.next(&next), Next::Write { revision: 0, .. }));
    first.written(id_of(&next), Ok(Put::Refused(Some(foreign()))));
    first.next(&next);
    assert!(first.ownership.owner().is_none(), "superseded");

    // A claim of the same handle finds the other owner's entry and is given up, answered or not.
    for is_answered in [true, false] {
        let mut second = entry();
        let lease = held(&second.lease);
        registered(&mut second, &lease);
        let _answer = claim(&mut second, 2, "w", Claim::TakeOver);
        assert!(matches!(second.next(&lease), Next::Write { revision: 0, .. }));
        second.written(id_of(&lease), Ok(Put::Refused(Some(foreign()))));
        pass().await;
        assert!(matches!(second.next(&lease), Next::Write { revision: 9, .. }));
        if !is_answered {
            second.written(id_of(&lease), Err(no_answer()));
            pass().await;
            assert!(matches!(second.next(&lease), Next::Write { revision: 9, .. }), "a claim takes over");
        }
        let _gone = release(&mut second, 2);
        assert!(matches!(second.next(&lease), Next::Write { value, revision: 0, .. } if value == b"v"));
        second.written(id_of(&lease), Ok(Put::Refused(Some(foreign()))));
        pass().await;
        second.next(&lease);
        assert!(second.ownership.owner().is_none(), "superseded");
    }
}

#[derive(Clone, Debug)]
enum Event {
    /// Our own handle registers, taking over or not, or deregisters.
    Claim(bool),
    Release,
    Update,
    /// Another handle takes over the entry, or removes it.
    Other,
    OtherLeaves,
    /// Somebody changes the entry by hand.
    Delete,
    Overwrite,
    /// The lease expires in etcd, and its loss is noticed.
    Expire,
    /// A call is made. It is answered (0), applied without an answer (1), lost before it is applied
    /// (2), or delayed until nobody waits for it any more (3).
    Call(u8),
    /// Delayed calls arrive.
    Arrive,
    /// An audit reads the entry, and its result arrives later.
    Audit,
    Audited,
    /// Time passes.
    Wait,
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        any::<bool>().prop_map(Event::Claim),
        Just(Event::Release),
        Just(Event::Update),
        Just(Event::Other),
        Just(Event::OtherLeaves),
        Just(Event::Delete),
        Just(Event::Overwrite),
        Just(Event::Expire),
        (0u8..4).prop_map(Event::Call),
        (0u8..4).prop_map(Event::Call),
        (0u8..4).prop_map(Event::Call),
        Just(Event::Arrive),
        Just(Event::Audit),
        Just(Event::Audited),
        Just(Event::Wait),
    ]
}

const OTHER: i64 = 77;

/// One key of etcd, and a watch of it.
#[derive(Default)]
struct World {
    row: Option<KeyValue>,
    revision: i64,
    watched_from: Option<i64>,
    events: Vec<(i64, Option<KeyValue>)>,
    /// Audits under way: when each was requested, the revision known then, and what was read.
    audits: Vec<(Instant, i64, KeyReading)>,
    under_way: Vec<Next>,
}

impl World {
    fn set(&mut self, row: Option<(i64, Vec<u8>)>) {
        if row.is_none() && self.row.is_none() {
            return;
        }
        self.revision += 1;
        let revision = self.revision;
        self.row = row.map(|(lease, value)| KeyValue { key: KEY.into(), value, lease, revision });
        if self.watched_from.is_some_and(|from| from <= revision) {
            self.events.push((revision, self.row.clone()));
        }
    }

    fn read(&self) -> KeyReading {
        KeyReading { row: self.row.clone(), revision: self.revision }
    }

    /// Makes one call for the entry, with an outcome as in [`Event::Call`]; `None` if there is
    /// nothing to do.
    fn call(&mut self, entry: &mut Entry, lease: &LeaseState, how: u8) -> Option<()> {
        let next = entry.next(lease);
        match &next {
            Next::Exit | Next::Wait(_) => return None,
            Next::Watch(from) => {
                self.watched_from = Some(*from);
                if self.row.as_ref().is_some_and(|row| row.revision >= *from)
                    || (self.revision >= *from && self.row.is_none())
                {
                    self.events.push((self.revision, self.row.clone()));
                }
            }
            Next::Read => entry.read(if how == 0 { Ok(self.read()) } else { Err(no_answer()) }),
            Next::Remove { .. } => {
                if how < 2 {
                    self.meet(&next);
                }
                let left = self.row.clone().map_or(Delete::Gone(self.revision), Delete::Refused);
                // The worker does the same.
                self.watched_from = None;
                entry.leave();
                entry.removed(if how == 0 { Ok(left) } else { Err(no_answer()) });
            }
            Next::Write { lease: id, .. } => {
                assert_eq!(*id, id_of(lease));
                let before = self.row.clone();
                let put = if how < 2 && self.meet(&next) {
                    Put::Written(self.revision)
                } else {
                    Put::Refused(before.clone())
                };
                let is_claim = entry.ownership.owner().is_some_and(|owner| owner.intent == Intent::TakeOver);
                let is_anothers = before.is_some_and(|row| row.lease == OTHER);
                assert!(!is_anothers || matches!(put, Put::Refused(_)) || is_claim, "only a new claim takes over");
                entry.written(*id, if how == 0 { Ok(put) } else { Err(no_answer()) });
            }
        }
        if how == 3 {
            self.under_way.push(next);
        }
        Some(())
    }

    /// etcd's side of a call, which is applied if its guard holds.
    fn meet(&mut self, call: &Next) -> bool {
        let row = self.row.as_ref();
        match call {
            Next::Remove { lease, revision } => {
                let holds = row.is_some_and(|row| (row.lease, row.revision) == (*lease, *revision));
                if holds {
                    self.set(None);
                }
                holds
            }
            Next::Write { value, lease, revision } => {
                let holds = row.map_or(0, |row| row.revision) == *revision;
                if holds {
                    self.set(Some((*lease, value.clone())));
                }
                holds
            }
            _ => false,
        }
    }

    /// Delivers delayed calls. etcd refuses writes under a lease that has ended.
    fn arrive(&mut self, entry: &Entry, lease: &LeaseState) {
        for call in std::mem::take(&mut self.under_way) {
            if matches!(call, Next::Write { lease: id, .. } if id != id_of(lease)) {
                continue;
            }
            let is_right = |row: &KeyValue| {
                let owner = entry.ownership.owner().filter(|owner| owner.held == Some(row.lease));
                owner.is_some_and(|owner| owner.value == row.value)
            };
            let was_right = self.row.as_ref().is_some_and(is_right);
            let is_done = self.meet(&call);
            assert!(!(was_right && is_done), "a call that was given up must not undo a later one: {call:?}");
        }
    }
}

proptest! {
    /// Whatever happens in whatever order, in the end the entry is the owner's, another handle's,
    /// or absent.
    #[test]
    fn any_sequence_of_events_ends_in_a_consistent_state(events in proptest::collection::vec(any_event(), 0..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut entry = entry();
            let mut world = World::default();
            let mut lease = held(&entry.lease);
            let mut number = 0;
            let mut statuses = Vec::new();
            let mut answers = Vec::new();
            for event in events {
                match event {
                    Event::Claim(over) => {
                        number += 1;
                        let how = if over { Claim::TakeOver } else { Claim::IfAbsent };
                        let (status, answer) = claim(&mut entry, number, &format!("v{number}"), how);
                        statuses.push(status);
                        answers.push(answer);
                    }
                    Event::Release => answers.push(release(&mut entry, number)),
                    Event::Update => {
                        let (reply, answer) = oneshot::channel();
                        entry.take(Command::Update { number, value: b"updated".to_vec(), reply });
                        answers.push(answer);
                    }
                    Event::Other => world.set(Some((OTHER, b"other".to_vec()))),
                    Event::OtherLeaves => {
                        if world.row.as_ref().is_some_and(|row| row.lease == OTHER) {
                            world.set(None);
                        }
                    }
                    Event::Delete => world.set(None),
                    Event::Overwrite => world.set(Some((0, b"by hand".to_vec()))),
                    Event::Expire => {
                        if world.row.as_ref().is_some_and(|row| row.lease == id_of(&lease)) {
                            world.set(None);
                        }
                        entry.next(&lost());
                        lease = held(&entry.lease);
                        entry.resume();
                    }
                    Event::Call(how) => {
                        world.call(&mut entry, &lease, how);
                    }
                    Event::Arrive => world.arrive(&entry, &lease),
                    Event::Audit => world.audits.push((Instant::now(), entry.known(), world.read())),
                    Event::Audited => {
                        for (asked, known, reading) in std::mem::take(&mut world.audits) {
                            entry.audited(asked, known, reading);
                        }
                    }
                    Event::Wait => advance(Duration::from_millis(400)).await,
                }
                for (revision, row) in std::mem::take(&mut world.events) {
                    entry.changed(revision, row);
                }
            }
            // From here on every call is answered.
            for _ in 0..30 {
                let mut calls = 0;
                while world.call(&mut entry, &lease, 0).is_some() {
                    calls += 1;
                    assert!(calls < 100, "the calls never end");
                    for (revision, row) in std::mem::take(&mut world.events) {
                        entry.changed(revision, row);
                    }
                }
                advance(Duration::from_secs(1)).await;
            }
            for mut answer in answers {
                assert!(answer.try_recv().is_ok(), "every caller is answered");
            }
            match entry.ownership.owner() {
                Some(owner) => {
                    assert!(owner.status.current().is_registered());
                    let row = world.row.expect("the owner's entry is there");
                    assert_eq!((row.lease, &row.value), (id_of(&lease), &owner.value));
                }
                None => {
                    let next = entry.next(&lease);
                    assert!(matches!(next, Next::Exit) || is_at_rest(&next));
                    assert!(matches!(entry.next(&LeaseState::Idle), Next::Exit));
                    assert!(!world.row.is_some_and(|row| entry.lease.is_own(row.lease)), "no entry of ours is left");
                }
            }
            let live = statuses.iter().filter(|status| status.current().is_registered()).count();
            assert_eq!(live, usize::from(entry.ownership.owner().is_some()), "only the owner is registered");
        });
    }
}

fn update(entry: &mut Entry, number: u64, value: &str) -> Answer {
    let (reply, answer) = oneshot::channel();
    entry.take(Command::Update { number, value: value.into(), reply });
    answer
}

fn refused(kind: ErrorKind) -> Failure {
    Failure::new(Reason::Refused, Error::new(kind, "no"))
}

/// Returns the value that is written next, waiting as long as it takes; `None` if nothing is
/// written.
async fn next_value(entry: &mut Entry, lease: &LeaseState) -> Option<Vec<u8>> {
    for _ in 0..200 {
        match entry.next(lease) {
            Next::Write { value, .. } => return Some(value),
            Next::Wait(Some(until)) => tokio::time::sleep_until(until).await,
            _ => return None,
        }
    }
    panic!("it neither writes nor stops waiting")
}

#[tokio::test(start_paused = true)]
async fn an_update_that_is_refused_for_good_is_not_written_later() {
    for kind in [ErrorKind::PermissionDenied, ErrorKind::InvalidInput, ErrorKind::Unauthenticated] {
        let mut entry = entry();
        let lease = held(&entry.lease);
        let status = registered(&mut entry, &lease);
        let mut answer = update(&mut entry, 1, "w");
        assert_eq!(next_value(&mut entry, &lease).await.unwrap(), b"w");
        entry.written(id_of(&lease), Err(refused(kind)));
        assert_eq!(answer.try_recv().unwrap().unwrap_err().kind(), kind);
        assert!(status.current().is_registered(), "with the former value");
        assert_eq!(next_value(&mut entry, &lease).await, None, "the entry is as wanted");

        // A later loss is repaired with the former value.
        entry.changed(7, None);
        assert_eq!(next_value(&mut entry, &lease).await.unwrap(), b"v", "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_update_that_is_refused_while_the_entry_changes_restores_the_former_value() {
    let mut entry = entry();
    let lease = held(&entry.lease);
    registered(&mut entry, &lease);
    let mut answer = update(&mut entry, 1, "w");
    entry.next(&lease);
    // Meanwhile somebody deletes the entry.
    entry.changed(6, None);
    entry.written(id_of(&lease), Err(refused(ErrorKind::PermissionDenied)));
    assert!(answer.try_recv().unwrap().is_err());
    assert_eq!(next_value(&mut entry, &lease).await.unwrap(), b"v");
}

#[tokio::test(start_paused = true)]
async fn an_update_that_was_not_answered_is_still_written() {
    let mut entry = entry();
    let lease = held(&entry.lease);
    registered(&mut entry, &lease);
    let answer = update(&mut entry, 1, "w");
    entry.next(&lease);
    entry.written(id_of(&lease), Err(no_answer()));
    // The caller's update timed out, with an error that promises that the backend keeps trying.
    drop(answer);
    assert_eq!(next_value(&mut entry, &lease).await.unwrap(), b"w");
    entry.written(id_of(&lease), Err(refused(ErrorKind::PermissionDenied)));
    assert_eq!(next_value(&mut entry, &lease).await.unwrap(), b"w", "the promised value");
    // A refused update after that returns to this value.
    let mut answer = update(&mut entry, 1, "x");
    assert_eq!(next_value(&mut entry, &lease).await.unwrap(), b"x");
    entry.written(id_of(&lease), Err(refused(ErrorKind::PermissionDenied)));
    assert!(answer.try_recv().unwrap().is_err());
    assert_eq!(next_value(&mut entry, &lease).await.unwrap(), b"w");
    entry.written(id_of(&lease), Ok(Put::Written(9)));
    assert_eq!(next_value(&mut entry, &lease).await, None);
}

/// Somebody deletes the entry after each write. It is restored at once the first time, and later
/// each time after that.
#[tokio::test(start_paused = true)]
async fn an_entry_that_is_deleted_repeatedly_is_restored_less_and_less_often() {
    let mut entry = entry();
    let lease = held(&entry.lease);
    registered(&mut entry, &lease);
    advance(STEADY).await;
    let start = Instant::now();
    let mut writes = 0;
    let mut revision = 5;
    while start.elapsed() < Duration::from_secs(60) {
        entry.changed(revision + 1, None);
        let before = Instant::now();
        assert!(next_value(&mut entry, &lease).await.is_some());
        assert!(writes > 0 || before.elapsed() == Duration::ZERO, "the first time at once");
        entry.written(id_of(&lease), Ok(Put::Written(revision + 2)));
        writes += 1;
        revision += 2;
    }
    assert!((8..60).contains(&writes), "{writes} in a minute");
    // An entry that was left alone for a while is restored at once again.
    entry.next(&lease);
    advance(STEADY).await;
    entry.changed(revision + 1, None);
    assert!(matches!(entry.next(&lease), Next::Write { .. }));
}

#[tokio::test(start_paused = true)]
async fn requests_of_callers_go_before_repairs() {
    let mut entry = entry();
    let lease = held(&entry.lease);
    let (_, _answer) = claim(&mut entry, 1, "v", Claim::TakeOver);
    entry.next(&lease);
    assert_eq!(entry.urgency(), Urgency::Wanted, "the first registration");
    entry.written(id_of(&lease), Ok(Put::Written(5)));
    assert_eq!(entry.urgency(), Urgency::Repair);
    entry.changed(6, None);
    assert_eq!(entry.urgency(), Urgency::Repair);
    let _answer = update(&mut entry, 1, "w");
    assert_eq!(entry.urgency(), Urgency::Wanted, "an update");
    let _answer = release(&mut entry, 1);
    assert_eq!(entry.urgency(), Urgency::Wanted, "a removal");
    entry.removed(Ok(Delete::Gone(7)));
    assert_eq!(entry.urgency(), Urgency::Repair);
}
