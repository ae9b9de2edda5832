//! What a commit says about the rows it adds, and how that adds up: to shards, and to tables.
//!
//! Statistics are bounds and estimates, good for pruning and for join order. A minimum may be lower and a maximum higher
//! than any row has (long texts are cut, see `bound.rs`); counts of rows are exact, and those of NULLs as long as tables only grow;
//! distinct counts are estimates, made with integers only, so that every index server gets the same ones.

mod bound;

use arrow::{array::ArrayRef, ipc::reader::StreamReader};
use datafusion::scalar::ScalarValue;
use drsdb_core::{Column, Error, Result, SqlType, Table, Ulid, v1};
use serde::{Deserialize, Serialize};

use super::Blob;

/// Rows that one transaction staged in one shard.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PieceInfo {
    /// The shard's number.
    pub shard: u32,
    /// Rows staged.
    pub rows: u64,
    /// Bytes on disk, about.
    pub bytes: u64,
    /// In the table's column order; empty when the engine keeps no statistics.
    pub columns: Vec<ColumnSummary>,
    /// Rows deleted.
    #[serde(default)]
    pub deleted: u64,
    /// The storage servers that have staged it.
    #[serde(default)]
    pub acks: Vec<Ulid>,
    /// The shard's [`epoch`](super::ShardState::epoch) as it was when its first replica checked.
    #[serde(default)]
    pub epoch: u64,
}

/// One column of a set of rows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ColumnSummary {
    /// Rows that are NULL.
    pub null_count: u64,
    /// A lower bound of the values, in an order-preserving form; see [`ColumnSummary::min_value`].
    pub min: Option<Blob>,
    /// An upper bound of the values.
    pub max: Option<Blob>,
    /// About how many different values there are; 0 when unknown.
    pub distinct_estimate: u64,
}

/// All of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ShardStats {
    /// Rows committed.
    pub rows: u64,
    /// Bytes on disk, about.
    pub bytes: u64,
    /// In the table's column order; empty when unknown.
    pub columns: Vec<ColumnSummary>,
}

/// How the rows of two sets, whose summaries are merged, relate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Overlap {
    /// A value may be in both.
    Possible,
    /// No value is in both: the sets are shards, and the column decides the shard.
    Never,
}

impl PieceInfo {
    /// What a storage server said about the rows it staged in `shard` of `table`.
    pub fn from_stage(table: &Table, shard: u32, staged: &v1::StageResponse) -> Result<Self> {
        if !staged.columns.is_empty() && staged.columns.len() != table.columns.len() {
            return Err(Error::internal(format!(
                "a storage server sent statistics of {} columns for table {} with {}",
                staged.columns.len(),
                table.name,
                table.columns.len()
            )));
        }
        let columns = staged.columns.iter().zip(&table.columns).map(|(statistics, column)| {
            let range = decode_range(&statistics.min_max)?;
            let (min, max) = match &range {
                Some(range) => (bound::lower(column.sql_type, range, 0), bound::upper(column.sql_type, range, 1)),
                None => (None, None),
            };
            Ok(ColumnSummary {
                null_count: statistics.null_count,
                min,
                max,
                distinct_estimate: statistics.distinct_estimate,
            })
        });
        Ok(Self {
            shard,
            rows: staged.rows,
            bytes: staged.bytes,
            columns: columns.collect::<Result<_>>()?,
            deleted: staged.deleted,
            ..Self::default()
        })
    }
}

impl PieceInfo {
    /// Adds what the same transaction staged later in the same shard, on the same servers.
    pub fn absorb(&mut self, table: &Table, later: PieceInfo) {
        merge_columns(table, (&mut self.columns, self.rows), (&later.columns, later.rows), |_| Overlap::Possible);
        self.rows += later.rows;
        self.deleted += later.deleted;
        self.bytes += later.bytes;
    }
}

/// The column of two rows, minimum and maximum, that a storage server sends as an Arrow IPC stream.
fn decode_range(ipc: &[u8]) -> Result<Option<ArrayRef>> {
    if ipc.is_empty() {
        return Ok(None);
    }
    let broken = || Error::internal("a storage server sent broken statistics: a minimum and a maximum are two rows");
    let mut reader = StreamReader::try_new(ipc, None)?;
    let batch = reader.next().ok_or_else(broken)??;
    if batch.num_rows() != 2 || batch.num_columns() != 1 {
        return Err(broken());
    }
    Ok(Some(batch.column(0).clone()))
}

impl ColumnSummary {
    /// A summary with bounds from arrays of length 1 of the column's stored type.
    pub fn new(sql_type: SqlType, null_count: u64, range: Option<(&ArrayRef, &ArrayRef)>, distinct: u64) -> Self {
        let (min, max) = match range {
            Some((min, max)) => (bound::lower(sql_type, min, 0), bound::upper(sql_type, max, 0)),
            None => (None, None),
        };
        Self { null_count, min, max, distinct_estimate: distinct }
    }

    /// The lower bound as an array of length 1 of the stored type; `None` when unknown.
    pub fn min_value(&self, sql_type: SqlType) -> Option<ArrayRef> {
        self.min.as_ref().and_then(|bytes| bound::decode(sql_type, bytes))
    }

    /// The upper bound as an array of length 1 of the stored type; `None` when unknown.
    pub fn max_value(&self, sql_type: SqlType) -> Option<ArrayRef> {
        self.max.as_ref().and_then(|bytes| bound::decode(sql_type, bytes))
    }

