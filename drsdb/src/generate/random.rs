//! Random rows of any table: every type, NULLs where they may be, extreme values now and then, unique primary keys.
//!
//! A batch's random numbers start from the seed and the batch's number alone, so that the same arguments give the same
//! rows. Foreign keys are not followed.

use std::sync::Arc;

use anyhow::{Result, ensure};
use arrow::{
    array::{
        ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray, Float32Array,
        Float64Array, Int16Array, Int32Array, Int64Array, IntervalMonthDayNanoArray, RecordBatchReader, StringArray,
        Time64MicrosecondArray, TimestampMicrosecondArray,
    },
    datatypes::{IntervalMonthDayNano, SchemaRef},
    error::ArrowError,
    record_batch::RecordBatch,
};
use drsdb_benchmarks::output::Format;
use drsdb_core::{SqlType, Table, Ulid, edge::edge_schema};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// One value in so many is an extreme one.
const EXTREME_EVERY: u32 = 50;
/// The longest random text and bytes, unless the type is shorter.
const MAX_LENGTH: usize = 40;
/// 0001-01-01 and 9999-12-31, in days since 1970.
const DAYS: std::ops::RangeInclusive<i32> = -719_162..=2_932_896;
const MICROS_PER_DAY: i64 = 86_400_000_000;

/// Text that breaks careless readers.
const AWKWARD: [&str; 7] = ["NULL", "a,b", "say \"x\"", "line\nline", "äöü ß", "日本語", "🦀🦀"];

/// How rows are made.
#[derive(Debug, Clone, Copy)]
pub struct RandomOptions {
    /// Where the random numbers start.
    pub seed: u64,
    /// Share of NULLs in columns that may have them.
    pub nulls: f64,
    /// Whether text may be empty.
    pub empty_text: bool,
}

/// A definition of `columns` columns that takes turns with all types the format can hold.
pub fn wide_definition(table: &str, columns: usize, format: Format) -> String {
    let types = [
        "BOOLEAN",
        "SMALLINT",
        "INTEGER",
        "BIGINT",
        "REAL",
        "DOUBLE",
        "DECIMAL(15,2)",
        "DECIMAL(38,10)",
        "CHAR(10)",
        "VARCHAR(100)",
        "TEXT",
        "DATE",
        "TIME",
        "TIMESTAMP",
        "TIMESTAMP WITH TIME ZONE",
        "BYTEA",
        "UUID",
        "ULID",
        "INTERVAL",
    ];
    // Only Arrow's own format has the interval of months, days and nanoseconds.
    let usable = if format == Format::Arrow { &types[..] } else { &types[..types.len() - 1] };
    let quoted = table.replace('"', "\"\"");
    let mut text = format!("CREATE TABLE \"{quoted}\" (\n    id BIGINT NOT NULL PRIMARY KEY");
    for column in 1..columns.max(1) {
        text.push_str(&format!(",\n    c{column} {}", usable[(column - 1) % usable.len()]));
    }
    text + "\n)"
}

/// `rows` rows of `table` in edge types, in batches of `batch_rows`.
pub fn batches(
    table: &Table,
    rows: u64,
    batch_rows: usize,
    options: RandomOptions,
) -> Result<impl RecordBatchReader + use<>> {
    // The last column of the key counts; the others may be anything.
    let counter = table.primary_key.last().copied();
    if let Some(counter) = counter {
        let column = &table.columns[counter];
        let capacity = key_capacity(column.sql_type);
        ensure!(
            u128::from(rows) <= capacity,
            "primary key column {} is {} and has {capacity} values: generate no more rows",
            column.name,
            column.sql_type
        );
    }
    let columns = table.columns.iter().enumerate().map(|(position, column)| RandomColumn {
        sql_type: column.sql_type,
        nulls: if column.not_null { 0.0 } else { options.nulls },
        counts: counter == Some(position),
        empty_text: options.empty_text,
    });
    Ok(RandomBatches {
        columns: columns.collect(),
        schema: edge_schema(&table.arrow_schema()),
        seed: options.seed,
        rows,
        next_row: 0,
        batch_rows,
    })
}

struct RandomBatches {
    columns: Vec<RandomColumn>,
    schema: SchemaRef,
    seed: u64,
    rows: u64,
    next_row: u64,
    batch_rows: usize,
}

