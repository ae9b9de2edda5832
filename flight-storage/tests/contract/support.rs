//! What the tests share: an engine in a folder of its own, tables, values of every type, and a plain form of rows to
//! compare.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BinaryViewArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray,
        Float32Array, Float64Array, Int16Array, Int32Array, Int64Array, IntervalMonthDayNanoArray, RecordBatch,
        StringViewArray, Time64MicrosecondArray, TimestampMicrosecondArray,
    },
    compute::concat_batches,
    datatypes::{DataType, Float32Type, Float64Type, IntervalMonthDayNano},
    util::display::{ArrayFormatter, FormatOptions},
};
use datafusion::{physical_expr::PhysicalExpr, physical_plan::metrics::ExecutionPlanMetricsSet};
use drsdb_core::{Column, Engine, Result, SqlType, Table, TableName, Ulid, ids::new_ulid, scan::OwnWrites};
use drsdb_storage::engine::{ScanRequest, StageOptions, StagedPiece, StorageEngine};
use futures::{StreamExt, TryStreamExt};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Opens an engine in a folder, which may have been in use before.
pub type Factory = fn(&Path) -> Arc<dyn StorageEngine>;

/// An engine and the folder it lives in.
pub struct Fixture {
    pub runtime: Runtime,
    factory: Factory,
    engine: Option<Arc<dyn StorageEngine>>,
    path: PathBuf,
    /// Removes the folder, last of all.
    _directory: Option<TempDir>,
}

impl Fixture {
    /// In a folder of its own.
    pub fn new(factory: Factory) -> Self {
        let directory = TempDir::new().unwrap();
        let mut fixture = Self::at(factory, directory.path());
        fixture._directory = Some(directory);
        fixture
    }

    /// In a folder that somebody else keeps.
    pub fn at(factory: Factory, path: &Path) -> Self {
        let runtime = Runtime::new().unwrap();
        let engine = Some(runtime.block_on(async { factory(path) }));
        Self { runtime, factory, engine, path: path.to_owned(), _directory: None }
    }

    pub fn engine(&self) -> &Arc<dyn StorageEngine> {
        self.engine.as_ref().unwrap()
    }

    /// An orderly end and a new start.
    pub fn restart(&mut self) {
        self.engine = None;
        let (factory, path) = (self.factory, &self.path);
        self.engine = Some(self.runtime.block_on(async { factory(path) }));
    }

    /// Stages rows in shard 0 under a new transaction.
    pub fn stage(&self, table: &Arc<Table>, batch: &RecordBatch) -> Result<Ulid> {
        let transaction = new_ulid();
        self.stage_in(transaction, table, 0, batch).map(|_| transaction)
    }

    pub fn stage_in(
        &self,
        transaction: Ulid,
        table: &Arc<Table>,
        shard: u32,
        batch: &RecordBatch,
    ) -> Result<StagedPiece> {
        let mut writer = self.engine().stage(checked(transaction), table, shard)?;
        writer.write(batch)?;
        writer.finish()
    }

    /// Loads rows into shard 0 at a version.
    pub fn load(&self, table: &Arc<Table>, batch: &RecordBatch, version: u64) {
        self.load_in(table, 0, batch, version);
    }

    pub fn load_in(&self, table: &Arc<Table>, shard: u32, batch: &RecordBatch, version: u64) {
        let transaction = new_ulid();
        let piece = self.stage_in(transaction, table, shard, batch).unwrap();
        assert_eq!(piece.rows, batch.num_rows() as u64);
        self.engine().commit(transaction, version).unwrap();
    }

