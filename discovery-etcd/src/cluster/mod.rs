//! Which member to ask, and when not to ask at all.
//!
//! Calls and streams stay with one member while it is well. [`failover`] decides where they go when
//! it is not, [`round`] takes one call from member to member, and [`members`] finds members at new
//! addresses.

mod failover;
mod members;
mod round;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use discovery_core::{Address, Backoff, Error};
use tokio::{
    runtime::Handle,
    sync::{Mutex as AsyncMutex, Notify, watch},
    time::{Instant, sleep_until},
};
use tracing::debug;

use crate::{
    audit_interval::AuditInterval,
    client::{Dial, Failure, Member},
    config::Settings,
};
use failover::{Failover, Health};
pub(crate) use members::MemberList;
pub(crate) use round::Asking;
use round::{Purpose, Round};

/// The members of a cluster, asked one at a time.
#[derive(Debug)]
pub(crate) struct Cluster {
    state: Mutex<State>,
    news: watch::Sender<News>,
    /// Held by the one caller that waits for the end of a rest. The others wait for its news.
    scout: AsyncMutex<()>,
    dial: Arc<Dial>,
    request_timeout: Duration,
    backoff: Backoff,
    /// How long a handle stays with the member that it chose.
    audit: AuditInterval,
    /// Notified when a member fails, and when this is dropped.
    failure: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    members: Vec<Arc<Member>>,
    failover: Failover,
    /// When to choose a member again.
    choose_at: Instant,
}

/// What callers wait for while no member is well.
#[derive(Clone, Debug, Default)]
struct News {
    /// How often a member came back.
    returns: u64,
    /// The number of failures.
    failures: u64,
    last: Option<Failure>,
}

impl Cluster {
    /// Reads the files for TLS and the password. Does not connect yet.
    pub(crate) fn new(settings: &Settings, runtime: Handle) -> Result<Self, Error> {
        let dial = Arc::new(Dial::new(settings, runtime)?);
        let member =
            |address: &Address| Arc::new(Member::new(address.clone(), Arc::clone(&dial), settings.request_timeout));
        let members: Vec<_> = settings.members.iter().map(member).collect();
        let health = vec![Health::new(settings.backoff); members.len()];
        // At random, so that handles spread over the members.
        let failover = Failover::new(health, fastrand::usize(..members.len()));
        Ok(Self {
            state: Mutex::new(State { members, failover, choose_at: settings.audit_interval.next() }),
            news: watch::Sender::default(),
            scout: AsyncMutex::default(),
            dial,
            request_timeout: settings.request_timeout,
            backoff: settings.backoff,
            audit: settings.audit_interval,
            failure: Arc::default(),
        })
    }

    /// Runs a call on one member, and on the others if that fails, even on members that failed
    /// recently.
    ///
    /// Only for calls that may be done twice: a member that did not answer may have done the call.
    pub(crate) async fn run<T, F>(&self, mut call: impl FnMut(Arc<Member>) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut round = Round::default();
        while let Some(asking) = self.any(round.tried()) {
            if let Some(result) = round.ask(asking, &mut call).await {
                return result;
            }
        }
        Err(round.failure())
    }

    /// Like [`run`](Self::run), but skips members that rest after a failure.
    ///
    /// While no member is well, one caller at a time checks whether one is back. The others wait
    /// for the outcome, and fail with it.
    pub(crate) async fn run_when_reachable<T, F>(&self, call: impl FnMut(Arc<Member>) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut news = self.news.subscribe();
        let seen = news.borrow_and_update().failures;
        let failed = async {
            match news.wait_for(|news| news.failures != seen).await {
                Ok(news) => news.last.clone(),
                Err(_) => None,
            }
        };
        tokio::select! {
            biased;
            // A reachable member comes before the news of a failure.
            asking = self.reachable() => self.run_on(asking, call).await,
            Some(failure) = failed => Err(failure),
        }
    }

    /// Runs a call on a member that is [reachable](Self::reachable), and on other reachable ones if
    /// that fails.
    pub(crate) async fn run_on<T, F>(
        &self,
        first: Asking<'_>,
        mut call: impl FnMut(Arc<Member>) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut round = Round::default();
        let mut next = Some(first);
        while let Some(asking) = next {
            if let Some(result) = round.ask(asking, &mut call).await {
                return result;
            }
            next = self.available(round.tried());
        }
        let tried = round.tried().to_vec();
        Err(self.of_all(&tried, round.failure()))
    }

