use std::{collections::VecDeque, sync::Mutex, time::Duration};

use async_trait::async_trait;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::backend::RegistrationBackend;

/// The outcome of one attempt.
#[derive(Clone, Debug)]
enum Answer {
    Fails(ErrorKind),
    FailsLate(ErrorKind),
    Never,
    Registers,
}

#[derive(Debug, Default)]
struct Script {
    answers: VecDeque<Answer>,
    /// The weights of all attempts to register and to update.
    asked: Vec<u16>,
    /// The weight of the entry, if there is one.
    entry: Option<u16>,
    ended: usize,
    /// The errors of the next updates; those after them succeed.
    updates: VecDeque<ErrorKind>,
    /// Whether deregistrations go unconfirmed.
    is_away: bool,
    status: Option<StatusWriter>,
}

#[derive(Clone, Debug, Default)]
struct Scripted(Arc<Mutex<Script>>);

impl Scripted {
    fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
        let script = Script { answers: answers.into_iter().collect(), ..Script::default() };
        Self(Arc::new(Mutex::new(script)))
    }

    fn asked(&self) -> Vec<u16> {
        self.0.lock().unwrap().asked.clone()
    }

    fn entry(&self) -> Option<u16> {
        self.0.lock().unwrap().entry
    }
}

#[async_trait]
impl Registry for Scripted {
    async fn register_with(&self, service: &ServiceName, instance: Instance, _: Claim) -> Result<Registration, Error> {
        let answer = {
            let mut script = self.0.lock().unwrap();
            script.asked.push(instance.weight().value());
            script.answers.pop_front().unwrap_or(Answer::Registers)
        };
        match answer {
            Answer::Fails(kind) => return Err(Error::new(kind, "scripted")),
            Answer::FailsLate(kind) => {
                sleep(Duration::from_millis(10)).await;
                return Err(Error::new(kind, "scripted"));
            }
            Answer::Never => std::future::pending().await,
            Answer::Registers => sleep(Duration::from_millis(10)).await,
        }
        let status = StatusWriter::new(Status::registered());
        let mut script = self.0.lock().unwrap();
        script.entry = Some(instance.weight().value());
        script.status = Some(status.clone());
        drop(script);
        Ok(Registration::new(service.clone(), Arc::new(instance), &status, self.clone()))
    }
}

#[async_trait]
impl RegistrationBackend for Scripted {
    async fn update(&self, instance: Arc<Instance>) -> Result<(), Error> {
        sleep(Duration::from_millis(10)).await;
        let mut script = self.0.lock().unwrap();
        script.asked.push(instance.weight().value());
        if let Some(kind) = script.updates.pop_front() {
            return Err(Error::new(kind, "scripted"));
        }
        script.entry = Some(instance.weight().value());
        Ok(())
    }

    async fn deregister(&self) -> Result<(), Error> {
        if self.0.lock().unwrap().is_away {
            return Err(Error::new(ErrorKind::DeadlineExceeded, "scripted"));
        }
        self.release();
        Ok(())
    }

    fn release(&self) {
        let mut script = self.0.lock().unwrap();
        script.entry = None;
        script.ended += 1;
    }
}

fn kept(registry: &Scripted) -> Result<Registration, Error> {
    let instance = Instance::new("10.0.0.1:80".parse().unwrap());
    registry.keep_registered(&"payments".parse().unwrap(), instance, Claim::TakeOver)
}

fn reweighed(instance: Instance, weight: u16) -> Instance {
    instance.with_weight(crate::Weight::new(weight).unwrap())
}

async fn until(registration: &mut Registration, wanted: impl Fn(&Status) -> bool) {
    let reached = async {
        while !wanted(&registration.status()) {
            registration.changed().await;
        }
    };
    timeout(Duration::from_secs(60), reached).await.expect("the wanted status comes");
}

