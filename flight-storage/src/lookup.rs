//! Rows by the values of some of their columns, as index servers ask for them on behalf of a statement that changes rows: by
//! keys that they have in their hands already. There is no plan to make, to send and to set up for it.

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::{BooleanArray, RecordBatch},
    compute::{concat_batches, filter_record_batch},
    row::{OwnedRow, RowConverter, SortField},
};
use bytes::Bytes;
use datafusion::{
    execution::SendableRecordBatchStream,
    logical_expr::Operator,
    physical_expr::{
        PhysicalExpr,
        expressions::{BinaryExpr, Column, InListExpr, lit},
    },
    physical_plan::metrics::ExecutionPlanMetricsSet,
    scalar::ScalarValue,
};
use drsdb_core::{
    Error, Result, Table, parse_ulid,
    scan::{OwnWrites, ShardScanTask, ShardScanner},
    v1::LookupRequest,
};
use futures::{Stream, TryStreamExt, stream};

use crate::{engines::Engines, row_messages};

/// Rows in a batch.
const BATCH_ROWS: usize = 8192;

/// The rows that are asked for.
pub fn rows(engines: &Engines, request: LookupRequest) -> Result<impl Stream<Item = Result<RecordBatch>> + use<>> {
    let table = request.table.as_ref().ok_or_else(|| broken("no table"))?;
    let table = Arc::new(Table::from_proto(table)?);
    let positions = |list: &[u32]| -> Result<Vec<usize>> {
        let all = list.iter().map(|&at| at as usize);
        if list.iter().any(|&at| at as usize >= table.columns.len()) {
            return Err(broken("a column that the table does not have"));
        }
        Ok(all.collect())
    };
    let (key, answered) = (positions(&request.key)?, positions(&request.positions)?);
    let own = match request.transaction_id.as_str() {
        "" => None,
        id => Some(OwnWrites { transaction: parse_ulid(id)?, sequence: request.sequence }),
    };
    let values = values(&table, &key, request.values)?;
    let filters = filters(&table, &key, &values)?;
    let wanted = Wanted::new(&values)?;
    let mut projection = answered.clone();
    projection.extend(key.iter().filter(|at| !answered.contains(at)));
    let place = |at: &usize| projection.iter().position(|projected| projected == at);
    let key_places: Vec<usize> = key.iter().filter_map(place).collect();
    let limit = if request.limit == 0 { usize::MAX } else { request.limit as usize };
    let scanned = engines.scan(ShardScanTask {
        shards: request.shards,
        snapshot: request.snapshot,
        except: None,
        projection,
        filters,
        limit: None,
        batch_rows: BATCH_ROWS,
        metrics: ExecutionPlanMetricsSet::new(),
        partition: 0,
        own,
        table,
    })?;
    let looking = Looking { scanned, wanted, key: key_places, width: answered.len(), left: limit };
    Ok(stream::try_unfold(looking, |mut looking| async move {
        let found = looking.next().await?;
        Ok(found.map(|found| (found, looking)))
    }))
}

/// A scan, and what of it is still wanted.
struct Looking {
    scanned: SendableRecordBatchStream,
    wanted: Wanted,
    /// Where the key's columns are in the scan's batches.
    key: Vec<usize>,
    /// So many columns are answered: the first ones.
    width: usize,
    left: usize,
}

impl Looking {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        while self.left > 0 {
            let Some(batch) = self.scanned.try_next().await? else { break };
            let found = self.wanted.among(&batch, &self.key)?;
            if found.num_rows() > 0 {
                let found = found.slice(0, found.num_rows().min(self.left));
                self.left -= found.num_rows();
                return Ok(Some(found.project(&(0..self.width).collect::<Vec<_>>())?));
            }
        }
        Ok(None)
    }
}

/// The values to look for: one batch of the key's columns.
fn values(table: &Table, key: &[usize], bytes: Bytes) -> Result<RecordBatch> {
    let schema = Arc::new(table.arrow_schema().project(key)?);
    if key.is_empty() {
        return Err(broken("no key"));
    }
    let mut batches = Vec::new();
    row_messages::batches(bytes, &schema, |batch| {
        batches.push(batch.clone());
        Ok(())
    })?;
    let values = concat_batches(&schema, &batches)?;
    if values.columns().iter().any(|column| column.null_count() > 0) {
        return Err(broken("a NULL, which is equal to nothing"));
    }
    Ok(values)
}