impl Iterator for RandomBatches {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let count = (self.rows - self.next_row).min(self.batch_rows as u64);
        if count == 0 {
            return None;
        }
        let rows = self.next_row..self.next_row + count;
        let mut random = StdRng::seed_from_u64(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.next_row);
        self.next_row = rows.end;
        let columns = self.columns.iter().map(|column| column.array(rows.clone(), &mut random));
        let columns = columns.collect::<Result<Vec<_>, _>>();
        Some(columns.and_then(|columns| RecordBatch::try_new(Arc::clone(&self.schema), columns)))
    }
}

impl RecordBatchReader for RandomBatches {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

struct RandomColumn {
    sql_type: SqlType,
    nulls: f64,
    /// Values count rows, so that the primary key is unique.
    counts: bool,
    empty_text: bool,
}

/// How a value is chosen.
enum Choice {
    Null,
    /// The row's number.
    Count(u64),
    /// The smallest, the largest, or something awkward.
    Extreme(usize),
    Any,
}

impl RandomColumn {
    fn choose(&self, row: u64, random: &mut StdRng) -> Choice {
        if self.counts {
            Choice::Count(row)
        } else if self.nulls > 0.0 && random.random_bool(self.nulls) {
            Choice::Null
        } else if random.random_ratio(1, EXTREME_EVERY) {
            Choice::Extreme(random.random_range(0..8))
        } else {
            Choice::Any
        }
    }

    /// One value for each row: `count` makes the row's number a value, `extremes` are chosen from in turn.
    fn values<T: Clone>(
        &self,
        rows: std::ops::Range<u64>,
        random: &mut StdRng,
        count: impl Fn(u64) -> T,
        extremes: &[T],
        any: impl Fn(&mut StdRng) -> T,
    ) -> Vec<Option<T>> {
        rows.map(|row| match self.choose(row, random) {
            Choice::Null => None,
            Choice::Count(row) => Some(count(row)),
            Choice::Extreme(which) => Some(extremes[which % extremes.len()].clone()),
            Choice::Any => Some(any(random)),
        })
        .collect()
    }

