//! `drsdb`: the cluster as those see it who run it. The indexes of UNIQUE constraints are in it: their shards have replicas
//! like any other.

use datafusion::config::ExtensionOptions;
use drsdb_core::{TableKind, v1};

use super::{
    Entry, RaftNode, Sources, TransactionsOf,
    rows::{
        Cell,
        Kind::{Flag, Number, Text, Time},
        row,
    },
};
use crate::catalog::{ReplicaState, TableState};

pub(super) const TABLES: &[Entry] = &[
    (
        "servers",
        &[
            ("id", Text),
            ("kind", Text),
            ("url", Text),
            ("state", Text),
            ("labels", Text),
            ("cores", Number),
            ("shards", Number),
            ("applied_version", Number),
        ],
        servers,
    ),
    (
        "tables",
        &[
            ("table_schema", Text),
            ("table_name", Text),
            ("id", Text),
            ("kind", Text),
            ("engine", Text),
            ("shards", Number),
            ("replicas", Number),
            ("rows", Number),
            ("bytes", Number),
            ("definition_version", Number),
            ("created_version", Number),
            ("changed_version", Number),
            ("comment", Text),
        ],
        tables,
    ),
    (
        "shards",
        &[
            ("table_schema", Text),
            ("table_name", Text),
            ("shard", Number),
            ("rows", Number),
            ("bytes", Number),
            ("replicas", Number),
            ("current_replicas", Number),
            ("first_server", Text),
            ("epoch", Number),
            ("last_insert", Number),
            ("last_delete", Number),
        ],
        shards,
    ),
    (
        "replicas",
        &[
            ("table_schema", Text),
            ("table_name", Text),
            ("shard", Number),
            ("server", Text),
            ("url", Text),
            ("state", Text),
            ("since_version", Number),
            ("version", Number),
            ("is_first", Flag),
            ("rebuild_step", Text),
            ("rebuild_bytes", Number),
        ],
        replicas,
    ),
    (
        "transactions",
        &[
            ("id", Text),
            ("user_name", Text),
            ("state", Text),
            ("begun", Time),
            ("snapshot", Number),
            ("statements", Number),
            ("read_only", Flag),
            ("idle_ms", Number),
            ("index_server", Text),
        ],
        transactions,
    ),
    (
        "raft",
        &[
            ("id", Number),
            ("url", Text),
            ("role", Text),
            ("term", Number),
            ("last_log", Number),
            ("applied", Number),
            ("state_hash", Text),
            ("disagrees_since", Number),
        ],
        raft,
    ),
    ("settings", &[("name", Text), ("value", Text), ("description", Text)], settings),
];

/// Whether the table called `name` shows the Raft group.
pub(super) fn shows_raft(name: &str) -> bool {
    matches!(name, "servers" | "raft")
}

/// Whether the table called `name` shows what storage servers say of themselves.
pub(super) fn shows_storage(name: &str) -> bool {
    matches!(name, "servers" | "replicas")
}

/// Whether the table called `name` shows what runs on the index servers.
pub(super) fn shows_transactions(name: &str) -> bool {
    name == "transactions"
}

fn servers(from: &Sources<'_>) -> Vec<Vec<Cell>> {
    let held = from.state.replicas_by_server();
    let index = from.raft.iter().cloned().map(|node| {
        let (id, kind) = (format!("index-{}", node.id), "index");
        row![id, kind, node.url, node.role, "", Cell::Null, Cell::Null, node.applied]
    });
    let storage = from.state.servers().map(|server| {
        let labels: Vec<String> = server.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        row![
            server.id.to_string(),
            "storage",
            server.url.as_str(),
            from.state.condition(server.id).to_string(),
            labels.join(","),
            server.cores,
            held.get(&server.id).copied().unwrap_or(0),
            from.storage.get(&server.id).map(|node| node.applied),
        ]
    });
    index.chain(storage).collect()
}

