//! Finds members at new addresses, from the cluster's own list of members.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use discovery_core::Address;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, info};

use super::{Cluster, State};
use crate::{
    client::{ListedMembers, Member},
    cluster::failover::{Failover, Health},
};

/// Follows the list of members while the cluster is in use.
#[derive(Debug)]
pub(crate) struct MemberList {
    cluster: Weak<Cluster>,
    failure: Arc<Notify>,
    /// The configured members, used at the start and as a fallback.
    configured: Vec<Address>,
    identity: Identity,
    interval: Duration,
}

/// Which cluster the handle belongs to.
#[derive(Debug)]
struct Identity {
    /// The first cluster that was seen, or its successor.
    cluster: Option<u64>,
    /// Since when only other clusters have been seen.
    other_since: Option<Instant>,
    /// How long that must last before another cluster counts as the successor of this one, for
    /// instance after a restore.
    patience: Duration,
}

impl MemberList {
    pub(crate) fn new(cluster: &Arc<Cluster>, configured: &[Address]) -> Self {
        Self {
            cluster: Arc::downgrade(cluster),
            failure: Arc::clone(&cluster.failure),
            configured: configured.to_vec(),
            identity: Identity::new(cluster.audit.part(1)),
            interval: cluster.audit.part(20).clamp(SPACING, SLOWEST),
        }
    }

    /// Reads the list from time to time, and soon after a member failed. Ends with the cluster.
    pub(crate) async fn run(mut self) {
        while let Some(cluster) = self.cluster.upgrade() {
            match cluster.run_when_reachable(|member| async move { member.members().await }).await {
                Ok(ListedMembers { addresses, .. }) if addresses.is_empty() => {
                    debug!("etcd lists no member that can be used");
                }
                Ok(ListedMembers { cluster: id, addresses }) if self.identity.is(id, Instant::now()) => {
                    cluster.set_members(&addresses);
                }
                // One of the addresses leads to another cluster, perhaps only for a moment.
                Ok(ListedMembers { cluster: other, .. }) => {
                    debug!(cluster = format_args!("{other:x}"), "another cluster answered");
                    cluster.add_members(&self.configured);
                }
                // The configured members may be back, or their names may resolve to new addresses.
                Err(failure) if failure.is_of_connection() => cluster.add_members(&self.configured),
                Err(failure) => debug!(error = %failure.error.report(), "members not listed"),
            }
            drop(cluster);
            let earliest = Instant::now() + SPACING;
            tokio::select! {
                () = sleep(self.interval.mul_f64(0.8 + 0.4 * fastrand::f64())) => {}
                () = self.failure.notified() => {}
            }
            if self.cluster.strong_count() > 0 {
                sleep_until(earliest).await;
            }
        }
    }
}

impl Identity {
    fn new(patience: Duration) -> Self {
        Self { cluster: None, other_since: None, patience }
    }

    /// Whether an answer of this cluster is one of the handle's own cluster.
    fn is(&mut self, cluster: u64, now: Instant) -> bool {
        let is_own = cluster == 0 || *self.cluster.get_or_insert(cluster) == cluster;
        if is_own {
            self.other_since = None;
            return true;
        }
        let is_successor = now.duration_since(*self.other_since.get_or_insert(now)) >= self.patience;
        if is_successor {
            self.cluster = Some(cluster);
            self.other_since = None;
        }
        is_successor
    }
}

impl Cluster {
    /// Replaces the members. Those that stay keep their health.
    fn set_members(&self, addresses: &[Address]) {
        let mut state = self.lock();
        let mut members: Vec<Arc<Member>> = Vec::with_capacity(addresses.len());
        for address in addresses.iter().take(MOST) {
            if !members.iter().any(|member| member.address() == address) {
                members.push(state.member(address).unwrap_or_else(|| self.member(address)));
            }
        }
        let is_same =
            members.len() == state.members.len() && members.iter().all(|member| state.place(member).is_some());
        if !is_same {
            info!(members = ?members.iter().map(|member| member.address()).collect::<Vec<_>>(), "members changed");
            self.replace(&mut state, members);
        }
    }

    /// Adds members to the present ones.
    fn add_members(&self, addresses: &[Address]) {
        let mut state = self.lock();
        let missing: Vec<_> = addresses.iter().filter(|address| state.member(address).is_none()).collect();
        if !missing.is_empty() {
            let mut members = state.members.clone();
            members.extend(missing.into_iter().map(|address| self.member(address)));
            self.replace(&mut state, members);
        }
    }

    fn replace(&self, state: &mut State, members: Vec<Arc<Member>>) {
        let current = Arc::clone(&state.members[state.failover.current()]);
        let health = members.iter().map(|member| {
            let place = state.place(member);
            place.map_or_else(|| Health::new(self.backoff), |place| state.failover.health(place))
        });
        let health: Vec<Health> = health.collect();
        let kept = members.iter().position(|member| Arc::ptr_eq(member, &current));
        let current = kept.unwrap_or_else(|| fastrand::usize(..members.len()));
        state.failover = Failover::new(health, current);
        state.members = members;
        // Nothing bad is known of the new members, so waiting callers may try them.
        self.news.send_modify(|news| news.returns += 1);
    }

    fn member(&self, address: &Address) -> Arc<Member> {
        Arc::new(Member::new(address.clone(), Arc::clone(&self.dial), self.request_timeout))
    }
}

impl State {
    fn member(&self, address: &Address) -> Option<Arc<Member>> {
        self.members.iter().find(|member| member.address() == address).cloned()
    }
}

/// The shortest time between two lists.
const SPACING: Duration = Duration::from_secs(1);
/// The longest time between two lists.
const SLOWEST: Duration = Duration::from_secs(30);
/// More members than any cluster has.
const MOST: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn another_cluster_succeeds_one_that_was_not_seen_for_long() {
        let patience = Duration::from_secs(600);
        let mut identity = Identity::new(patience);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(identity.is(0, at(0)), "a proxy does not report it");
        assert!(identity.is(7, at(1)), "the first cluster");
        assert!(!identity.is(8, at(2)) && !identity.is(8, at(600)));
        assert!(identity.is(7, at(601)));
        assert!(!identity.is(8, at(602)) && !identity.is(8, at(1201)), "the own cluster was seen meanwhile");
        assert!(identity.is(8, at(1202)), "after a restore");
        assert!(identity.is(8, at(1203)) && !identity.is(7, at(1204)));
    }
}
