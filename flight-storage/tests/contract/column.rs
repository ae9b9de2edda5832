//! What is special to the column engine: its files, its statistics, its cache, and what it does not read.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringViewArray, UInt32Array},
    compute::take,
    datatypes::{DataType, Int64Type},
};
use datafusion::{
    logical_expr::Operator,
    physical_expr::{
        PhysicalExpr,
        expressions::{DynamicFilterPhysicalExpr, binary, col, lit},
    },
    scalar::ScalarValue,
};
use drsdb_core::{ErrorCode, SqlType, Table, ids::new_ulid};
use drsdb_storage::{
    column::{ColumnEngine, ColumnOptions},
    engine::{ScanRequest, StorageEngine},
};
use futures::{StreamExt, TryStreamExt};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::support::{
    Fixture, TYPES, VALUES, batch, checked, filter, ids, keys, people, people_rows, plain, request, statement, table,
    values,
};

/// Small units, so that a few thousand rows make many segments of several row groups; all rows go to segments.
pub fn small() -> ColumnOptions {
    ColumnOptions {
        cache_bytes: 64 << 20,
        segment_rows: 32_768,
        row_group_rows: 16_384,
        write_buffer_bytes: 1 << 20,
        buffer_rows: 0,
        lookup_rows: 0,
        ..ColumnOptions::default()
    }
}

fn open_small(dir: &Path) -> Arc<dyn StorageEngine> {
    Arc::new(ColumnEngine::open(dir, small()).unwrap())
}

/// An engine of small units in a folder that the test can look into.
fn fixture() -> (Fixture, TempDir) {
    let directory = TempDir::new().unwrap();
    (Fixture::at(open_small, directory.path()), directory)
}

fn files(dir: &TempDir) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.path().join("segments")).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// `column op value` over a table's schema.
fn compare(table: &Table, column: &str, operator: Operator, value: ScalarValue) -> Arc<dyn PhysicalExpr> {
    let schema = table.arrow_schema();
    binary(col(column, &schema).unwrap(), operator, lit(value), &schema).unwrap()
}

/// Runs a scan and answers its rows and what it counted.
fn measured(fixture: &Fixture, request: ScanRequest) -> (RecordBatch, impl Fn(&str) -> usize) {
    let metrics = request.metrics.clone();
    let rows = fixture.scan(request).unwrap();
    let counted = metrics.clone_inner();
    (rows, move |name: &str| {
        counted.sum_by_name(name).map_or_else(|| panic!("nothing counts {name}"), |value| value.as_usize())
    })
}

/// `id BIGINT PRIMARY KEY, city TEXT, weight DOUBLE`, rows in the order of the key.
fn cities() -> (Arc<Table>, RecordBatch) {
    let columns = [("id", SqlType::BigInt), ("city", SqlType::Text), ("weight", SqlType::Double)];
    let table = table(&columns, &[0]);
    let ids = 0..100_000_i64;
    let cities: StringViewArray = ids.clone().map(|id| Some(format!("a city whose number is {}", id % 100))).collect();
    let weights: Float64Array = ids.clone().map(|id| (id % 10 != 0).then_some(id as f64 / 3.0)).collect();
    let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from_iter_values(ids)), Arc::new(cities), Arc::new(weights)];
    let rows = batch(&table, columns);
    (table, rows)
}

#[test]
fn a_load_in_key_order_makes_full_segments_whatever_its_buffer() {
    let (fixture, directory) = fixture();
    let (table, rows) = cities();
    let mut writer = fixture.engine().stage(checked(new_ulid()), &table, 0).unwrap();
    for start in (0..rows.num_rows()).step_by(1000) {
        writer.write(&rows.slice(start, 1000)).unwrap();
    }
    let piece = writer.finish().unwrap();
    assert_eq!(piece.rows, 100_000);
    assert_eq!(piece.segments.len(), 4, "three of 32,768 rows and the rest");
    assert_eq!(files(&directory).len(), 4);
}

