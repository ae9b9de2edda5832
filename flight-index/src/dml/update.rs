//! UPDATE, DELETE and TRUNCATE.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, BooleanArray, RecordBatch},
    compute::filter_record_batch,
    row::OwnedRow,
};
use datafusion::sql::sqlparser::ast;
use drsdb_core::{ErrorCode, Result, Table, TableName, Ulid, WireError, transit::transit_type};
use futures::{FutureExt, StreamExt, TryStreamExt, future::ready, stream};

use super::{
    effects::{Effects, prepare},
    executor::{Executor, Written, check_type, full_width, nullable_schema, to_transit},
    keys::KeySet,
    returning::Returning,
    select::{Question, TargetName, delete_target, of_constants, of_delete, of_update, refused},
    target::Target,
};
use crate::catalog::TableState;

/// Rows of a joining UPDATE or DELETE, or of MERGE, at most: each must be told from those that came before.
const MAX_JOINED_ROWS: usize = 5_000_000;

/// How many batches of changes are prepared at a time, besides the one that is being taken.
const PREPARE_AHEAD: usize = 2;

/// Tells rows of the target table that came before.
pub(super) struct Seen {
    keys: KeySet,
    rows: HashSet<OwnedRow>,
}

impl Seen {
    pub fn new(target: &Target) -> Result<Self> {
        let table = &target.table;
        let types = table.primary_key.iter().map(|&at| transit_type(table.columns[at].sql_type));
        Ok(Self { keys: KeySet::new(types.collect::<Vec<_>>())?, rows: HashSet::new() })
    }

    /// Which rows are there for the first time.
    pub fn first_time(&mut self, target: &Target, old: &RecordBatch) -> Result<BooleanArray> {
        let key: Vec<ArrayRef> = target.table.primary_key.iter().map(|&at| Arc::clone(old.column(at))).collect();
        let rows = self.keys.rows(&key)?;
        let first = rows.iter().map(|row| self.rows.insert(row.owned())).collect::<Vec<_>>();
        if self.rows.len() > MAX_JOINED_ROWS {
            let message = format!("the statement changes more than {MAX_JOINED_ROWS} rows by a join");
            return Err(WireError::new(ErrorCode::ResourceExhausted, message)
                .with_hint("change fewer rows at a time")
                .into());
        }
        Ok(BooleanArray::from(first))
    }
}

