//! Foreign keys, when all rows of a statement are staged. Both sides are looked up as the transaction sees them, and the
//! commit validates that nobody has changed the other side meanwhile: so they hold without locks.
//!
//! | this statement | looks for | the commit validates |
//! |---|---|---|
//! | inserts a referring row | the row it refers to | no deletion from the parent's shards |
//! | deletes a referred row, NO ACTION or RESTRICT | a row that refers to it: an error | no insertion into the child's shards |
//! | the same, CASCADE or SET NULL | those rows, and changes them | no insertion into the child's shards |
//!
//! A key that the same statement takes away and brings back, with another row, is there for the first two lines. For the third
//! it is gone: what is referred to is the row.

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, new_null_array},
    row::OwnedRow,
};
use drsdb_core::{
    Error, ErrorCode, ForeignKey, ReferentialAction, Result, Table, WireError,
    shard::shards_of,
    transit::{stored_column, transit_type},
};
use futures::StreamExt;

use super::{
    effects::{Effects, follows},
    executor::{Executor, full_width, nullable_schema, to_transit},
    keys::KeySet,
    target::{Target, key_text},
};
use crate::{
    catalog::{Absent, TableState, Validation},
    planner::{Lookup, MAX_LOOKUP_KEYS},
    statement::{Statement, parse, parse_query},
};

/// How far one change may lead, from rows to those that refer to them: each step is a level, in whichever table it ends.
const MAX_DEPTH: usize = 64;

/// Why referring rows are changed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    Deleted,
    Updated,
}

/// Changes whose foreign keys are being looked at, and how far that is.
struct Level {
    target: Arc<Target>,
    effects: Effects,
    /// Foreign keys that refer to the table, each with both causes, that have been followed.
    followed: usize,
}

impl Level {
    fn new(target: Arc<Target>, mut effects: Effects) -> Result<Self> {
        effects.forget_what_came_back(&target)?;
        Ok(Self { target, effects, followed: 0 })
    }
}

