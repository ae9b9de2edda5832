//! How fast it is: run by hand, `cargo nextest run -p drsdb-index --run-ignored only measure --no-capture`.

use std::{sync::Arc, time::Instant};

use drsdb_core::{Column, Engine, SqlType, Table, TableName};
use drsdb_index::{
    catalog::{ColumnSummary, Command, PieceInfo, StorageServer, TableChange},
    raft::Catalog,
};

use super::{id, open};

/// A table like TPC-H's lineitem.
fn table(columns: usize, shards: u32) -> Table {
    let column = |at: usize| {
        let sql_type = if at.is_multiple_of(2) { SqlType::BigInt } else { SqlType::Text };
        Column::new(format!("column_{at}"), sql_type, true)
    };
    Table {
        id: id(),
        name: TableName::new("public", format!("t{columns}_{shards}")),
        columns: (0..columns).map(column).collect(),
        primary_key: vec![0],
        foreign_keys: vec![],
        engine: Engine::Column,
        shards,
        shard_key: vec![0],
        shard_function: 1,
        cluster_key: vec![0],
        ..Table::default()
    }
}

fn commit(table: &Table) -> Command {
    let array = |value: &SqlType| -> arrow::array::ArrayRef {
        match value {
            SqlType::BigInt => Arc::new(arrow::array::Int64Array::from(vec![123_456_789])),
            _ => Arc::new(arrow::array::StringViewArray::from(vec!["a text of thirty characters.."])),
        }
    };
    let summary = |column: &Column| {
        let value = array(&column.sql_type);
        ColumnSummary::new(column.sql_type, 0, Some((&value, &value)), 1000)
    };
    let columns: Vec<ColumnSummary> = table.columns.iter().map(summary).collect();
    let piece = |shard| PieceInfo {
        shard,
        rows: 500_000,
        bytes: 30_000_000,
        columns: columns.clone(),
        acks: vec![id()],
        ..PieceInfo::default()
    };
    let pieces = (0..table.shards).map(piece).collect();
    Command::CommitTransaction {
        transaction: id(),
        tables: vec![TableChange { table: table.id, version: 0, pieces }],
        statement: None,
        rows: None,
        validations: vec![],
    }
}

async fn proposals_per_second(catalog: &Arc<Catalog>, table: &Arc<Table>, proposers: usize, each: usize) -> f64 {
    let start = Instant::now();
    let tasks = (0..proposers).map(|_| {
        let (catalog, table) = (catalog.clone(), table.clone());
        tokio::spawn(async move {
            for _ in 0..each {
                catalog.propose(commit(&table)).await.unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    (proposers * each) as f64 / start.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure() {
    // In the target directory, which is on a disk; the system's temporary directory may be memory.
    let base = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let dir = tempfile::tempdir_in(base).unwrap();
    let catalog = open(dir.path()).await;
    let bootstrap = Command::Bootstrap {
        cluster_id: id(),
        signing_key_pkcs8: vec![0; 83].into(),
        admin_user: "admin".to_owned(),
        admin_password_hash: String::new(),
    };
    catalog.propose(bootstrap).await.unwrap();
    let server = StorageServer { id: id(), url: "https://a:1".to_owned(), cores: 2, labels: Default::default() };
    catalog.propose(Command::RegisterStorage { server }).await.unwrap();

    for (columns, shards) in [(2, 1), (16, 12), (1000, 12)] {
        let table = Arc::new(table(columns, shards));
        catalog.propose(Command::CreateTable { table: (*table).clone(), if_not_exists: false }).await.unwrap();
        let bytes = rmp_serde::to_vec_named(&commit(&table)).unwrap().len();
        println!("commit of {columns} columns in {shards} shards: {bytes} bytes");
        for (proposers, each) in if columns < 1000 { [(1, 300), (64, 100)] } else { [(1, 10), (64, 1)] } {
            let rate = proposals_per_second(&catalog, &table, proposers, each).await;
            println!("  {proposers} proposers: {rate:.0} proposals/s");
        }
    }
    let reads = Instant::now();
    for _ in 0..1000 {
        catalog.linearize().await.unwrap();
    }
    println!("linearize: {:.1} us", reads.elapsed().as_secs_f64() * 1e3);
    let clones = Instant::now();
    for _ in 0..1_000_000 {
        std::hint::black_box((*catalog.state()).clone());
    }
    println!("clone of a state: {:.0} ns", clones.elapsed().as_secs_f64() * 1e3);
    catalog.shutdown().await;
    drop(catalog);
    let opened = Instant::now();
    let catalog = open(dir.path()).await;
    println!("open with {} versions: {:.0} ms", catalog.state().version(), opened.elapsed().as_secs_f64() * 1e3);
    catalog.shutdown().await;
}
