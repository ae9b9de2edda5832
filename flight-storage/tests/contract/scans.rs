//! What a scan reads: versions, projections, shards, limits; and how it ends.

use std::sync::Arc;

use drsdb_core::{ErrorCode, SqlType};
use drsdb_storage::engine::ScanRequest;

use super::support::{
    Factory, Fixture, batch, ids, next_batch, people, people_rows, plain, request, table, wait_until,
};

pub fn an_unknown_shard_is_empty(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    assert_eq!(fixture.count(&table, u64::MAX), 0);
    fixture.load(&table, &people_rows(&table, [1]), 1);
    let other_shard = fixture.scan(ScanRequest { shards: vec![3], ..request(&table, 9) }).unwrap();
    assert_eq!(other_shard.num_rows(), 0);
    let no_shard = fixture.scan(ScanRequest { shards: vec![], ..request(&table, 9) }).unwrap();
    assert_eq!(no_shard.num_rows(), 0);
}

pub fn a_snapshot_sees_commits_up_to_its_version(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    fixture.load(&table, &people_rows(&table, [1]), 10);
    fixture.load(&table, &people_rows(&table, [2]), 11);
    fixture.load(&table, &people_rows(&table, [3]), 20);
    for (snapshot, expected) in [
        (0, vec![]),
        (9, vec![]),
        (10, vec![1]),
        (11, vec![1, 2]),
        (19, vec![1, 2]),
        (20, vec![1, 2, 3]),
        (u64::MAX, vec![1, 2, 3]),
    ] {
        assert_eq!(ids(&fixture.read(&table, snapshot)), expected, "at snapshot {snapshot}");
    }
}

pub fn the_projection_decides_columns_and_their_order(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = table(&[("a", SqlType::BigInt), ("b", SqlType::Text), ("c", SqlType::BigInt)], &[0]);
    let (a, c) = (arrow::array::Int64Array::from(vec![1, 2]), arrow::array::Int64Array::from(vec![30, 40]));
    let b = arrow::array::StringViewArray::from(vec![Some("x"), None]);
    let rows = batch(&table, vec![Arc::new(a), Arc::new(b), Arc::new(c)]);
    fixture.load(&table, &rows, 1);
    for projection in [vec![0], vec![1], vec![2, 0], vec![2, 1, 0], vec![0, 1, 2]] {
        let scanned = ScanRequest { projection: projection.clone(), ..request(&table, 1) };
        assert_eq!(plain(&fixture.scan(scanned).unwrap()), plain(&rows.project(&projection).unwrap()));
    }
}

pub fn an_empty_projection_counts_rows(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    let counted = |snapshot, limit| {
        let scanned = ScanRequest { projection: vec![], limit, batch_rows: 1000, ..request(&table, snapshot) };
        let counted = fixture.scan(scanned).unwrap();
        assert_eq!(counted.num_columns(), 0);
        counted.num_rows()
    };
    assert_eq!(counted(9, None), 0);
    fixture.load(&table, &people_rows(&table, 0..2500), 1);
    fixture.load(&table, &people_rows(&table, 2500..2501), 2);
    assert_eq!((counted(0, None), counted(1, None), counted(2, None)), (0, 2500, 2501));
    assert!(counted(2, Some(7)) >= 7);
}

pub fn only_the_shards_asked_for_are_read(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    for shard in 0..4 {
        fixture.load_in(&table, shard, &people_rows(&table, [i64::from(shard)]), 1 + u64::from(shard));
    }
    for (shards, expected) in [(vec![2], vec![2]), (vec![3, 0], vec![0, 3]), (vec![0, 1, 2, 3], vec![0, 1, 2, 3])] {
        let scanned = ScanRequest { shards, ..request(&table, 9) };
        assert_eq!(ids(&fixture.scan(scanned).unwrap()), expected);
    }
}

