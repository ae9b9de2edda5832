//! INSERT ... ON CONFLICT: rows whose key is there already are left out, or change the row that is in the way.
//!
//! Which keys are there is looked up at the transaction's snapshot, a group of rows at a time; what becomes of each row is
//! decided in their order ([`super::fate`]). A key that another transaction writes meanwhile is found when the row is staged,
//! and the statement runs again.

use std::{collections::HashMap, collections::HashSet, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, UInt32Array},
    compute::{filter_record_batch, take_record_batch},
    datatypes::SchemaRef,
    row::OwnedRow,
};
use datafusion::{
    physical_expr::PhysicalExpr,
    sql::sqlparser::ast::{self, ConflictTarget, OnConflictAction, OnInsert},
};
use drsdb_core::{
    Error, ErrorCode, Result, Table, WireError, query_session::QueryOptions, row_bytes, transit::transit_type,
};
use futures::{StreamExt, stream::BoxStream};

use super::{
    effects::Effects,
    executor::{Executor, Written, full_width, nullable_schema, to_transit},
    expressions::{Expressions, evaluate},
    fate::{Fate, Fates},
    keys::{KeySet, differing},
    returning::{Returning, local_batch, qualified},
    select::{TargetName, assignments, refused},
    target::{Target, key_text},
};
use crate::{
    load::{Converter, insert::parameter_columns, unknown_column},
    planner::{Lookup, MAX_LOOKUP_KEYS},
    statement::{identifier, simple_name},
};

/// Rows of a group that is looked up together, at least and at most.
const MIN_GROUP_ROWS: usize = 64;
const MAX_GROUP_ROWS: usize = 8192;
/// A group of no more bytes is small, and one of more than these is large.
const SMALL_GROUP_BYTES: usize = 1 << 20;
const LARGE_GROUP_BYTES: usize = 8 << 20;

/// How many rows the next group has, after one of `rows` that took `bytes` with what was there: a lookup may have to read all
/// keys of a table, so that many small rows are looked up together.
fn next_group(rows: usize, bytes: usize) -> usize {
    if bytes <= SMALL_GROUP_BYTES {
        (2 * rows).min(MAX_GROUP_ROWS)
    } else if bytes > LARGE_GROUP_BYTES {
        (rows / 2).max(MIN_GROUP_ROWS)
    } else {
        rows
    }
}

/// What to do with rows whose key is there.
pub(super) struct OnConflict {
    /// The columns of the constraints that count: the primary key's, or those of UNIQUE.
    keys: Vec<Key>,
    update: Option<Update>,
}

struct Key {
    name: String,
    columns: Vec<usize>,
}

impl Key {
    fn of(&self, rows: &RecordBatch) -> Vec<ArrayRef> {
        self.columns.iter().map(|&at| Arc::clone(rows.column(at))).collect()
    }
}

/// DO UPDATE.
struct Update {
    assigned: Vec<(usize, Arc<dyn PhysicalExpr>)>,
    condition: Option<Arc<dyn PhysicalExpr>>,
    /// The row that is there, the row that was to be inserted, and the parameters, side by side.
    schema: SchemaRef,
    parameters: Option<RecordBatch>,
}

impl OnConflict {
    pub fn new(
        on: &OnInsert,
        name: &TargetName,
        target: &Target,
        parameters: Option<&RecordBatch>,
        options: &QueryOptions,
    ) -> Result<Self> {
        let OnInsert::OnConflict(on) = on else {
            return Err(refused("ON DUPLICATE KEY UPDATE", "write ON CONFLICT (column) DO UPDATE SET ..."));
        };
        let table = &target.table;
        let keys = arbiters(on.conflict_target.as_ref(), table)?;
        let update = match &on.action {
            OnConflictAction::DoNothing => None,
            OnConflictAction::DoUpdate(update) => {
                if keys.len() != 1 || on.conflict_target.is_none() {
                    return Err(WireError::new(
                        ErrorCode::InvalidArgument,
                        "ON CONFLICT DO UPDATE does not say which constraint counts",
                    )
                    .with_hint("write ON CONFLICT (column, ...) DO UPDATE")
                    .into());
                }
                let parameters = parameters.map(parameter_columns).transpose()?;
                let sides = [(name.local_name()?, &**table), ("excluded".to_owned(), &**table)];
                let names = qualified(&sides, parameters.as_ref())?;
                let expressions = Expressions::new(options)?;
                let assigned = assignments(&update.assignments, table)?.into_iter().map(|(position, value)| {
                    // A column without a table's name is the one of the row that is there.
                    let value = own_columns(value, name, table);
                    Ok((position, expressions.compile(value, &names, &names)?))
                });
                let assigned = assigned.collect::<Result<Vec<_>>>()?;
                let condition = update.selection.clone();
                let condition = condition
                    .map(|condition| expressions.compile(own_columns(condition, name, table), &names, &names))
                    .transpose()?;
                Some(Update { assigned, condition, schema: Arc::new(names.as_arrow().clone()), parameters })
            }
        };
        Ok(Self { keys, update })
    }
}