#[test]
fn a_staged_piece_tells_what_its_columns_hold() {
    let (fixture, directory) = fixture();
    let (table, rows) = cities();
    let piece = fixture.stage_in(new_ulid(), &table, 0, &rows).unwrap();
    let [id, city, weight] = &piece.columns[..] else { panic!("three columns") };
    let single = |value: ScalarValue| Some(value.to_array().unwrap());
    assert_eq!((&id.min, &id.max), (&single(0_i64.into()), &single(99_999_i64.into())));
    let text = |text: &str| single(ScalarValue::Utf8View(Some(text.to_owned())));
    assert_eq!((&city.min, &city.max), (&text("a city whose number is 0"), &text("a city whose number is 99")));
    assert_eq!((id.null_count, city.null_count, weight.null_count), (0, 0, 10_000));
    assert!(id.distinct_estimate.abs_diff(100_000) < 8_000, "{}", id.distinct_estimate);
    assert!(city.distinct_estimate.abs_diff(100) < 5, "{}", city.distinct_estimate);
    let on_disk: u64 = files(&directory).iter().map(|file| file.metadata().unwrap().len()).sum();
    assert_eq!(piece.bytes, on_disk);
}

#[test]
fn a_second_scan_reads_no_file() {
    let (fixture, directory) = fixture();
    let (table, rows) = cities();
    fixture.load(&table, &rows, 1);
    let (first, counted) = measured(&fixture, request(&table, 1));
    assert_eq!((counted("cache_hits"), counted("cache_misses")), (0, 7 * 3));
    assert!(counted("bytes_read") > 0);
    // Not even the files are needed.
    files(&directory).iter().for_each(|file| std::fs::remove_file(file).unwrap());
    let (second, counted) = measured(&fixture, request(&table, 1));
    assert_eq!((counted("cache_hits"), counted("cache_misses"), counted("bytes_read")), (7 * 3, 0, 0));
    assert_eq!(counted("rows_read"), 100_000);
    assert_eq!(first, second);
}

#[test]
fn rows_that_do_not_match_are_left_out_where_rows_were_deleted() {
    let (fixture, _directory) = fixture();
    let (table, rows) = cities();
    fixture.load(&table, &rows, 1);
    let gone = (0..100_000).filter(|id| id % 1000 == 0);
    let transaction = new_ulid();
    let mut writer = fixture.engine().stage(statement(transaction, 1, 1), &table, 0).unwrap();
    writer.delete(&keys(&table, gone)).unwrap();
    assert_eq!(writer.finish().unwrap().deleted, 100);
    fixture.engine().commit(transaction, 2).unwrap();

    let schema = table.arrow_schema();
    let of_id = |operator, by: i64| binary(col("id", &schema).unwrap(), operator, lit(by), &schema).unwrap();
    let equals = |left, right: i64| binary(left, Operator::Eq, lit(right), &schema).unwrap();
    let left = filter(&rows, &[binary(of_id(Operator::Modulo, 1000), Operator::NotEq, lit(0_i64), &schema).unwrap()]);
    let fails_for_deleted = binary(lit(1000_i64), Operator::Divide, of_id(Operator::Modulo, 1000), &schema).unwrap();
    // Filters, and whether the scan can know of each row whether they let it through. Every tenth weight is NULL.
    let cases = [
        (vec![equals(of_id(Operator::Modulo, 7), 3)], true),
        (vec![equals(of_id(Operator::Modulo, 7), 3), compare(&table, "weight", Operator::GtEq, 0.0.into())], true),
        (vec![compare(&table, "weight", Operator::NotEq, 0.5.into())], false),
        (vec![equals(of_id(Operator::Modulo, 7), 9)], true),
        (vec![equals(fails_for_deleted, 2)], false),
    ];
    for (filters, is_exact) in cases {
        let expected = filter(&left, &filters);
        // Cold, then from memory.
        for _ in 0..2 {
            let (found, counted) = measured(&fixture, ScanRequest { filters: filters.clone(), ..request(&table, 2) });
            assert_eq!(ids_of(&filter(&found, &filters)), ids_of(&expected), "{filters:?}");
            let none = expected.num_rows() == 0;
            assert!(counted("rows_read") == left.num_rows() || none, "{} rows read", counted("rows_read"));
            assert_eq!(found.num_rows() == expected.num_rows(), is_exact, "{filters:?}");
            for projection in [vec![1], vec![]] {
                let part = ScanRequest { filters: filters.clone(), projection, ..request(&table, 2) };
                assert!(none || fixture.scan(part).unwrap().num_rows() == left.num_rows());
            }
        }
    }
}