    /// [`ColumnSummary::min_value`] as planners take it.
    pub fn min_scalar(&self, sql_type: SqlType) -> Option<ScalarValue> {
        self.min_value(sql_type).and_then(|value| ScalarValue::try_from_array(&value, 0).ok())
    }

    /// [`ColumnSummary::max_value`] as planners take it.
    pub fn max_scalar(&self, sql_type: SqlType) -> Option<ScalarValue> {
        self.max_value(sql_type).and_then(|value| ScalarValue::try_from_array(&value, 0).ok())
    }

    /// Adds another set of rows; `rows` and `other_rows` count the sets.
    fn merge(&mut self, rows: u64, other: &Self, other_rows: u64, sql_type: SqlType, overlap: Overlap) {
        // A set without values says nothing about bounds; one with values and no bounds makes them unknown.
        let (mine, others) = (rows.saturating_sub(self.null_count), other_rows.saturating_sub(other.null_count));
        let disjoint = overlap == Overlap::Never || self.lies_apart(other);
        if mine == 0 {
            (self.min, self.max, self.distinct_estimate) =
                (other.min.clone(), other.max.clone(), other.distinct_estimate);
        } else if others > 0 {
            let (first, second) = (self.distinct_estimate, other.distinct_estimate);
            self.min = merge_bound(self.min.take(), &other.min, Ord::min);
            self.max = merge_bound(self.max.take(), &other.max, Ord::max);
            let domain =
                self.min.as_ref().zip(self.max.as_ref()).and_then(|(min, max)| bound::width(sql_type, min, max));
            self.distinct_estimate =
                merge_distinct((mine, first), (others, second), disjoint).min(domain.unwrap_or(u64::MAX));
        }
        self.null_count += other.null_count;
    }

    /// Whether the two ranges have no value in common.
    fn lies_apart(&self, other: &Self) -> bool {
        let below = |max: &Option<Blob>, min: &Option<Blob>| matches!((max, min), (Some(max), Some(min)) if max < min);
        below(&self.max, &other.min) || below(&other.max, &self.min)
    }
}

fn merge_bound(mine: Option<Blob>, other: &Option<Blob>, choose: fn(Blob, Blob) -> Blob) -> Option<Blob> {
    Some(choose(mine?, other.clone()?))
}

/// How many different values two sets have together, each given as (values, different values).
///
/// Sets that share no value add up. Otherwise both are taken as samples of one domain of `D` values: `n` values are
/// expected to show about `d = D n / (D + n)` different ones (exact at both ends: all different, and all of the domain).
/// Each set gives an estimate of `D`; the larger one gives `d` of both together.
fn merge_distinct(first: (u64, u64), second: (u64, u64), disjoint: bool) -> u64 {
    if first.1 == 0 || second.1 == 0 {
        return 0;
    }
    let sum = first.1.saturating_add(second.1);
    let values = u128::from(first.0) + u128::from(second.0);
    if disjoint {
        return sum;
    }
    let domain = |(values, distinct): (u64, u64)| match u128::from(values.saturating_sub(distinct)) {
        0 => u128::from(u64::MAX),
        repeated => u128::from(values) * u128::from(distinct) / repeated,
    };
    let domain = domain(first).max(domain(second)).min(u128::from(u64::MAX));
    let both = domain + values;
    let together = (domain.saturating_mul(values) + both / 2) / both;
    u64::try_from(together).unwrap_or(u64::MAX).clamp(first.1.max(second.1), sum)
}

impl ShardStats {
    /// Adds a committed piece.
    pub(super) fn add(&mut self, table: &Table, piece: &PieceInfo) {
        merge_columns(table, (&mut self.columns, self.rows), (&piece.columns, piece.rows), |_| Overlap::Possible);
        self.rows = (self.rows + piece.rows).saturating_sub(piece.deleted);
        self.bytes += piece.bytes;
    }

    /// Adds summaries of the columns that the table has since these were made: every row reads as the initial value.
    pub(super) fn add_columns(&mut self, table: &Table) {
        let rows = self.rows;
        let added = table.columns.iter().skip(self.columns.len());
        // Without bounds, a value other than NULL makes them unknown.
        let summary = |column: &Column| ColumnSummary {
            null_count: if column.initial.is_none() { rows } else { 0 },
            ..ColumnSummary::default()
        };
        self.columns.extend(added.map(summary).collect::<Vec<_>>());
    }
}

/// The summaries of a whole table: of all its shards together.
pub(super) fn of_table<'a>(table: &Table, shards: impl IntoIterator<Item = &'a ShardStats>) -> Vec<ColumnSummary> {
    let (mut merged, mut rows) = (Vec::new(), 0);
    for shard in shards {
        // Equal values of a column that alone decides the shard are in one shard.
        let overlap = |column: usize| if table.shard_key == [column] { Overlap::Never } else { Overlap::Possible };
        merge_columns(table, (&mut merged, rows), (&shard.columns, shard.rows), overlap);
        rows += shard.rows;
    }
    merged
}

fn merge_columns(
    table: &Table,
    (into, rows): (&mut Vec<ColumnSummary>, u64),
    (other, other_rows): (&[ColumnSummary], u64),
    overlap: impl Fn(usize) -> Overlap,
) {
    if other_rows == 0 {
        return;
    }
    if rows == 0 {
        *into = other.to_vec();
        return;
    }
    // Once unknown, always unknown: some rows are not in the summaries.
    if other.len() != into.len() {
        into.clear();
        return;
    }
    for (column, (mine, other)) in into.iter_mut().zip(other).enumerate() {
        mine.merge(rows, other, other_rows, table.columns[column].sql_type, overlap(column));
    }
}

#[cfg(test)]
mod tests;
