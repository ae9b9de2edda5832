//! Replicas whose server has lost what it had of them: its disk rotted, or was emptied.
//!
//! A demotion is a guess that can be taken back: a replica that missed no commit while it was away is current again without
//! a copy. This is a fact. So the replica is stale since ever, and what was staged there counts for nothing, whenever that
//! was: acknowledgements of a replica that is not written do not count, and a rebuild makes it accept later epochs only.
//!
//! A demotion keeps a majority of current replicas. Here one other current replica is enough: the lost one is no help,
//! and with it named current, the shard would look safer than it is. Until it is rebuilt the shard may not be written.
//!
//! Invariant: the last current replica of a shard stays. Its server must not serve it, and somebody has to decide.

use drsdb_core::{ErrorCode, Ulid, WireError};

use super::{
    Applied, CHANGED, UNCHANGED,
    cluster::no_server,
    replicas::{find, no_replica, put, set_lost},
};
use crate::catalog::{CatalogState, ShardState};

pub(super) fn lose(state: &mut CatalogState, server: Ulid, shard: Option<(Ulid, u32)>) -> Applied {
    if state.server(server).is_none() {
        return Err(no_server(server));
    }
    let lost: Vec<(Ulid, u32)> = match shard {
        Some((table, number)) => {
            find(state, table, number)?.replica(server).ok_or_else(|| no_replica(number, server))?;
            vec![(table, number)]
        }
        None => state.replicas_on(server).map(|(table, number, _)| (table.table.id, number)).collect(),
    };
    let mut without = Vec::new();
    let mut needed = Vec::new();
    for (table, number) in lost {
        let known = find(state, table, number)?;
        if is_last(known, server) {
            needed.push((table, number));
        } else if let Some(changed) = without_replica(known, server, state.version) {
            without.push((table, number, changed));
        }
    }
    if let Some(first) = needed.first() {
        return Err(nowhere_else(state, server, *first, needed.len()));
    }
    if without.is_empty() {
        return UNCHANGED;
    }
    for (table, number, changed) in without {
        put(state, table, number, changed);
    }
    CHANGED
}

fn is_last(shard: &ShardState, server: Ulid) -> bool {
    shard.current().eq([server])
}

/// The shard with the replica on `server` as one that has nothing; `None` when it is that already.
fn without_replica(shard: &ShardState, server: Ulid, version: u64) -> Option<ShardState> {
    let mut changed = shard.clone();
    changed.change_replicas(version, |replicas| set_lost(replicas, server));
    (changed.replica(server) != shard.replica(server)).then_some(changed)
}

fn nowhere_else(state: &CatalogState, server: Ulid, (table, shard): (Ulid, u32), count: usize) -> WireError {
    let name = state.table(table).map_or_else(|| table.to_string(), |known| known.table.name.to_string());
    let more = if count > 1 { format!(" (and {} more shards)", count - 1) } else { String::new() };
    WireError::new(
        ErrorCode::Corrupt,
        format!(
            "storage server {server} has lost data that is nowhere else: it has the only current replica of shard {shard} \
             of table {name}{more}"
        ),
    )
    .with_hint(
        "start the servers that have the other replicas, or restore this server's data_dir from a backup; to go on without \
         the rows, DROP the tables",
    )
    .with_field("server", server)
    .with_field("table", name)
    .with_field("shard", shard)
}