#[test]
fn a_selective_filter_reads_a_few_pages() {
    let (fixture, _directory) = fixture();
    let (table, rows) = cities();
    fixture.load(&table, &rows, 1);
    let whole = ScanRequest { projection: vec![0, 1, 2], ..request(&table, 1) };
    let filters = vec![compare(&table, "id", Operator::Eq, 70_000_i64.into())];
    let (found, counted) = measured(&fixture, ScanRequest { filters: filters.clone(), ..whole.clone() });
    assert_eq!(counted("segments_total"), 4);
    assert_eq!(counted("segments_pruned"), 3);
    assert_eq!(counted("row_groups_pruned"), 1);
    assert_eq!(counted("rows_read"), 8192, "one chunk");
    let few = counted("bytes_read");
    assert_eq!(plain(&filter(&found, &filters)), plain(&rows.slice(70_000, 1)));
    let (all, counted) = measured(&fixture, whole);
    assert_eq!(plain(&all), plain(&rows));
    assert!(few * 4 < counted("bytes_read"), "{few} of {}", counted("bytes_read"));
}

#[test]
fn bloom_filters_deny_keys_that_bounds_allow() {
    let (fixture, _directory) = fixture();
    let table = people();
    fixture.load(&table, &people_rows(&table, (0..50_000).map(|id| id * 2)), 1);
    let with =
        |id: i64| ScanRequest { filters: vec![compare(&table, "id", Operator::Eq, id.into())], ..request(&table, 1) };
    let absent = (0..20).filter(|at| measured(&fixture, with(at * 4000 + 1)).0.num_rows() == 0).count();
    assert!(absent >= 17, "{absent} of 20 absent keys were denied; a false positive is 1 of 100");
    assert!(measured(&fixture, with(4000)).0.num_rows() > 0);
}

#[test]
fn other_columns_are_decoded_where_the_filter_matches() {
    let (fixture, _directory) = fixture();
    // The filter's column is in no order, so its bounds say nothing; the rows that match are all in one chunk.
    let columns = [("id", SqlType::BigInt), ("mark", SqlType::BigInt), ("text", SqlType::Text)];
    let table = table(&columns, &[0]);
    let ids = 0..50_000_i64;
    let marks = Int64Array::from_iter_values(ids.clone().map(|id| match id {
        20_000..20_010 => 7,
        id if id % 2 == 0 => 0,
        _ => 100,
    }));
    let texts: StringViewArray = ids.clone().map(|id| Some(format!("a text that no other row has: {id}"))).collect();
    let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from_iter_values(ids)), Arc::new(marks), Arc::new(texts)];
    let rows = batch(&table, columns);
    fixture.load(&table, &rows, 1);
    let filters = vec![compare(&table, "mark", Operator::Eq, 7_i64.into())];
    let selective = ScanRequest { filters: filters.clone(), projection: vec![1, 2], ..request(&table, 1) };
    let (found, counted) = measured(&fixture, selective);
    assert_eq!(counted("rows_read"), 8192);
    let found = found.column(0).as_primitive::<Int64Type>().values().iter().filter(|mark| **mark == 7).count();
    assert_eq!(found, 10);
    // What was left out is decoded when another scan wants it.
    assert_eq!(plain(&fixture.read(&table, 1)), plain(&rows));
}