/// Puts the table's name before columns that have none.
fn own_columns(mut expr: ast::Expr, name: &TargetName, table: &Table) -> ast::Expr {
    let _ = ast::visit_expressions_mut(&mut expr, |part: &mut ast::Expr| {
        if let ast::Expr::Identifier(ident) = part
            && let Ok(column) = identifier(ident)
            && table.column_position(&column).is_some()
            && let Some(qualifier) = name.qualifier.last()
        {
            *part = ast::Expr::CompoundIdentifier(vec![qualifier.clone(), ident.clone()]);
        }
        std::ops::ControlFlow::<()>::Continue(())
    });
    expr
}

/// The constraints that an ON CONFLICT names; all of them when it names none.
fn arbiters(target: Option<&ConflictTarget>, table: &Table) -> Result<Vec<Key>> {
    let mut all = Vec::new();
    if table.has_user_key() {
        let name = table.primary_key_name.clone().unwrap_or_else(|| format!("{}_pkey", table.name.table));
        all.push(Key { name, columns: table.primary_key.clone() });
    }
    all.extend(table.uniques.iter().map(|unique| Key { name: unique.name.clone(), columns: unique.columns.clone() }));
    match target {
        None => Ok(all),
        Some(ConflictTarget::Columns(columns)) => {
            let mut positions = Vec::with_capacity(columns.len());
            for column in columns {
                let name = identifier(column)?;
                positions.push(table.column_position(&name).ok_or_else(|| unknown_column(table, &name))?);
            }
            let same = |key: &Key| {
                key.columns.len() == positions.len() && key.columns.iter().all(|column| positions.contains(column))
            };
            let found = all.into_iter().find(same).ok_or_else(|| {
                WireError::new(
                    ErrorCode::InvalidArgument,
                    format!(
                        "no PRIMARY KEY or UNIQUE constraint of table {} has just the columns ({})",
                        table.name,
                        columns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
                    ),
                )
                .with_hint("name the columns of a constraint")
            })?;
            Ok(vec![found])
        }
        Some(ConflictTarget::OnConstraint(name)) => {
            let name = simple_name(name)?;
            let known: Vec<String> = all.iter().map(|key| key.name.clone()).collect();
            let found = all.into_iter().find(|key| key.name == name);
            let found = found.ok_or_else(|| {
                let message = format!("table {} has no PRIMARY KEY or UNIQUE constraint {name}", table.name);
                let error = WireError::new(ErrorCode::NotFound, message);
                match drsdb_core::nearest_name(&name, known.iter().map(String::as_str)) {
                    Some(near) => error.with_hint(format!("did you mean {near}?")),
                    None => error.with_hint(format!("its constraints are {}", known.join(", "))),
                }
            })?;
            Ok(vec![found])
        }
    }
}

/// The rows that are there, and by which key they are found.
struct Existing {
    keys: KeySet,
    rows: HashMap<OwnedRow, u32>,
    batch: RecordBatch,
}

impl Existing {
    /// The keys of the statement's rows; `None` where there is a NULL in it.
    fn keys_of(&self, columns: &[ArrayRef]) -> Result<Vec<Option<OwnedRow>>> {
        let rows = self.keys.rows(columns)?;
        let known = |at: usize| columns.iter().all(|column| column.is_valid(at));
        Ok(rows.iter().enumerate().map(|(at, row)| known(at).then(|| row.owned())).collect())
    }
}