    /// Waits until a member is well, or until it is this caller's turn to check. Cancel safe.
    pub(crate) async fn reachable(&self) -> Asking<'_> {
        loop {
            // Subscribed before looking, so that no return in between is missed.
            let mut news = self.news.subscribe();
            let returns = news.borrow_and_update().returns;
            if let Some(asking) = self.available(&[]) {
                return asking;
            }
            let returned = async {
                // The sender lives as long as `self`.
                let _ = news.wait_for(|news| news.returns != returns).await;
            };
            tokio::select! {
                biased;
                () = returned => {}
                asking = self.scout() => return asking,
            }
        }
    }

    /// The member to open a stream on, even if all members failed recently. Other callers may use
    /// it meanwhile.
    pub(crate) fn choose(&self) -> Asking<'_> {
        let mut state = self.lock();
        let place = state.failover.preferred(Instant::now());
        let member = Arc::clone(&state.members[place]);
        Asking::new(self, member, Purpose::Answer, None)
    }

    /// Another member to move a stream to, if there is a reason to move.
    ///
    /// Once per audit a handle chooses its member again, at random, so that restarting one member
    /// after another does not leave all handles on one of them. The other streams of the handle
    /// follow the first one that moved. The new stream is opened before the former one is closed.
    pub(crate) fn another(&self, than: &Arc<Member>) -> Option<Asking<'_>> {
        let now = Instant::now();
        let mut state = self.lock();
        let place = if state.choose_at <= now {
            state.choose_at = self.audit.next();
            state.failover.candidate(now)?
        } else {
            Some(state.failover.current()).filter(|place| state.failover.is_well(*place))?
        };
        let member = Arc::clone(&state.members[place]);
        // If the stream stays, dropping this ends the trial.
        let asking =
            Asking::new(self, member, Purpose::Move, state.failover.trial(place).filter(|since| *since == now));
        drop(state);
        Some(asking).filter(|asking| !Arc::ptr_eq(asking.member(), than))
    }

    /// Records that a stream on a member failed, unless the failure is the cluster's answer.
    /// Returns what the failure means for the handle.
    pub(crate) fn blame(&self, member: &Arc<Member>, failure: Failure) -> Failure {
        if failure.is_member() {
            self.failed(member, &failure, None);
        }
        self.of_all(std::slice::from_ref(member), failure)
    }

    fn failed(&self, member: &Arc<Member>, failure: &Failure, begun: Option<Instant>) {
        let is_down = {
            let mut state = self.lock();
            let Some(place) = state.place(member) else { return };
            if !state.failover.failed(place, failure, begun, Instant::now()) {
                return;
            }
            state.failover.is_down()
        };
        debug!(?member, reason = ?failure.reason, "member failed");
        self.failure.notify_one();
        if is_down {
            let failure = self.of_all(std::slice::from_ref(member), failure.clone());
            self.news.send_modify(|news| {
                news.failures += 1;
                news.last = Some(failure);
            });
        }
    }

    fn succeeded(&self, member: &Arc<Member>, moves: bool) {
        let is_back = {
            let mut state = self.lock();
            let Some(place) = state.place(member) else { return };
            if moves {
                state.failover.settle(place);
            }
            state.failover.succeeded(place)
        };
        if is_back {
            self.news.send_modify(|news| news.returns += 1);
        }
    }

    /// Records that the trial that began at `since` ended without a result.
    fn abandoned(&self, member: &Arc<Member>, since: Instant) {
        let mut state = self.lock();
        if let Some(place) = state.place(member) {
            state.failover.abandoned(place, since, Instant::now());
        }
    }

    /// What a failure means if only these members were asked: a final error is the cluster's only
    /// if all members agree.
    pub(crate) fn of_all(&self, tried: &[Arc<Member>], failure: Failure) -> Failure {
        if failure.error.is_retryable() || !failure.is_member() {
            return failure;
        }
        let state = self.lock();
        let tried: Vec<usize> = tried.iter().filter_map(|member| state.place(member)).collect();
        if state.failover.may_others_answer(&tried) { failure.of_one_member() } else { failure }
    }

    /// Waits for the end of a rest, one caller at a time. Cancel safe.
    async fn scout(&self) -> Asking<'_> {
        let _one = self.scout.lock().await;
        loop {
            if let Some(asking) = self.available(&[]) {
                return asking;
            }
            let next = self.lock().failover.next_trial();
            // `None` if a member recovered just now.
            if let Some(next) = next {
                sleep_until(next).await;
            }
        }
    }

    fn available(&self, tried: &[Arc<Member>]) -> Option<Asking<'_>> {
        self.pick(tried, Failover::available)
    }

    fn any(&self, tried: &[Arc<Member>]) -> Option<Asking<'_>> {
        self.pick(tried, Failover::any)
    }

    fn pick(
        &self,
        tried: &[Arc<Member>],
        pick: impl FnOnce(&mut Failover, Instant, &[usize]) -> Option<usize>,
    ) -> Option<Asking<'_>> {
        let now = Instant::now();
        let mut state = self.lock();
        let tried: Vec<usize> = tried.iter().filter_map(|member| state.place(member)).collect();
        let place = pick(&mut state.failover, now, &tried)?;
        let is_only_one_and_well = state.members.len() == 1 && state.failover.is_well(place);
        let purpose = if is_only_one_and_well { Purpose::AnswerOfTheOnlyOne } else { Purpose::Answer };
        let trial = state.failover.trial(place).filter(|since| *since == now);
        Some(Asking::new(self, Arc::clone(&state.members[place]), purpose, trial))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// `None` for a member that is no longer part of the cluster.
    fn place(&self, member: &Arc<Member>) -> Option<usize> {
        self.members.iter().position(|known| Arc::ptr_eq(known, member))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.failure.notify_one();
    }
}

#[cfg(test)]
mod tests;