#[test]
fn a_filter_that_learns_prunes_what_is_left() {
    let (fixture, _directory) = fixture();
    let (table, rows) = cities();
    fixture.load(&table, &rows, 1);
    let schema = table.arrow_schema();
    let learning = Arc::new(DynamicFilterPhysicalExpr::new(vec![col("id", &schema).unwrap()], lit(true)));
    let request = ScanRequest { filters: vec![Arc::clone(&learning) as _], ..request(&table, 1) };
    let read = fixture.runtime.block_on(async {
        let mut stream = fixture.engine().scan(request).unwrap();
        let mut read = stream.next().await.unwrap().unwrap().num_rows();
        learning.update(compare(&table, "id", Operator::Gt, 90_000_i64.into())).unwrap();
        while let Some(batch) = stream.next().await {
            read += batch.unwrap().num_rows();
        }
        read
    });
    // The first segment was begun before; of the three others only the last one has such ids.
    assert!((10_000..60_000).contains(&read), "{read}");
}

#[test]
fn a_filter_that_fails_is_left_to_the_caller() {
    let (fixture, _directory) = fixture();
    let (table, rows) = cities();
    fixture.load(&table, &rows, 1);
    let schema = table.arrow_schema();
    // 1 / (id - id) = 1: fails over rows, and over bounds.
    let id = || col("id", &schema).unwrap();
    let zero = binary(id(), Operator::Minus, id(), &schema).unwrap();
    let failing = binary(lit(1_i64), Operator::Divide, zero, &schema).unwrap();
    let filters = vec![binary(failing, Operator::Eq, lit(1_i64), &schema).unwrap()];
    let found = fixture.scan(ScanRequest { filters, projection: vec![1], ..request(&table, 1) }).unwrap();
    assert_eq!(found.num_rows(), 100_000);
}

#[test]
fn nan_is_found_whatever_the_file_says_of_it() {
    let (fixture, _directory) = fixture();
    let table = table(&[("id", SqlType::BigInt), ("x", SqlType::Double)], &[0]);
    let values = (0..40_000).map(|id| if id == 30_000 { f64::NAN } else { f64::from(id) / 1e6 });
    let ids = Arc::new(Int64Array::from_iter_values(0..40_000));
    fixture.load(&table, &batch(&table, vec![ids, Arc::new(Float64Array::from_iter_values(values))]), 1);
    // NaN is larger than every number.
    let filters = vec![compare(&table, "x", Operator::Gt, 1000.0.into())];
    let found = fixture.scan(ScanRequest { filters: filters.clone(), ..request(&table, 1) }).unwrap();
    assert_eq!(self::ids(&filter(&found, &filters)), [30_000]);
}

#[test]
fn a_cluster_key_that_is_not_the_primary_key() {
    let (fixture, _directory) = fixture();
    let mut table = Table::clone(&people());
    table.cluster_key = vec![1];
    let table = Arc::new(table);
    let rows = people_rows(&table, (0..60_000).map(|id| id * 7919 % 60_000));
    fixture.load(&table, &rows, 1);
    let read = fixture.read(&table, 1);
    assert_eq!(plain(&read), plain(&rows));
    let filters = vec![compare(&table, "name", Operator::Eq, ScalarValue::Utf8View(Some("name 31".to_owned())))];
    let (found, counted) = measured(&fixture, ScanRequest { filters: filters.clone(), ..request(&table, 1) });
    assert!(counted("rows_read") <= 4 * 8192, "each segment is sorted by the name: {}", counted("rows_read"));
    assert_eq!(ids(&filter(&found, &filters)), [31]);
    // The keys are as unique as ever, within a load and against the table.
    for twice in [vec![70_000, 70_001, 70_000], vec![59_999], vec![0, 80_000]] {
        let error = fixture.stage(&table, &people_rows(&table, twice)).unwrap_err().to_wire();
        assert_eq!(error.code, ErrorCode::ConstraintViolation);
        assert_eq!(error.fields["constraint"], "t_pkey");
    }
    fixture.stage(&table, &people_rows(&table, [90_000])).unwrap();
}

