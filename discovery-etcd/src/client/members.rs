use discovery_core::Address;

use super::{Failure, Member};
use crate::config::member_address;

impl Member {
    /// The addresses at which the members of the cluster offer themselves to clients, learners left
    /// out.
    ///
    /// What cannot be read, or does not fit whether there is TLS, is left out too.
    pub(crate) async fn members(&self) -> Result<Vec<Address>, Failure> {
        let has_tls = self.dial.has_tls();
        self.call("list members", async |client| {
            let answer = client.cluster_client().member_list().await?;
            let serving = answer.members().iter().filter(|member| !member.is_learner());
            let urls = serving.flat_map(|member| member.client_urls());
            Ok(urls.filter_map(|url| member_address(url, has_tls).ok()).collect())
        })
        .await
    }
}
