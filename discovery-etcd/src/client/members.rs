//! Lists the members of the cluster.

use discovery_core::Address;

use super::{Failure, Member};
use crate::config::{is_loopback, member_address};

/// A cluster's list of its members.
#[derive(Debug)]
pub(crate) struct ListedMembers {
    /// The id of the cluster; 0 if a proxy does not report it.
    pub(crate) cluster: u64,
    /// The client addresses of its members, without learners.
    pub(crate) addresses: Vec<Address>,
}

impl Member {
    /// Lists the members of the cluster.
    ///
    /// Leaves out addresses that cannot be parsed, that do not match whether TLS is used, or to
    /// which the password would be sent in plain text.
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