#[test]
fn interleaved_segments_are_compared_key_by_key() {
    let (fixture, _directory) = fixture();
    let table = people();
    fixture.load(&table, &people_rows(&table, (0..90_000).step_by(3)), 1);
    fixture.load(&table, &people_rows(&table, (1..90_000).step_by(3)), 2);
    let others: Vec<i64> = (2..90_000).step_by(3).collect();
    let mut one_twice = others.clone();
    one_twice[17_000] = 30_000;
    let error = fixture.stage(&table, &people_rows(&table, one_twice)).unwrap_err().to_wire();
    assert_eq!((error.code, error.fields["key"].as_str()), (ErrorCode::ConstraintViolation, "30000"));
    let staged = fixture.stage(&table, &people_rows(&table, others)).unwrap();
    // A single row is asked of the bloom filters; the answer is the same.
    let error = fixture.stage(&table, &people_rows(&table, [89_999])).unwrap_err().to_wire();
    assert_eq!((error.code, error.fields["key"].as_str()), (ErrorCode::Conflict, "89999"));
    fixture.engine().commit(staged, 3).unwrap();
    assert_eq!(ids(&fixture.read(&table, 3)), (0..90_000).collect::<Vec<_>>());
}

#[test]
fn a_load_out_of_order_is_checked_against_itself() {
    let (fixture, _directory) = fixture();
    let table = people();
    let load = |ids: Vec<i64>| {
        let transaction = new_ulid();
        let mut writer = fixture.engine().stage(checked(transaction), &table, 0)?;
        // Small buffers, so that the segments of one load overlap.
        for part in ids.chunks(5000) {
            writer.write(&people_rows(&table, part.iter().copied()))?;
        }
        let piece = writer.finish()?;
        fixture.engine().abort(transaction)?;
        Ok::<_, drsdb_core::Error>(piece)
    };
    let scattered: Vec<i64> = (0..120_000).map(|id| id * 7919 % 120_000).collect();
    let piece = load(scattered.clone()).unwrap();
    assert!(piece.segments.len() > 3, "{}", piece.segments.len());
    let error = load([scattered, vec![5]].concat()).unwrap_err().to_wire();
    assert_eq!((error.code, error.fields["key"].as_str()), (ErrorCode::ConstraintViolation, "5"));
}

/// An engine whose buffers are never full here.
fn open_roomy(dir: &Path) -> Arc<dyn StorageEngine> {
    let options = ColumnOptions { write_buffer_bytes: 256 << 20, segment_rows: 1 << 20, ..small() };
    Arc::new(ColumnEngine::open(dir, options).unwrap())
}

