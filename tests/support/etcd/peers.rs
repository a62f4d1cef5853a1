use crate::{Fault, Proxy};

/// What is between the members of a cluster: each is reached by its peers through a proxy of its own.
#[derive(Debug)]
pub(super) struct Peers(Vec<Proxy>);

impl Peers {
    /// Puts a proxy before each of these peer ports.
    pub(super) async fn before(ports: impl Iterator<Item = u16>) -> Self {
        let mut proxies = Vec::new();
        for port in ports {
            // The header in which a member says who it is, to streams and posts alike.
            proxies.push(Proxy::telling_apart(format!("127.0.0.1:{port}"), "X-Server-From").await);
        }
        Self(proxies)
    }

    /// Where a member is reached.
    pub(super) fn address(&self, place: usize) -> String {
        self.0[place].address()
    }

    /// Lets nothing through to a member, nor from it, which is known by its id.
    pub(super) fn isolate(&self, place: usize, id: &str) {
        for (other, proxy) in self.0.iter().enumerate() {
            if other == place {
                proxy.set(Fault::BlackHole);
            } else {
                proxy.set_for(id, Fault::BlackHole);
            }
        }
    }

    /// Lets everything through.
    pub(super) fn heal(&self) {
        self.0.iter().for_each(Proxy::heal);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::{Etcd, Raw, eventually};

    #[tokio::test(flavor = "multi_thread")]
    async fn an_isolated_member_is_without_its_cluster_until_healed() {
        let etcd = Etcd::setup().members(3).peers_through_proxies().start().await;
        let has_leader = |place| etcd.metric(place, "etcd_server_has_leader") == Some(1.0);
        for place in [(etcd.leader().unwrap() + 1) % 3, etcd.leader().unwrap()] {
            etcd.isolate(place);
            let bound = Duration::from_secs(10);
            eventually("it has no leader", bound, async || !has_leader(place)).await;
            let others: Vec<_> = (0..3).filter(|other| *other != place).collect();
            // They believe in the isolated one for a moment.
            eventually("another leads", bound, async || etcd.leader().is_some_and(|leader| leader != place)).await;
            eventually("the others have one", bound, async || others.iter().all(|other| has_leader(*other))).await;
            let mut raw = Raw::connect(&[etcd.members()[others[0]].clone()]).await;
            raw.put("written", "without it").await;
            assert!(etcd.leader().is_some_and(|leader| leader != place));
            assert!(!has_leader(place));
            etcd.heal();
            let mut healed = Raw::connect(&[etcd.members()[place].clone()]).await;
            eventually("it has caught up", bound, async || has_leader(place)).await;
            assert_eq!(healed.revision().await, raw.revision().await);
        }
    }
}
