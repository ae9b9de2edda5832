//! Which index server runs a transaction that has staged something here. It is only in memory: after a restart nobody is
//! known, and a transaction that has no outcome for long is asked about as if its index server were gone.

use std::{collections::HashMap, sync::Arc, time::Duration};

use drsdb_core::{
    Ulid,
    net::ChannelPool,
    v1::{TransactionActiveRequest, cluster_client::ClusterClient},
};
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

    /// Whether the transaction's index server says that it runs it. False if it says nothing, or is not known.
    pub async fn is_active(&self, channels: &ChannelPool, transaction: Ulid) -> bool {
        let Some(url) = self.0.lock().get(&transaction).cloned() else { return false };
        let Some(channel) = Url::parse(&url).ok().and_then(|url| channels.channel(&url).ok()) else { return false };
        let request = TransactionActiveRequest { transaction_id: transaction.to_string() };
        let mut client = ClusterClient::new(channel);
        let asked = tokio::time::timeout(ASK_TIME, client.transaction_active(request)).await;
        matches!(asked, Ok(Ok(answer)) if answer.get_ref().active)
    }
}