    /// Stages one statement on shard 0 of [`people`]: deletes these ids, and inserts these rows.
    pub fn change(
        &self,
        options: StageOptions,
        table: &Arc<Table>,
        deletes: &[i64],
        inserts: &[(i64, &str)],
    ) -> Result<StagedPiece> {
        let mut writer = self.engine().stage(options, table, 0)?;
        if !deletes.is_empty() {
            writer.delete(&keys(table, deletes.iter().copied()))?;
        }
        if !inserts.is_empty() {
            writer.write(&named_rows(table, inserts))?;
        }
        let piece = writer.finish()?;
        assert_eq!((piece.deleted, piece.rows), (deletes.len() as u64, inserts.len() as u64));
        Ok(piece)
    }

    /// A transaction of one statement, which commits at a version and reads the one before.
    pub fn commit_change(&self, table: &Arc<Table>, deletes: &[i64], inserts: &[(i64, &str)], version: u64) {
        let transaction = new_ulid();
        self.change(statement(transaction, 1, version - 1), table, deletes, inserts).unwrap();
        self.engine().commit(transaction, version).unwrap();
    }

    /// Ids and names of shard 0 of [`people`], as a reader sees them.
    pub fn names(&self, table: &Arc<Table>, snapshot: u64, own: Option<(Ulid, u32)>) -> Vec<(i64, String)> {
        let own = own.map(|(transaction, sequence)| OwnWrites { transaction, sequence });
        let rows = self.scan(ScanRequest { own, ..request(table, snapshot) }).unwrap();
        let ids = rows.column(0).as_primitive::<arrow::datatypes::Int64Type>().values();
        let names = rows.column(1).as_string_view().iter().map(|name| name.unwrap().to_owned());
        let mut rows: Vec<(i64, String)> = ids.iter().copied().zip(names).collect();
        rows.sort();
        rows
    }

    /// Compacts until there is nothing more to do.
    pub fn compact(&self, horizon: u64) {
        let more = || self.engine().compact(horizon).unwrap();
        assert!((0..10_000).any(|_| !more()), "the compaction never ends");
    }

    /// Runs a scan to its end.
    pub fn scan(&self, request: ScanRequest) -> Result<RecordBatch> {
        let schema = Arc::new(request.table.arrow_schema().project(&request.projection).unwrap());
        let max_rows = request.batch_rows;
        let batches: Vec<RecordBatch> = self.runtime.block_on(async {
            let stream = self.engine().scan(request)?;
            assert_eq!(stream.schema(), schema);
            stream.err_into::<drsdb_core::Error>().try_collect().await
        })?;
        for batch in &batches {
            assert_eq!(batch.schema(), schema);
            assert!(batch.num_rows() > 0 && batch.num_rows() <= max_rows, "a batch of {} rows", batch.num_rows());
        }
        if schema.fields().is_empty() {
            let rows = batches.iter().map(RecordBatch::num_rows).sum();
            let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows));
            return Ok(RecordBatch::try_new_with_options(schema, vec![], &options).unwrap());
        }
        Ok(concat_batches(&schema, &batches).unwrap())
    }

    /// All of shard 0 at a snapshot.
    pub fn read(&self, table: &Arc<Table>, snapshot: u64) -> RecordBatch {
        self.scan(request(table, snapshot)).unwrap()
    }

    /// The number of rows of shard 0 at a snapshot.
    pub fn count(&self, table: &Arc<Table>, snapshot: u64) -> usize {
        self.read(table, snapshot).num_rows()
    }
}

/// How a transaction of one statement stages, that reads everything committed.
pub fn checked(transaction: Ulid) -> StageOptions {
    StageOptions { transaction, sequence: 1, snapshot: u64::MAX, checked: true }
}

/// How a statement of a transaction stages at the shard's first replica.
pub fn statement(transaction: Ulid, sequence: u32, snapshot: u64) -> StageOptions {
    StageOptions { transaction, sequence, snapshot, checked: true }
}

/// Keys of [`people`].
pub fn keys(table: &Arc<Table>, ids: impl IntoIterator<Item = i64>) -> RecordBatch {
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(ids));
    RecordBatch::try_new(table.key_schema(), vec![ids]).unwrap()
}