/// What lets the scan leave rows out: each column by itself.
fn filters(table: &Table, key: &[usize], values: &RecordBatch) -> Result<Vec<Arc<dyn PhysicalExpr>>> {
    let schema = table.arrow_schema();
    let filters = key.iter().zip(values.columns()).map(|(&at, values)| {
        let column = Arc::new(Column::new(&table.columns[at].name, at)) as Arc<dyn PhysicalExpr>;
        let literals = (0..values.len()).map(|row| Ok(lit(ScalarValue::try_from_array(values, row)?)));
        let mut literals = literals.collect::<Result<Vec<_>>>()?;
        Ok(match literals.len() {
            1 => Arc::new(BinaryExpr::new(column, Operator::Eq, literals.remove(0))) as Arc<dyn PhysicalExpr>,
            _ => Arc::new(InListExpr::try_new(column, literals, false, &schema)?),
        })
    });
    filters.collect()
}

/// The keys that are looked for.
struct Wanted {
    converter: RowConverter,
    keys: HashSet<OwnedRow>,
}

impl Wanted {
    fn new(values: &RecordBatch) -> Result<Self> {
        let fields = values.schema().fields().iter().map(|field| SortField::new(field.data_type().clone())).collect();
        let converter = RowConverter::new(fields)?;
        let rows = converter.convert_columns(values.columns())?;
        let keys = rows.iter().map(|row| row.owned()).collect();
        Ok(Self { converter, keys })
    }

    /// The rows that have one of the keys.
    fn among(&self, batch: &RecordBatch, key: &[usize]) -> Result<RecordBatch> {
        let columns: Vec<_> = key.iter().map(|&at| Arc::clone(batch.column(at))).collect();
        let rows = self.converter.convert_columns(&columns)?;
        let mask: BooleanArray = rows.iter().map(|row| Some(self.keys.contains(&row.owned()))).collect();
        Ok(filter_record_batch(batch, &mask)?)
    }
}

