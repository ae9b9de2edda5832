//! The cluster itself and its storage servers.

use std::{collections::BTreeSet, sync::Arc};

use drsdb_core::{ErrorCode, Ulid, WireError};

use super::{Applied, CHANGED, UNCHANGED, remove_all, replicas, users};
use crate::catalog::{Blob, CatalogState, Cluster, Outcome, Replica, ServerCondition, ServerState, StorageServer};

pub(super) fn bootstrap(
    state: &mut CatalogState,
    id: Ulid,
    signing_key_pkcs8: &Blob,
    admin_user: &str,
    admin_password_hash: &str,
) -> Applied {
    if let Some(cluster) = &state.cluster {
        return Err(WireError::new(ErrorCode::AlreadyExists, format!("this is cluster {} already", cluster.id))
            .with_hint("a cluster is bootstrapped once: start the server without a bootstrap user"));
    }
    users::create(state, admin_user, admin_password_hash, true)?;
    state.cluster = Some(Arc::new(Cluster { id, signing_key_pkcs8: signing_key_pkcs8.clone() }));
    CHANGED
}

pub(super) fn register_storage(state: &mut CatalogState, server: &StorageServer) -> Applied {
    if state.cluster.is_none() {
        return Err(WireError::new(ErrorCode::Unavailable, "this cluster is not bootstrapped yet")
            .with_hint("start an index server with a bootstrap user and password"));
    }
    if state.condition(server.id).state == ServerState::Removed {
        return Err(WireError::new(ErrorCode::InvalidArgument, format!("storage server {} was removed", server.id))
            .with_hint("start it with an empty data_dir to add it again, as a new server")
            .with_field("server", server.id));
    }
    match state.servers.get(&server.id) {
        Some(known) if **known == *server => return UNCHANGED,
        Some(_) => {}
        // What was committed before it joined does not concern it.
        None => state.applied.insert_mut(server.id, state.version),
    }
    state.servers.insert_mut(server.id, Arc::new(server.clone()));
    CHANGED
}

pub(super) fn storage_applied(state: &mut CatalogState, server: Ulid, version: u64) -> Applied {
    let Some(&known) = state.applied.get(&server) else { return Err(no_server(server)) };
    if version <= known {
        return UNCHANGED;
    }
    if version > state.version {
        return Err(WireError::new(
            ErrorCode::Corrupt,
            format!("storage server {server} says it took in commit {version}, and the last one is {}", state.version),
        )
        .with_hint("it belongs to another cluster, or this index server's data was set back: check data_dir on both")
        .with_field("server", server));
    }
    state.applied.insert_mut(server, version);
    forget_events(state);
    CHANGED
}

/// Notes that a server does not answer; false when that is known.
pub(super) fn server_down(state: &mut CatalogState, server: Ulid) -> Result<bool, WireError> {
    let condition = known_condition(state, server)?;
    if condition.down_since.is_some() {
        return Ok(false);
    }
    let condition = ServerCondition { down_since: Some(state.version), ..condition };
    state.conditions.insert_mut(server, condition);
    Ok(true)
}

pub(super) fn server_up(state: &mut CatalogState, server: Ulid) -> Applied {
    let condition = known_condition(state, server)?;
    if condition.down_since.is_none() {
        return UNCHANGED;
    }
    set_condition(state, server, ServerCondition { down_since: None, ..condition });
    replicas::restore_server(state, server);
    CHANGED
}

pub(super) fn set_server_state(state: &mut CatalogState, server: Ulid, wanted: ServerState) -> Applied {
    let condition = known_condition(state, server)?;
    if wanted == ServerState::Removed {
        return drop_server(state, server);
    }
    if condition.state == wanted {
        return UNCHANGED;
    }
    set_condition(state, server, ServerCondition { state: wanted, ..condition });
    CHANGED
}

pub(super) fn drop_server(state: &mut CatalogState, server: Ulid) -> Applied {
    known_condition(state, server)?;
    let holds = state.replicas_on(server).count();
    if holds > 0 {
        return Err(WireError::new(
            ErrorCode::InvalidArgument,
            format!("storage server {server} still has {holds} replicas of shards"),
        )
        .with_hint("drain it first, and wait until its shards have moved to other servers")
        .with_field("server", server));
    }
    state.servers.remove_mut(&server);
    state.applied.remove_mut(&server);
    state.conditions.insert_mut(server, ServerCondition { state: ServerState::Removed, down_since: None });
    forget_events(state);
    CHANGED
}

fn known_condition(state: &CatalogState, server: Ulid) -> Result<ServerCondition, WireError> {
    if state.servers.contains_key(&server) { Ok(state.condition(server)) } else { Err(no_server(server)) }
}

fn set_condition(state: &mut CatalogState, server: Ulid, condition: ServerCondition) {
    if condition == ServerCondition::default() {
        state.conditions.remove_mut(&server);
    } else {
        state.conditions.insert_mut(server, condition);
    }
}

pub(super) fn no_server(server: Ulid) -> WireError {
    WireError::new(ErrorCode::NotFound, format!("storage server {server} is not registered"))
        .with_field("server", server)
}

/// Versions for which outcomes are kept for a server that is away, so that its replicas need no copy of everything.
pub(super) const KEPT_FOR_ABSENT: u64 = 50_000;

/// Up to which commit every server has taken in all that it needs. One without a replica that is written, or that has
/// something and has not been away for long, needs nothing: whatever it gets later is a copy.
fn applied_everywhere(state: &CatalogState) -> u64 {
    let replicas = state.tables.values().flat_map(|table| &table.shards).flat_map(|shard| &shard.replicas);
    let is_near = |server: &Ulid| state.applied.get(server).is_some_and(|at| at + KEPT_FOR_ABSENT >= state.version);
    let needs = |replica: &&Replica| replica.is_written() || (replica.complete_to > 0 && is_near(&replica.server));
    let needing: BTreeSet<Ulid> = replicas.filter(needs).map(|replica| replica.server).collect();
    let up = |server: &Ulid| state.condition(*server).down_since.is_none();
    let counts = state.applied.iter().filter(|(server, _)| needing.contains(server) || up(server));
    counts.map(|(_, version)| *version).min().unwrap_or(0)
}

/// For so many versions after every storage server has taken a commit in, its outcome is still known.
pub(super) const KEPT_OUTCOMES: u64 = 10_000;

/// Forgets what every storage server has taken in, so that the state does not grow with the number of commits.
fn forget_events(state: &mut CatalogState) {
    let everywhere = applied_everywhere(state);
    if everywhere <= state.forgotten {
        return;
    }
    let behind: Vec<Ulid> =
        state.applied.iter().filter(|(_, applied)| **applied < everywhere).map(|(server, _)| *server).collect();
    for server in behind {
        replicas::never_restore(state, server);
    }
    let gone: Vec<u64> = state.events.range(..=everywhere).map(|(version, _)| *version).collect();
    remove_all(&mut state.events, &gone);
    // Outcomes are kept for longer. A commit whose answer was lost with the leader is proposed once more, or an abort is, to
    // find out: both get the first outcome only while it is known. Aborted ones are forgotten by number: a commit that is
    // still on its way must find out.
    let old = everywhere.saturating_sub(KEPT_OUTCOMES);
    let is_old = |outcome: &Outcome| matches!(outcome, Outcome::Committed { version, .. } if *version <= old);
    let committed: Vec<Ulid> =
        state.transactions.iter().filter(|(_, outcome)| is_old(outcome)).map(|(id, _)| *id).collect();
    remove_all(&mut state.transactions, &committed);
    state.forgotten = everywhere;
}
