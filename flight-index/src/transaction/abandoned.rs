//! Transactions that make a table and that nobody runs any more, for their index server died: the index server that leads
//! aborts them, and the table goes.
//!
//! Not here: what such a transaction has staged. The storage servers ask about that, but it may have staged nothing yet.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use drsdb_core::{
    Ulid,
    net::was_not_sent,
    v1::{TransactionActiveRequest, cluster_client::ClusterClient},
};
use futures::future::join_all;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    catalog::{Command, Making},
    raft::{Catalog, Dial},
    replication::ActiveTransactions,
};

/// How often it is looked whether a table is in the making.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long an index server may take to say whether it runs a transaction.
const ASK_TIME: Duration = Duration::from_secs(2);
/// For how long one may be silent until its transactions are given up: as long as a proposal looks for a leader.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same of one to which no connection can be made: nearly always it is not there.
const REFUSED_PATIENCE: Duration = Duration::from_secs(3);

/// Until `shutdown`, while this index server leads, aborts transactions that make a table and do not run any more. `active` are
/// those of this index server, whose URL is `url`.
pub async fn abort_abandoned(
    catalog: Arc<Catalog>,
    dial: Dial,
    active: ActiveTransactions,
    url: String,
    shutdown: CancellationToken,
) {
    let (dial, active, url) = (&dial, &active, &url);
    let mut silent_since: BTreeMap<Ulid, Instant> = BTreeMap::new();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        let making: Vec<Making> = catalog.state().making().cloned().collect();
        if making.is_empty() || !catalog.leads() {
            silent_since.clear();
            continue;
        }
        let asked = making.iter().cloned().map(|making| async move {
            match making.coordinator == *url {
                true => Ok(active.contains(making.transaction)),
                false => runs_elsewhere(dial, &making).await,
            }
        });
        let Some(answers) = shutdown.run_until_cancelled(join_all(asked)).await else { return };
        silent_since.retain(|transaction, _| making.iter().any(|making| making.transaction == *transaction));
        for (Making { transaction, coordinator, .. }, runs) in making.into_iter().zip(answers) {
            let gone = match runs {
                Ok(runs) => {
                    silent_since.remove(&transaction);
                    !runs
                }
                Err(patience) => silent_since.entry(transaction).or_insert_with(Instant::now).elapsed() >= patience,
            };
            if !gone {
                continue;
            }
            tracing::info!(%transaction, coordinator, "nobody runs a transaction that makes a table: it is aborted");
            // One that has committed in between stays so.
            let aborted = catalog.propose(Command::AbortTransaction { transaction });
            if let Some(Err(error)) = shutdown.run_until_cancelled(aborted).await {
                tracing::debug!(%transaction, %error, "it could not be aborted; trying on");
            }
        }
    }
}

/// Whether its index server runs the transaction; when it does not say, how long to be patient with it.
async fn runs_elsewhere(dial: &Dial, making: &Making) -> Result<bool, Duration> {
    let url = Url::parse(&making.coordinator).map_err(|_| PATIENCE)?;
    let request = TransactionActiveRequest { transaction_id: making.transaction.to_string() };
    let mut client = ClusterClient::new(dial(&url).map_err(|_| PATIENCE)?);
    match tokio::time::timeout(ASK_TIME, client.transaction_active(request)).await {
        Ok(Ok(answer)) => Ok(answer.get_ref().active),
        Ok(Err(status)) if was_not_sent(&status) => Err(REFUSED_PATIENCE),
        Ok(Err(_)) | Err(_) => Err(PATIENCE),
    }
}
