//! Where keys are: the rows of segments that have given primary keys.
//!
//! ```text
//! keys, sorted ──▶ segments whose key range holds any ──▶ chunks whose bounds hold any
//!              ──▶ few keys, and the chunks not in memory: row groups whose bloom filters allow one
//!              ──▶ sorted by the key: a search in each chunk's arrays, which goes on from key to key, in strides or jumps
//!                  else: each row's key is looked up among the keys
//! ```
//!
//! A single key costs a page of each segment that may have it; many keys cost a scan of the key columns, which stay in
//! the cache. Not here: what a row that was found means (`stage`, `compact`).

use std::{cmp::Ordering, collections::HashMap, fs::File, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, ArrowNativeTypeOp, BooleanArray, DynComparator, RecordBatch, UInt32Array,
        downcast_primitive_array, make_comparator,
    },
    compute::{FilterBuilder, SortOptions, take_record_batch},
    row::Rows,
};
use datafusion::scalar::ScalarValue;
use drsdb_core::{Result, Table};
use parquet::bloom_filter::Sbbf;

use super::{
    Store,
    format::{CHUNK_ROWS, ChunkSet, chunks_of, read_error, stored_schema},
    keys::KeyFormat,
    prune::{all_chunks, may_contain, zones},
    read::RowGroup,
    segment::{Footer, Segment},
};

/// Up to this many keys ask the bloom filters of a row group.
const FEW_KEYS: usize = 64;

/// Keys in order.
pub struct Keys {
    columns: Vec<ArrayRef>,
    rows: Rows,
    /// Where each key was before it was sorted.
    positions: Vec<u32>,
}

impl Keys {
    /// Sorts keys that are the columns of a batch.
    pub fn new(format: &KeyFormat, batch: &RecordBatch) -> Result<Self> {
        let rows = format.keys_of(batch.columns())?;
        let mut positions: Vec<u32> = (0..batch.num_rows() as u32).collect();
        if (1..rows.num_rows()).all(|row| rows.row(row - 1) <= rows.row(row)) {
            return Ok(Self { columns: batch.columns().to_vec(), rows, positions });
        }
        positions.sort_unstable_by(|left, right| rows.row(*left as usize).cmp(&rows.row(*right as usize)));
        let sorted = take_record_batch(batch, &UInt32Array::from(positions.clone()))?;
        let rows = format.keys_of(sorted.columns())?;
        Ok(Self { columns: sorted.columns().to_vec(), rows, positions })
    }

    /// The keys that were at the positions for which `is_kept` is set, with the same positions.
    pub fn kept(&self, format: &KeyFormat, is_kept: &[bool]) -> Result<Self> {
        let mask: BooleanArray = self.positions.iter().map(|&at| Some(is_kept[at as usize])).collect();
        let filter = FilterBuilder::new(&mask).optimize().build();
        let columns = self.columns.iter().map(|column| filter.filter(column)).collect::<Result<Vec<_>, _>>()?;
        let positions = self.positions.iter().copied().filter(|&at| is_kept[at as usize]).collect();
        Ok(Self { rows: format.keys_of(&columns)?, columns, positions })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.num_rows()
    }

    /// Key `at`, in order.
    pub fn key(&self, at: usize) -> &[u8] {
        self.rows.row(at).data()
    }

    /// Where key `at` was before they were sorted.
    pub fn position(&self, at: usize) -> u32 {
        self.positions[at]
    }

    /// A key that comes twice.
    pub fn repeated(&self) -> Option<&[u8]> {
        (1..self.len()).map(|at| (self.key(at - 1), self.key(at))).find(|(one, next)| one == next).map(|(key, _)| key)
    }

    /// Which keys, by where they were before they were sorted, are in none of `others`.
    pub fn not_in(&self, others: &[Keys]) -> BooleanArray {
        let mut is_new = vec![true; self.len()];
        for other in others {
            let mut at = 0;
            for other in (0..other.len()).map(|at| other.key(at)) {
                while at < self.len() && self.key(at) < other {
                    at += 1;
                }
                while at < self.len() && self.key(at) == other {
                    is_new[self.position(at) as usize] = false;
                    at += 1;
                }
            }
        }
        is_new.into()
    }

    /// The first key that is not less than `key`.
    fn first_from(&self, key: &[u8]) -> usize {
        self.partition_point(|other| other < key)
    }

