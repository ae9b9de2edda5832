//! A table that rows are written to, with the constraints that are looked at on the way. Pure: rows in, changes out.

use std::{collections::BTreeSet, fmt, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::not,
    datatypes::Schema,
    util::display::{ArrayFormatter, FormatOptions},
};
use datafusion::{common::DFSchema, physical_expr::PhysicalExpr};
use drsdb_core::{Check, Error, ErrorCode, ForeignKey, Result, Table, Ulid, WireError, query_session::QueryOptions};

use super::{
    effects::{Part, Prepared},
    expressions::{Expressions, evaluate},
    keys::{both, differing, filtered, without_nulls},
};
use crate::{
    catalog::{CatalogState, TableState},
    load::transit_schema,
    statement::parse_expression,
    transaction::{Rows, divide, key_transit_schema, shards_of_rows},
};

/// A table, and what its rows have to do with others.
pub struct Target {
    /// The table in the catalog.
    pub state: Arc<TableState>,
    /// Its definition.
    pub table: Arc<Table>,
    /// Tables that keep the keys of its UNIQUE constraints, in their order.
    pub(super) uniques: Vec<Unique>,
    /// Its foreign keys, with the tables that they refer to.
    pub(super) parents: Vec<(ForeignKey, Arc<TableState>)>,
    /// Foreign keys of other tables, or its own, that refer to it.
    pub(super) children: Vec<(Arc<TableState>, ForeignKey)>,
    /// Tables all of whose rows the same statement deletes: whether they refer to rows of this one does not matter.
    pub(super) emptied: BTreeSet<Ulid>,
    checks: Vec<(Check, Arc<dyn PhysicalExpr>)>,
}

pub(super) struct Unique {
    pub columns: Vec<usize>,
    pub index: Arc<TableState>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("table", &self.table.name).finish_non_exhaustive()
    }
}

impl Target {
    /// The table as a target of writes.
    pub fn new(catalog: &CatalogState, state: &Arc<TableState>, options: &QueryOptions) -> Result<Self> {
        let table = Arc::clone(&state.table);
        let find = |id| {
            let found: Option<&Arc<TableState>> = catalog.table(id);
            found.cloned().ok_or_else(|| Error::internal(format!("a constraint of {} leads to no table", table.name)))
        };
        let uniques = table.uniques.iter().map(|key| {
            let index = find(key.index)?;
            if index.table.columns.len() != key.columns.len() + table.primary_key.len() {
                return Err(Error::internal(format!("the keys of constraint {} have other columns", key.name)));
            }
            Ok(Unique { columns: key.columns.clone(), index })
        });
        let uniques = uniques.collect::<Result<Vec<_>>>()?;
        let parents = table.foreign_keys.iter().map(|key| Ok((key.clone(), find(key.parent)?)));
        let parents = parents.collect::<Result<Vec<_>>>()?;
        let mut children = Vec::new();
        for child in catalog.children(table.id) {
            let keys = child.table.foreign_keys.iter().filter(|key| key.parent == table.id);
            children.extend(keys.map(|key| (Arc::clone(child), key.clone())));
        }
        let mut checks = Vec::with_capacity(table.checks.len());
        if !table.checks.is_empty() {
            let expressions = Expressions::new(options)?;
            let names = DFSchema::try_from(check_schema(&table))?;
            for check in &table.checks {
                let compiled = expressions.compile(parse_expression(&check.sql)?, &names, &names)?;
                checks.push((check.clone(), compiled));
            }
        }
        let emptied = BTreeSet::new();
        Ok(Self { state: Arc::clone(state), table, uniques, parents, children, emptied, checks })
    }

    /// Whether something has to be looked up when rows have been staged.
    pub fn has_foreign_keys(&self) -> bool {
        !self.parents.is_empty() || !self.children.is_empty()
    }

    /// Columns of an old row that its deletion needs, by position.
    pub(super) fn needed_to_delete(&self) -> Vec<usize> {
        let mut needed = self.table.primary_key.clone();
        needed.extend(&self.table.shard_key);
        needed.extend(self.uniques.iter().flat_map(|unique| &unique.columns));
        needed.extend(self.children.iter().flat_map(|(_, key)| &key.parent_columns));
        needed.sort_unstable();
        needed.dedup();
        needed
    }

    /// Columns of an old row that a change of it needs, by position: whether it now refers to another row, too.
    pub(super) fn needed_of_old(&self) -> Vec<usize> {
        let mut needed = self.needed_to_delete();
        needed.extend(self.parents.iter().flat_map(|(key, _)| &key.columns));
        needed.sort_unstable();
        needed.dedup();
        needed
    }

