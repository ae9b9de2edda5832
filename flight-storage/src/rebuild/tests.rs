//! Calls that end late.

use arrow::{
    array::{Int64Array, RecordBatch},
    ipc::writer::StreamWriter,
};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use drsdb_core::{
    Column, Engine, SqlType, Table,
    v1::{StageHeader, StageRequest, stage_request::Part},
};
use futures::TryStreamExt;

use super::{replay::replay, *};
use crate::{column::ColumnOptions, commits::AppliedVersion, engine::ScanRequest, rebuild::floors::Floors};

const SHARD: ShardId = ShardId { table: Ulid(7), shard: 0 };
const LATE: Ulid = Ulid(50);

fn engines(dir: &Path) -> Engines {
    let applied = AppliedVersion::open(dir.join("applied")).unwrap();
    let floors = Floors::open(dir.join("floors")).unwrap();
    Engines::open(dir, Ulid(1), ColumnOptions::default(), applied, floors).unwrap()
}

fn table() -> Table {
    Table {
        id: SHARD.table,
        columns: vec![Column::new("a", SqlType::BigInt, true)],
        primary_key: vec![0],
        shard_key: vec![0],
        cluster_key: vec![0],
        engine: Engine::Row,
        shards: 1,
        ..Table::default()
    }
}

/// How many rows there are in the end.
async fn rows(engines: &Engines) -> usize {
    let request = ScanRequest {
        table: Arc::new(table()),
        shards: vec![SHARD.shard],
        snapshot: 100,
        except: None,
        projection: vec![0],
        filters: Vec::new(),
        limit: None,
        batch_rows: 100,
        metrics: ExecutionPlanMetricsSet::new(),
        partition: 0,
        own: None,
    };
    let batches: Vec<RecordBatch> = engines.scan_engine(request).unwrap().try_collect().await.unwrap();
    batches.iter().map(RecordBatch::num_rows).sum()
}

/// A call that inserts a row.
fn messages(transaction: Ulid) -> [StageRequest; 2] {
    let table = table();
    let header = StageHeader {
        transaction_id: transaction.to_string(),
        table: Some(table.to_proto()),
        shard: SHARD.shard,
        snapshot: 1,
        sequence: 1,
        follower: true,
        ..StageHeader::default()
    };
    let rows = RecordBatch::try_new(table.arrow_schema(), vec![Arc::new(Int64Array::from(vec![1]))]).unwrap();
    let mut writer = StreamWriter::try_new(Vec::new(), &rows.schema()).unwrap();
    writer.write(&rows).unwrap();
    let batch = writer.into_inner().unwrap();
    [Part::Header(header), Part::Batch(batch.into())].map(|part| StageRequest { part: Some(part) })
}

fn begin(rebuilds: &Rebuilds, spool: &Spool) -> spool::Call {
    let call = rebuilds.begin_call(spool, LATE, 1).unwrap();
    for message in messages(LATE) {
        spool.part(&call, &message).unwrap();
    }
    call
}

#[test]
fn a_call_that_ends_after_its_outcome_is_not_staged_when_the_copy_has_it() {
    for restart in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let engines = engines(dir.path());
        let (rebuilds, _) = Rebuilds::open(&dir.path().join("spools")).unwrap();
        let mut spool = rebuilds.spool(SHARD).unwrap();
        let call = begin(&rebuilds, &spool);
        // It has committed without this replica, whose copy is of a later version.
        rebuilds.decide(&engines, LATE, Some(5)).unwrap();
        // The replay comes before the call's end is told of, or the server dies there.
        spool.end(call).unwrap();
        if restart {
            drop((rebuilds, spool));
            let (rebuilds, left) = Rebuilds::open(&dir.path().join("spools")).unwrap();
            assert_eq!(left, [SHARD]);
            spool = rebuilds.spool(SHARD).unwrap();
        }
        assert_eq!(replay(&engines, &spool, SHARD.shard, 7, 0).unwrap(), 1);
        assert_eq!(engines.staged_transactions().unwrap(), []);
    }
}

#[tokio::test]
async fn a_call_that_ends_after_its_outcome_is_committed_when_the_copy_is_older() {
    let dir = tempfile::tempdir().unwrap();
    let engines = engines(dir.path());
    let (rebuilds, _) = Rebuilds::open(&dir.path().join("spools")).unwrap();
    let spool = rebuilds.spool(SHARD).unwrap();
    let call = begin(&rebuilds, &spool);
    rebuilds.decide(&engines, LATE, Some(9)).unwrap();
    rebuilds.end_call(&engines, &spool, call).unwrap();
    assert_eq!(rows(&engines).await, 0);
    assert_eq!(replay(&engines, &spool, SHARD.shard, 7, 0).unwrap(), 1);
    assert_eq!(engines.staged_transactions().unwrap(), []);
    assert_eq!(rows(&engines).await, 1);
}

#[test]
fn no_call_begins_after_its_transaction_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let engines = engines(dir.path());
    let (rebuilds, _) = Rebuilds::open(&dir.path().join("spools")).unwrap();
    let spool = rebuilds.spool(SHARD).unwrap();
    for outcome in [None, Some(5)] {
        let ended = Ulid(u128::from(outcome.unwrap_or(0)) + 100);
        rebuilds.decide(&engines, ended, outcome).unwrap();
        assert_eq!(rebuilds.begin_call(&spool, ended, 1).unwrap_err().code(), ErrorCode::Cancelled);
        assert!(!spool.contains(ended));
    }
}