#[tokio::test(start_paused = true)]
async fn it_exists_at_once_and_is_registered_once_the_registry_accepts_it() {
    use ErrorKind as Kind;
    let failures = [Kind::Unavailable, Kind::DeadlineExceeded, Kind::PermissionDenied, Kind::Unauthenticated];
    let registry = Scripted::new(failures.map(Answer::FailsLate));
    let mut registration = kept(&registry).unwrap();
    assert!(matches!(registration.status(), Status::Lost { .. }), "nothing is written yet");
    for kind in failures {
        until(&mut registration, |status| matches!(status, Status::Lost { error, .. } if error.kind() == kind)).await;
    }
    until(&mut registration, Status::is_registered).await;
    assert_eq!((registry.asked().len(), registry.entry()), (5, Some(100)));
    // Its later statuses are passed on.
    let inner = registry.0.lock().unwrap().status.clone().unwrap();
    inner.set(Status::lost(Error::new(Kind::Unavailable, "gone")));
    until(&mut registration, |status| matches!(status, Status::Lost { .. })).await;
    inner.set(Status::registered());
    until(&mut registration, Status::is_registered).await;
    registration.deregister().await.unwrap();
    assert_eq!(registry.entry(), None);
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_input_fails_at_once_or_waits_for_another_value() {
    for kind in [ErrorKind::InvalidInput, ErrorKind::Unsupported, ErrorKind::Closed] {
        let registry = Scripted::new([Answer::Fails(kind)]);
        assert_eq!(kept(&registry).unwrap_err().kind(), kind);
    }
    let registry = Scripted::new([Answer::FailsLate(ErrorKind::InvalidInput)]);
    let mut registration = kept(&registry).unwrap();
    let is_invalid =
        |status: &Status| matches!(status, Status::Lost { error, .. } if error.kind() == ErrorKind::InvalidInput);
    until(&mut registration, is_invalid).await;
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(registry.asked(), [100], "the same value is not tried again");
    registration.update(|instance| reweighed(instance, 7)).await.unwrap();
    until(&mut registration, Status::is_registered).await;
    assert_eq!((registry.asked(), registry.entry()), (vec![100, 7], Some(7)));
}

#[tokio::test(start_paused = true)]
async fn a_conflict_is_final() {
    for answer in [Answer::Fails(ErrorKind::Conflict), Answer::FailsLate(ErrorKind::Conflict)] {
        let registry = Scripted::new([answer]);
        let mut registration = kept(&registry).unwrap();
        until(&mut registration, |status| matches!(status, Status::Superseded { .. })).await;
        sleep(Duration::from_secs(3600)).await;
        assert_eq!(registry.asked().len(), 1);
        let error = registration.update(|instance| reweighed(instance, 7)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert_eq!(registration.instance().weight().value(), 100);
        registration.deregister().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_update_changes_what_is_written_next() {
    let registry = Scripted::new([Answer::FailsLate(ErrorKind::Unavailable), Answer::Registers]);
    let mut registration = kept(&registry).unwrap();
    let start = Instant::now();
    registration.update(|instance| reweighed(instance, 7)).await.unwrap();
    assert_eq!((start.elapsed(), registration.instance().weight().value()), (Duration::ZERO, 7));
    while registry.asked() != [100, 7] {
        sleep(Duration::from_millis(1)).await;
    }
    registration.update(|instance| reweighed(instance, 8)).await.unwrap();
    until(&mut registration, Status::is_registered).await;
    assert_eq!(
        (registry.asked(), registry.entry()),
        (vec![100, 7, 8], Some(8)),
        "the attempt under way is followed by an update, and only then is it `Registered`"
    );
    registration.update(|instance| reweighed(instance, 9)).await.unwrap();
    assert_eq!(registry.entry(), Some(9));
}

/// An application that reports its load every few milliseconds to a registry that answers slowly or
/// not at all.
#[tokio::test(start_paused = true)]
async fn updates_neither_delay_nor_hasten_attempts() {
    let registry = Scripted::new([]);
    let registration = kept(&registry).unwrap();
    for weight in 1..100 {
        registration.update(|one| reweighed(one, weight)).await.unwrap();
        sleep(Duration::from_millis(9)).await;
    }
    assert!(registration.status().is_registered());
    assert_eq!(registry.entry(), Some(99));

    let registry = Scripted::new(vec![Answer::FailsLate(ErrorKind::Unavailable); 10_000]);
    let registration = kept(&registry).unwrap();
    for weight in 1..6000 {
        registration.update(|one| reweighed(one, weight)).await.unwrap();
        sleep(Duration::from_millis(10)).await;
    }
    let attempts = registry.asked().len();
    assert!(attempts < 60, "{attempts} in a minute");
}

/// The registration itself writes a late update in its own time, and a refused update waits for
/// another value. Neither removes what is registered without need.
#[tokio::test(start_paused = true)]
async fn an_update_that_fails_during_the_hand_over() {
    for (kind, is_kept, asked) in [
        (ErrorKind::DeadlineExceeded, true, &[100, 7][..]),
        (ErrorKind::PermissionDenied, true, &[100, 7, 7]),
        (ErrorKind::InvalidInput, false, &[100, 7]),
    ] {
        let registry = Scripted::new([]);
        registry.0.lock().unwrap().updates.push_back(kind);
        let mut registration = kept(&registry).unwrap();
        sleep(Duration::from_millis(5)).await;
        registration.update(|one| reweighed(one, 7)).await.unwrap();
        for _ in 0..100 {
            sleep(Duration::from_millis(100)).await;
            assert_eq!(registry.entry().is_some(), is_kept, "{kind:?}");
        }
        assert_eq!(registration.status().is_registered(), is_kept, "{kind:?}");
        assert_eq!(registry.asked(), asked);

        registration.update(|one| reweighed(one, 8)).await.unwrap();
        until(&mut registration, Status::is_registered).await;
        assert_eq!(registry.entry(), Some(8));
    }
}

/// An update during the hand-over waits for it, and is written.
#[tokio::test(start_paused = true)]
async fn no_update_is_lost_during_the_hand_over() {
    let registry = Scripted::new([]);
    let registration = kept(&registry).unwrap();
    sleep(Duration::from_millis(5)).await;
    registration.update(|one| reweighed(one, 7)).await.unwrap();
    sleep(Duration::from_millis(10)).await;
    registration.update(|one| reweighed(one, 8)).await.unwrap();
    assert_eq!(registry.entry(), Some(8), "once the update has returned");
    sleep(Duration::from_secs(1)).await;
    assert_eq!((registry.asked(), registry.entry()), (vec![100, 7, 8], Some(8)));
}

/// An owner that deregisters during the hand-over gets an error if that is not confirmed.
#[tokio::test(start_paused = true)]
async fn an_unconfirmed_end_during_the_hand_over_is_an_error() {
    let registry = Scripted::new([]);
    let registration = kept(&registry).unwrap();
    sleep(Duration::from_millis(5)).await;
    registration.update(|one| reweighed(one, 7)).await.unwrap();
    sleep(Duration::from_millis(10)).await;
    registry.0.lock().unwrap().is_away = true;
    assert_eq!(registration.deregister().await.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
}

/// Deregistered or dropped during the hand-over, the registration leaves nothing behind.
#[tokio::test(start_paused = true)]
async fn it_can_end_during_the_hand_over() {
    for is_dropped in [false, true] {
        let registry = Scripted::new([]);
        let registration = kept(&registry).unwrap();
        sleep(Duration::from_millis(5)).await;
        registration.update(|one| reweighed(one, 7)).await.unwrap();
        sleep(Duration::from_millis(10)).await;
        assert_eq!(registry.entry(), Some(100), "the update is under way");
        if is_dropped {
            drop(registration);
        } else {
            registration.deregister().await.unwrap();
        }
        sleep(Duration::from_millis(1)).await;
        assert_eq!(registry.entry(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn it_ends_with_its_handle() {
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    for (answers, is_registered) in [
        (vec![Answer::Never], false),
        (vec![Answer::FailsLate(ErrorKind::Unavailable); 1000], false),
        (vec![Answer::FailsLate(ErrorKind::InvalidInput)], false),
        (vec![Answer::FailsLate(ErrorKind::Conflict)], false),
        (vec![], true),
    ] {
        let registry = Scripted::new(answers);
        let registration = kept(&registry).unwrap();
        let statuses = registration.statuses();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(registration.status().is_registered(), is_registered);
        drop(registration);
        sleep(Duration::from_millis(1)).await;
        assert!(statuses.current().is_final(), "{:?}", statuses.current());
        assert_eq!((registry.entry(), tasks()), (None, before));
        let asked = registry.asked().len();
        sleep(Duration::from_secs(3600)).await;
        assert_eq!(registry.asked().len(), asked);
    }
}

#[tokio::test(start_paused = true)]
async fn deregistering_removes_what_an_attempt_writes() {
    let registry = Scripted::new([]);
    let registration = kept(&registry).unwrap();
    registration.deregister().await.unwrap();
    let script = registry.0.lock().unwrap();
    assert_eq!((script.entry, script.ended), (None, 1));
}

#[test]
fn it_needs_a_runtime_and_ends_with_it() {
    let registry = Scripted::default();
    assert_eq!(kept(&registry).unwrap_err().kind(), ErrorKind::NoRuntime);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let registration = runtime.block_on(async {
        let mut registration = kept(&registry).unwrap();
        until(&mut registration, Status::is_registered).await;
        registration
    });
    drop(runtime);
    assert!(matches!(registration.status(), Status::Lost { error, .. } if error.kind() == ErrorKind::Internal));
    drop(registration);
    assert_eq!(registry.entry(), None);
}
