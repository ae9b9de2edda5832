//! Tables that transactions make: nobody sees them before the commit, and nothing is left of them without one.

use drsdb_core::{Column, ErrorCode, SqlType, Table, TableName, Ulid, UniqueKey};

use super::{
    super::*,
    tests::{alter, child, cluster, commit, create, done, drop_table, events, piece, refused, run, table, view},
};

/// A transaction makes a table.
pub(super) fn make(table: Table, transaction: u128, statement: Option<u128>) -> Command {
    let coordinator = "https://index-1:1".to_owned();
    let making = Making { transaction: Ulid(transaction), coordinator, statement: statement.map(Ulid) };
    Command::MakeTable { table, making }
}

fn abort(transaction: u128) -> Command {
    Command::AbortTransaction { transaction: Ulid(transaction) }
}

fn t() -> TableName {
    TableName::new("public", "t")
}

#[test]
fn a_table_gets_its_name_with_the_commit() {
    let mut state = cluster();
    done(&mut state, make(table(10, "t"), 100, None));
    assert!(state.is_in_making(Ulid(10)) && state.table(Ulid(10)).is_some());
    assert_eq!((state.tables().count(), state.user_tables().count(), state.all_tables().count()), (0, 0, 1));
    assert!(state.table_by_name(&t()).is_none());
    // A proposal may come twice.
    assert_eq!(run(&mut state, make(table(10, "t"), 100, None)), Ok(Response::Done { changed: false }));

    let committed = run(&mut state, commit(100, 10, vec![piece(0, 5)]));
    let version = state.version();
    assert_eq!(committed, Ok(Response::Transaction(Outcome::Committed { version, rows: 5 })));
    let made = state.table_by_name(&t()).unwrap();
    assert_eq!((made.rows(), made.created_version, made.changed_version), (5, version, version));
    assert_eq!((state.making().count(), state.tables().count()), (0, 1));
    // To ask for the abort afterwards changes nothing.
    assert_eq!(run(&mut state, abort(100)), committed);
    assert!(state.table_by_name(&t()).is_some());
}

#[test]
fn a_table_without_rows_gets_its_name_too() {
    let mut state = cluster();
    done(&mut state, make(table(10, "t"), 100, None));
    let (transaction, tables, validations) = (Ulid(100), Vec::new(), Vec::new());
    let commit = Command::CommitTransaction { transaction, tables, statement: None, rows: Some(0), validations };
    run(&mut state, commit).unwrap();
    assert_eq!(state.table_by_name(&t()).map(|made| made.rows()), Some(0));
}

#[test]
fn a_table_goes_with_its_transaction() {
    let mut state = cluster();
    done(&mut state, make(table(10, "t"), 100, None));
    run(&mut state, abort(100)).unwrap();
    let gone = vec![Event::Aborted(Ulid(100)), Event::TableDropped(Ulid(10))];
    assert_eq!(events(&state, state.version() - 1), [(state.version(), gone)]);
    assert_eq!((state.making().count(), state.all_tables().count()), (0, 0));
    // The proposal may have come later than its end.
    assert_eq!(refused(&mut state, make(table(10, "t"), 100, None)).code, ErrorCode::Conflict);

    // A commit that is refused is an end, too: no replica has what is said to be staged.
    done(&mut state, make(table(11, "t"), 101, None));
    let lost = PieceInfo { acks: Default::default(), ..piece(0, 5) };
    assert_eq!(run(&mut state, commit(101, 11, vec![lost])).unwrap_err().code, ErrorCode::Conflict);
    assert_eq!((state.making().count(), state.all_tables().count()), (0, 0));
    done(&mut state, create(table(12, "t")));
}

