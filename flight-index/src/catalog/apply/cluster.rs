//! The cluster itself and its storage servers.

use std::sync::Arc;

use drsdb_core::{ErrorCode, Ulid, WireError};

use super::{Applied, CHANGED, UNCHANGED, remove_all, users};
use crate::catalog::{Blob, CatalogState, Cluster, Outcome, StorageServer, state::Event};

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
    let Some(&known) = state.applied.get(&server) else {
        return Err(WireError::new(ErrorCode::NotFound, format!("storage server {server} is not registered"))
            .with_field("server", server));
    };
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

/// Forgets what every storage server has taken in, so that the state does not grow with the number of commits.
fn forget_events(state: &mut CatalogState) {
    let everywhere = state.applied.values().copied().min().unwrap_or(0);
    if everywhere <= state.forgotten {
        return;
    }
    let gone: Vec<(u64, Arc<Vec<Event>>)> =
        state.events.range(..=everywhere).map(|(version, events)| (*version, events.clone())).collect();
    for (version, events) in gone {
        let committed: Vec<Ulid> = events
            .iter()
            .filter_map(|event| match event {
                // Aborted transactions stay known: a commit that is still on its way must find out.
                Event::Committed(transaction)
                    if matches!(state.transactions.get(transaction), Some(Outcome::Committed { .. })) =>
                {
                    Some(*transaction)
                }
                _ => None,
            })
            .collect();
        remove_all(&mut state.transactions, &committed);
        state.events.remove_mut(&version);
    }
    state.forgotten = everywhere;
}
