//! What each command does, and what holds for all sequences of commands.

use std::collections::BTreeMap;

use drsdb_core::{Column, Engine, ErrorCode, ForeignKey, SqlType, Table, TableName, Ulid, UniqueKey, WireError};
use proptest::prelude::*;

use super::{
    super::*,
    apply,
    cluster::KEPT_OUTCOMES,
    making_tests::make,
    transactions::MAX_ABORTED,
    user_tests::{drop_user, set_password},
};

pub(super) fn table(id: u128, name: &str) -> Table {
    Table {
        id: Ulid(id),
        name: TableName::new("public", name),
        columns: vec![
            Column::new("id".to_owned(), SqlType::BigInt, true),
            Column::new("parent".to_owned(), SqlType::BigInt, false),
        ],
        primary_key: vec![0],
        foreign_keys: vec![],
        engine: Engine::Column,
        shards: 4,
        shard_key: vec![0],
        shard_function: 1,
        cluster_key: vec![0],
        ..Table::default()
    }
}

pub(super) fn child(id: u128, name: &str, parent: u128) -> Table {
    let key = ForeignKey {
        name: format!("{name}_fk"),
        columns: vec![1],
        parent: Ulid(parent),
        parent_columns: vec![0],
        on_delete: Default::default(),
        on_update: Default::default(),
    };
    Table { foreign_keys: vec![key], ..table(id, name) }
}

fn server(id: u128) -> StorageServer {
    StorageServer { id: Ulid(id), url: format!("https://storage-{id}:1"), cores: 2, labels: BTreeMap::new() }
}

fn bootstrap() -> Command {
    Command::Bootstrap {
        cluster_id: Ulid(1),
        signing_key_pkcs8: vec![1, 2, 3].into(),
        admin_user: "admin".to_owned(),
        admin_password_hash: "hash".to_owned(),
    }
}

fn placement(table: &TableState) -> Vec<Vec<Ulid>> {
    table.shards.iter().map(|shard| shard.current().collect()).collect()
}

pub(super) fn piece(shard: u32, rows: u64) -> PieceInfo {
    PieceInfo { shard, rows, bytes: rows * 10, acks: (1..=9).map(Ulid).collect(), ..PieceInfo::default() }
}

pub(super) fn commit(transaction: u128, table: u128, pieces: Vec<PieceInfo>) -> Command {
    commit_to(transaction, (table, 0), pieces)
}

/// `table`: its id, and the version of its definition.
fn commit_to(transaction: u128, table: (u128, u64), pieces: Vec<PieceInfo>) -> Command {
    let tables = vec![TableChange { table: Ulid(table.0), version: table.1, pieces }];
    Command::CommitTransaction {
        transaction: Ulid(transaction),
        tables,
        statement: None,
        rows: None,
        validations: vec![],
    }
}

pub(super) fn create(table: Table) -> Command {
    Command::CreateTable { table, if_not_exists: false }
}

pub(super) fn drop_table(name: &str, cascade: bool) -> Command {
    Command::DropTable { name: TableName::new("public", name), if_exists: false, cascade }
}

/// A state with storage servers 1 to 3.
pub(super) fn cluster() -> CatalogState {
    let mut state = CatalogState::default();
    done(&mut state, bootstrap());
    for id in 1..=3 {
        done(&mut state, Command::RegisterStorage { server: server(id) });
    }
    state
}

pub(super) fn run(state: &mut CatalogState, command: Command) -> Result<Response, WireError> {
    let version = state.version() + 1;
    match apply(state, version, &command) {
        Response::Error(refusal) => Err(refusal.into_wire()),
        response => Ok(response),
    }
}

#[track_caller]
pub(super) fn done(state: &mut CatalogState, command: Command) {
    assert_eq!(run(state, command), Ok(Response::Done { changed: true }));
}

#[track_caller]
pub(super) fn refused(state: &mut CatalogState, command: Command) -> WireError {
    let before = state.clone();
    let error = run(state, command).expect_err("it is refused");
    let after = CatalogState { version: before.version, ..state.clone() };
    assert_eq!(after, before, "a refused command leaves no trace");
    error
}

pub(super) fn events(state: &CatalogState, after: u64) -> Vec<(u64, Vec<Event>)> {
    state.events_after(after).map(|(version, events)| (version, events.to_vec())).collect()
}