#[test]
fn a_name_that_may_be_there_soon_is_a_conflict() {
    let mut state = cluster();
    done(&mut state, Command::CreateSchema { name: "s".to_owned(), if_not_exists: false });
    done(&mut state, create(table(9, "other")));
    done(&mut state, make(table(10, "t"), 100, None));
    done(&mut state, make(Table { name: TableName::new("s", "t"), ..table(11, "t") }, 101, None));
    let or_there = Command::CreateTable { table: table(12, "t"), if_not_exists: true };
    let renamed = Table { name: t(), ..table(9, "other") };
    let drop_schema = |cascade| Command::DropSchema { name: "s".to_owned(), if_exists: false, cascade };
    for command in [
        create(table(12, "t")),
        or_there,
        make(table(12, "t"), 102, None),
        alter(renamed, 0, false),
        Command::CreateView { view: view(20, "t", 9), or_replace: true, if_not_exists: false },
        Command::CreateView { view: view(20, "t", 9), or_replace: false, if_not_exists: true },
        drop_schema(false),
        drop_schema(true),
    ] {
        let error = refused(&mut state, command);
        assert_eq!(error.code, ErrorCode::Conflict);
        assert!(error.message.contains("making table"), "{error}");
    }
    assert_eq!(refused(&mut state, drop_table("t", true)).code, ErrorCode::NotFound);
    run(&mut state, abort(101)).unwrap();
    done(&mut state, drop_schema(false));
}

#[test]
fn nothing_refers_to_a_table_in_the_making() {
    let mut state = cluster();
    done(&mut state, create(table(9, "parent")));
    done(&mut state, make(table(10, "t"), 100, None));
    assert_eq!(refused(&mut state, create(child(11, "child", 10))).code, ErrorCode::NotFound);
    let reads = Command::CreateView { view: view(20, "v", 10), or_replace: false, if_not_exists: false };
    assert_eq!(refused(&mut state, reads).code, ErrorCode::Conflict);
    assert_eq!(refused(&mut state, alter(table(10, "u"), 0, false)).code, ErrorCode::Conflict);
    // Nor does it refer to others.
    assert_eq!(refused(&mut state, make(child(11, "u", 9), 101, None)).code, ErrorCode::Internal);
    let unique = UniqueKey { name: "k".to_owned(), columns: vec![1], index: Ulid(1011) };
    let unique = Table { uniques: vec![unique], ..table(11, "u") };
    assert_eq!(refused(&mut state, make(unique, 101, None)).code, ErrorCode::Internal);
    // What its replicas need is there all the same.
    assert!(state.replicas_on(Ulid(1)).any(|(known, ..)| known.table.id == Ulid(10)));
}

/// The client has lost the first run's answer, and asks again.
#[test]
fn a_second_run_of_a_statement_takes_the_place_of_the_first() {
    let mut state = cluster();
    done(&mut state, make(table(10, "t"), 100, Some(7)));
    assert_eq!(refused(&mut state, make(table(11, "t"), 101, Some(8))).code, ErrorCode::Conflict);
    // One that is refused ends nothing.
    let mut broken = table(11, "t");
    broken.columns.push(Column::new("", SqlType::Text, false));
    assert_eq!(refused(&mut state, make(broken, 101, Some(7))).code, ErrorCode::InvalidArgument);
    done(&mut state, make(table(11, "t"), 101, Some(7)));
    assert_eq!((state.outcome(Ulid(100)), state.all_tables().count()), (Some(Outcome::Aborted), 1));
    assert_eq!(run(&mut state, commit(100, 10, vec![piece(0, 5)])).unwrap_err().code, ErrorCode::Conflict);
    run(&mut state, commit(101, 11, vec![piece(0, 6)])).unwrap();
    assert_eq!(state.table_by_name(&t()).unwrap().table.id, Ulid(11));
}

#[test]
fn a_state_from_before_has_no_table_in_the_making() {
    let mut before = serde_json::to_value(CatalogState::default()).unwrap();
    assert!(before.as_object_mut().unwrap().remove("making").is_some());
    assert_eq!(serde_json::from_value::<CatalogState>(before).unwrap(), CatalogState::default());
}
