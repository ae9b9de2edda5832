//! Which index server runs a transaction that has staged something here. It is only in memory: after a restart nobody is
//! known, and all of them are asked. A transaction that nobody runs gets its outcome from the log.

use std::{collections::HashMap, sync::Arc, time::Duration};

use drsdb_core::{
    Ulid,
    net::ChannelPool,
    v1::{TransactionActiveRequest, cluster_client::ClusterClient},
};
use futures::future::join_all;
use parking_lot::Mutex;
use url::Url;

/// How long an index server may take to say whether it runs a transaction.
const ASK_TIME: Duration = Duration::from_secs(2);
/// Transactions that are remembered, at most; beyond it new ones are not.
const MOST: usize = 100_000;

/// Cheap to clone; clones share what they know.
#[derive(Debug, Clone, Default)]
pub struct Coordinators(Arc<Mutex<HashMap<Ulid, Arc<str>>>>);

impl Coordinators {
    /// Notes who runs `transaction`; an empty URL says nothing.
    pub fn note(&self, transaction: Ulid, url: &str) {
        let mut known = self.0.lock();
        if !url.is_empty() && known.len() < MOST && !known.contains_key(&transaction) {
            known.insert(transaction, url.into());
        }
    }

    /// Forgets a transaction that has its outcome.
    pub fn forget(&self, transaction: Ulid) {
        self.0.lock().remove(&transaction);
    }

    /// Whether an index server says that it runs the transaction: the one that does as far as is known, or else one of
    /// `all`. One that says nothing does not.
    pub async fn is_active(&self, channels: &ChannelPool, all: &[Url], transaction: Ulid) -> bool {
        let known = self.0.lock().get(&transaction).cloned();
        let known = known.and_then(|url| Url::parse(&url).ok());
        let asked = known.as_ref().map_or(all, std::slice::from_ref);
        let asked = asked.iter().map(|url| async move {
            let Ok(channel) = channels.channel(url) else { return false };
            let request = TransactionActiveRequest { transaction_id: transaction.to_string() };
            let mut client = ClusterClient::new(channel);
            let asked = tokio::time::timeout(ASK_TIME, client.transaction_active(request)).await;
            matches!(asked, Ok(Ok(answer)) if answer.get_ref().active)
        });
        join_all(asked).await.contains(&true)
    }
}