#[test]
fn a_cluster_is_made_once() {
    let mut state = CatalogState::default();
    let early = refused(&mut state, Command::RegisterStorage { server: server(1) });
    assert_eq!(early.code, ErrorCode::Unavailable);
    done(&mut state, bootstrap());
    assert_eq!(refused(&mut state, bootstrap()).code, ErrorCode::AlreadyExists);
    assert_eq!(state.cluster_id(), Some(Ulid(1)));
    assert_eq!(state.signing_key_pkcs8(), Some(&[1, 2, 3][..]));
    assert!(state.user("admin").is_some_and(|user| user.admin));
}

#[test]
fn a_command_of_a_statement_with_an_id_is_done_once() {
    let mut state = cluster();
    let once = |id, command| Command::Once { statement: Ulid(id), command: Box::new(command) };
    done(&mut state, once(1, create(table(10, "t"))));
    let first = Response::Transaction(Outcome::Committed { version: state.version(), rows: 0 });
    assert_eq!(run(&mut state, once(1, create(table(11, "t")))), Ok(first.clone()));
    assert_eq!(refused(&mut state, once(2, create(table(11, "t")))).code, ErrorCode::AlreadyExists);
    done(&mut state, drop_table("t", false));
    // What was refused may be asked for again; what was done is not done once more.
    assert_eq!(run(&mut state, once(1, create(table(12, "t")))), Ok(first));
    assert!(state.table_by_name(&TableName::new("public", "t")).is_none());
    done(&mut state, once(2, create(table(11, "t"))));
}

#[test]
fn a_table_is_placed_on_the_servers_that_are_there() {
    let mut state = CatalogState::default();
    done(&mut state, bootstrap());
    assert_eq!(refused(&mut state, create(table(10, "t"))).code, ErrorCode::Unavailable);
    done(&mut state, Command::RegisterStorage { server: server(1) });
    done(&mut state, create(table(10, "t")));
    let created = state.find_table(&TableName::new("public", "t")).unwrap();
    assert_eq!(placement(created), vec![vec![Ulid(1)]; 4]);
    assert_eq!(created.created_version, state.version());
    assert_eq!((created.shards.len(), created.rows()), (4, 0));
    // A server that joins later does not move the table.
    done(&mut state, Command::RegisterStorage { server: server(2) });
    assert_eq!(placement(state.table(Ulid(10)).unwrap()), vec![vec![Ulid(1)]; 4]);
}

#[test]
fn names_are_taken_once_and_errors_name_the_nearest() {
    let mut state = cluster();
    done(&mut state, create(table(10, "lineitem")));
    assert_eq!(refused(&mut state, create(table(11, "lineitem"))).code, ErrorCode::AlreadyExists);
    let again = Command::CreateTable { table: table(11, "lineitem"), if_not_exists: true };
    assert_eq!(run(&mut state, again), Ok(Response::Done { changed: false }));
    assert_eq!(state.table_by_name(&TableName::new("public", "lineitem")).unwrap().table.id, Ulid(10));

    let missing = refused(&mut state, drop_table("lineitm", false));
    assert_eq!((missing.code, missing.hint.as_str()), (ErrorCode::NotFound, "did you mean public.lineitem?"));
    let elsewhere = Table { name: TableName::new("publik", "t"), ..table(12, "t") };
    let missing = refused(&mut state, create(elsewhere));
    assert_eq!((missing.code, missing.hint.as_str()), (ErrorCode::NotFound, "did you mean public?"));
    assert_eq!(refused(&mut state, create(table(12, ""))).code, ErrorCode::InvalidArgument);
    assert_eq!(refused(&mut state, create(Table { shards: 0, ..table(12, "t") })).code, ErrorCode::InvalidArgument);
}