impl Executor<'_> {
    pub(super) async fn foreign_keys(&mut self, target: &Arc<Target>, effects: Effects) -> Result<()> {
        if !target.has_foreign_keys() {
            return Ok(());
        }
        // Rows that follow come first: a parent that changes takes its children along, then all must be right. The levels are
        // a list, and not calls in calls, for which a thread's stack would be too small.
        let mut levels = vec![Level::new(Arc::clone(target), effects)?];
        while let Some(level) = levels.last_mut() {
            let Some((child, key)) = level.target.children.get(level.followed / 2) else {
                for (at, (key, parent)) in level.target.parents.iter().enumerate() {
                    let keys = &level.effects.parent_keys[at];
                    if !keys.is_empty() {
                        self.referred(&level.target, parent, key, keys).await?;
                    }
                }
                levels.pop();
                continue;
            };
            let (keys, cause) = match level.followed % 2 {
                0 => (&level.effects.gone_keys[level.followed / 2], Cause::Deleted),
                _ => (&level.effects.moved_keys[level.followed / 2], Cause::Updated),
            };
            let come = &level.effects.come_keys[level.followed / 2];
            let next = self.referring(&level.target, child, key, (keys, come), cause).await?;
            level.followed += 1;
            if let Some((target, effects)) = next
                && target.has_foreign_keys()
            {
                levels.push(Level::new(target, effects)?);
            }
            if levels.len() > MAX_DEPTH + 1 {
                let message = format!("foreign keys with CASCADE lead through more than {MAX_DEPTH} levels of rows");
                let hint = "change the rows at the far end first";
                return Err(WireError::new(ErrorCode::ResourceExhausted, message).with_hint(hint).into());
            }
        }
        Ok(())
    }

    /// All keys must be there in the parent.
    async fn referred(
        &mut self,
        target: &Target,
        parent: &Arc<TableState>,
        key: &ForeignKey,
        keys: &KeySet,
    ) -> Result<()> {
        self.watch(parent, &key.parent_columns, Absent::Deletes, keys)?;
        if keys.overflowed {
            return match self.dangling(&target.table, &parent.table, key).await? {
                Some(columns) => Err(no_parent(&target.table, &parent.table, key, &columns, 0)),
                None => Ok(()),
            };
        }
        for values in keys.groups(MAX_LOOKUP_KEYS)? {
            let lookup = Lookup {
                table: &parent.table.name,
                positions: key.parent_columns.clone(),
                key: key.parent_columns.clone(),
                values: values.clone(),
                limit: None,
            };
            let mut found: HashSet<OwnedRow> = HashSet::new();
            for batch in self.lookup(lookup).await? {
                let columns = key.columns.iter().zip(batch.columns());
                let columns = columns.map(|(&at, values)| to_transit(&target.table, at, values, 1));
                let columns = columns.collect::<Result<Vec<_>>>()?;
                found.extend(keys.rows(&columns)?.iter().map(|row| row.owned()));
            }
            let wanted = keys.rows(&values)?;
            let missing = (0..wanted.num_rows()).find(|&row| !found.contains(&wanted.row(row).owned()));
            if let Some(row) = missing {
                return Err(no_parent(&target.table, &parent.table, key, &values, row));
            }
        }
        Ok(())
    }

    /// Rows that refer to keys that are gone: there must be none, or they follow; then their own foreign keys come next. `come`
    /// are keys that the same changes brought.
    async fn referring(
        &mut self,
        target: &Target,
        child: &Arc<TableState>,
        key: &ForeignKey,
        (keys, come): (&KeySet, &KeySet),
        cause: Cause,
    ) -> Result<Option<(Arc<Target>, Effects)>> {
        if keys.is_empty() {
            return Ok(None);
        }
        self.watch(child, &key.columns, Absent::Inserts, keys)?;
        if target.emptied.contains(&child.table.id) {
            return Ok(None);
        }
        let action = if cause == Cause::Deleted { key.on_delete } else { key.on_update };
        let refuses = !follows(action);
        if keys.overflowed {
            if !refuses && (come.overflowed || self.refers(child, key, come).await?) {
                return Err(too_many_keys(target, key));
            }
            self.referring_many(target, child, key, cause, action).await?;
            return Ok(None);
        }
        let table = &child.table;
        let child_target = if refuses { None } else { Some(self.target_of(child)?) };
        let positions: Vec<usize> = match (&child_target, action, cause) {
            (None, ..) => key.columns.clone(),
            (Some(child), ReferentialAction::Cascade, Cause::Deleted) => child.needed_to_delete(),
            (Some(_), ..) => (0..table.columns.len()).filter(|&at| !table.columns[at].dropped).collect(),
        };
        let mut batches = Vec::new();
        for values in keys.groups(MAX_LOOKUP_KEYS)? {
            let lookup = Lookup {
                table: &table.name,
                positions: positions.clone(),
                key: key.columns.clone(),
                values,
                limit: refuses.then_some(1),
            };
            let found = self.lookup(lookup).await?;
            if refuses && let Some(batch) = found.iter().find(|batch| batch.num_rows() > 0) {
                return Err(still_referred(&target.table, table, key, batch.columns(), 0));
            }
            batches.extend(found);
        }
        let Some(child_target) = child_target.filter(|_| batches.iter().any(|batch| batch.num_rows() > 0)) else {
            return Ok(None);
        };
        let mut stager = self.transaction.stager();
        let mut effects = Effects::new(&child_target, &mut stager)?;
        for batch in batches {
            let old = full_width(table, &positions, batch.columns(), batch.num_rows(), 1)?;
            let new = match (action, cause) {
                (ReferentialAction::Cascade, Cause::Deleted) => None,
                (ReferentialAction::Cascade, Cause::Updated) => Some(following(table, key, keys, &old)?),
                _ => Some(with_nulls(table, key, &old)?),
            };
            effects.change(&child_target, Some(old), new, &mut stager).await?;
        }
        self.transaction.absorb(stager.finish().await?);
        Ok(Some((child_target, effects)))
    }

    /// The same when there are too many keys to remember: what has no parent now is what is meant.
    async fn referring_many(
        &mut self,
        target: &Target,
        child: &Arc<TableState>,
        key: &ForeignKey,
        cause: Cause,
        action: ReferentialAction,
    ) -> Result<()> {
        let table = &child.table;
        let orphans = format!("{} AND NOT EXISTS ({})", not_null(table, key), parent_of(&target.table, table, key));
        let name = quoted_name(table);
        let sql = match (action, cause) {
            (ReferentialAction::NoAction | ReferentialAction::Restrict, _) => {
                return match self.dangling(table, &target.table, key).await? {
                    Some(columns) => Err(still_referred(&target.table, table, key, &columns, 0)),
                    None => Ok(()),
                };
            }
            (ReferentialAction::Cascade, Cause::Deleted) => format!("DELETE FROM {name} c WHERE {orphans}"),
            (ReferentialAction::SetNull, _) => {
                let set = key.columns.iter().map(|&at| format!("{} = NULL", quoted(&table.columns[at].name)));
                format!("UPDATE {name} c SET {} WHERE {orphans}", set.collect::<Vec<_>>().join(", "))
            }
            (ReferentialAction::Cascade, Cause::Updated) => return Err(too_many_keys(target, key)),
        };
        let parameters = self.parameters.take();
        let done = match parse(&sql)? {
            Statement::Delete(delete) => Box::pin(self.delete(&delete)).await.map(drop),
            Statement::Update(update) => Box::pin(self.update(&update)).await.map(drop),
            _ => Err(Error::internal("a change of referring rows is an UPDATE or a DELETE")),
        };
        self.parameters = parameters;
        done
    }

    /// Whether a row of `child` refers to one of the keys. Of a key that has only just come, this says that another row had it
    /// before: rows that refer to it are older.
    async fn refers(&self, child: &TableState, key: &ForeignKey, keys: &KeySet) -> Result<bool> {
        for values in keys.groups(MAX_LOOKUP_KEYS)? {
            let lookup = Lookup {
                table: &child.table.name,
                positions: key.columns.clone(),
                key: key.columns.clone(),
                values,
                limit: Some(1),
            };
            if self.lookup(lookup).await?.iter().any(|batch| batch.num_rows() > 0) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A row of `child` that refers to nothing.
    async fn dangling(&self, child: &Table, parent: &Table, key: &ForeignKey) -> Result<Option<Vec<ArrayRef>>> {
        let columns = key.columns.iter().map(|&at| format!("c.{}", quoted(&child.columns[at].name)));
        let sql = format!(
            "SELECT {} FROM {} c WHERE {} AND NOT EXISTS ({}) LIMIT 1",
            columns.collect::<Vec<_>>().join(", "),
            quoted_name(child),
            not_null(child, key),
            parent_of(parent, child, key),
        );
        let query = datafusion::sql::sqlparser::ast::Statement::Query(Box::new(parse_query(&sql)?));
        let (_, mut rows) = self.query(Box::new(query), None).await?;
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            if batch.num_rows() > 0 {
                return Ok(Some(batch.columns().to_vec()));
            }
        }
        Ok(None)
    }

    /// Has the commit look at the other side's shards: those of the keys if they decide the shard, else all.
    fn watch(&mut self, other: &TableState, columns: &[usize], absent: Absent, keys: &KeySet) -> Result<()> {
        let table = &other.table;
        let since = self.transaction.begun().version();
        let validation = |shard| Validation { table: table.id, shard, absent, since };
        let order: Option<Vec<usize>> =
            table.shard_key.iter().map(|at| columns.iter().position(|column| column == at)).collect();
        let order = order.filter(|order| !order.is_empty() && !keys.overflowed);
        let Some(order) = order else {
            self.transaction.validate([validation(None)]);
            return Ok(());
        };
        let mut shards = HashSet::new();
        for values in keys.groups(usize::MAX)? {
            let key = order.iter().zip(&table.shard_key).map(|(&at, &position)| {
                let values = to_transit(table, position, &values[at], 1)?;
                Ok(stored_column(&values, table.columns[position].sql_type)?)
            });
            shards.extend(shards_of(&key.collect::<Result<Vec<_>>>()?, table.shards)?);
        }
        self.transaction.validate(shards.into_iter().map(|shard| validation(Some(shard))));
        Ok(())
    }
}