    fn partition_point(&self, is_before: impl Fn(&[u8]) -> bool) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if is_before(self.key(middle)) { low = middle + 1 } else { high = middle }
        }
        low
    }

    fn values(&self, at: usize) -> Result<Vec<ScalarValue>> {
        let values = self.columns.iter().map(|column| ScalarValue::try_from_array(column, at));
        Ok(values.collect::<Result<_, _>>()?)
    }
}

/// A row that has one of the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// The key, in order.
    pub key: usize,
    /// The segment, as numbered by the caller.
    pub segment: usize,
    /// The row of the segment.
    pub row: u32,
}

/// Looks for keys of one table.
pub struct Locator<'a> {
    /// Where columns and footers are.
    pub store: &'a Store,
    /// The table.
    pub table: &'a Table,
    /// Its primary key.
    pub format: &'a KeyFormat,
}

/// The keys from `.0` to before `.1`.
type KeySpan = (usize, usize);

impl Locator<'_> {
    /// Every row of `segments` that has one of the keys, whether it was deleted or not. Blocks.
    pub fn locate(&self, keys: &Keys, segments: &[Arc<Segment>]) -> Result<Vec<Hit>> {
        let mut hits = Vec::new();
        let mut lookup = None;
        for (number, segment) in segments.iter().enumerate() {
            let Some(range) = &segment.record().key_range else { continue };
            let first = keys.first_from(&range.min);
            let end = keys.partition_point(|key| key <= &*range.max);
            if first < end {
                self.search(keys, (first, end), number, segment, &mut lookup, &mut hits)?;
            }
        }
        Ok(hits)
    }

    /// Whether segments are sorted by the primary key.
    fn is_sorted(&self) -> bool {
        self.table.cluster_key == self.table.primary_key
    }

    fn search<'k>(
        &self,
        keys: &'k Keys,
        span: KeySpan,
        number: usize,
        segment: &Arc<Segment>,
        lookup: &mut Option<HashMap<&'k [u8], usize>>,
        hits: &mut Vec<Hit>,
    ) -> Result<()> {
        let footer = self.store.footers.load(segment)?;
        let spans = self.spans(keys, span, segment, &footer)?;
        let mut file = None;
        let mut chunk_before = 0;
        for row_group in 0..footer.parquet().num_row_groups() {
            let group = RowGroup { table: self.table, segment, footer: &footer, number: row_group };
            let chunks = chunks_of(group.rows());
            let spans = &spans[chunk_before..chunk_before + chunks];
            let first_chunk = chunk_before;
            chunk_before += chunks;
            let candidates = (0..chunks).filter(|&chunk| spans[chunk].0 < spans[chunk].1);
            let wanted = candidates.fold(ChunkSet(0), ChunkSet::with);
            if wanted.is_empty() {
                continue;
            }
            let columns = self.format.columns();
            let cached = columns.iter().map(|&column| self.store.cache.get(group.key(column), wanted));
            let columns = match cached.collect::<Option<Vec<_>>>() {
                Some(columns) => columns,
                None => {
                    let file: &File = match &mut file {
                        Some(file) => file,
                        none => none.insert(segment.note(segment.open_file())?),
                    };
                    if !self.may_have_any(keys, spans, &group, file)? {
                        continue;
                    }
                    let read = |&column: &usize| Ok(group.column(self.store, file, column, wanted)?.0);
                    columns.iter().map(read).collect::<Result<Vec<_>>>()?
                }
            };
            for chunk in wanted.iter() {
                let arrays = columns.iter().map(|column| Arc::clone(column.get(chunk).expect("the chunk was read")));
                let arrays: Vec<ArrayRef> = arrays.collect();
                let start = ((first_chunk + chunk) * CHUNK_ROWS) as u32;
                let found = |key, row: usize| Hit { key, segment: number, row: start + row as u32 };
                if self.is_sorted() {
                    search_sorted(keys, spans[chunk], &arrays, |key, row| hits.push(found(key, row)))?;
                } else {
                    let lookup = lookup.get_or_insert_with(|| (0..keys.len()).map(|at| (keys.key(at), at)).collect());
                    let rows = self.format.keys_of(&arrays)?;
                    let same = rows.iter().enumerate().filter_map(|(at, row)| Some((*lookup.get(row.data())?, at)));
                    hits.extend(same.map(|(key, row)| found(key, row)));
                }
            }
        }
        Ok(())
    }

    /// For each chunk of a segment the keys that it can have, by the bounds of the key's first column.
    fn spans(&self, keys: &Keys, span: KeySpan, segment: &Segment, footer: &Footer) -> Result<Vec<KeySpan>> {
        let chunks: usize = all_chunks(footer).iter().map(|chunks| chunks.iter().count()).sum();
        let position = self.format.columns()[0];
        let unknown = vec![span; chunks];
        let Some(zones) = zones(&stored_schema(self.table), segment, footer, position) else { return Ok(unknown) };
        let Some(first) = KeyFormat::new(self.table, &[position])? else { return Ok(unknown) };
        // A key's bytes begin with the bytes of its first column.
        let (mins, maxes) = (first.keys_of(&[zones.mins()])?, first.keys_of(&[zones.maxes()])?);
        let spans = unknown.into_iter().enumerate().map(|(chunk, span)| {
            if zones.mins().is_null(chunk) || zones.maxes().is_null(chunk) {
                return span;
            }
            let max = maxes.row(chunk);
            let max = max.data();
            let begin = keys.first_from(mins.row(chunk).data()).max(span.0);
            let end = keys.partition_point(|key| key[..key.len().min(max.len())] <= *max).min(span.1);
            (begin, end.max(begin))
        });
        Ok(spans.collect())
    }

    /// Whether a row group has any of the keys, by its bloom filters, if they are worth it.
    fn may_have_any(&self, keys: &Keys, spans: &[KeySpan], group: &RowGroup<'_>, file: &File) -> Result<bool> {
        let begin = spans.iter().filter(|span| span.0 < span.1).map(|span| span.0).min().unwrap_or(0);
        let end = spans.iter().filter(|span| span.0 < span.1).map(|span| span.1).max().unwrap_or(0);
        if end - begin > FEW_KEYS {
            return Ok(true);
        }
        let filters = self.format.columns().iter().map(|&column| {
            let chunk = group.footer.parquet().row_group(group.number).column(column);
            Ok(Sbbf::read_from_column_chunk(chunk, file)?.map(|filter| (filter, chunk)))
        });
        let failed = |error| read_error(&format!("reading {}", group.segment.describe()), error);
        let filters: Vec<_> = group.segment.note(filters.collect::<Result<_, _>>().map_err(failed))?;
        for at in begin..end {
            let values = keys.values(at)?;
            let possible = filters
                .iter()
                .zip(&values)
                .all(|(filter, value)| filter.as_ref().is_none_or(|(filter, chunk)| may_contain(filter, chunk, value)));
            if possible {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Searches sorted arrays for the keys of a span, which are sorted too.
fn search_sorted(keys: &Keys, span: KeySpan, arrays: &[ArrayRef], found: impl FnMut(usize, usize)) -> Result<()> {
    let mut comparators = arrays
        .iter()
        .zip(&keys.columns)
        .map(|(array, key)| make_comparator(array, key, SortOptions::default()))
        .collect::<Result<Vec<_>, _>>()?;
    let (Some(array), Some(key)) = (arrays.first(), keys.columns.first()) else { return Ok(()) };
    let (array, key) = (array.as_ref(), key.as_ref());
    let compare_by = |comparators: &[DynComparator], row: usize, key: usize| {
        comparators.iter().map(|compare| compare(row, key)).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
    };
    // The first column decides nearly always, and is mostly a number: comparing those without a call is most of the speed.
    downcast_primitive_array!(
        (array, key) => {
            let (values, wanted) = (array.values(), key.values());
            let others = comparators.split_off(1);
            let compare = |row: usize, key: usize| match values[row].compare(wanted[key]) {
                Ordering::Equal => compare_by(&others, row, key),
                order => order,
            };
            search_by(values.len(), span, compare, found);
        }
        _ => search_by(array.len(), span, |row, key| compare_by(&comparators, row, key), found)
    );
    Ok(())
}

/// Each search begins where the last one ended: keys that follow each other are often in rows that do. Where keys are near each
/// other it goes on in short strides, which memory likes better than jumps, and else to where the next key usually is.
fn search_by(
    rows: usize,
    span: KeySpan,
    compare: impl Fn(usize, usize) -> Ordering,
    mut found: impl FnMut(usize, usize),
) {
    /// Rows between keys that are near each other, at most.
    const NEAR: usize = 512;
    const STRIDE: usize = 16;
    let usual_way = rows / (span.1 - span.0).max(1);
    let reach = if usual_way <= NEAR { 2 * NEAR } else { 0 };
    // Rows before it are less than the key.
    let mut low = 0;
    for key in span.0..span.1 {
        let end = rows.min(low + reach);
        while low + STRIDE <= end && compare(low + STRIDE - 1, key).is_lt() {
            low += STRIDE;
        }
        let end = rows.min(low + STRIDE);
        let mut order = Ordering::Less;
        while low < end && order.is_lt() {
            order = compare(low, key);
            low += usize::from(order.is_lt());
        }
        if order.is_lt() && low < rows {
            low = gallop((low, rows), rows.min(low + usual_way), |row| compare(row, key).is_lt());
            order = if low < rows { compare(low, key) } else { order };
        }
        if low >= rows {
            break;
        }
        if order.is_eq() {
            // It is not left behind: a key that comes twice is in the same row again.
            found(key, low);
        }
    }
}

/// The first row of a range that is not less; the range's end when all are. Goes outwards from `at`, in steps that double,
/// until it is passed, and then halves what is left (Bentley and Yao, An almost optimal algorithm for unbounded searching, 1976).
fn gallop((mut low, mut high): (usize, usize), at: usize, is_less: impl Fn(usize) -> bool) -> usize {
    let mut step = 8;
    if at < high && is_less(at) {
        low = at + 1;
        while low + step < high {
            if !is_less(low + step) {
                high = low + step;
                break;
            }
            low += step + 1;
            step *= 2;
        }
    } else {
        high = at;
        while low + step < high {
            if is_less(high - step) {
                low = high - step + 1;
                break;
            }
            high -= step;
            step *= 2;
        }
    }
    while low < high {
        let middle = low + (high - low) / 2;
        if is_less(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use arrow::array::{Int64Array, StringViewArray};
    use drsdb_core::{Column, SqlType};
    use proptest::prelude::*;

    use super::*;

    fn table(first: SqlType) -> Table {
        Table {
            columns: vec![Column::new("a".to_owned(), first, true), Column::new("b".to_owned(), SqlType::BigInt, true)],
            primary_key: vec![0, 1],
            ..Table::default()
        }
    }

    fn arrays(first: SqlType, keys: &[(i64, i64)]) -> Vec<ArrayRef> {
        let second: ArrayRef = Arc::new(Int64Array::from_iter_values(keys.iter().map(|key| key.1)));
        let first: ArrayRef = match first {
            SqlType::BigInt => Arc::new(Int64Array::from_iter_values(keys.iter().map(|key| key.0))),
            _ => Arc::new(StringViewArray::from_iter_values(keys.iter().map(|key| format!("{:08}", key.0)))),
        };
        vec![first, second]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Keys as near and as far from each other as there may be, of numbers and of others.
        #[test]
        fn what_is_found_is_what_both_have(
            rows in prop::collection::btree_set((0i64..3000, 0i64..3), 1..2000),
            wanted in prop::collection::btree_set((0i64..3100, 0i64..3), 0..300),
            every in 1usize..900,
            repeat in 1usize..50,
            begin in any::<prop::sample::Index>(),
            text: bool,
        ) {
            let first = if text { SqlType::Text } else { SqlType::BigInt };
            let table = table(first);
            let format = KeyFormat::new(&table, &table.primary_key).unwrap().unwrap();
            let rows: Vec<(i64, i64)> = rows.into_iter().collect();
            let mut wanted: BTreeSet<(i64, i64)> = wanted;
            wanted.extend(rows.iter().step_by(every));
            let keys = wanted.into_iter().enumerate();
            let wanted: Vec<(i64, i64)> =
                keys.flat_map(|(at, key)| std::iter::repeat_n(key, 1 + usize::from(at % repeat == 0))).collect();
            let begin = begin.index(wanted.len());
            let schema = table.arrow_schema();
            let batch = RecordBatch::try_new(Arc::clone(&schema), arrays(first, &wanted)).unwrap();
            let keys = Keys::new(&format, &batch).unwrap();

            let mut found = Vec::new();
            let span = (begin, keys.len());
            search_sorted(&keys, span, &arrays(first, &rows), |key, row| found.push((key, row))).unwrap();
            let place = |key: &(i64, i64)| rows.binary_search(key).ok();
            let expected = wanted.iter().enumerate().skip(begin).filter_map(|(at, key)| Some((at, place(key)?)));
            prop_assert_eq!(found, expected.collect::<Vec<_>>());
            search_sorted(&keys, span, &arrays(first, &[]), |_, row| panic!("found {row} of none")).unwrap();

            let turned: Vec<(i64, i64)> = rows.iter().rev().copied().collect();
            let batch = RecordBatch::try_new(schema, arrays(first, &turned)).unwrap();
            let is_new = Keys::new(&format, &batch).unwrap().not_in(&[keys]);
            for (at, key) in turned.iter().enumerate() {
                prop_assert_eq!(is_new.value(at), wanted.binary_search(key).is_err());
            }
        }
    }
}
