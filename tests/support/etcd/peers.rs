use crate::{Fault, Proxy, port::Port};

/// The network between the members of a cluster: peers reach each member through its own proxy.
#[derive(Debug)]
pub(super) struct Peers(Vec<Proxy>);

impl Peers {
    /// Puts a proxy in front of each of these peer ports.
    pub(super) async fn before(ports: impl Iterator<Item = Port>) -> Self {
        let mut proxies = Vec::new();
        for port in ports {
            // The header by which a member identifies itself, on streams and posts alike.
            proxies.push(Proxy::telling_apart(format!("127.0.0.1:{port}"), "X-Server-From").await);
        }
        Self(proxies)
    }

    /// Returns the address at which peers reach a member.
    pub(super) fn address(&self, place: usize) -> String {
        self.0[place].address()
    }

    /// Blocks all traffic to and from a member, identified by its id.
    pub(super) fn isolate(&self, place: usize, id: &str) {
        for (other, proxy) in self.0.iter().enumerate() {
            if other == place {
                proxy.set(Fault::BlackHole);
            } else {
                proxy.set_for(id, Fault::BlackHole);
            }
        }
    }

    /// Lets all traffic through.
    pub(super) fn heal(&self) {
        self.0.iter().for_each(Proxy::heal);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::{Etcd, Raw, eventually};

    #[tokio::test(flavor = "multi_thread")]
    async fn an_isolated_member_has_no_leader_until_healed() {
        let etcd = Etcd::setup().members(3).peers_through_proxies().start().await;
        let has_leader = |place| etcd.metric(place, "etcd_server_has_leader") == Some(1.0);
        for place in [(etcd.leader().unwrap() + 1) % 3, etcd.leader().unwrap()] {
            etcd.isolate(place);
            let bound = Duration::from_secs(10);
            eventually("the isolated member has no leader", bound, async || !has_leader(place)).await;
            let others: Vec<_> = (0..3).filter(|other| *other != place).collect();
            // The others believe in the isolated leader for a moment.
            eventually("another leads", bound, async || etcd.leader().is_some_and(|leader| leader != place)).await;
            eventually("the others have a leader", bound, async || others.iter().all(|other| has_leader(*other))).await;
            let mut raw = Raw::connect(&[etcd.members()[others[0]].clone()]).await;
            raw.put("written", "without it").await;
            assert!(etcd.leader().is_some_and(|leader| leader != place));
            assert!(!has_leader(place));
            etcd.heal();
            let mut healed = Raw::connect(&[etcd.members()[place].clone()]).await;
            eventually("the healed member has a leader", bound, async || has_leader(place)).await;
            assert_eq!(healed.revision().await, raw.revision().await);
        }
    }
}