pub fn tables_do_not_mix(factory: Factory) {
    let fixture = Fixture::new(factory);
    let (one, other) = (people(), people());
    fixture.load(&one, &people_rows(&one, [1, 2]), 1);
    fixture.load(&other, &people_rows(&other, [2, 3]), 2);
    assert_eq!(ids(&fixture.read(&one, 9)), [1, 2]);
    assert_eq!(ids(&fixture.read(&other, 9)), [2, 3]);
    fixture.engine().drop_table(one.id).unwrap();
    assert_eq!(ids(&fixture.read(&other, 9)), [2, 3]);
}

pub fn batches_are_no_larger_than_asked(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    fixture.load(&table, &people_rows(&table, 0..1000), 1);
    fixture.load(&table, &people_rows(&table, 1000..1100), 2);
    for batch_rows in [1, 7, 1000, 100_000] {
        // The fixture checks each batch.
        let scanned = ScanRequest { batch_rows, ..request(&table, 9) };
        assert_eq!(ids(&fixture.scan(scanned).unwrap()), (0..1100).collect::<Vec<_>>());
    }
}

pub fn a_limit_ends_the_scan_early(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    for shard in 0..3 {
        let from = i64::from(shard) * 10_000;
        fixture.load_in(&table, shard, &people_rows(&table, from..from + 10_000), 1 + u64::from(shard));
    }
    for (limit, most) in [(0, 100), (1, 100), (250, 400), (10_050, 10_200), (100_000, 30_000)] {
        let scanned = ScanRequest { limit: Some(limit), shards: vec![0, 1, 2], batch_rows: 100, ..request(&table, 9) };
        let rows = fixture.scan(scanned).unwrap().num_rows();
        assert!(rows >= limit.min(30_000) && rows <= most, "limit {limit} gave {rows} rows");
    }
}

pub fn a_dropped_stream_stops_the_work(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    fixture.load(&table, &people_rows(&table, 0..50_000), 1);
    // Whatever a scan does, it holds the table's definition while it does it.
    let idle = Arc::strong_count(&table);
    let mut streams = Vec::new();
    for _ in 0..20 {
        let _runtime = fixture.runtime.enter();
        let scanned = ScanRequest { batch_rows: 100, ..request(&table, 9) };
        streams.push(fixture.engine().scan(scanned).unwrap());
    }
    for stream in streams.iter_mut().take(10) {
        next_batch(&fixture.runtime, stream).unwrap();
    }
    drop(streams);
    wait_until("no scan holds the table", || Arc::strong_count(&table) <= idle);
    assert_eq!(fixture.count(&table, 9), 50_000);
}

pub fn a_dropped_table_stays_whole_for_running_scans(factory: Factory) {
    let fixture = Fixture::new(factory);
    let table = people();
    for shard in 0..4 {
        let from = i64::from(shard) * 10_000;
        fixture.load_in(&table, shard, &people_rows(&table, from..from + 10_000), 1 + u64::from(shard));
    }
    let start = || {
        let _runtime = fixture.runtime.enter();
        let scanned = ScanRequest { batch_rows: 100, shards: vec![0, 1, 2, 3], ..request(&table, 9) };
        fixture.engine().scan(scanned).unwrap()
    };
    let (mut begun, mut not_begun) = (start(), start());
    let mut rows = next_batch(&fixture.runtime, &mut begun).unwrap().num_rows();
    fixture.engine().drop_table(table.id).unwrap();
    while let Some(batch) = next_batch(&fixture.runtime, &mut begun) {
        rows += batch.num_rows();
    }
    assert_eq!(rows, 40_000);
    rows = 0;
    while let Some(batch) = next_batch(&fixture.runtime, &mut not_begun) {
        rows += batch.num_rows();
    }
    assert_eq!(rows, 40_000);
    // A scan that begins now has nothing to read, and may say so.
    match fixture.scan(request(&table, 9)) {
        Ok(rows) => assert_eq!(rows.num_rows(), 0),
        Err(error) => assert_eq!(error.code(), ErrorCode::NotFound),
    }
}
