//! One call on its way from member to member.

use std::{sync::Arc, time::Duration};

use discovery_core::{Error, ErrorKind};
use tokio::time::Instant;

use super::Cluster;
use crate::client::{Failure, Member, Reason};

/// A member that is being asked. If dropped without a result, other callers may try the member.
#[derive(Debug)]
pub(crate) struct Asking<'a> {
    cluster: &'a Cluster,
    member: Arc<Member>,
    purpose: Purpose,
    /// When this began to check whether the member is well again, if it does.
    trial: Option<Instant>,
    begun: Instant,
    is_over: bool,
}

/// Why a member is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Purpose {
    /// It is the member to ask.
    Answer,
    /// It is the only member, and it is well.
    AnswerOfTheOnlyOne,
    /// The handle moves to it if it answers.
    Move,
}

/// The members asked so far, and the result.
#[derive(Debug, Default)]
pub(super) struct Round {
    tried: Vec<Arc<Member>>,
    /// A member was overloaded or did not answer in time.
    is_load: bool,
    failure: Option<Failure>,
}

impl<'a> Asking<'a> {
    pub(super) fn new(cluster: &'a Cluster, member: Arc<Member>, purpose: Purpose, trial: Option<Instant>) -> Self {
        Self { cluster, member, purpose, trial, begun: Instant::now(), is_over: false }
    }

    pub(crate) fn member(&self) -> &Arc<Member> {
        &self.member
    }

    /// Records the result, and returns the member. A failure of the member keeps calls away for a
    /// while. Any answer of the cluster, even a refusal, shows that the member is well.
    pub(crate) fn ended<T>(mut self, result: &Result<T, Failure>) -> Arc<Member> {
        self.is_over = true;
        match result {
            Err(failure) if failure.is_member() => self.cluster.failed(&self.member, failure, Some(self.begun)),
            _ => self.cluster.succeeded(&self.member, self.purpose == Purpose::Move),
        }
        Arc::clone(&self.member)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(since) = self.trial.filter(|_| !self.is_over) {
            self.cluster.abandoned(&self.member, since);
        }
    }
}

impl Round {
    pub(super) fn tried(&self) -> &[Arc<Member>] {
        &self.tried
    }

    /// Asks one member. Returns how the call ends, or `None` if another member must be asked.
    pub(super) async fn ask<T, F>(
        &mut self,
        asking: Asking<'_>,
        call: &mut impl FnMut(Arc<Member>) -> F,
    ) -> Option<Result<T, Failure>>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let started = Instant::now();
        let mut result = call(Arc::clone(&asking.member)).await;
        let is_once_more = result.as_ref().is_err_and(|failure| {
            // The second call uses another token.
            failure.reason == Reason::Token
                // Usually the connection had died unnoticed, and there is no other member to ask.
                || (asking.purpose == Purpose::AnswerOfTheOnlyOne && failure.is_of_connection() && started.elapsed() < QUICK)
        });
        if is_once_more {
            result = call(Arc::clone(&asking.member)).await;
        }
        self.tried.push(Arc::clone(&asking.member));
        asking.ended(&result);
        match result {
            Err(failure) if failure.is_member() => {
                if self.goes_on(failure) {
                    None
                } else {
                    Some(Err(std::mem::take(self).failure()))
                }
            }
            other => Some(other),
        }
    }

    /// Records a failure. Returns whether to ask another member.
    ///
    /// After an overload or a timeout, only one other member is asked: asking all of them would
    /// multiply the load that caused it.
    fn goes_on(&mut self, failure: Failure) -> bool {
        let is_second = self.is_load && !failure.is_unsent();
        self.is_load |= failure.reason.is_load();
        // A final error counts as the cluster's only if all members agree.
        let replaces =
            self.failure.as_ref().is_none_or(|former| failure.error.is_retryable() || !former.error.is_retryable());
        if replaces {
            self.failure = Some(failure);
        }
        !is_second
    }

    /// The failure of a call that no member answered.
    pub(super) fn failure(self) -> Failure {
        self.failure.unwrap_or_else(|| {
            Failure::new(Reason::Member, Error::new(ErrorKind::Unavailable, "no etcd member is available"))
        })
    }
}

/// A failure that came faster than this was cheap, and so is asking again.
const QUICK: Duration = Duration::from_millis(500);
