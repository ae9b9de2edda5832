//! The placement driver: does what `plan.rs` says, on the index server that leads.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use drsdb_core::{
    Result, Ulid,
    v1::{RebuildRequest, ShardRef, storage_client::StorageClient},
};
use tokio_util::sync::CancellationToken;

use super::{
    Liveness,
    plan::{Action, Observed, plan},
};
use crate::{
    catalog::CatalogState,
    raft::{Catalog, Dial},
};

/// How often it is looked what is to be done.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How soon it is looked again while there is something new to be done each time: small shards are rebuilt in no time, and
/// the next ones wait for their place.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long a server may take to say that it has begun a rebuild.
const ASK_TIME: Duration = Duration::from_secs(2);

/// How patient the driver is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriveOptions {
    /// A server that has been suspect for so long is demoted.
    pub demote_after: Duration,
    /// A server that has been suspect for so long is replaced.
    pub replace_after: Duration,
    /// Shards that are copied at a time.
    pub copies: usize,
}

/// Until `shutdown`, has replicas demoted, rebuilt and moved as need be, while this index server leads.
pub async fn drive(
    catalog: Arc<Catalog>,
    dial: Dial,
    liveness: Arc<Liveness>,
    options: DriveOptions,
    shutdown: CancellationToken,
) {
    let driver = Driver { catalog, dial, liveness, options };
    let mut silent_since = BTreeMap::new();
    let (mut done, mut pause) = (Vec::new(), LOOK_EVERY);
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        if !driver.catalog.leads() {
            // Somebody else's patience counts, and begins anew when this one leads.
            silent_since.clear();
            continue;
        }
        let Some(actions) = shutdown.run_until_cancelled(driver.look(&mut silent_since)).await else { return };
        pause = if actions.is_empty() || actions == done { LOOK_EVERY.min(2 * pause) } else { LOOK_AGAIN };
        ticks.reset_after(pause);
        done = actions;
    }
}

struct Driver {
    catalog: Arc<Catalog>,
    dial: Dial,
    liveness: Arc<Liveness>,
    options: DriveOptions,
}

impl Driver {
    /// Has done what is to be done now, and answers what that was.
    async fn look(&self, silent_since: &mut BTreeMap<Ulid, Instant>) -> Vec<Action> {
        let state = self.catalog.state();
        let mut rebuilds: BTreeMap<Ulid, Vec<ShardRef>> = BTreeMap::new();
        let actions = plan(&state, &self.observe(&state, silent_since), self.options.copies);
        for action in actions.clone() {
            match action {
                Action::Propose(command) => {
                    tracing::info!(?command, "looking after replicas");
                    if let Err(error) = self.catalog.propose(command).await {
                        // Overtaken by somebody else's change, or a lost lead: the next look sees what is.
                        tracing::info!(%error, "a change of replicas was refused");
                    }
                }
                Action::Rebuild { server, table, shard } => {
                    let shard = ShardRef { table_id: table.to_string(), shard };
                    rebuilds.entry(server).or_default().push(shard);
                }
            }
        }
        for (server, shards) in rebuilds {
            let asked = tokio::time::timeout(ASK_TIME, self.ask(&state, server, shards)).await;
            if let Ok(Err(error)) = asked {
                tracing::debug!(%server, %error, "a storage server does not begin to rebuild");
            }
        }
        actions
    }

    fn observe(&self, state: &CatalogState, silent_since: &mut BTreeMap<Ulid, Instant>) -> Observed {
        let mut observed = Observed::default();
        for server in state.servers() {
            if self.liveness.answers(server.id) {
                observed.answering.insert(server.id);
                silent_since.remove(&server.id);
                continue;
            }
            let Some(suspect) = self.liveness.suspect_for(server.id) else { continue };
            if suspect >= self.options.demote_after {
                observed.silent.insert(server.id);
            }
            if silent_since.entry(server.id).or_insert_with(Instant::now).elapsed() >= self.options.replace_after {
                observed.gone.insert(server.id);
            }
        }
        observed
    }

    async fn ask(&self, state: &CatalogState, server: Ulid, shards: Vec<ShardRef>) -> Result<()> {
        let Some(server) = state.server(server) else { return Ok(()) };
        let url = server.address()?;
        StorageClient::new((self.dial)(&url)?).rebuild(RebuildRequest { shards }).await?;
        Ok(())
    }
}