impl Executor<'_> {
    pub(super) async fn insert_or(
        &mut self,
        target: &Arc<Target>,
        schema: SchemaRef,
        mut rows: BoxStream<'static, Result<RecordBatch>>,
        on_conflict: OnConflict,
        mut returning: Option<Returning>,
    ) -> Result<Written> {
        let table = &target.table;
        let converter = Converter::new(Arc::clone(table), &schema, self.options)?;
        let mut stager = self.transaction.stager();
        let mut effects = Effects::new(target, &mut stager)?;
        let mut fates = Fates::new(on_conflict.keys.len(), on_conflict.update.is_some());
        let mut given = HashSet::new();
        let mut first_row = 1;
        let mut group_rows = MAX_LOOKUP_KEYS;
        while let Some(batch) = rows.next().await {
            let mut rest = batch?;
            while rest.num_rows() > 0 {
                let part = rest.slice(0, group_rows.min(rest.num_rows()));
                rest = rest.slice(part.num_rows(), rest.num_rows() - part.num_rows());
                let new = converter.convert(&part, first_row)?;
                // Whether a row may be at all comes before whether another one is in its way.
                target.check(&new, first_row, false)?;
                first_row += part.num_rows() as u64;
                let mut existing = Vec::with_capacity(on_conflict.keys.len());
                let mut keys = Vec::with_capacity(on_conflict.keys.len());
                for key in &on_conflict.keys {
                    let found = self.existing(target, key, &new).await?;
                    keys.push(found.keys_of(&key.of(&new))?);
                    existing.push(found);
                }
                let held: usize = existing.iter().map(|found| row_bytes(&found.batch)).sum();
                group_rows = next_group(group_rows, row_bytes(&new) + held);
                let mut fresh = vec![false; new.num_rows()];
                let mut undecided: Vec<usize> = (0..new.num_rows()).collect();
                while !undecided.is_empty() {
                    // For each row that is in the way, the row that was to be inserted.
                    let mut pairs: Vec<(u32, u32)> = Vec::new();
                    let (mut asked, mut later) = (HashSet::new(), Vec::new());
                    for row in undecided {
                        let own: Vec<Option<&OwnedRow>> = keys.iter().map(|keys| keys[row].as_ref()).collect();
                        let there: Vec<&HashMap<OwnedRow, u32>> = existing.iter().map(|found| &found.rows).collect();
                        match fates.decide(&own, &there) {
                            Fate::Inserted => fresh[row] = true,
                            Fate::LeftOut => {}
                            Fate::Changes(there) if asked.insert(there) => pairs.push((there, row as u32)),
                            // First it must be known whether the row changes for the one before.
                            Fate::Changes(_) => later.push(row),
                            Fate::Twice => return Err(twice(table, &on_conflict.keys[0], &new, row)),
                        }
                    }
                    undecided = later;
                    if let (Some(update), [key], [found]) =
                        (&on_conflict.update, on_conflict.keys.as_slice(), existing.as_slice())
                        && !pairs.is_empty()
                    {
                        let (old, changed) = update.apply(table, &found.batch, &new, &pairs)?;
                        let (before, after) = (key.of(&old), key.of(&changed));
                        let differs = differing(&before, &after)?;
                        for (row, own) in found.keys.rows(&before)?.iter().enumerate() {
                            fates.changed(own.owned(), !differs.value(row));
                            if differs.value(row) {
                                given.insert(key_text(&after, row));
                            }
                        }
                        if let Some(returning) = &mut returning {
                            returning.add(&changed)?;
                        }
                        let changed = effects.change(target, Some(old), Some(changed), &mut stager).await;
                        changed.map_err(|error| came_meanwhile(error, &on_conflict, &given))?;
                    }
                }
                let inserted = filter_record_batch(&new, &BooleanArray::from(fresh))?;
                if inserted.num_rows() > 0 {
                    if let Some(returning) = &mut returning {
                        returning.add(&inserted)?;
                    }
                    // A large statement is staged as it goes on.
                    let changed = effects.change(target, None, Some(inserted), &mut stager).await;
                    changed.map_err(|error| came_meanwhile(error, &on_conflict, &given))?;
                }
            }
        }
        let ended = self.end(target, effects, stager, returning).await;
        ended.map_err(|error| came_meanwhile(error, &on_conflict, &given))
    }

    /// The rows that have the keys of `new` already.
    async fn existing(&self, target: &Arc<Target>, key: &Key, new: &RecordBatch) -> Result<Existing> {
        let table = &target.table;
        let types = key.columns.iter().map(|&at| transit_type(table.columns[at].sql_type)).collect::<Vec<_>>();
        let mut keys = KeySet::new(types)?;
        let columns = key.of(new);
        let mask = super::keys::without_nulls(&columns)?;
        let columns = super::keys::filtered(&columns, mask.as_ref())?;
        keys.add(&columns, None)?;
        let positions: Vec<usize> = (0..table.columns.len()).filter(|&at| !table.columns[at].dropped).collect();
        let mut batches = Vec::new();
        for values in keys.groups(usize::MAX)? {
            let lookup = Lookup {
                table: &table.name,
                positions: positions.clone(),
                key: key.columns.clone(),
                values,
                limit: None,
            };
            batches.extend(self.lookup(lookup).await?);
        }
        let full = batches.iter().map(|batch| full_width(table, &positions, batch.columns(), batch.num_rows(), 1));
        let full = full.collect::<Result<Vec<_>>>()?;
        let batch = arrow::compute::concat_batches(&nullable_schema(table), &full)?;
        let found = keys.rows(&key.of(&batch))?;
        let rows = found.iter().enumerate().map(|(at, row)| (row.owned(), at as u32)).collect();
        Ok(Existing { keys, rows, batch })
    }
}

