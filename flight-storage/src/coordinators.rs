//! Which index server runs a transaction that has staged something here. It is only in memory: after a restart nobody is
//! known, and all of them are asked. A transaction that nobody runs gets its outcome from the log.

use std::{collections::HashMap, sync::Arc, time::Duration};

use drsdb_core::{
    Ulid,
    net::{ChannelPool, was_not_sent},
    v1::{TransactionActiveRequest, cluster_client::ClusterClient},
};
use futures::future::join_all;
use parking_lot::Mutex;
use url::Url;

/// How long an index server may take to say whether it runs a transaction.
const ASK_TIME: Duration = Duration::from_secs(2);
/// Transactions that are remembered, at most; beyond it new ones are not.
const MOST: usize = 100_000;

/// What is known of a transaction's index server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// It says that it runs the transaction.
    Runs,
    /// It says that it does not, or is not there.
    Gone,
    /// It does not answer.
    Unknown,
}

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

    /// Whether the transaction runs: on the index server that runs it as far as is known, or else on one of `all`.
    pub async fn activity(&self, channels: &ChannelPool, all: &[Url], transaction: Ulid) -> Activity {
        let known = self.0.lock().get(&transaction).cloned();
        let known = known.and_then(|url| Url::parse(&url).ok());
        let asked = known.as_ref().map_or(all, std::slice::from_ref);
        let asked = asked.iter().map(|url| async move {
            let Ok(channel) = channels.channel(url) else { return Activity::Unknown };
            let request = TransactionActiveRequest { transaction_id: transaction.to_string() };
            let mut client = ClusterClient::new(channel);
            let asked = tokio::time::timeout(ASK_TIME, client.transaction_active(request)).await;
            match asked {
                Ok(Ok(answer)) if answer.get_ref().active => Activity::Runs,
                Ok(Ok(_)) => Activity::Gone,
                Ok(Err(status)) if was_not_sent(&status) => Activity::Gone,
                Ok(Err(_)) | Err(_) => Activity::Unknown,
            }
        });
        let answers = join_all(asked).await;
        let is = |activity: Activity| answers.contains(&activity);
        match (is(Activity::Runs), is(Activity::Unknown)) {
            (true, _) => Activity::Runs,
            (false, true) => Activity::Unknown,
            (false, false) => Activity::Gone,
        }
    }
}