    /// What it takes to replace rows `old` by rows `new`, row by row; without `old` they are new, without `new` they go.
    /// Batches have the transit schema; in `old`, only columns of [`Target::needed_of_old`] count, and without `new` those of
    /// [`Target::needed_to_delete`]. `first_row` is the number of the first row in the statement, for messages.
    pub fn prepare(
        &self,
        old: Option<RecordBatch>,
        new: Option<RecordBatch>,
        first_row: u64,
        round_robin: u64,
    ) -> Result<Prepared> {
        let mut prepared = Prepared { rows: rows_of(&old, &new), ..Prepared::default() };
        if prepared.rows == 0 {
            return Ok(prepared);
        }
        if let Some(new) = &new {
            self.check(new, first_row, old.is_some())?;
        }
        if let Some(old) = &old {
            let keys = columns_at(old, &self.table.primary_key);
            let keys = RecordBatch::try_new(key_transit_schema(&self.table), keys)?;
            let shards = shards_of_rows(&self.table, old, 0)?;
            for (shard, batch) in divide(keys, &shards)? {
                prepared.parts.push(Part { unique: None, rows: Rows::Deleted, shard, batch });
            }
        }
        for (at, unique) in self.uniques.iter().enumerate() {
            self.prepare_unique(at, unique, old.as_ref(), new.as_ref(), &mut prepared)?;
        }
        for (key, _) in &self.parents {
            prepared.parent_keys.push(match &new {
                Some(new) => changed_keys(&key.columns, new, &key.columns, old.as_ref())?,
                None => Vec::new(),
            });
        }
        for (_, key) in &self.children {
            let positions = &key.parent_columns;
            let (gone, moved) = match (&old, &new) {
                (Some(old), None) => (changed_keys(positions, old, positions, None)?, Vec::new()),
                (Some(old), Some(new)) => (Vec::new(), moved_keys(positions, old, new)?),
                (None, _) => (Vec::new(), Vec::new()),
            };
            prepared.gone_keys.push(gone);
            prepared.moved_keys.push(moved);
            prepared.come_keys.push(match &new {
                Some(new) => changed_keys(&key.parent_columns, new, &key.parent_columns, old.as_ref())?,
                None => Vec::new(),
            });
        }
        if let Some(new) = new {
            let shards = shards_of_rows(&self.table, &new, round_robin)?;
            for (shard, batch) in divide(new, &shards)? {
                prepared.parts.push(Part { unique: None, rows: Rows::Inserted, shard, batch });
            }
        }
        Ok(prepared)
    }

    /// A UNIQUE constraint's keys come and go with the rows; rows with a NULL in it have none.
    fn prepare_unique(
        &self,
        at: usize,
        unique: &Unique,
        old: Option<&RecordBatch>,
        new: Option<&RecordBatch>,
        prepared: &mut Prepared,
    ) -> Result<()> {
        let index = &unique.index.table;
        let columns = |batch: &RecordBatch| -> Vec<ArrayRef> {
            unique.columns.iter().chain(&self.table.primary_key).map(|&at| Arc::clone(batch.column(at))).collect()
        };
        let changed = match (old, new) {
            (Some(old), Some(new)) => Some(differing(&columns(old), &columns(new))?),
            _ => None,
        };
        let width = unique.columns.len();
        for (batch, rows) in [(old, Rows::Deleted), (new, Rows::Inserted)] {
            let Some(batch) = batch else { continue };
            let columns = columns(batch);
            let mask = both(without_nulls(&columns[..width])?, changed.clone())?;
            let keys = filtered(&columns, mask.as_ref())?;
            if keys[0].is_empty() {
                continue;
            }
            let full = RecordBatch::try_new(transit_schema(index), keys)?;
            let shards = shards_of_rows(index, &full, 0)?;
            let batch = match rows {
                Rows::Deleted => {
                    RecordBatch::try_new(key_transit_schema(index), columns_at(&full, &index.primary_key))?
                }
                Rows::Inserted => full,
            };
            for (shard, batch) in divide(batch, &shards)? {
                prepared.parts.push(Part { unique: Some(at), rows, shard, batch });
            }
        }
        Ok(())
    }

    /// NOT NULL and CHECK. Rows that were there before (`changed`) are not told by their numbers, which nobody knows.
    pub(super) fn check(&self, rows: &RecordBatch, first_row: u64, changed: bool) -> Result<()> {
        check_not_null(&self.table, rows.columns(), first_row, changed)?;
        for (check, compiled) in &self.checks {
            let holds = evaluate(compiled, rows)?;
            let Some(holds) = holds.as_boolean_opt() else {
                return Err(Error::internal(format!("constraint {} is no condition", check.name)));
            };
            let fails = not(holds)?;
            if fails.true_count() > 0 {
                let row = (0..fails.len()).find(|&row| fails.is_valid(row) && fails.value(row)).unwrap_or(0);
                return Err(self.violated(check, rows, row, first_row + row as u64));
            }
        }
        Ok(())
    }

    fn violated(&self, check: &Check, rows: &RecordBatch, row: usize, number: u64) -> Error {
        let (_, key) = describe(&self.table, &self.table.primary_key, rows.columns(), row);
        let which = row_by_key(&self.table, rows.columns(), row);
        let which = which.unwrap_or_else(|| format!("row {number}"));
        let message = format!("{} of table {}: {which} does not have {}", check.name, self.table.name, check.sql);
        WireError::new(ErrorCode::ConstraintViolation, message)
            .with_hint("change the row's values")
            .with_field("constraint", &check.name)
            .with_field("table", &self.table.name)
            .with_field("key", key)
            .with_field("row", number)
            .into()
    }
}

