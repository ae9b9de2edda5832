//! Bounds keep the order of values, and merged statistics stay near the truth.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, BinaryViewArray, BooleanArray, Decimal128Array, FixedSizeBinaryArray, Float64Array,
        Int32Array, Int64Array, RecordBatch, StringViewArray,
    },
    datatypes::{Field, Schema},
    ipc::writer::StreamWriter,
};
use drsdb_core::{Column, Engine, TableName, Ulid};
use proptest::prelude::*;

use super::*;

/// Short and long ones, and characters at the edges of what UTF-8 can say.
const LONG_TEXTS: &str = "\\PC{0,40}|[a-z]{60,70}|\u{10FFFF}{10,20}|[\u{D7FF}\u{7FF}]{20,40}";
const DECIMAL: SqlType = SqlType::Decimal { precision: 38, scale: 2 };

fn one(array: impl Array + 'static) -> ArrayRef {
    Arc::new(array)
}

fn lower(sql_type: SqlType, value: &ArrayRef) -> Blob {
    bound::lower(sql_type, value, 0).unwrap()
}

fn upper(sql_type: SqlType, value: &ArrayRef) -> Option<Blob> {
    bound::upper(sql_type, value, 0)
}

#[track_caller]
fn round_trips(sql_type: SqlType, value: ArrayRef) {
    let decoded = bound::decode(sql_type, &lower(sql_type, &value)).unwrap();
    assert_eq!(decoded.data_type(), &sql_type.to_arrow());
    assert_eq!(&decoded, &value, "{sql_type}");
}

proptest! {
    #[test]
    fn numbers_keep_their_order(a in any::<i64>(), b in any::<i64>(), x in any::<i128>(), y in any::<i128>()) {
        let long = |value| lower(SqlType::BigInt, &one(Int64Array::from(vec![value])));
        prop_assert_eq!(long(a).cmp(&long(b)), a.cmp(&b));
        let decimal = |value| {
            let array = Decimal128Array::from(vec![value]).with_precision_and_scale(38, 2).unwrap();
            lower(DECIMAL, &one(array))
        };
        prop_assert_eq!(decimal(x).cmp(&decimal(y)), x.cmp(&y));
        round_trips(SqlType::BigInt, one(Int64Array::from(vec![a])));
    }

    #[test]
    fn floats_keep_their_total_order(a in any::<u64>(), b in any::<u64>()) {
        let (a, b) = (f64::from_bits(a), f64::from_bits(b));
        let double = |value| lower(SqlType::Double, &one(Float64Array::from(vec![value])));
        prop_assert_eq!(double(a).cmp(&double(b)), a.total_cmp(&b));
        round_trips(SqlType::Double, one(Float64Array::from(vec![b])));
    }

    #[test]
    fn cut_texts_are_bounds_and_texts(text in LONG_TEXTS) {
        let value = one(StringViewArray::from(vec![text.as_str()]));
        let low = lower(SqlType::Text, &value);
        prop_assert!(low.len() <= bound::MAX_BYTES && &*low <= text.as_bytes());
        prop_assert!(bound::decode(SqlType::Text, &low).is_some());
        match upper(SqlType::Text, &value) {
            Some(high) => {
                prop_assert!(high.len() <= bound::MAX_BYTES + 1 && &*high >= text.as_bytes());
                prop_assert!(bound::decode(SqlType::Text, &high).is_some());
            }
            None => prop_assert!(text.starts_with(char::MAX)),
        }
    }

    #[test]
    fn cut_bytes_are_bounds(bytes in prop::collection::vec(prop_oneof![Just(0xFF), any::<u8>()], 0..100)) {
        let value = one(BinaryViewArray::from(vec![bytes.as_slice()]));
        prop_assert!(&*lower(SqlType::Bytea, &value) <= bytes.as_slice());
        match upper(SqlType::Bytea, &value) {
            Some(high) => prop_assert!(high.len() <= bound::MAX_BYTES && &*high >= bytes.as_slice()),
            None => prop_assert!(bytes[..bound::MAX_BYTES].iter().all(|byte| *byte == 0xFF)),
        }
    }
}