    fn array(&self, rows: std::ops::Range<u64>, random: &mut StdRng) -> Result<ArrayRef, ArrowError> {
        Ok(match self.sql_type {
            SqlType::Boolean => {
                let values = self.values(rows, random, |row| row == 1, &[false, true], |random| random.random());
                Arc::new(BooleanArray::from(values))
            }
            SqlType::SmallInt => {
                let extremes = [i16::MIN, i16::MAX, 0, -1];
                let count = |row| (i64::from(i16::MIN) + row as i64) as i16;
                Arc::new(Int16Array::from(self.values(rows, random, count, &extremes, |random| random.random())))
            }
            SqlType::Integer => {
                let extremes = [i32::MIN, i32::MAX, 0, -1];
                let any = |random: &mut StdRng| random.random_range(-1_000_000..=1_000_000);
                Arc::new(Int32Array::from(self.values(rows, random, |row| row as i32, &extremes, any)))
            }
            SqlType::BigInt => {
                let extremes = [i64::MIN, i64::MAX, 0, -1];
                Arc::new(Int64Array::from(self.values(
                    rows,
                    random,
                    |row| row as i64,
                    &extremes,
                    |random| random.random_range(-1_000_000_000_000..=1_000_000_000_000),
                )))
            }
            SqlType::Real => {
                let extremes = [f32::MIN, f32::MAX, f32::MIN_POSITIVE, 0.0];
                let any = |random: &mut StdRng| random.random_range(-1e6..1e6);
                Arc::new(Float32Array::from(self.values(rows, random, |row| row as f32, &extremes, any)))
            }
            SqlType::Double => {
                let extremes = [f64::MIN, f64::MAX, f64::MIN_POSITIVE, 0.0];
                let any = |random: &mut StdRng| random.random_range(-1e12..1e12);
                Arc::new(Float64Array::from(self.values(rows, random, |row| row as f64, &extremes, any)))
            }
            SqlType::Decimal { precision, scale } => {
                let largest = 10i128.pow(u32::from(precision)) - 1;
                let extremes = [largest, -largest, 0, 1];
                let any = |random: &mut StdRng| random.random_range(-largest..=largest);
                let values = self.values(rows, random, i128::from, &extremes, any);
                Arc::new(Decimal128Array::from(values).with_precision_and_scale(precision, scale)?)
            }
            SqlType::Char { .. } | SqlType::Varchar { .. } | SqlType::Text => {
                Arc::new(StringArray::from(self.texts(rows, random)))
            }
            SqlType::Date => {
                let any = |random: &mut StdRng| random.random_range(0..30_000);
                let count = |row| DAYS.start() + row as i32;
                Arc::new(Date32Array::from(self.values(rows, random, count, &[*DAYS.start(), *DAYS.end(), 0], any)))
            }
            SqlType::Time => {
                let any = |random: &mut StdRng| random.random_range(0..MICROS_PER_DAY);
                let values = self.values(rows, random, |row| row as i64, &[0, MICROS_PER_DAY - 1], any);
                Arc::new(Time64MicrosecondArray::from(values))
            }
            SqlType::Timestamp | SqlType::TimestampTz => {
                let extremes = [i64::from(*DAYS.start()), i64::from(*DAYS.end()), 0].map(|day| day * MICROS_PER_DAY);
                let any = |random: &mut StdRng| random.random_range(0..30_000 * MICROS_PER_DAY);
                let values = self.values(rows, random, |row| row as i64, &extremes, any);
                let array = TimestampMicrosecondArray::from(values);
                match self.sql_type {
                    SqlType::TimestampTz => Arc::new(array.with_timezone("UTC")),
                    _ => Arc::new(array),
                }
            }
            SqlType::Interval => {
                let interval = IntervalMonthDayNano::new;
                let extremes = [interval(0, 0, 0), interval(-120, -31, -1_000), interval(12_000, 0, 0)];
                let any = |random: &mut StdRng| {
                    let micros = random.random_range(0..MICROS_PER_DAY);
                    interval(random.random_range(-24..=24), random.random_range(-30..=30), micros * 1_000)
                };
                let count = |row| interval(0, 0, row as i64 * 1_000);
                Arc::new(IntervalMonthDayNanoArray::from(self.values(rows, random, count, &extremes, any)))
            }
            SqlType::Bytea => {
                let mut extremes = vec![vec![0], vec![0xff; MAX_LENGTH], b"\\x00\n,\"".to_vec()];
                if self.empty_text {
                    extremes.push(Vec::new());
                }
                let any = |random: &mut StdRng| {
                    let mut bytes = vec![0; random.random_range(1..=MAX_LENGTH)];
                    random.fill(bytes.as_mut_slice());
                    bytes
                };
                let values = self.values(rows, random, |row| row.to_be_bytes().to_vec(), &extremes, any);
                Arc::new(BinaryArray::from_iter(values))
            }
            SqlType::Uuid => {
                let extremes = [[0; 16], [0xff; 16]];
                let count = |row: u64| u128::from(row).to_be_bytes();
                let values =
                    self.values(rows, random, count, &extremes, |random| random.random::<u128>().to_be_bytes());
                Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(values.into_iter(), 16)?)
            }
            SqlType::Ulid => {
                let count = |row: u64| Ulid(u128::from(row)).to_string();
                let any = |random: &mut StdRng| Ulid(random.random()).to_string();
                let extremes = [Ulid(0), Ulid(u128::MAX)].map(|ulid| ulid.to_string());
                Arc::new(StringArray::from(self.values(rows, random, count, &extremes, any)))
            }
        })
    }

    fn texts(&self, rows: std::ops::Range<u64>, random: &mut StdRng) -> Vec<Option<String>> {
        let longest = self.sql_type.max_characters().map_or(MAX_LENGTH, |length| (length as usize).min(MAX_LENGTH));
        let fits = |text: &&str| text.chars().count() <= longest;
        let mut extremes = AWKWARD.iter().copied().filter(fits).map(str::to_owned).collect::<Vec<_>>();
        // As long as the type lets it be.
        extremes.push("x".repeat(self.sql_type.max_characters().map_or(1_000, |length| length.min(10_000) as usize)));
        if self.empty_text {
            extremes.push(String::new());
        }
        let any = |random: &mut StdRng| {
            let length = random.random_range(1..=longest.max(1));
            (0..length).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect()
        };
        self.values(rows, random, base36, &extremes, any)
    }
}

/// The number with as few letters and digits as can be.
fn base36(mut number: u64) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(b"0123456789abcdefghijklmnopqrstuvwxyz"[(number % 36) as usize]);
        number /= 36;
        if number == 0 {
            break;
        }
    }
    digits.iter().rev().map(|&digit| char::from(digit)).collect()
}