#[test]
fn a_load_in_key_order_is_written_as_it_comes_until_the_order_breaks() {
    let directory = TempDir::new().unwrap();
    let fixture = Fixture::at(open_roomy, directory.path());
    let table = people();
    let stage = |ids: &[i64], written: &dyn Fn(u64)| {
        let transaction = new_ulid();
        let mut writer = fixture.engine().stage(checked(transaction), &table, 0)?;
        for part in ids.chunks(5000) {
            writer.write(&people_rows(&table, part.iter().copied()))?;
        }
        written(files(&directory).iter().map(|file| file.metadata().unwrap().len()).sum());
        let piece = writer.finish()?;
        Ok::<_, drsdb_core::Error>((transaction, piece))
    };
    let in_order: Vec<i64> = (0..80_000).step_by(2).collect();
    let odd = (0..80_000).map(|id| id * 7919 % 80_000).filter(|id| id % 2 == 1);
    // Rows that come back to the order do not begin another segment.
    let later: Vec<i64> = (80_000..140_000).collect();
    let all = [in_order.clone(), odd.collect(), later].concat();
    let (transaction, piece) = stage(&all, &|bytes| assert!(bytes > 0, "a row group was there")).unwrap();
    assert_eq!((piece.rows, piece.segments.len()), (140_000, 2));
    fixture.engine().commit(transaction, 1).unwrap();
    assert_eq!(ids(&fixture.read(&table, 1)), (0..140_000).collect::<Vec<_>>());

    let fresh: Vec<i64> = in_order.iter().map(|id| id + 1_000_000).collect();
    let (transaction, piece) = stage(&fresh, &|_| ()).unwrap();
    assert_eq!(piece.segments.len(), 1);
    fixture.engine().abort(transaction).unwrap();
    // A key of what is written already comes again: next to it, as the first one of the next chunk, and much later.
    for (position, key) in [(20_000, 1_039_998), (24_576, 1_049_150), (40_000, 1_000_000)] {
        let mut twice = fresh.clone();
        twice.insert(position, key);
        let error = stage(&twice, &|_| ()).unwrap_err().to_wire();
        assert_eq!((error.code, &error.fields["key"]), (ErrorCode::ConstraintViolation, &key.to_string()));
    }
}

#[test]
fn abandoned_files_are_deleted_at_the_start() {
    let (mut fixture, directory) = fixture();
    let table = people();
    fixture.load(&table, &people_rows(&table, 0..10), 1);
    let known = files(&directory);
    std::fs::write(directory.path().join("segments").join("01ARZ3NDEKTSV4RRFFQ69G5FAV.parquet"), b"half").unwrap();
    fixture.restart();
    assert_eq!(files(&directory), known);
    assert_eq!(fixture.count(&table, 1), 10);
}

#[test]
fn dropped_and_aborted_files_are_gone() {
    let (fixture, directory) = fixture();
    let table = people();
    let staged = fixture.stage(&table, &people_rows(&table, 0..10)).unwrap();
    fixture.engine().abort(staged).unwrap();
    assert_eq!(files(&directory), [] as [PathBuf; 0]);
    let mut writer = fixture.engine().stage(checked(new_ulid()), &table, 0).unwrap();
    writer.write(&people_rows(&table, 0..100_000)).unwrap();
    assert!(!files(&directory).is_empty());
    drop(writer);
    assert_eq!(files(&directory), [] as [PathBuf; 0]);
    fixture.load(&table, &people_rows(&table, 0..10), 1);
    fixture.engine().drop_table(table.id).unwrap();
    assert_eq!(files(&directory), [] as [PathBuf; 0]);
}

/// Damages the only file of a table after an orderly end, and scans it after a new start.
fn read_damaged(damage: impl Fn(&Path)) -> ErrorCode {
    let (mut fixture, directory) = fixture();
    let (table, rows) = cities();
    let other = people();
    fixture.load(&table, &rows.slice(0, 20_000), 1);
    let [file] = &files(&directory)[..] else { panic!("one segment") };
    fixture.load(&other, &people_rows(&other, 0..10), 2);
    damage(file);
    fixture.restart();
    let code = fixture.scan(request(&table, 2)).unwrap_err().code();
    // Not served the second time either, and whatever is whole still is.
    assert_eq!(fixture.scan(request(&table, 2)).unwrap_err().code(), code);
    assert_eq!(fixture.count(&other, 2), 10);
    code
}

#[test]
fn damaged_files_are_not_served() {
    assert_eq!(read_damaged(|file| std::fs::remove_file(file).unwrap()), ErrorCode::Corrupt);
    let shorten = |file: &Path| {
        let whole = std::fs::read(file).unwrap();
        std::fs::write(file, &whole[..whole.len() - 100]).unwrap();
    };
    assert_eq!(read_damaged(shorten), ErrorCode::Corrupt);
    for place in [10, 1000] {
        let flip = move |file: &Path| {
            let mut bytes = std::fs::read(file).unwrap();
            let at = bytes.len() / 2 + place;
            bytes[at] ^= 1;
            std::fs::write(file, bytes).unwrap();
        };
        assert_eq!(read_damaged(flip), ErrorCode::Corrupt);
    }
}