#[test]
fn every_type_round_trips_or_says_that_it_does_not() {
    round_trips(SqlType::Boolean, one(BooleanArray::from(vec![true])));
    round_trips(SqlType::SmallInt, one(arrow::array::Int16Array::from(vec![i16::MIN])));
    round_trips(SqlType::Integer, one(Int32Array::from(vec![i32::MAX])));
    round_trips(SqlType::Real, one(arrow::array::Float32Array::from(vec![-0.5])));
    round_trips(SqlType::Date, one(arrow::array::Date32Array::from(vec![-1])));
    round_trips(SqlType::Time, one(arrow::array::Time64MicrosecondArray::from(vec![7])));
    let timestamp = arrow::array::TimestampMicrosecondArray::from(vec![-7]);
    round_trips(SqlType::Timestamp, one(timestamp.clone()));
    round_trips(SqlType::TimestampTz, one(timestamp.with_timezone("UTC")));
    round_trips(DECIMAL, one(Decimal128Array::from(vec![-5]).with_precision_and_scale(38, 2).unwrap()));
    round_trips(SqlType::Text, one(StringViewArray::from(vec!["ä"])));
    round_trips(SqlType::Bytea, one(BinaryViewArray::from(vec![&[0u8, 255][..]])));
    let id = one(FixedSizeBinaryArray::try_from_iter([[9u8; 16]].iter()).unwrap());
    round_trips(SqlType::Uuid, id.clone());
    round_trips(SqlType::Ulid, id);
    let interval =
        arrow::array::IntervalMonthDayNanoArray::from(vec![arrow::datatypes::IntervalMonthDayNano::new(1, 2, 3)]);
    assert_eq!(bound::lower(SqlType::Interval, &one(interval), 0), None);
    // NULL and a wrong type are no bounds.
    assert_eq!(bound::lower(SqlType::BigInt, &one(Int64Array::from(vec![None::<i64>])), 0), None);
    assert_eq!(bound::lower(SqlType::BigInt, &one(Int32Array::from(vec![1])), 0), None);
    assert!(bound::decode(SqlType::BigInt, b"short").is_none());
}