impl Executor<'_> {
    pub(super) async fn update(&mut self, update: &ast::Update) -> Result<Written> {
        if update.or.is_some() || update.output.is_some() || !update.order_by.is_empty() || update.limit.is_some() {
            return Err(refused("UPDATE with OR, OUTPUT, ORDER BY or LIMIT", "say in WHERE which rows to change"));
        }
        let name = TargetName::of(&update.table.relation)?;
        let target = self.target(&name.name)?;
        let returning = self.returning(update.returning.as_ref(), &name, &target)?;
        let question = of_update(update, &name, &target.table, &target.needed_of_old())?;
        let written = self.change(&target, &name, question, returning).await?;
        if written.rows == 0 {
            self.check_constants(update, &target.table).await?;
        }
        Ok(written)
    }

    /// Fails for a constant that its column cannot have, as it does where rows are changed: an UPDATE is not to be right only
    /// as long as it finds none.
    async fn check_constants(&self, update: &ast::Update, table: &Table) -> Result<()> {
        let Some((query, positions)) = of_constants(update, table)? else { return Ok(()) };
        let (_, mut rows) = self.query(query, None).await?;
        while let Some(batch) = rows.try_next().await? {
            for (&position, values) in positions.iter().zip(batch.columns()) {
                to_transit(table, position, values, 1)?;
            }
        }
        Ok(())
    }

    pub(super) async fn delete(&mut self, delete: &ast::Delete) -> Result<Written> {
        if delete.output.is_some() || !delete.order_by.is_empty() || delete.limit.is_some() {
            return Err(refused("DELETE with OUTPUT, ORDER BY or LIMIT", "say in WHERE which rows to delete"));
        }
        let name = delete_target(delete)?;
        let target = self.target(&name.name)?;
        let returning = self.returning(delete.returning.as_ref(), &name, &target)?;
        let old = match returning {
            Some(_) => (0..target.table.columns.len()).filter(|&at| !target.table.columns[at].dropped).collect(),
            None => target.needed_to_delete(),
        };
        let question = of_delete(delete, &name, &target.table, old)?;
        self.change(&target, &name, question, returning).await
    }

    /// All rows of the tables; with `cascade` those of all tables that refer to them as well.
    pub(super) async fn truncate(&mut self, names: &[TableName], if_exists: bool, cascade: bool) -> Result<Written> {
        let state = self.services.catalog.state();
        let mut tables: Vec<Arc<TableState>> = Vec::with_capacity(names.len());
        for name in names {
            match if_exists {
                true => tables.extend(state.table_by_name(name).cloned()),
                false => tables.push(Arc::clone(state.find_table(name)?)),
            }
        }
        let mut at = 0;
        while cascade && at < tables.len() {
            let children: Vec<_> = state.children(tables[at].table.id).cloned().collect();
            let is_new = |child: &Arc<TableState>| tables.iter().all(|known| known.table.id != child.table.id);
            let children: Vec<_> = children.into_iter().filter(is_new).collect();
            tables.extend(children);
            at += 1;
        }
        let emptied: BTreeSet<Ulid> = tables.iter().map(|table| table.table.id).collect();
        for table in tables {
            let name = &table.table.name;
            let quoted = |part: &str| format!("\"{}\"", part.replace('"', "\"\""));
            let sql = format!("DELETE FROM {}.{}", quoted(&name.schema), quoted(&name.table));
            let crate::statement::Statement::Delete(delete) = crate::statement::parse(&sql)? else {
                return Err(drsdb_core::Error::internal("a DELETE is a DELETE"));
            };
            let mut target = self.new_target(&table)?;
            target.emptied.clone_from(&emptied);
            let name = delete_target(&delete)?;
            let question = of_delete(&delete, &name, &table.table, target.needed_to_delete())?;
            self.change(&Arc::new(target), &name, question, None).await?;
        }
        // It says nothing of how many there were, as other databases.
        Ok(Written { rows: 0, returned: None })
    }

    /// Replaces or deletes the rows that the question answers with.
    async fn change(
        &mut self,
        target: &Arc<Target>,
        name: &TargetName,
        question: Question,
        mut returning: Option<Returning>,
    ) -> Result<Written> {
        if target.table.primary_key.is_empty() {
            return Err(refused(
                "changing rows of a table without identities",
                "create the table anew, and copy its rows",
            ));
        }
        let Question { query, old: old_columns, new: new_columns, joins, alone } = question;
        let found = match &alone {
            Some(statement) => self.by_key(target, name, statement, &old_columns).await?,
            None => None,
        };
        let (schema, rows) = match found {
            Some(row) => (row.schema(), stream::iter([Ok(row)]).boxed()),
            None => self.query(query, Some(target.table.id)).await?,
        };
        for (&position, field) in new_columns.iter().zip(schema.fields().iter().skip(old_columns.len())) {
            check_type(&target.table, position, field.data_type())?;
        }
        let mut stager = self.transaction.stager();
        let mut effects = Effects::new(target, &mut stager)?;
        let mut seen = if joins { Some(Seen::new(target)?) } else { None };
        let mut found = 0;
        let mut begin = |batch: Result<RecordBatch>| {
            let batch = batch?;
            let table = &target.table;
            let (old, new) = batch.columns().split_at(old_columns.len());
            let mut before = full_width(table, &old_columns, old, batch.num_rows(), found + 1)?;
            let mut after = match new_columns.is_empty() {
                true => None,
                false => {
                    let mut columns = before.columns().to_vec();
                    for (&position, values) in new_columns.iter().zip(new) {
                        columns[position] = to_transit(table, position, values, found + 1)?;
                    }
                    Some(RecordBatch::try_new(nullable_schema(table), columns)?)
                }
            };
            if let Some(seen) = &mut seen {
                // Of several matches one counts, and which is not said.
                let first = seen.first_time(target, &before)?;
                before = filter_record_batch(&before, &first)?;
                after = after.map(|after| filter_record_batch(&after, &first)).transpose()?;
            }
            if let Some(returning) = &mut returning {
                returning.add(after.as_ref().unwrap_or(&before))?;
            }
            let rows_before = found;
            found += before.num_rows() as u64;
            Ok(prepare(target, Some(before), after, rows_before))
        };
        // An error waits for its turn as well: of several, the first batch's counts.
        let changes = rows.map(|batch| match begin(batch) {
            Ok(prepared) => prepared.left_future(),
            Err(error) => ready(Err(error)).right_future(),
        });
        let mut changes = changes.buffered(PREPARE_AHEAD);
        loop {
            let next = tokio::select! {
                biased;
                error = stager.failure() => return Err(error),
                next = changes.next() => next,
            };
            let Some(prepared) = next else { break };
            effects.take(prepared?, &mut stager).await?;
        }
        drop(changes);
        self.end(target, effects, stager, returning).await
    }
}