fn kind(table: &TableState) -> &'static str {
    match table.table.kind {
        TableKind::Base => "table",
        TableKind::UniqueIndex { .. } => "unique index",
    }
}

fn tables(from: &Sources<'_>) -> Vec<Vec<Cell>> {
    let row = |state: &std::sync::Arc<TableState>| {
        let table = &state.table;
        let replicas = state.shards.iter().map(|shard| shard.replicas.len()).max().unwrap_or(0);
        row![
            table.name.schema.as_str(),
            table.name.table.as_str(),
            table.id.to_string(),
            kind(state),
            table.engine.as_str(),
            table.shards,
            replicas,
            state.rows(),
            state.bytes(),
            table.version,
            state.created_version,
            state.changed_version,
            table.comment.clone(),
        ]
    };
    from.state.tables().map(row).collect()
}

fn shards(from: &Sources<'_>) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    for table in from.state.tables() {
        let name = &table.table.name;
        for (number, shard) in table.shards.iter().enumerate() {
            rows.push(row![
                name.schema.as_str(),
                name.table.as_str(),
                number,
                shard.stats.rows,
                shard.stats.bytes,
                shard.replicas.len(),
                shard.current().count(),
                shard.current().next().map(|server| server.to_string()),
                shard.epoch,
                shard.last_insert,
                shard.last_delete,
            ]);
        }
    }
    rows
}

fn replicas(from: &Sources<'_>) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    for table in from.state.tables() {
        let name = &table.table.name;
        for (number, shard) in table.shards.iter().enumerate() {
            let first = shard.current().next();
            for replica in &shard.replicas {
                let (state, since) = match replica.state {
                    ReplicaState::Current { since } => ("current", since),
                    ReplicaState::Stale { since } => ("stale", since),
                    ReplicaState::Rebuilding { since } => ("rebuilding", since),
                };
                let node = from.storage.get(&replica.server);
                // Of what it has everything; nobody knows that of one that is current and does not answer.
                let version = match replica.is_current() {
                    true => node.map(|node| node.applied),
                    false => Some(replica.complete_to),
                };
                let rebuild = node.and_then(|node| node.rebuilds.get(&(table.table.id, number as u32)));
                rows.push(row![
                    name.schema.as_str(),
                    name.table.as_str(),
                    number,
                    replica.server.to_string(),
                    from.state.server(replica.server).map(|server| server.url.as_str()),
                    state,
                    since,
                    version,
                    first == Some(replica.server),
                    rebuild.map(|rebuild| rebuild.step.clone()),
                    rebuild.map(|rebuild| rebuild.bytes),
                ]);
            }
        }
    }
    rows
}

/// An index server that does not answer has a row without a transaction, so that nobody takes it for one that has none.
fn transactions(from: &Sources<'_>) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    for TransactionsOf { server, running } in &from.transactions {
        let server = server.as_str();
        let Some(running) = running else {
            let none = || Cell::Null;
            rows.push(row![none(), none(), "does not answer", none(), none(), none(), none(), none(), server]);
            continue;
        };
        for running in running.iter().cloned() {
            let begun = Cell::time(running.begun_unix_ms);
            let v1::RunningTransaction { id, user, state, snapshot, statements, read_only, idle_ms, .. } = running;
            rows.push(row![id, user, state, begun, snapshot, statements, read_only, idle_ms, server]);
        }
    }
    rows
}

fn raft(from: &Sources<'_>) -> Vec<Vec<Cell>> {
    let row = |node: RaftNode| {
        let RaftNode { id, url, role, term, last_log, applied, state_hash, disagrees_since } = node;
        row![id, url, role, term, last_log, applied, state_hash, disagrees_since]
    };
    from.raft.iter().cloned().map(row).collect()
}

fn settings(from: &Sources<'_>) -> Vec<Vec<Cell>> {
    let entries = from.options.entries().into_iter();
    entries.map(|entry| row![entry.key, entry.value, entry.description]).collect()
}