/// How many rows a type can tell apart when it counts them.
fn key_capacity(sql_type: SqlType) -> u128 {
    match sql_type {
        SqlType::Boolean => 2,
        SqlType::SmallInt => 1 << 16,
        SqlType::Integer => 1 << 31,
        SqlType::Real => 1 << 24,
        SqlType::Double => 1 << 53,
        SqlType::Decimal { precision, .. } => 10u128.pow(u32::from(precision)),
        SqlType::Char { length } | SqlType::Varchar { length: Some(length) } => 36u128.pow(length.min(24)),
        SqlType::Date => (DAYS.end() - DAYS.start()) as u128 + 1,
        SqlType::Time => MICROS_PER_DAY as u128,
        SqlType::BigInt | SqlType::Timestamp | SqlType::TimestampTz => 1 << 63,
        SqlType::Interval => 1 << 53,
        SqlType::Varchar { length: None } | SqlType::Text | SqlType::Bytea | SqlType::Uuid | SqlType::Ulid => 1 << 64,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use arrow::array::{Array, AsArray};

    use super::*;
    use crate::generate::parse_definition;

    const OPTIONS: RandomOptions = RandomOptions { seed: 1, nulls: 0.25, empty_text: true };

    fn wide() -> Table {
        parse_definition(&wide_definition("wide", 39, Format::Arrow)).unwrap().unwrap()
    }

    fn generate(table: &Table, rows: u64, options: RandomOptions) -> Vec<RecordBatch> {
        batches(table, rows, 1_000, options).unwrap().map(|batch| batch.unwrap()).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_rows_and_another_other_rows() {
        let first = generate(&wide(), 2_500, OPTIONS);
        assert_eq!(first.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [1_000, 1_000, 500]);
        assert_eq!(first, generate(&wide(), 2_500, OPTIONS));
        assert_ne!(first, generate(&wide(), 2_500, RandomOptions { seed: 2, ..OPTIONS }));
    }

    #[test]
    fn nulls_come_only_where_they_may_and_about_as_often_as_asked() {
        for batch in generate(&wide(), 2_000, OPTIONS) {
            for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
                match field.is_nullable() {
                    true => {
                        assert!((150..350).contains(&column.null_count()), "{}: {}", field.name(), column.null_count())
                    }
                    false => assert_eq!(column.null_count(), 0, "{}", field.name()),
                }
            }
        }
    }

    #[test]
    fn text_is_as_long_as_its_type_lets_it_be_and_no_longer() {
        let table = parse_definition("CREATE TABLE t (a CHAR(3), b VARCHAR(100))").unwrap().unwrap();
        let batches = generate(&table, 5_000, OPTIONS);
        for (column, longest) in [(0, 3), (1, 100)] {
            let lengths = batches.iter().flat_map(|batch| {
                batch
                    .column(column)
                    .as_string::<i32>()
                    .iter()
                    .flatten()
                    .map(|text| text.chars().count())
                    .collect::<Vec<_>>()
            });
            assert_eq!(lengths.max(), Some(longest));
        }
    }

    #[test]
    fn keys_of_every_type_are_unique() {
        for sql_type in ["SMALLINT", "INTEGER", "DECIMAL(9,4)", "CHAR(5)", "DATE", "TIME", "TIMESTAMP", "BYTEA", "ULID"]
        {
            let table = parse_definition(&format!("CREATE TABLE t (k {sql_type} PRIMARY KEY)")).unwrap().unwrap();
            let mut seen = HashSet::new();
            for batch in generate(&table, 3_000, OPTIONS) {
                for row in 0..batch.num_rows() {
                    let text = arrow::util::display::array_value_to_string(batch.column(0), row).unwrap();
                    assert!(seen.insert(text.clone()), "{sql_type}: {text} twice");
                }
            }
        }
    }

    #[test]
    fn more_rows_than_a_key_has_values_are_refused() {
        let table = parse_definition("CREATE TABLE t (k BOOLEAN PRIMARY KEY)").unwrap().unwrap();
        assert!(batches(&table, 2, 10, OPTIONS).is_ok());
        let error = batches(&table, 3, 10, OPTIONS).err().unwrap().to_string();
        assert!(error.contains("k is BOOLEAN"), "{error}");
    }
}