#[test]
fn the_stored_form_is_pinned() {
    assert_eq!(&*lower(SqlType::Integer, &one(Int32Array::from(vec![-2]))), [0x7F, 0xFF, 0xFF, 0xFE]);
    assert_eq!(&*lower(SqlType::Double, &one(Float64Array::from(vec![1.0]))), [0xBF, 0xF0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(&*lower(SqlType::Text, &one(StringViewArray::from(vec!["ab"]))), b"ab");
    assert_eq!(&*lower(SqlType::Boolean, &one(BooleanArray::from(vec![true]))), [1]);
}

fn table(types: &[SqlType]) -> Table {
    let column = |(at, sql_type): (usize, &SqlType)| Column::new(format!("c{at}"), *sql_type, false);
    Table {
        id: Ulid(1),
        name: TableName::new("public", "t"),
        columns: types.iter().enumerate().map(column).collect(),
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

fn range(array: ArrayRef) -> bytes::Bytes {
    let schema = Arc::new(Schema::new(vec![Field::new("v", array.data_type().clone(), true)]));
    let batch = RecordBatch::try_new(schema.clone(), vec![array]).unwrap();
    let mut writer = StreamWriter::try_new(Vec::new(), &schema).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap().into()
}

#[test]
fn what_a_storage_server_says_is_understood() {
    let table = table(&[SqlType::Integer, SqlType::Text, SqlType::Interval]);
    let column =
        |null_count, min_max, distinct_estimate| v1::ColumnStatistics { null_count, min_max, distinct_estimate };
    let staged = v1::StageResponse {
        rows: 10,
        bytes: 100,
        columns: vec![
            column(1, range(one(Int32Array::from(vec![-3, 8]))), 9),
            column(0, range(one(StringViewArray::from(vec!["a", "b"]))), 2),
            column(0, bytes::Bytes::new(), 0),
        ],
        ..v1::StageResponse::default()
    };
    let piece = PieceInfo::from_stage(&table, 2, &staged).unwrap();
    assert_eq!((piece.shard, piece.rows, piece.bytes), (2, 10, 100));
    let value = |column: usize| piece.columns[column].max_value(table.columns[column].sql_type);
    assert_eq!(value(0), Some(one(Int32Array::from(vec![8]))));
    assert_eq!(value(1), Some(one(StringViewArray::from(vec!["b"]))));
    assert_eq!(value(2), None);

    let broken = v1::StageResponse { columns: vec![column(0, vec![1, 2, 3].into(), 0); 3], ..staged.clone() };
    assert!(PieceInfo::from_stage(&table, 2, &broken).is_err());
    let short = v1::StageResponse { columns: vec![], ..staged.clone() };
    assert!(PieceInfo::from_stage(&table, 2, &short).unwrap().columns.is_empty());
    let wrong = v1::StageResponse { columns: staged.columns[..2].to_vec(), ..staged };
    assert!(PieceInfo::from_stage(&table, 2, &wrong).is_err());
}

fn piece(shard: u32, values: &[i32], nulls: u64) -> PieceInfo {
    let distinct: std::collections::BTreeSet<i32> = values.iter().copied().collect();
    let bounds = distinct
        .first()
        .zip(distinct.last())
        .map(|(min, max)| (one(Int32Array::from(vec![*min])), one(Int32Array::from(vec![*max]))));
    let range = bounds.as_ref().map(|(min, max)| (min, max));
    let summary = ColumnSummary::new(SqlType::Integer, nulls, range, distinct.len() as u64);
    // The second column has the same values; it does not decide the shard.
    let rows = values.len() as u64 + nulls;
    PieceInfo { shard, rows, bytes: rows * 4, columns: vec![summary.clone(), summary], ..PieceInfo::default() }
}

fn shards_of(table: &Table, pieces: &[PieceInfo]) -> Vec<ShardStats> {
    let mut shards = vec![ShardStats::default(); 4];
    for piece in pieces {
        shards[piece.shard as usize].add(table, piece);
    }
    shards
}

#[test]
fn bounds_and_nulls_add_up_exactly() {
    let table = table(&[SqlType::Integer, SqlType::Integer]);
    let pieces = [piece(0, &[5, 9], 1), piece(0, &[], 3), piece(1, &[], 2), piece(1, &[-4], 0), piece(0, &[7], 0)];
    let shards = shards_of(&table, &pieces);
    assert_eq!((shards[0].rows, shards[0].bytes, shards[1].rows, shards[2].rows), (7, 28, 3, 0));
    let merged = of_table(&table, &shards);
    assert_eq!(merged[0].null_count, 6);
    assert_eq!(merged[0].min_value(SqlType::Integer), Some(one(Int32Array::from(vec![-4]))));
    assert_eq!(merged[0].max_value(SqlType::Integer), Some(one(Int32Array::from(vec![9]))));
    assert!(of_table(&table, &shards_of(&table, &[])).is_empty());

    // Rows without statistics make those of all unknown.
    let silent = PieceInfo { columns: vec![], ..piece(0, &[1], 0) };
    assert!(of_table(&table, &shards_of(&table, &[piece(0, &[1], 0), silent.clone()])).is_empty());
    assert!(of_table(&table, &shards_of(&table, &[silent, piece(1, &[1], 0)])).is_empty());
}

/// Rows of a table with `rows` rows spread over the shards, whose value is `value(row)`.
fn estimate(rows: i32, value: impl Fn(i32) -> i32) -> (u64, u64, u64) {
    let table = table(&[SqlType::Integer, SqlType::Integer]);
    let pieces: Vec<PieceInfo> = (0..4u32)
        .map(|shard| {
            let mine = (0..rows).filter(|row| (*row as u32).wrapping_mul(2_654_435_769) >> 30 == shard);
            piece(shard, &mine.map(&value).collect::<Vec<_>>(), 0)
        })
        .collect();
    let merged = of_table(&table, &shards_of(&table, &pieces));
    let truth = (0..rows).map(&value).collect::<std::collections::HashSet<_>>().len() as u64;
    (merged[0].distinct_estimate, merged[1].distinct_estimate, truth)
}

#[test]
fn distinct_estimates_stay_within_twice_the_truth() {
    let near = |estimate: u64, truth: u64| (truth / 2..=truth * 2).contains(&estimate);
    // Few values, in every shard; the shard key's shards would not share them, so only the second column counts.
    let (_, few, truth) = estimate(40_000, |row| row % 10);
    assert_eq!(few, truth);
    // A key: no value twice.
    let (key, spread, truth) = estimate(40_000, |row| row);
    assert_eq!((key, spread), (truth, truth));
    // Each value about 4 times, scattered; and about 1.3 times.
    for repeats in [4, 13, 40] {
        let (_, spread, truth) = estimate(40_000, |row| (row.wrapping_mul(1_000_003)).rem_euclid(40_000 * 3 / repeats));
        assert!(near(spread, truth), "{spread} for {truth}");
    }
    // Loads of later and later values share none.
    let table = table(&[SqlType::Integer, SqlType::Integer]);
    let loads = [piece(0, &[1, 1, 2], 0), piece(0, &[3, 3], 0), piece(0, &[4, 4, 4], 0)];
    assert_eq!(of_table(&table, &shards_of(&table, &loads))[1].distinct_estimate, 4);
}
