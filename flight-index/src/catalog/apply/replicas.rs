//! What becomes of replicas: demoted when their server does not answer, rebuilt, moved.
//!
//! Invariant: a current replica has every commit of its shard, and a shard has a current replica that counts.

use std::sync::Arc;

use drsdb_core::{ErrorCode, Ulid, WireError};

use super::{Applied, CHANGED, UNCHANGED, cluster};
use crate::catalog::{CatalogState, Replica, ReplicaState, ShardState, TableState, state::Event};

pub(super) fn demote(state: &mut CatalogState, table: Ulid, shard: u32, server: Ulid, last: bool) -> Applied {
    let known = find(state, table, shard)?;
    match demoted(known, server, state.version) {
        Some(mut demoted) => {
            if last {
                // It is not current, so that nobody else becomes the first by this.
                demoted.replicas.sort_by_key(|replica| replica.server == server);
            }
            put(state, table, shard, demoted);
            CHANGED
        }
        None => UNCHANGED,
    }
}

pub(super) fn demote_server(state: &mut CatalogState, server: Ulid) -> Applied {
    let went_down = cluster::server_down(state, server)?;
    let tables: Vec<Arc<TableState>> = state.tables.values().cloned().collect();
    let mut changed = went_down;
    for table in tables {
        let mut shards = table.shards.clone();
        for shard in &mut shards {
            if let Some(demoted) = demoted(shard, server, state.version) {
                *shard = Arc::new(demoted);
                changed = true;
            }
        }
        if shards.iter().zip(&table.shards).any(|(now, before)| !Arc::ptr_eq(now, before)) {
            let table = TableState { shards, ..(*table).clone() };
            state.tables.insert_mut(table.table.id, Arc::new(table));
        }
    }
    if changed { CHANGED } else { UNCHANGED }
}

/// The shard without the replica on `server` among the current ones; `None` when it is not there, or cannot be spared.
fn demoted(shard: &ShardState, server: Ulid, version: u64) -> Option<ShardState> {
    let replica = shard.replica(server)?;
    let spared = shard.current().filter(|other| *other != server).count() >= shard.majority();
    match replica.state {
        ReplicaState::Stale { .. } => return None,
        ReplicaState::Current { .. } if !spared => return None,
        ReplicaState::Current { .. } | ReplicaState::Rebuilding { .. } => {}
    }
    // One that was being rebuilt has not had everything since the beginning.
    let since = if replica.is_current() { version } else { NEVER_CURRENT };
    let mut shard = shard.clone();
    shard.change_replicas(version, |replicas| {
        for replica in replicas.iter_mut().filter(|replica| replica.server == server) {
            replica.becomes_stale(since);
        }
    });
    Some(shard)
}

/// Since when a replica is stale that cannot be current again without a copy.
pub(super) const NEVER_CURRENT: u64 = 0;

/// Makes those replicas of a server current that missed nothing while it was away.
pub(super) fn restore_server(state: &mut CatalogState, server: Ulid) {
    let tables: Vec<Arc<TableState>> = state.tables.values().cloned().collect();
    for table in tables {
        for (number, shard) in (0..).zip(&table.shards) {
            if shard.replica(server).is_some_and(|replica| missed_nothing(shard, replica)) {
                let mut shard = (**shard).clone();
                make_current(&mut shard, server, state.version);
                put(state, table.table.id, number, shard);
            }
        }
    }
}

/// Outcomes were forgotten that a server has not heard of: what it has staged of them stays staged there, so none of its
/// stale replicas can be current again without a copy of everything.
pub(super) fn never_restore(state: &mut CatalogState, server: Ulid) {
    let nothing = ReplicaState::Stale { since: NEVER_CURRENT };
    let has_something =
        |replica: &Replica| !replica.is_written() && (replica.state, replica.complete_to) != (nothing, 0);
    let stale = state.replicas_on(server).filter(|(_, _, replica)| has_something(replica));
    let stale: Vec<(Ulid, u32, ShardState)> =
        stale.map(|(table, number, _)| (table.table.id, number, (*table.shards[number as usize]).clone())).collect();
    for (table, number, mut shard) in stale {
        set_lost(&mut shard.replicas, server);
        put(state, table, number, shard);
    }
}

/// Whether a stale replica has all commits all the same.
fn missed_nothing(shard: &ShardState, replica: &Replica) -> bool {
    matches!(replica.state, ReplicaState::Stale { since } if shard.last_change() < since) && !replica.joining
}

fn make_current(shard: &mut ShardState, server: Ulid, version: u64) {
    shard.change_replicas(version, |replicas| {
        for replica in replicas.iter_mut().filter(|replica| replica.server == server) {
            (replica.state, replica.complete_to) = (ReplicaState::Current { since: version }, 0);
        }
    });
}