fn broken(what: &str) -> Error {
    row_messages::broken(&format!("a lookup with {what}"))
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{AsArray, Int64Array, StringViewArray},
        datatypes::Int64Type,
        ipc::writer::StreamWriter,
    };
    use drsdb_core::{Column as TableColumn, Engine, ErrorCode, SqlType, Ulid};

    use super::*;
    use crate::{column::ColumnOptions, commits::AppliedVersion, engine::StageOptions, rebuild::floors::Floors};

    fn table(engine: Engine) -> Arc<Table> {
        Arc::new(Table {
            id: Ulid(7),
            columns: vec![
                TableColumn::new("a", SqlType::BigInt, true),
                TableColumn::new("b", SqlType::Text, true),
                TableColumn::new("c", SqlType::BigInt, false),
            ],
            primary_key: vec![0, 1],
            shard_key: vec![0],
            cluster_key: vec![0, 1],
            engine,
            shards: 2,
            ..Table::default()
        })
    }

    fn rows_of(a: &[i64], b: &[&str], c: &[Option<i64>], table: &Table) -> RecordBatch {
        let columns: [Arc<dyn arrow::array::Array>; 3] = [
            Arc::new(Int64Array::from(a.to_vec())),
            Arc::new(StringViewArray::from(b.to_vec())),
            Arc::new(Int64Array::from(c.to_vec())),
        ];
        RecordBatch::try_new(table.arrow_schema(), columns.to_vec()).unwrap()
    }

    fn stage(engines: &Engines, table: &Arc<Table>, transaction: u128, shard: u32, batch: &RecordBatch) {
        let options = StageOptions { transaction: Ulid(transaction), sequence: 1, snapshot: 5, checked: true };
        let mut writer = engines.stage(options, table, shard).unwrap();
        writer.write(batch).unwrap();
        writer.finish().unwrap();
    }

    fn request(table: &Table, key: &[u32], values: &RecordBatch) -> LookupRequest {
        let values = values.project(&key.iter().map(|&at| at as usize).collect::<Vec<_>>()).unwrap();
        let mut writer = StreamWriter::try_new(Vec::new(), &values.schema()).unwrap();
        writer.write(&values).unwrap();
        LookupRequest {
            table: Some(table.to_proto()),
            shards: vec![0, 1],
            snapshot: 5,
            key: key.to_vec(),
            values: writer.into_inner().unwrap().into(),
            positions: vec![2, 0],
            ..LookupRequest::default()
        }
    }

    async fn found(engines: &Engines, request: LookupRequest) -> Vec<(i64, i64)> {
        let batches: Vec<RecordBatch> = rows(engines, request).unwrap().try_collect().await.unwrap();
        let mut found = Vec::new();
        for batch in &batches {
            let column = |at: usize| batch.column(at).as_primitive::<Int64Type>().values().to_vec();
            found.extend(column(0).into_iter().zip(column(1)));
        }
        found.sort_unstable();
        found
    }

    #[tokio::test]
    async fn rows_are_found_by_their_keys_and_no_others() {
        for engine in [Engine::Row, Engine::Column] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("applied"), "5").unwrap();
            let applied = AppliedVersion::open(dir.path().join("applied")).unwrap();
            let floors = Floors::open(dir.path().join("floors")).unwrap();
            let engines = Engines::open(dir.path(), Ulid(1), ColumnOptions::default(), applied, floors).unwrap();
            let table = table(engine);
            let committed =
                rows_of(&[1, 1, 2, 3], &["x", "y", "x", "y"], &[Some(10), Some(11), Some(20), Some(30)], &table);
            stage(&engines, &table, 100, 0, &committed);
            engines.commit(Ulid(100), 4).unwrap();
            stage(&engines, &table, 200, 1, &rows_of(&[4], &["x"], &[Some(40)], &table));

            // Pairs, and not each column by itself: (1, y) and (2, x), but neither (1, x) nor (2, y).
            let pairs = rows_of(&[1, 2, 9], &["y", "x", "x"], &[None, None, None], &table);
            assert_eq!(found(&engines, request(&table, &[0, 1], &pairs)).await, [(11, 1), (20, 2)], "{engine:?}");
            let one = rows_of(&[1], &["x"], &[None], &table);
            assert_eq!(found(&engines, request(&table, &[0, 1], &one)).await, [(10, 1)]);
            assert_eq!(found(&engines, request(&table, &[0], &one)).await, [(10, 1), (11, 1)]);
            let limited = LookupRequest { limit: 1, ..request(&table, &[0], &one) };
            assert_eq!(found(&engines, limited).await.len(), 1);
            assert_eq!(found(&engines, LookupRequest { snapshot: 3, ..request(&table, &[0], &one) }).await, []);
            // What a transaction has staged is there for itself alone.
            let staged = rows_of(&[4], &["x"], &[None], &table);
            assert_eq!(found(&engines, request(&table, &[0, 1], &staged)).await, []);
            let own = LookupRequest {
                transaction_id: Ulid(200).to_string(),
                sequence: 1,
                ..request(&table, &[0, 1], &staged)
            };
            assert_eq!(found(&engines, own).await, [(40, 4)]);

            let broken = |request: LookupRequest| rows(&engines, request).map(drop).unwrap_err().code();
            let fine = request(&table, &[0], &one);
            assert_eq!(broken(LookupRequest { key: vec![9], ..fine.clone() }), ErrorCode::InvalidArgument);
            assert_eq!(broken(LookupRequest { key: vec![1], ..fine.clone() }), ErrorCode::InvalidArgument);
            assert_eq!(broken(LookupRequest { key: vec![], ..fine.clone() }), ErrorCode::InvalidArgument);
            let null = rows_of(&[1], &["x"], &[None], &table);
            assert_eq!(broken(request(&table, &[2], &null)), ErrorCode::InvalidArgument);
            assert_eq!(broken(LookupRequest { table: None, ..fine }), ErrorCode::InvalidArgument);
        }
    }
}