/// Rows of [`people`].
pub fn named_rows(table: &Arc<Table>, rows: &[(i64, &str)]) -> RecordBatch {
    let ids = Int64Array::from_iter_values(rows.iter().map(|(id, _)| *id));
    let names: StringViewArray = rows.iter().map(|(_, name)| Some(*name)).collect();
    batch(table, vec![Arc::new(ids), Arc::new(names)])
}

/// The same, as [`Fixture::names`] answers them.
pub fn named(rows: &[(i64, &str)]) -> Vec<(i64, String)> {
    rows.iter().map(|(id, name)| (*id, (*name).to_owned())).collect()
}

/// A scan of all columns of shard 0.
pub fn request(table: &Arc<Table>, snapshot: u64) -> ScanRequest {
    ScanRequest {
        table: Arc::clone(table),
        shards: vec![0],
        snapshot,
        except: None,
        projection: (0..table.columns.len()).collect(),
        filters: vec![],
        limit: None,
        batch_rows: 8192,
        metrics: ExecutionPlanMetricsSet::new(),
        partition: 0,
        own: None,
    }
}

/// A table named `t`. Key columns are NOT NULL.
pub fn table(columns: &[(&str, SqlType)], primary_key: &[usize]) -> Arc<Table> {
    let columns = columns.iter().enumerate().map(|(position, (name, sql_type))| {
        Column::new((*name).to_owned(), *sql_type, primary_key.contains(&position))
    });
    let table = Table {
        id: new_ulid(),
        name: TableName::new("public", "t"),
        columns: columns.collect(),
        primary_key: primary_key.to_vec(),
        foreign_keys: vec![],
        // Of no account: the test says which engine it runs on.
        engine: Engine::Column,
        shards: 4,
        shard_key: primary_key.to_vec(),
        shard_function: 1,
        cluster_key: primary_key.to_vec(),
        ..Table::default()
    };
    table.validate().unwrap();
    Arc::new(table)
}

/// A table `id BIGINT PRIMARY KEY, name TEXT`.
pub fn people() -> Arc<Table> {
    table(&[("id", SqlType::BigInt), ("name", SqlType::Text)], &[0])
}

/// Rows of [`people`]: an id and `name <id>`.
pub fn people_rows(table: &Arc<Table>, ids: impl IntoIterator<Item = i64>) -> RecordBatch {
    let ids: Vec<i64> = ids.into_iter().collect();
    let names: StringViewArray = ids.iter().map(|id| Some(format!("name {id}"))).collect();
    batch(table, vec![Arc::new(Int64Array::from(ids)), Arc::new(names)])
}

/// The ids of [`people`] rows, sorted.
pub fn ids(rows: &RecordBatch) -> Vec<i64> {
    let column = rows.column_by_name("id").unwrap().as_primitive::<arrow::datatypes::Int64Type>();
    let mut ids: Vec<i64> = column.values().to_vec();
    ids.sort_unstable();
    ids
}

/// A batch with a table's schema.
pub fn batch(table: &Table, columns: Vec<ArrayRef>) -> RecordBatch {
    RecordBatch::try_new(table.arrow_schema(), columns).unwrap()
}

/// Every SQL type.
pub const TYPES: &[SqlType] = &[
    SqlType::Boolean,
    SqlType::SmallInt,
    SqlType::Integer,
    SqlType::BigInt,
    SqlType::Real,
    SqlType::Double,
    SqlType::Decimal { precision: 5, scale: 2 },
    SqlType::Decimal { precision: 18, scale: 0 },
    SqlType::Decimal { precision: 38, scale: 10 },
    SqlType::Char { length: 3 },
    SqlType::Varchar { length: Some(10) },
    SqlType::Varchar { length: None },
    SqlType::Text,
    SqlType::Date,
    SqlType::Time,
    SqlType::Timestamp,
    SqlType::TimestampTz,
    SqlType::Interval,
    SqlType::Bytea,
    SqlType::Uuid,
    SqlType::Ulid,
];