#[test]
fn foreign_keys_refer_to_primary_keys_of_the_same_types() {
    let mut state = cluster();
    assert_eq!(refused(&mut state, create(child(11, "child", 10))).code, ErrorCode::NotFound);
    done(&mut state, create(table(10, "parent")));

    let mut wrong_type = child(11, "child", 10);
    wrong_type.columns[1].sql_type = SqlType::Text;
    assert_eq!(refused(&mut state, create(wrong_type)).code, ErrorCode::TypeMismatch);
    let mut no_key = child(11, "child", 10);
    no_key.foreign_keys[0].parent_columns = vec![1];
    assert_eq!(refused(&mut state, create(no_key)).code, ErrorCode::InvalidArgument);
    let mut uneven = child(11, "child", 10);
    uneven.foreign_keys[0].columns = vec![0, 1];
    assert_eq!(refused(&mut state, create(uneven)).code, ErrorCode::InvalidArgument);

    done(&mut state, create(child(11, "child", 10)));
    done(&mut state, create(child(12, "tree", 12)));
    let children: Vec<Ulid> = state.children(Ulid(10)).map(|child| child.table.id).collect();
    assert_eq!(children, [Ulid(11)]);
}

#[test]
fn a_parent_stays_unless_its_children_let_go() {
    let mut state = cluster();
    done(&mut state, create(table(10, "parent")));
    done(&mut state, create(child(11, "child", 10)));
    done(&mut state, create(child(12, "tree", 12)));
    let error = refused(&mut state, drop_table("parent", false));
    assert_eq!(error.code, ErrorCode::ConstraintViolation);
    assert_eq!(error.fields["constraint"], "child_fk");

    let before = state.version();
    done(&mut state, drop_table("parent", true));
    assert!(state.table(Ulid(11)).unwrap().table.foreign_keys.is_empty());
    assert!(state.table(Ulid(10)).is_none());
    // Its own key does not hold a table.
    done(&mut state, drop_table("tree", false));
    let dropped =
        [(before + 1, vec![Event::TableDropped(Ulid(10))]), (before + 2, vec![Event::TableDropped(Ulid(12))])];
    assert_eq!(events(&state, before), dropped);
}

#[test]
fn a_schema_goes_with_its_tables_only_if_told() {
    let mut state = cluster();
    let create_schema = |if_not_exists| Command::CreateSchema { name: "s".to_owned(), if_not_exists };
    let drop_schema = |name: &str, cascade| Command::DropSchema { name: name.to_owned(), if_exists: false, cascade };
    done(&mut state, create_schema(false));
    assert_eq!(refused(&mut state, create_schema(false)).code, ErrorCode::AlreadyExists);
    assert_eq!(run(&mut state, create_schema(true)), Ok(Response::Done { changed: false }));
    for (id, name) in [(20, "a"), (21, "b")] {
        done(&mut state, create(Table { name: TableName::new("s", name), ..table(id, name) }));
    }
    assert_eq!(refused(&mut state, drop_schema("s", false)).code, ErrorCode::ConstraintViolation);
    assert_eq!(refused(&mut state, drop_schema("public", true)).code, ErrorCode::InvalidArgument);
    done(&mut state, drop_schema("s", true));
    assert_eq!(state.tables().count(), 0);
    let dropped = vec![Event::TableDropped(Ulid(20)), Event::TableDropped(Ulid(21))];
    assert_eq!(events(&state, state.version() - 1), [(state.version(), dropped)]);
    assert_eq!(refused(&mut state, drop_schema("s", false)).code, ErrorCode::NotFound);
    let reserved = Command::CreateSchema { name: "information_schema".to_owned(), if_not_exists: true };
    assert_eq!(refused(&mut state, reserved).code, ErrorCode::InvalidArgument);
}

#[test]
fn a_commit_adds_rows_and_a_repetition_gets_the_first_outcome() {
    let mut state = cluster();
    done(&mut state, create(table(10, "t")));
    let load = commit(100, 10, vec![piece(0, 5), piece(3, 7), piece(0, 1)]);
    let first = run(&mut state, load.clone());
    let committed = state.version();
    assert_eq!(first, Ok(Response::Transaction(Outcome::Committed { version: committed, rows: 13 })));
    assert_eq!(run(&mut state, load), first);
    let loaded = state.table(Ulid(10)).unwrap();
    let rows: Vec<u64> = loaded.shards.iter().map(|shard| shard.stats.rows).collect();
    assert_eq!((rows, loaded.bytes(), loaded.changed_version), (vec![6, 0, 0, 7], 130, committed));
    // Asked about it, the outcome stands.
    let resolved = run(&mut state, Command::AbortTransaction { transaction: Ulid(100) });
    assert_eq!(resolved, first);
    assert_eq!(events(&state, committed - 1), [(committed, vec![Event::Committed(Ulid(100))])]);
}