/// ON UPDATE CASCADE: the rows with the keys that theirs became.
fn following(table: &Table, key: &ForeignKey, keys: &KeySet, old: &RecordBatch) -> Result<RecordBatch> {
    let before: Vec<ArrayRef> = key.columns.iter().map(|&at| Arc::clone(old.column(at))).collect();
    let rows = keys.rows(&before)?;
    let mut after = Vec::with_capacity(rows.num_rows());
    for row in &rows {
        let row = row.owned();
        let became = keys.became(&row).flatten().cloned();
        after.push(became.ok_or_else(|| Error::internal("a referring row was found by no key"))?);
    }
    let after = keys.columns(after.iter().map(|row| row.row()))?;
    let mut columns = old.columns().to_vec();
    for (&at, values) in key.columns.iter().zip(&after) {
        columns[at] = to_transit(table, at, values, 1)?;
    }
    Ok(RecordBatch::try_new(nullable_schema(table), columns)?)
}

/// SET NULL.
fn with_nulls(table: &Table, key: &ForeignKey, old: &RecordBatch) -> Result<RecordBatch> {
    let mut columns = old.columns().to_vec();
    for &at in &key.columns {
        columns[at] = new_null_array(&transit_type(table.columns[at].sql_type), old.num_rows());
    }
    Ok(RecordBatch::try_new(nullable_schema(table), columns)?)
}