pub(super) fn start_rebuild(state: &mut CatalogState, table: Ulid, shard: u32, server: Ulid, fresh: bool) -> Applied {
    let version = state.version;
    let known = find(state, table, shard)?;
    let replica = known.replica(server).ok_or_else(|| no_replica(shard, server))?;
    if replica.is_current() || (replica.is_written() && !fresh) {
        // Asked again after a restart: what it kept since the first time counts.
        return UNCHANGED;
    }
    let complete = missed_nothing(known, replica);
    let mut known = known.clone();
    if complete {
        make_current(&mut known, server, version);
    } else {
        for replica in known.replicas.iter_mut().filter(|replica| replica.server == server) {
            replica.state = ReplicaState::Rebuilding { since: version };
            replica.accepts = version;
        }
        // Who began before does not write here, and what was staged here before is going to be replaced.
        known.epoch = version;
    }
    put(state, table, shard, known);
    CHANGED
}

pub(super) fn current(state: &mut CatalogState, table: Ulid, shard: u32, server: Ulid, copied: u64) -> Applied {
    let version = state.version;
    let known = find(state, table, shard)?;
    let replica = *known.replica(server).ok_or_else(|| no_replica(shard, server))?;
    match replica.state {
        ReplicaState::Current { .. } => return UNCHANGED,
        ReplicaState::Rebuilding { since } if copied >= since && copied <= version => {}
        ReplicaState::Rebuilding { since } => {
            return Err(WireError::new(
                ErrorCode::Conflict,
                format!("the copy has commits up to {copied}, and the replica missed some up to {since}"),
            )
            .with_hint("copy the shard again, at a later snapshot"));
        }
        ReplicaState::Stale { .. } => {
            return Err(WireError::new(ErrorCode::Conflict, "the replica was demoted while it was rebuilt")
                .with_hint("start the rebuild again"));
        }
    }
    let mut known = known.clone();
    let replaced = replica.replaces.filter(|old| known.replica(*old).is_some());
    let place = known.replicas.iter().position(|other| other.server == server).unwrap_or(0);
    known.change_replicas(version, |replicas| {
        // The new one takes the old one's place in the order, so that first replicas stay spread.
        replicas.retain(|other| other.server != server);
        let new = Replica {
            joining: false,
            complete_to: 0,
            replaces: None,
            state: ReplicaState::Current { since: version },
            ..replica
        };
        match replicas.iter().position(|other| Some(other.server) == replaced) {
            Some(place) => replicas[place] = new,
            // Where it was, if it was there before.
            None => replicas.insert(place.min(replicas.len()), new),
        }
    });
    put(state, table, shard, known);
    if let Some(server) = replaced {
        state.record(Event::ReplicaRemoved { table, shard, server });
    }
    CHANGED
}

pub(super) fn add(state: &mut CatalogState, table: Ulid, shard: u32, server: Ulid, replaces: Option<Ulid>) -> Applied {
    let version = state.version;
    let known = find(state, table, shard)?;
    if known.replica(server).is_some() {
        return UNCHANGED;
    }
    if !state.servers.contains_key(&server) {
        return Err(cluster::no_server(server));
    }
    if let Some(old) = replaces.filter(|old| known.replica(*old).is_none()) {
        return Err(no_replica(shard, old));
    }
    let mut known = known.clone();
    let new = ReplicaState::Stale { since: NEVER_CURRENT };
    known.replicas.push(Replica { server, state: new, accepts: version, joining: true, complete_to: 0, replaces });
    put(state, table, shard, known);
    CHANGED
}

pub(super) fn remove(state: &mut CatalogState, table: Ulid, shard: u32, server: Ulid) -> Applied {
    let known = find(state, table, shard)?;
    let Some(replica) = known.replica(server) else { return UNCHANGED };
    let mut without = known.clone();
    without.change_replicas(state.version, |replicas| replicas.retain(|other| other.server != server));
    if !replica.joining && !without.is_writable() {
        return Err(WireError::new(
            ErrorCode::Unavailable,
            format!("shard {shard} needs its replica on {server}: without it, no majority of replicas is current"),
        )
        .with_hint("wait until the shard's other replicas are rebuilt"));
    }
    put(state, table, shard, without);
    state.record(Event::ReplicaRemoved { table, shard, server });
    CHANGED
}

/// Nothing of the replica on `server` is believed any more.
pub(super) fn set_lost(replicas: &mut [Replica], server: Ulid) {
    for replica in replicas.iter_mut().filter(|replica| replica.server == server) {
        replica.state = ReplicaState::Stale { since: NEVER_CURRENT };
        replica.complete_to = 0;
    }
}

pub(super) fn find(state: &CatalogState, table: Ulid, shard: u32) -> Result<&ShardState, WireError> {
    let gone = || {
        WireError::new(ErrorCode::NotFound, format!("there is no shard {shard} of table {table} (any more)"))
            .with_field("table", table)
    };
    let shards = &state.tables.get(&table).ok_or_else(gone)?.shards;
    shards.get(shard as usize).map(Arc::as_ref).ok_or_else(gone)
}

pub(super) fn put(state: &mut CatalogState, table: Ulid, shard: u32, changed: ShardState) {
    let Some(known) = state.tables.get(&table) else { return };
    let mut known = (**known).clone();
    known.shards[shard as usize] = Arc::new(changed);
    state.tables.insert_mut(table, Arc::new(known));
}

pub(super) fn no_replica(shard: u32, server: Ulid) -> WireError {
    WireError::new(ErrorCode::NotFound, format!("server {server} has no replica of shard {shard} (any more)"))
        .with_field("server", server)
}