#[test]
fn an_aborted_transaction_never_commits() {
    let mut state = cluster();
    done(&mut state, create(table(10, "t")));
    let aborted = run(&mut state, Command::AbortTransaction { transaction: Ulid(100) });
    assert_eq!(aborted, Ok(Response::Transaction(Outcome::Aborted)));
    assert_eq!(refused(&mut state, commit(100, 10, vec![piece(0, 5)])).code, ErrorCode::Conflict);
    assert_eq!(state.table(Ulid(10)).unwrap().rows(), 0);
}

#[test]
fn a_commit_that_cannot_be_aborts_and_changes_no_table() {
    let mut state = cluster();
    done(&mut state, create(table(10, "t")));
    done(&mut state, create(table(11, "gone")));
    done(&mut state, drop_table("gone", false));
    let both = Command::CommitTransaction {
        transaction: Ulid(100),
        tables: vec![
            TableChange { table: Ulid(10), version: 0, pieces: vec![piece(0, 5)] },
            TableChange { table: Ulid(11), version: 0, pieces: vec![piece(0, 5)] },
        ],
        statement: None,
        rows: None,
        validations: vec![],
    };
    assert_eq!(run(&mut state, both).unwrap_err().code, ErrorCode::Conflict);
    assert_eq!(state.table(Ulid(10)).unwrap().rows(), 0);
    assert_eq!(state.outcome(Ulid(100)), Some(Outcome::Aborted));
    assert_eq!(events(&state, state.version() - 1), [(state.version(), vec![Event::Aborted(Ulid(100))])]);

    assert!(run(&mut state, commit(101, 10, vec![piece(4, 1)])).is_err(), "there is no shard 4");
    assert_eq!(state.outcome(Ulid(101)), Some(Outcome::Aborted));
}

#[test]
fn what_every_server_has_is_forgotten() {
    let mut state = cluster();
    done(&mut state, create(table(10, "t")));
    let mut versions = Vec::new();
    for transaction in 100..103 {
        run(&mut state, commit(transaction, 10, vec![piece(0, 1)])).unwrap();
        versions.push(state.version());
    }
    let applied = |server, version| Command::StorageApplied { server: Ulid(server), version };
    done(&mut state, applied(1, versions[2]));
    done(&mut state, applied(2, versions[1]));
    assert_eq!(events(&state, 0).len(), 3, "server 3 has nothing yet");
    done(&mut state, applied(3, versions[2]));
    assert_eq!(state.forgotten_version(), versions[1]);
    assert_eq!(events(&state, 0), [(versions[2], vec![Event::Committed(Ulid(102))])]);
    // Outcomes are known for longer: whoever did not hear the answer asks again.
    for (transaction, &version) in (100..).zip(&versions) {
        let first = Outcome::Committed { version, rows: 1 };
        assert_eq!(state.outcome(Ulid(transaction)), Some(first));
        assert_eq!(run(&mut state, commit(transaction, 10, vec![piece(0, 1)])), Ok(Response::Transaction(first)));
    }
    assert_eq!(state.table(Ulid(10)).unwrap().rows(), 3);
    // It goes forward only, and not beyond what there is.
    assert_eq!(run(&mut state, applied(3, 1)), Ok(Response::Done { changed: false }));
    assert_eq!(refused(&mut state, applied(3, 1000)).code, ErrorCode::Corrupt);
    assert_eq!(refused(&mut state, applied(9, 1)).code, ErrorCode::NotFound);
    let mut later = state.clone();
    apply(&mut later, versions[1] + KEPT_OUTCOMES, &Command::AbortTransaction { transaction: Ulid(1000) });
    for server in 1..=3 {
        done(&mut later, applied(server, versions[1] + KEPT_OUTCOMES));
    }
    assert_eq!(later.outcome(Ulid(101)), None);
    assert_eq!(later.outcome(Ulid(102)), Some(Outcome::Committed { version: versions[2], rows: 1 }));
    // A new server does not wait for the past.
    done(&mut state, Command::RegisterStorage { server: server(4) });
    assert_eq!(state.applied_by(Ulid(4)), Some(state.version()));
}