/// The number of values that [`values`] has for each type.
pub const VALUES: usize = 12;

/// Different values of a type, the extreme ones among them; the last one is NULL.
pub fn values(sql_type: SqlType) -> ArrayRef {
    let day_us = 86_400_000_000;
    let array: ArrayRef = match sql_type {
        // There are only two: they repeat.
        SqlType::Boolean => {
            Arc::new((0..VALUES).map(|at| (at < VALUES - 1).then_some(at % 2 == 1)).collect::<BooleanArray>())
        }
        SqlType::SmallInt => Arc::new(Int16Array::from(integers(&[i16::MIN, i16::MAX]))),
        SqlType::Integer => Arc::new(Int32Array::from(integers(&[i32::MIN, i32::MAX]))),
        SqlType::BigInt => Arc::new(Int64Array::from(integers(&[i64::MIN, i64::MAX]))),
        SqlType::Real => Arc::new(Float32Array::from(vec![
            Some(f32::NEG_INFINITY),
            Some(f32::MIN),
            Some(-1.5),
            Some(-f32::MIN_POSITIVE),
            Some(0.0),
            Some(f32::from_bits(1)),
            Some(0.1),
            Some(1.0),
            Some(f32::MAX),
            Some(f32::INFINITY),
            Some(f32::NAN),
            None,
        ])),
        SqlType::Double => Arc::new(Float64Array::from(vec![
            Some(f64::NEG_INFINITY),
            Some(f64::MIN),
            Some(-1.5),
            Some(-f64::MIN_POSITIVE),
            Some(0.0),
            Some(f64::from_bits(1)),
            Some(0.1),
            Some(9_007_199_254_740_993.0),
            Some(f64::MAX),
            Some(f64::INFINITY),
            Some(f64::NAN),
            None,
        ])),
        SqlType::Decimal { precision, scale } => {
            let most = 10_i128.pow(u32::from(precision)) - 1;
            let values = integers(&[-most, most, most - 1]);
            Arc::new(Decimal128Array::from(values).with_precision_and_scale(precision, scale).unwrap())
        }
        SqlType::Char { .. } | SqlType::Varchar { .. } | SqlType::Text => Arc::new(StringViewArray::from(vec![
            Some(""),
            Some(" "),
            Some("0"),
            Some("A"),
            Some("a"),
            Some("a "),
            Some("a\0"),
            Some("ab"),
            Some("é"),
            Some("\u{10ffff}"),
            Some("日本"),
            None,
        ])),
        SqlType::Date => Arc::new(Date32Array::from(integers(&[i32::MIN, i32::MAX, -719_162]))),
        SqlType::Time => {
            let values = [0, 1, 2, 3, 999, 1000, 1001, 43_200_000_000, day_us / 2 + 1, day_us - 2, day_us - 1];
            Arc::new(Time64MicrosecondArray::from_iter(values.into_iter().map(Some).chain([None])))
        }
        SqlType::Timestamp => Arc::new(TimestampMicrosecondArray::from(integers(&[i64::MIN, i64::MAX, day_us]))),
        SqlType::TimestampTz => {
            Arc::new(TimestampMicrosecondArray::from(integers(&[i64::MIN, i64::MAX, -day_us])).with_timezone("UTC"))
        }
        SqlType::Interval => {
            let value = |months, days, nanoseconds| Some(IntervalMonthDayNano { months, days, nanoseconds });
            Arc::new(IntervalMonthDayNanoArray::from(vec![
                value(i32::MIN, i32::MIN, i64::MIN),
                value(-1, 0, 0),
                value(0, -1, 0),
                value(0, 0, -1),
                value(0, 0, 0),
                value(0, 0, 1),
                value(0, 1, 0),
                value(1, 0, 0),
                value(1, -1, 1),
                value(0, 30, 0),
                value(i32::MAX, i32::MAX, i64::MAX),
                None,
            ]))
        }
        SqlType::Bytea => {
            let long = [0xff_u8; 100];
            let values: [&[u8]; VALUES - 1] =
                [b"", b"\0", b"\0\0", b"\x01", b"'", b"a", b"ab", b"\x7f", b"\x80", b"\xff", &long];
            Arc::new(BinaryViewArray::from_iter(values.into_iter().map(Some).chain([None])))
        }
        SqlType::Uuid | SqlType::Ulid => {
            let values = [0, 1, 2, 255, 256, 1 << 64, 1 << 120, (1 << 127) - 1, 1 << 127, u128::MAX - 1, u128::MAX];
            let values = values.into_iter().map(|value: u128| Some(value.to_be_bytes())).chain([None]);
            Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(values, 16).unwrap())
        }
    };
    assert_eq!((array.len(), array.null_count()), (VALUES, 1), "{sql_type}");
    assert_eq!(*array.data_type(), sql_type.to_arrow());
    array
}

