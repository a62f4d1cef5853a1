use discovery_core::Address;

use super::{Failure, Member};
use crate::config::{is_loopback, member_address};

/// A cluster's list of its members.
#[derive(Debug)]
pub(crate) struct ListedMembers {
    /// Which cluster this is; 0 where a proxy does not tell.
    pub(crate) cluster: u64,
    /// Where its members offer themselves to clients, learners left out.
    pub(crate) addresses: Vec<Address>,
}

impl Member {
    /// The members of the cluster.
    ///
    /// An address that cannot be read is left out, as is one that does not fit whether there is
    /// TLS, and one to which the password would travel in clear.
    pub(crate) async fn members(&self) -> Result<ListedMembers, Failure> {
        let has_tls = self.dial.has_tls();
        let is_allowed = |address: &Address| !self.dial.is_loopback_only || is_loopback(address);
        self.call("list members", async |client| {
            let answer = client.cluster_client().member_list().await?;
            let serving = answer.members().iter().filter(|member| !member.is_learner());
            let urls = serving.flat_map(|member| member.client_urls());
            Ok(ListedMembers {
                cluster: answer.header().map_or(0, |header| header.cluster_id()),
                addresses: urls.filter_map(|url| member_address(url, has_tls).ok()).filter(is_allowed).collect(),
            })
        })
        .await
    }
}