#[test]
fn aborted_transactions_are_bounded_and_old_ones_stay_aborted() {
    let mut state = cluster();
    done(&mut state, create(table(10, "t")));
    let count = 2 * MAX_ABORTED as u128 + 1;
    for transaction in 1..=count {
        run(&mut state, Command::AbortTransaction { transaction: Ulid(transaction) }).unwrap();
    }
    assert!(state.transactions.size() <= 2 * MAX_ABORTED);
    assert_eq!(state.outcome(Ulid(1)), None);
    let late = refused(&mut state, commit(1, 10, vec![piece(0, 1)]));
    assert_eq!(late.code, ErrorCode::Conflict);
    assert!(run(&mut state, commit(count + 1, 10, vec![piece(0, 1)])).is_ok());
}

/// A definition after some ALTER TABLE.
fn altered(id: u128, name: &str, seen: u64, change: u8) -> Table {
    let mut table = Table { version: seen, ..table(id, name) };
    match change {
        0 => table.columns.push(Column::new("added".to_owned(), SqlType::Text, false)),
        1 => {
            table.columns[1] = Column { dropped: true, ..Column::new(".dropped.1".to_owned(), SqlType::BigInt, false) }
        }
        2 => table.uniques.push(UniqueKey { name: "u".to_owned(), columns: vec![1], index: Ulid(1000 + id) }),
        _ => table.columns[1].name = "renamed".to_owned(),
    }
    table
}

pub(super) fn alter(table: Table, seen: u64, cascade: bool) -> Command {
    Command::AlterTable { table, seen, unchanged_since: None, cascade, exact_keys: true }
}

/// A view of both columns of the table `of`.
pub(super) fn view(id: u128, name: &str, of: u128) -> View {
    View {
        id: Ulid(id),
        name: TableName::new("public", name),
        sql: "SELECT".to_owned(),
        columns: vec![Column::new("id", SqlType::BigInt, false)],
        query_columns: vec!["id".to_owned()],
        uses: vec![ViewUse { id: Ulid(of), columns: vec![0, 1] }],
        comment: None,
    }
}

#[test]
fn a_table_is_altered_by_whoever_has_seen_it_last() {
    let mut state = cluster();
    done(&mut state, create(table(10, "t")));
    run(&mut state, commit(100, 10, vec![piece(0, 5)])).unwrap();
    done(&mut state, alter(altered(10, "t", 0, 0), 0, false));
    let now = state.table(Ulid(10)).unwrap();
    assert_eq!((now.table.version, now.rows(), now.table.columns.len()), (1, 5, 3));
    assert_eq!(refused(&mut state, alter(altered(10, "t", 0, 0), 0, false)).code, ErrorCode::Conflict);
    // What was staged for the old definition does not commit.
    assert_eq!(run(&mut state, commit(101, 10, vec![piece(0, 5)])).unwrap_err().code, ErrorCode::Conflict);
    // Fewer columns, or others, are not what the rows have.
    assert_eq!(refused(&mut state, alter(Table { version: 1, ..table(10, "t") }, 1, false)).code, ErrorCode::Internal);
    let mut checked = (*state.table(Ulid(10)).unwrap().table).clone();
    checked.columns[2].not_null = true;
    let since = |version| Command::AlterTable {
        table: checked.clone(),
        seen: 1,
        unchanged_since: Some(version),
        cascade: false,
        exact_keys: true,
    };
    assert_eq!(refused(&mut state, since(1)).code, ErrorCode::Conflict, "rows came since");
    let version = state.version();
    done(&mut state, since(version));
}