impl Update {
    /// Old and new rows of what is changed.
    fn apply(
        &self,
        table: &Table,
        there: &RecordBatch,
        new: &RecordBatch,
        pairs: &[(u32, u32)],
    ) -> Result<(RecordBatch, RecordBatch)> {
        let (left, right): (Vec<u32>, Vec<u32>) = pairs.iter().copied().unzip();
        let mut old = take_record_batch(there, &UInt32Array::from(left))?;
        let excluded = take_record_batch(new, &UInt32Array::from(right))?;
        let columns: Vec<ArrayRef> = old.columns().iter().chain(excluded.columns()).cloned().collect();
        let mut both = local_batch(&self.schema, &columns, self.parameters.as_ref(), old.num_rows())?;
        if let Some(condition) = &self.condition {
            let holds = evaluate(condition, &both)?;
            let holds = holds.as_boolean_opt().ok_or_else(|| {
                Error::new(ErrorCode::TypeMismatch, "the WHERE of ON CONFLICT DO UPDATE is no condition")
            })?;
            old = filter_record_batch(&old, holds)?;
            both = filter_record_batch(&both, holds)?;
        }
        let mut columns = old.columns().to_vec();
        for (position, value) in &self.assigned {
            columns[*position] = to_transit(table, *position, &evaluate(value, &both)?, 1)?;
        }
        let changed = RecordBatch::try_new(nullable_schema(table), columns)?;
        Ok((old, changed))
    }
}

fn twice(table: &Table, key: &Key, rows: &RecordBatch, row: usize) -> Error {
    let text = key_text(&key.of(rows), row);
    let message = format!(
        "ON CONFLICT DO UPDATE would change a row of table {} twice: ({text}) comes more than once for {}",
        table.name, key.name
    );
    WireError::new(ErrorCode::InvalidArgument, message)
        .with_hint("leave all but one of the rows with equal keys out")
        .with_field("constraint", &key.name)
        .with_field("key", text)
        .into()
}

/// A key that was not there when it was looked up has come meanwhile: the statement must look again. A key of `given`, as
/// errors show it, was not looked up: DO UPDATE gave it to a row, and that it is taken will be so the next time.
fn came_meanwhile(error: Error, on_conflict: &OnConflict, given: &HashSet<String>) -> Error {
    let mut wire = error.to_wire();
    let violated = wire.fields.get("constraint");
    let counts = violated.is_some_and(|name| on_conflict.keys.iter().any(|key| key.name == *name))
        && wire.fields.get("key").is_none_or(|key| !given.contains(key));
    if wire.code != ErrorCode::ConstraintViolation || !counts {
        return error;
    }
    wire.code = ErrorCode::Conflict;
    wire.hint = "run it again".to_owned();
    wire.into()
}