#[test]
fn a_file_that_rots_while_it_is_in_use_is_not_served() {
    let (fixture, directory) = fixture();
    let (table, rows) = cities();
    fixture.load(&table, &rows.slice(0, 20_000), 1);
    // It was looked at, and was whole. Of the other columns, nothing is in memory yet.
    let narrow = ScanRequest { projection: vec![0], ..request(&table, 1) };
    assert_eq!(fixture.scan(narrow).unwrap().num_rows(), 20_000);
    let [file] = &files(&directory)[..] else { panic!("one segment") };
    let mut bytes = std::fs::read(file).unwrap();
    let step = bytes.len() / 16;
    bytes.iter_mut().step_by(step).for_each(|byte| *byte ^= 1);
    std::fs::write(file, bytes).unwrap();
    assert_eq!(fixture.scan(request(&table, 1)).unwrap_err().code(), ErrorCode::Corrupt);
    assert!(!fixture.engine().damaged().is_empty(), "another replica will be asked for it");
}

#[test]
fn a_folder_has_one_engine() {
    let (_fixture, directory) = fixture();
    let error = ColumnEngine::open(directory.path(), small()).unwrap_err().to_wire();
    assert!(error.message.contains("another process"), "{error}");
}

#[test]
fn the_cache_keeps_its_budget() {
    let directory = TempDir::new().unwrap();
    let options = ColumnOptions { cache_bytes: 2 << 20, ..small() };
    let engine = ColumnEngine::open(directory.path(), options).unwrap();
    let (table, rows) = cities();
    let transaction = new_ulid();
    let mut writer = engine.stage(checked(transaction), &table, 0).unwrap();
    writer.write(&rows).unwrap();
    writer.finish().unwrap();
    engine.commit(transaction, 1).unwrap();
    let runtime = Runtime::new().unwrap();
    for _ in 0..2 {
        let batches: Vec<RecordBatch> =
            runtime.block_on(async { engine.scan(request(&table, 1)).unwrap().try_collect().await }).unwrap();
        assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 100_000);
        assert!(engine.cached_bytes() <= 2 << 20, "{}", engine.cached_bytes());
    }
}

#[test]
fn batches_do_not_keep_more_alive_than_they_show() {
    let (fixture, _directory) = fixture();
    let (table, rows) = cities();
    fixture.load(&table, &rows, 1);
    for _ in 0..2 {
        let stream = fixture.runtime.block_on(async { fixture.engine().scan(request(&table, 1)).unwrap() });
        let batches: Vec<RecordBatch> = fixture.runtime.block_on(stream.try_collect()).unwrap();
        for batch in batches {
            for column in batch.columns() {
                let held = column.get_buffer_memory_size();
                let shown: usize = match column.data_type() {
                    DataType::Utf8View => column.as_string_view().iter().flatten().map(|text| 16 + text.len()).sum(),
                    _ => 8 * column.len(),
                };
                assert!(held <= 2 * shown + 4096, "{}: {held} bytes for {shown}", column.data_type());
            }
        }
    }
}

/// The folder the child is to fill. Not set: the test is not the child, and does nothing.
const FULL_FOLDER: &str = "DRSDB_CONTRACT_FULL_FOLDER";