#[test]
fn a_foreign_key_is_added_when_nobody_deleted_what_it_refers_to() {
    let mut state = cluster();
    done(&mut state, create(table(10, "parent")));
    done(&mut state, create(table(11, "child")));
    let looked = state.version();
    run(&mut state, commit(100, 10, vec![piece(0, 5)])).unwrap();
    let inserted = state.version();
    run(&mut state, commit(101, 10, vec![PieceInfo { deleted: 1, ..piece(0, 0) }])).unwrap();
    let since = |table: Table, seen, version| Command::AlterTable {
        table,
        seen,
        unchanged_since: Some(version),
        cascade: false,
        exact_keys: true,
    };
    let first = child(11, "child", 10);
    for version in [looked, inserted] {
        assert_eq!(refused(&mut state, since(first.clone(), 0, version)).code, ErrorCode::Conflict);
    }
    let now = state.version();
    done(&mut state, since(first.clone(), 0, now));
    assert_eq!(state.table(Ulid(10)).unwrap().table.version, 1, "who deletes there has to look at the child");

    // A second key to the same parent is another one, and the same one under another name is none.
    let renamed = |version| {
        let key = ForeignKey { name: "renamed".to_owned(), ..first.foreign_keys[0].clone() };
        Table { version, foreign_keys: vec![key], ..first.clone() }
    };
    run(&mut state, commit_to(102, (10, 1), vec![PieceInfo { deleted: 1, ..piece(0, 0) }])).unwrap();
    done(&mut state, since(renamed(1), 1, now));
    assert_eq!(state.table(Ulid(10)).unwrap().table.version, 1);
    let mut second = renamed(2);
    second.foreign_keys.push(ForeignKey {
        name: "second".to_owned(),
        columns: vec![0],
        ..first.foreign_keys[0].clone()
    });
    assert_eq!(refused(&mut state, since(second.clone(), 2, now)).code, ErrorCode::Conflict);
    let now = state.version();
    done(&mut state, since(second, 2, now));
    assert_eq!(state.table(Ulid(10)).unwrap().table.version, 2);
}

#[test]
fn a_replica_that_cannot_decide_comes_back_as_the_last_one() {
    let mut state = cluster();
    for id in 7..=9 {
        run(&mut state, Command::RegisterStorage { server: server(id) }).unwrap();
    }
    done(&mut state, create(table(10, "t")));
    let current = |state: &CatalogState| state.table(Ulid(10)).unwrap().shards[0].current().collect::<Vec<_>>();
    let before = current(&state);
    let (table, shard, server) = (Ulid(10), 0, before[0]);
    done(&mut state, Command::DemoteReplica { table, shard, server, last: true });
    done(&mut state, Command::StartRebuild { table, shard, server, fresh: true });
    assert_eq!(current(&state), [before[1], before[2], before[0]]);
}

#[test]
fn statistics_follow_added_columns() {
    let mut state = cluster();
    done(&mut state, create(table(10, "t")));
    let summary = ColumnSummary { null_count: 1, distinct_estimate: 4, ..ColumnSummary::default() };
    let with_statistics = |columns| PieceInfo { columns: vec![summary.clone(); columns], ..piece(0, 5) };
    run(&mut state, commit(100, 10, vec![with_statistics(2)])).unwrap();
    done(&mut state, alter(altered(10, "t", 0, 0), 0, false));
    let column = |state: &CatalogState| state.table(Ulid(10)).unwrap().columns[2].clone();
    assert_eq!(column(&state).null_count, 5, "rows that are there read as NULL");
    let tables = vec![TableChange { table: Ulid(10), version: 1, pieces: vec![with_statistics(3)] }];
    let commit =
        Command::CommitTransaction { transaction: Ulid(101), tables, statement: None, rows: None, validations: vec![] };
    run(&mut state, commit).unwrap();
    assert_eq!(column(&state).null_count, 6);
}

#[test]
fn indexes_live_and_die_with_their_constraints() {
    let mut state = cluster();
    let unique = altered(10, "t", 0, 2);
    done(&mut state, create(unique.clone()));
    assert_eq!((state.tables().count(), state.user_tables().count()), (2, 1));
    let index = state.table(Ulid(1010)).unwrap();
    assert_eq!((index.table.primary_key.as_slice(), index.shards.len()), ([0].as_slice(), 4));
    assert!(state.table_by_name(&index.table.name).is_none());
    let child = Table { foreign_keys: vec![], ..child(11, "child", 10) };
    let mut refers = child.clone();
    refers.foreign_keys =
        vec![ForeignKey { parent_columns: vec![1], ..self::child(11, "child", 10).foreign_keys[0].clone() }];
    done(&mut state, create(refers));
    // That somebody refers to it now is a change of its definition, for those who did not look.
    assert_eq!(state.table(Ulid(10)).unwrap().table.version, 1);
    let without = Table { uniques: vec![], version: 1, ..unique };
    assert_eq!(refused(&mut state, alter(without.clone(), 1, false)).code, ErrorCode::ConstraintViolation);
    done(&mut state, alter(without, 1, true));
    assert!(state.table(Ulid(1010)).is_none() && state.table(Ulid(11)).unwrap().table.foreign_keys.is_empty());
    assert_eq!(events(&state, state.version() - 1), [(state.version(), vec![Event::TableDropped(Ulid(1010))])]);
}