/// The rows that follow cannot be told by what is there when all is done.
fn too_many_keys(target: &Target, key: &ForeignKey) -> Error {
    let message = format!("more than {} keys of table {} change at once", super::keys::MAX_KEYS, target.table.name);
    WireError::new(ErrorCode::ResourceExhausted, message)
        .with_hint(format!("change fewer at a time: rows follow them by {}", key.name))
        .into()
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn quoted_name(table: &Table) -> String {
    format!("{}.{}", quoted(&table.name.schema), quoted(&table.name.table))
}

fn not_null(child: &Table, key: &ForeignKey) -> String {
    let columns = key.columns.iter().map(|&at| format!("c.{} IS NOT NULL", quoted(&child.columns[at].name)));
    columns.collect::<Vec<_>>().join(" AND ")
}

fn parent_of(parent: &Table, child: &Table, key: &ForeignKey) -> String {
    let pairs = key.columns.iter().zip(&key.parent_columns).map(|(&column, &parent_column)| {
        format!("p.{} = c.{}", quoted(&parent.columns[parent_column].name), quoted(&child.columns[column].name))
    });
    format!("SELECT 1 FROM {} p WHERE {}", quoted_name(parent), pairs.collect::<Vec<_>>().join(" AND "))
}

fn names(table: &Table, columns: &[usize]) -> String {
    columns.iter().map(|&at| table.columns[at].name.as_str()).collect::<Vec<_>>().join(", ")
}

fn no_parent(child: &Table, parent: &Table, key: &ForeignKey, columns: &[ArrayRef], row: usize) -> Error {
    let text = key_text(columns, row);
    let message = format!(
        "{} of table {}: ({}) = ({text}) is not in table {}",
        key.name,
        child.name,
        names(child, &key.columns),
        parent.name
    );
    violation(child, key, text, message, format!("insert the row into {} first, or change the key", parent.name))
}

fn still_referred(parent: &Table, child: &Table, key: &ForeignKey, columns: &[ArrayRef], row: usize) -> Error {
    let text = key_text(columns, row);
    let message = format!(
        "{} of table {}: rows still refer to ({}) = ({text}) of table {}",
        key.name,
        child.name,
        names(parent, &key.parent_columns),
        parent.name
    );
    violation(child, key, text, message, format!("change or delete those rows of {} first", child.name))
}

fn violation(child: &Table, key: &ForeignKey, text: String, message: String, hint: String) -> Error {
    WireError::new(ErrorCode::ConstraintViolation, message)
        .with_hint(hint)
        .with_field("constraint", &key.name)
        .with_field("table", &child.name)
        .with_field("key", text)
        .into()
}