/// `special` values, then small ones around zero, then NULL.
fn integers<T: Copy + PartialEq + TryFrom<i32>>(special: &[T]) -> Vec<Option<T>> {
    let small = [0, 1, -1, 2, -2, 3, 42, -42, 100, -100, 99];
    let small = small.into_iter().filter_map(|value| T::try_from(value).ok());
    let mut all: Vec<Option<T>> = special.iter().copied().chain(small).take(VALUES - 1).map(Some).collect();
    all.push(None);
    all
}

/// Rows in a form that can be compared whatever their order: a text for each value, exact to the bit, and sorted.
pub fn plain(rows: &RecordBatch) -> Vec<Vec<String>> {
    let mut plain: Vec<Vec<String>> = (0..rows.num_rows())
        .map(|row| rows.columns().iter().map(|column| plain_value(column, row)).collect())
        .collect();
    plain.sort();
    plain
}

fn plain_value(column: &ArrayRef, row: usize) -> String {
    if column.is_null(row) {
        return "NULL".to_owned();
    }
    match column.data_type() {
        DataType::Float32 => format!("{:08x}", column.as_primitive::<Float32Type>().value(row).to_bits()),
        DataType::Float64 => format!("{:016x}", column.as_primitive::<Float64Type>().value(row).to_bits()),
        DataType::Utf8View => format!("{:?}", column.as_string_view().value(row)),
        // Extreme dates have no calendar form: the number itself is what must be kept.
        DataType::Date32 => column.as_primitive::<arrow::datatypes::Date32Type>().value(row).to_string(),
        DataType::Timestamp(..) => {
            column.as_primitive::<arrow::datatypes::TimestampMicrosecondType>().value(row).to_string()
        }
        DataType::Interval(_) => {
            format!("{:?}", column.as_primitive::<arrow::datatypes::IntervalMonthDayNanoType>().value(row))
        }
        _ => ArrayFormatter::try_new(column, &FormatOptions::default()).unwrap().value(row).to_string(),
    }
}

/// Keeps the rows for which every filter is TRUE: what a caller does after a scan, and what a scan without an engine is.
pub fn filter(rows: &RecordBatch, filters: &[Arc<dyn PhysicalExpr>]) -> RecordBatch {
    filters.iter().fold(rows.clone(), |rows, filter| {
        let mask = filter.evaluate(&rows).unwrap().into_array(rows.num_rows()).unwrap();
        arrow::compute::filter_record_batch(&rows, mask.as_boolean()).unwrap()
    })
}

/// Waits until `condition` holds, and fails after a minute.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited a minute until {what}");
        std::thread::yield_now();
    }
}

/// Pulls one batch.
pub fn next_batch(
    runtime: &Runtime,
    stream: &mut datafusion::execution::SendableRecordBatchStream,
) -> Option<RecordBatch> {
    runtime.block_on(stream.next()).map(|batch| batch.unwrap())
}