#[test]
fn a_load_until_the_disk_is_full() {
    let Ok(folder) = std::env::var(FULL_FOLDER) else { return };
    let folder = Path::new(&folder);
    let (fixture, table) = (Fixture::at(open_small, folder), people());
    fixture.load(&table, &people_rows(&table, 0..10), 1);
    // The ids run backwards in steps that scatter them: nothing compresses well, and segments overlap.
    let mut writer = fixture.engine().stage(checked(new_ulid()), &table, 0).unwrap();
    let mut next = 100_i64;
    let error = loop {
        let ids: Vec<i64> = (next..next + 10_000).collect();
        next += 10_000;
        if let Err(error) = writer.write(&people_rows(&table, ids)) {
            break error.to_wire();
        }
        assert!(next < 10_000_000, "the disk never was full");
    };
    assert_eq!(error.code, ErrorCode::DiskFull, "{error}");
    drop(writer);
    assert_eq!(std::fs::read_dir(folder.join("segments")).unwrap().count(), 1, "something was left behind");
    // There is room again, and the engine goes on.
    fixture.load(&table, &people_rows(&table, 20..30), 2);
    assert_eq!(fixture.count(&table, 2), 20);
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let directory = TempDir::new().unwrap();
    let name = std::thread::current().name().unwrap().rsplit_once("::").unwrap().0.to_owned();
    // A file system of 4 MB, which only the child sees.
    let script = "mount -t tmpfs -o size=4m tmpfs \"$1\" || exit 77; shift; exec \"$@\"";
    let child = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(directory.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{name}::a_load_until_the_disk_is_full"), "--nocapture"])
        .env(FULL_FOLDER, directory.path())
        .output();
    match child {
        Ok(output) if output.status.success() => {
            assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "the child ran no test");
        }
        // Some systems do not let a user have a mount of their own.
        Ok(output) if output.status.code() == Some(77) || output.stderr.starts_with(b"unshare:") => {
            println!("not tested: no file system can be mounted here");
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => println!("not tested: there is no unshare"),
        other => panic!("{other:?}"),
    }
}

/// Nothing stays in memory: every scan is a cold one.
fn open_forgetful(dir: &Path) -> Arc<dyn StorageEngine> {
    Arc::new(ColumnEngine::open(dir, ColumnOptions { cache_bytes: 0, ..small() }).unwrap())
}

#[test]
fn statistics_of_every_type_skip_nothing_that_matches() {
    const CHUNK: usize = 8192;
    const ROWS: usize = 2 * CHUNK + 100;
    let operators = [Operator::Eq, Operator::NotEq, Operator::Lt, Operator::LtEq, Operator::Gt, Operator::GtEq];
    let mut skipped = 0;
    for &sql_type in TYPES {
        let table = table(&[("id", SqlType::BigInt), ("x", sql_type)], &[0]);
        // Each chunk has four of the values, and no two chunks the same.
        let all = values(sql_type);
        let picks: UInt32Array = (0..ROWS).map(|row| Some((row / CHUNK * 4 + row % 4) as u32)).collect();
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..ROWS as i64));
        let rows = batch(&table, vec![ids, take(&all, &picks, None).unwrap()]);
        for open in [open_small, open_forgetful] {
            let fixture = Fixture::new(open);
            fixture.load(&table, &rows, 1);
            for operator in operators {
                for value in 0..VALUES {
                    let value = ScalarValue::try_from_array(&all, value).unwrap();
                    let filters = vec![compare(&table, "x", operator, value)];
                    let (found, counted) =
                        measured(&fixture, ScanRequest { filters: filters.clone(), ..request(&table, 1) });
                    let (found, expected) = (filter(&found, &filters), filter(&rows, &filters));
                    assert_eq!(ids_of(&found), ids_of(&expected), "{sql_type}: {filters:?}");
                    skipped += ROWS - counted("rows_read");
                }
            }
        }
    }
    assert!(skipped > 1000 * CHUNK, "statistics skipped only {skipped} rows");
}

fn ids_of(rows: &RecordBatch) -> Vec<i64> {
    rows.column(0).as_primitive::<Int64Type>().values().to_vec()
}

#[test]
fn random_tables_in_small_units_and_without_memory() {
    super::random::random_tables_and_filters_agree_with_memory(open_forgetful);
}
