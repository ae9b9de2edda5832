//! The one way from a state to the next: [`apply`], and its parts by subject.
//!
//! Every part checks first and changes afterwards, so that a refused command leaves no trace. The exception is a
//! transaction that cannot commit: it is aborted on the spot, so that storage servers drop what it staged.

mod alter;
mod cluster;
mod lost_replicas;
mod making;
mod replicas;
mod schemas;
mod tables;
mod transactions;
mod users;
mod views;

use std::sync::Arc;

use drsdb_core::{ErrorCode, WireError, limits::MAX_NAME_BYTES};

use super::{
    CatalogState, Command, Outcome, Response,
    state::{Event, Map},
};

/// What a part answers: a response, or why it refuses.
type Applied = Result<Response, WireError>;

/// Applies `command` at `version`, the index of its log entry; the commands of one entry share it. A refused command moves
/// the version too, and changes nothing else.
///
/// # Panics
/// If the version is below the state's: the log would be applied out of order.
pub fn apply(state: &mut CatalogState, version: u64, command: &Command) -> Response {
    assert!(version >= state.version, "versions never fall: {version} after {}", state.version);
    state.version = version;
    let applied = match command {
        Command::Bootstrap { cluster_id, signing_key_pkcs8, admin_user, admin_password_hash } => {
            cluster::bootstrap(state, *cluster_id, signing_key_pkcs8, admin_user, admin_password_hash)
        }
        Command::RegisterStorage { server } => cluster::register_storage(state, server),
        Command::StorageApplied { server, version } => cluster::storage_applied(state, *server, *version),
        Command::CreateSchema { name, if_not_exists } => schemas::create(state, name, *if_not_exists),
        Command::DropSchema { name, if_exists, cascade } => schemas::drop(state, name, *if_exists, *cascade),
        Command::CreateTable { table, if_not_exists } => tables::create(state, table, *if_not_exists),
        Command::MakeTable { table, making } => making::make(state, table, making),
        Command::DropTable { name, if_exists, cascade } => {
            tables::drop(state, std::slice::from_ref(name), *if_exists, *cascade)
        }
        Command::DropTables { names, if_exists, cascade } => tables::drop(state, names, *if_exists, *cascade),
        Command::AlterTable { table, seen, unchanged_since, cascade, exact_keys } => {
            alter::alter(state, table, *seen, *unchanged_since, *cascade, *exact_keys)
        }
        Command::Comment { name, column, text } => views::comment(state, name, column.as_deref(), text.as_deref()),
        Command::CreateView { view, or_replace, if_not_exists } => {
            views::create(state, view, *or_replace, *if_not_exists)
        }
        Command::DropViews { names, if_exists, cascade } => views::drop(state, names, *if_exists, *cascade),
        Command::DropEmptyTable { table } => tables::drop_empty(state, *table),
        Command::CommitTransaction { transaction, tables, statement, rows, validations } => {
            transactions::commit(state, *transaction, statement.map(|id| (id, *rows)), tables, validations)
        }
        Command::Once { statement, command } => match state.statement_outcome(*statement) {
            Some(first) => Ok(Response::Transaction(first)),
            None => {
                let response = apply(state, version, command);
                if !matches!(response, Response::Error(_)) {
                    transactions::remember(state, *statement, Outcome::Committed { version, rows: 0 });
                }
                return response;
            }
        },
        Command::AbortTransaction { transaction } => transactions::abort(state, *transaction),
        Command::DemoteReplica { table, shard, server, last } => {
            replicas::demote(state, *table, *shard, *server, *last)
        }
        Command::DemoteServer { server } => replicas::demote_server(state, *server),
        Command::LoseReplicas { server, shard } => lost_replicas::lose(state, *server, *shard),
        Command::ServerUp { server } => cluster::server_up(state, *server),
        Command::StartRebuild { table, shard, server, fresh } => {
            replicas::start_rebuild(state, *table, *shard, *server, *fresh)
        }
        Command::ReplicaCurrent { table, shard, server, copied } => {
            replicas::current(state, *table, *shard, *server, *copied)
        }
        Command::AddReplica { table, shard, server, replaces } => {
            replicas::add(state, *table, *shard, *server, *replaces)
        }
        Command::RemoveReplica { table, shard, server } => replicas::remove(state, *table, *shard, *server),
        Command::SetServerState { server, state: wanted } => cluster::set_server_state(state, *server, *wanted),
        Command::DropServer { server } => cluster::drop_server(state, *server),
        Command::CreateUser { name, password_hash, by } => {
            users::require_admin(state, by.as_ref()).and_then(|()| users::create(state, name, password_hash, false))
        }
        Command::AlterUser { name, password_hash, by } => users::require_self_or_admin(state, by.as_ref(), name)
            .and_then(|()| users::alter(state, name, password_hash)),
        Command::DropUser { name, by } => {
            users::require_admin(state, by.as_ref()).and_then(|()| users::drop(state, name))
        }
    };
    applied.unwrap_or_else(|error| Response::Error(error.into()))
}

impl CatalogState {
    /// Notes what storage servers have to know of the current version.
    fn record(&mut self, event: Event) {
        let mut events = self.events.get(&self.version).map_or_else(Vec::new, |events| events.to_vec());
        events.push(event);
        self.events.insert_mut(self.version, Arc::new(events));
    }
}

const CHANGED: Applied = Ok(Response::Done { changed: true });
const UNCHANGED: Applied = Ok(Response::Done { changed: false });

fn check_name(what: &str, name: &str) -> Result<(), WireError> {
    let refuse = |message: String| Err(WireError::new(ErrorCode::InvalidArgument, message));
    if name.is_empty() {
        return refuse(format!("a {what} needs a name"));
    }
    if name.len() > MAX_NAME_BYTES {
        return refuse(format!("a {what}'s name has at most {MAX_NAME_BYTES} bytes, not {}", name.len()));
    }
    if name.chars().any(char::is_control) {
        return refuse(format!("a {what}'s name has no control characters, and {name:?} does"));
    }
    Ok(())
}

fn already_exists(what: &str, name: impl std::fmt::Display) -> WireError {
    WireError::new(ErrorCode::AlreadyExists, format!("{what} {name} exists already")).with_field(what, name)
}

/// Removes all entries of `map` whose keys `gone` lists.
fn remove_all<K: Ord, V>(map: &mut Map<K, V>, gone: &[K]) {
    for key in gone {
        map.remove_mut(key);
    }
}

#[cfg(test)]
mod making_tests;
#[cfg(test)]
mod replica_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod user_tests;