#[test]
fn several_tables_go_together_or_not_at_all() {
    let mut state = cluster();
    done(&mut state, create(table(10, "parent")));
    done(&mut state, create(child(11, "child", 10)));
    let names = |names: &[&str]| names.iter().map(|name| TableName::new("public", *name)).collect();
    let drop = |list: &[&str]| Command::DropTables { names: names(list), if_exists: false, cascade: false };
    assert_eq!(refused(&mut state, drop(&["child", "other"])).code, ErrorCode::NotFound);
    assert_eq!(refused(&mut state, drop(&["parent"])).code, ErrorCode::ConstraintViolation);
    done(&mut state, drop(&["parent", "child"]));
    assert_eq!(state.tables().count(), 0);
}

/// Commands over few names and ids, so that they meet.
fn any_command() -> impl Strategy<Value = Command> {
    let id = 10u128..14;
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let pieces = prop::collection::vec((0u32..5, 0u64..1000).prop_map(|(shard, rows)| piece(shard, rows)), 0..4);
    prop_oneof![
        1 => Just(bootstrap()),
        2 => (1u128..4).prop_map(|id| Command::RegisterStorage { server: server(id) }),
        1 => (1u128..4, 0u64..40).prop_map(|(id, version)| Command::StorageApplied { server: Ulid(id), version }),
        4 => (id.clone(), name.clone(), any::<bool>())
            .prop_map(|(id, name, if_not_exists)| Command::CreateTable { table: table(id, name), if_not_exists }),
        2 => (id.clone(), name.clone(), id.clone()).prop_map(|(id, name, parent)| create(child(id, name, parent))),
        2 => (id.clone(), name.clone(), 100u128..110, prop::option::of(1u128..3)).prop_map(
            |(id, name, transaction, statement)| make(table(id, name), transaction, statement)
        ),
        2 => (name.clone(), any::<bool>()).prop_map(|(name, cascade)| drop_table(name, cascade)),
        1 => (name.clone(), name.clone(), any::<bool>()).prop_map(|(a, b, cascade)| Command::DropTables {
            names: vec![TableName::new("public", a), TableName::new("public", b)], if_exists: true, cascade,
        }),
        4 => (id.clone(), name.clone(), 0u64..3, 0u8..4, any::<bool>())
            .prop_map(|(id, name, seen, change, cascade)| alter(altered(id, name, seen, change), seen, cascade)),
        2 => (id.clone(), name.clone(), id.clone(), any::<bool>()).prop_map(|(id, name, of, or_replace)| {
            Command::CreateView { view: view(100 + id, name, of), or_replace, if_not_exists: false }
        }),
        1 => (name.clone(), any::<bool>()).prop_map(|(name, cascade)| Command::DropViews {
            names: vec![TableName::new("public", name)], if_exists: false, cascade,
        }),
        1 => name.clone().prop_map(|name| Command::Comment {
            name: TableName::new("public", name), column: None, text: Some("c".to_owned()),
        }),
        6 => (100u128..110, id, pieces).prop_map(|(transaction, table, pieces)| commit(transaction, table, pieces)),
        2 => (100u128..110).prop_map(|id| Command::AbortTransaction { transaction: Ulid(id) }),
        1 => name.clone().prop_map(|name| Command::CreateSchema { name: name.to_owned(), if_not_exists: true }),
        1 => (name.clone(), any::<bool>())
            .prop_map(|(name, cascade)| Command::DropSchema { name: name.to_owned(), if_exists: false, cascade }),
        1 => name.clone()
            .prop_map(|name| Command::CreateUser { name: name.to_owned(), password_hash: String::new(), by: None }),
        1 => name.clone().prop_map(set_password),
        1 => name.prop_map(drop_user),
        3 => any_replica_command(),
    ]
}