fn row_by_key(table: &Table, columns: &[ArrayRef], row: usize) -> Option<String> {
    let (names, key) = describe(table, &table.primary_key, columns, row);
    table.has_user_key().then(|| format!("the row ({names}) = ({key})"))
}

/// NOT NULL of a table's rows, of which `columns` has all columns. `first_row` and `changed` are as for [`Target::check`].
pub fn check_not_null(table: &Table, columns: &[ArrayRef], first_row: u64, changed: bool) -> Result<()> {
    for (at, (column, values)) in table.columns.iter().zip(columns).enumerate() {
        if !column.not_null || column.dropped || values.null_count() == 0 {
            continue;
        }
        let row = (0..values.len()).find(|&row| values.is_null(row)).unwrap_or(0);
        let number = first_row + row as u64;
        let (_, key) = describe(table, &table.primary_key, columns, row);
        // A key without a value tells no row.
        let which = row_by_key(table, columns, row).filter(|_| !table.primary_key.contains(&at));
        let place = match (&which, changed) {
            (Some(which), true) => which.clone(),
            (Some(which), false) => format!("row {number}, {which}"),
            (None, _) => format!("row {number}"),
        };
        let constraint = table.not_null_name(at);
        let message = format!(
            "column {} of table {}, {place}: NULL in a column that is NOT NULL ({constraint})",
            column.name, table.name
        );
        let hint = match column.default {
            Some(_) if !changed => "give it a value, or leave the column out for its DEFAULT",
            _ => "give it a value",
        };
        let error = WireError::new(ErrorCode::ConstraintViolation, message)
            .with_hint(hint)
            .with_field("constraint", constraint)
            .with_field("table", &table.name)
            .with_field("column", &column.name)
            .with_field("row", number);
        return Err(if which.is_some() { error.with_field("key", key) } else { error }.into());
    }
    Ok(())
}

/// The names by which CHECK finds columns.
fn check_schema(table: &Table) -> Schema {
    let transit = transit_schema(table);
    // A dropped column's name may be another's by now.
    let fields = transit.fields().iter().zip(&table.columns).enumerate().map(|(at, (field, column))| {
        if column.dropped { field.as_ref().clone().with_name(format!("dropped {at}")) } else { field.as_ref().clone() }
    });
    Schema::new(fields.collect::<Vec<_>>())
}

fn rows_of(old: &Option<RecordBatch>, new: &Option<RecordBatch>) -> u64 {
    old.as_ref().or(new.as_ref()).map_or(0, |batch| batch.num_rows() as u64)
}

fn columns_at(batch: &RecordBatch, positions: &[usize]) -> Vec<ArrayRef> {
    positions.iter().map(|&at| Arc::clone(batch.column(at))).collect()
}

/// Keys without NULLs in rows of `batch`, where they are not the same in `other`.
fn changed_keys(
    positions: &[usize],
    batch: &RecordBatch,
    other_positions: &[usize],
    other: Option<&RecordBatch>,
) -> Result<Vec<ArrayRef>> {
    let columns = columns_at(batch, positions);
    let changed = match other {
        Some(other) => Some(differing(&columns_at(other, other_positions), &columns)?),
        None => None,
    };
    filtered(&columns, both(without_nulls(&columns)?, changed)?.as_ref())
}

/// Keys that rows had and have no more, and then what they have instead.
fn moved_keys(positions: &[usize], old: &RecordBatch, new: &RecordBatch) -> Result<Vec<ArrayRef>> {
    let (before, after) = (columns_at(old, positions), columns_at(new, positions));
    let mask = both(without_nulls(&before)?, Some(differing(&before, &after)?))?;
    let mut keys = filtered(&before, mask.as_ref())?;
    keys.extend(filtered(&after, mask.as_ref())?);
    Ok(keys)
}

/// Names and values of some columns, for people.
pub fn describe(table: &Table, positions: &[usize], columns: &[ArrayRef], row: usize) -> (String, String) {
    let names: Vec<&str> = positions.iter().map(|&at| table.columns[at].name.as_str()).collect();
    let values: Vec<ArrayRef> = positions.iter().map(|&at| Arc::clone(&columns[at])).collect();
    (names.join(", "), key_text(&values, row))
}

/// A key's values, for people.
pub fn key_text(key: &[ArrayRef], row: usize) -> String {
    const CHARACTERS: usize = 200;
    let options = FormatOptions::default().with_null("NULL");
    let values = key.iter().map(|column| {
        let text = ArrayFormatter::try_new(column, &options)
            .map_or_else(|_| "?".to_owned(), |formatter| formatter.value(row).to_string());
        match text.char_indices().nth(CHARACTERS) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text,
        }
    });
    values.collect::<Vec<_>>().join(", ")
}