fn any_replica_command() -> impl Strategy<Value = Command> {
    let of = (10u128..14, 0u32..5, 1u128..4);
    let of = of.prop_map(|(table, shard, server)| (Ulid(table), shard, Ulid(server)));
    let server = (1u128..4).prop_map(Ulid);
    prop_oneof![
        (of.clone(), any::<bool>()).prop_map(|((table, shard, server), last)| Command::DemoteReplica {
            table,
            shard,
            server,
            last
        }),
        of.clone().prop_map(|(table, shard, server)| Command::StartRebuild { table, shard, server, fresh: shard == 0 }),
        (of.clone(), 0u64..60).prop_map(|((table, shard, server), copied)| Command::ReplicaCurrent {
            table,
            shard,
            server,
            copied
        }),
        (of.clone(), prop::option::of(server.clone()))
            .prop_map(|((table, shard, server), replaces)| Command::AddReplica { table, shard, server, replaces }),
        of.prop_map(|(table, shard, server)| Command::RemoveReplica { table, shard, server }),
        server.clone().prop_map(|server| Command::DemoteServer { server }),
        server.clone().prop_map(|server| Command::ServerUp { server }),
        (server.clone(), prop::sample::select(vec![ServerState::Active, ServerState::Draining]))
            .prop_map(|(server, state)| Command::SetServerState { server, state }),
        server.prop_map(|server| Command::DropServer { server }),
    ]
}

fn reread<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    rmp_serde::from_slice(&rmp_serde::to_vec_named(value).unwrap()).unwrap()
}

proptest! {
    /// A node that restarts at any point, from a snapshot and with commands read from the log, has the same state and gives
    /// the same responses as one that never stopped.
    #[test]
    fn a_state_does_not_depend_on_how_it_was_reached(
        commands in prop::collection::vec(any_command(), 1..60),
        restart in any::<prop::sample::Index>(),
    ) {
        let restart = restart.index(commands.len());
        let (mut steady, mut restarted) = (CatalogState::default(), CatalogState::default());
        for (at, command) in commands.iter().enumerate() {
            if at == restart {
                restarted = reread(&restarted);
            }
            let version = at as u64 + 1;
            let responses = [apply(&mut steady, version, command), apply(&mut restarted, version, &reread(command))];
            prop_assert_eq!(&responses[0], &responses[1]);
            prop_assert_eq!(&reread(&responses[0]), &responses[0]);
        }
        prop_assert_eq!(&steady, &restarted);
    }

    #[test]
    fn states_keep_their_rules(commands in prop::collection::vec(any_command(), 1..80)) {
        let mut state = CatalogState::default();
        let mut committed: BTreeMap<Ulid, u64> = BTreeMap::new();
        for (at, command) in commands.iter().enumerate() {
            let (before, kept) = (state.clone(), reread(&state));
            let response = apply(&mut state, at as u64 + 1, command);
            prop_assert_eq!(&before, &kept, "a clone does not change with the original");
            if let Response::Transaction(Outcome::Committed { version, .. }) = response {
                let transaction = match command {
                    Command::CommitTransaction { transaction, .. } | Command::AbortTransaction { transaction } => transaction,
                    other => panic!("{other:?} commits nothing"),
                };
                // Unless it was forgotten in between, a transaction has one version for ever.
                let first = *committed.entry(*transaction).or_insert(version);
                prop_assert!(first == version || state.forgotten_version() >= first);
            }
            prop_assert_eq!(state.names.size(), state.tables().filter(|table| table.is_users()).count());
            for view in state.views() {
                prop_assert!(state.table_by_name(&view.name).is_none() && state.has_schema(&view.name.schema));
                for used in &view.uses {
                    let table = state.table(used.id).expect("no view dangles");
                    prop_assert!(used.columns.iter().all(|&column| table.table.columns[column].is_visible()));
                }
            }
            let indexes: usize = state.user_tables().map(|table| table.table.uniques.len()).sum();
            prop_assert_eq!(state.names.size() + indexes, state.tables().count());
            prop_assert_eq!(state.tables().count() + state.making().count(), state.all_tables().count());
            for making in state.making() {
                prop_assert_eq!(state.outcome(making.transaction), None, "a table goes its transaction's way");
            }
            for table in state.all_tables() {
                prop_assert!(state.has_schema(&table.table.name.schema));
                prop_assert_eq!(table.shards.len(), table.table.shards as usize);
                prop_assert_eq!(table.shards.len(), table.table.shards as usize);
                prop_assert!(placement(table).iter().flatten().all(|server| state.server(*server).is_some()));
                for key in &table.table.foreign_keys {
                    prop_assert!(state.table(key.parent).is_some(), "no foreign key dangles");
                }
            }
            prop_assert!(state.events_after(0).all(|(version, _)| version > state.forgotten_version()));
        }
    }
}
