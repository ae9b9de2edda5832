//! What a statement has brought about so far: what is being staged, and what is left to look at when all of it is.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use drsdb_core::{ReferentialAction, Result, transit::transit_type};

use super::{keys::KeySet, target::Target};
use crate::{
    offload::{is_small, offload},
    transaction::{Rows, Stager},
};

/// Changes of some rows, divided by shard.
#[derive(Debug, Default)]
pub struct Prepared {
    /// Rows of the statement's table that change.
    pub rows: u64,
    pub(super) parts: Vec<Part>,
    /// For each foreign key of the table, keys that must be there.
    pub(super) parent_keys: Vec<Vec<ArrayRef>>,
    /// For each foreign key that refers to the table, keys of rows that are deleted.
    pub(super) gone_keys: Vec<Vec<ArrayRef>>,
    /// For each foreign key that refers to the table, keys that rows had, then those that they have instead.
    pub(super) moved_keys: Vec<Vec<ArrayRef>>,
    /// For each foreign key that refers to the table, keys that have come.
    pub(super) come_keys: Vec<Vec<ArrayRef>>,
}

/// Rows or keys of one shard.
#[derive(Debug)]
pub(super) struct Part {
    /// Which UNIQUE constraint's keys; `None`: the table's own rows.
    pub unique: Option<usize>,
    pub rows: Rows,
    pub shard: u32,
    pub batch: RecordBatch,
}

/// Prepares changes of one batch. The statement has changed `rows` rows before.
pub(super) fn prepare(
    target: &Arc<Target>,
    old: Option<RecordBatch>,
    new: Option<RecordBatch>,
    rows: u64,
) -> impl Future<Output = Result<Prepared>> + Send + use<> {
    let target = Arc::clone(target);
    let small = is_small(old.iter().chain(&new));
    offload(small, "checking rows", move || target.prepare(old, new, rows + 1, rows))
}

/// What one statement did to one table.
#[derive(Debug)]
pub struct Effects {
    /// Rows that were changed.
    pub rows: u64,
    pub(super) parent_keys: Vec<KeySet>,
    pub(super) gone_keys: Vec<KeySet>,
    pub(super) moved_keys: Vec<KeySet>,
    pub(super) come_keys: Vec<KeySet>,
    table: usize,
    uniques: Vec<usize>,
}

impl Effects {
    /// Nothing yet.
    pub fn new(target: &Target, stager: &mut Stager) -> Result<Self> {
        let types = |table: &drsdb_core::Table, columns: &[usize]| {
            KeySet::new(columns.iter().map(|&at| transit_type(table.columns[at].sql_type)).collect::<Vec<_>>())
        };
        let referenced = || target.children.iter().map(|(_, key)| types(&target.table, &key.parent_columns));
        Ok(Self {
            rows: 0,
            parent_keys: target
                .parents
                .iter()
                .map(|(key, _)| types(&target.table, &key.columns))
                .collect::<Result<_>>()?,
            gone_keys: referenced().collect::<Result<_>>()?,
            moved_keys: referenced().collect::<Result<_>>()?,
            come_keys: referenced().collect::<Result<_>>()?,
            table: stager.table(&target.state),
            uniques: target.uniques.iter().map(|unique| stager.table(&unique.index)).collect(),
        })
    }

    /// Takes changes in and hands them to the stager.
    pub async fn take(&mut self, prepared: Prepared, stager: &mut Stager) -> Result<()> {
        self.rows += prepared.rows;
        for (known, keys) in self.parent_keys.iter_mut().zip(&prepared.parent_keys) {
            if !keys.is_empty() {
                known.add(keys, None)?;
            }
        }
        for (known, keys) in self.come_keys.iter_mut().zip(&prepared.come_keys) {
            if !keys.is_empty() {
                known.add(keys, None)?;
            }
        }
        for (known, keys) in self.gone_keys.iter_mut().zip(&prepared.gone_keys) {
            if !keys.is_empty() {
                known.add(keys, None)?;
            }
        }
        for (known, keys) in self.moved_keys.iter_mut().zip(&prepared.moved_keys) {
            if !keys.is_empty() {
                let (before, after) = keys.split_at(known.width());
                known.add(before, Some(after))?;
            }
        }
        for part in prepared.parts {
            let table = part.unique.map_or(self.table, |at| self.uniques[at]);
            stager.add(table, part.rows, part.shard, part.batch).await?;
        }
        Ok(())
    }

    /// Prepares and takes changes of one batch.
    pub async fn change(
        &mut self,
        target: &Arc<Target>,
        old: Option<RecordBatch>,
        new: Option<RecordBatch>,
        stager: &mut Stager,
    ) -> Result<()> {
        let prepared = prepare(target, old, new, self.rows).await?;
        self.take(prepared, stager).await
    }

    /// Keys that the same statement has brought back are not gone for who only asks that they be there. Who follows, follows
    /// the row that had the key: another one that has it now is not what was referred to.
    pub(super) fn forget_what_came_back(&mut self, target: &Target) -> Result<()> {
        for (at, (_, key)) in target.children.iter().enumerate() {
            let come = &self.come_keys[at];
            if come.is_empty() || come.overflowed {
                continue;
            }
            for group in come.groups(usize::MAX)? {
                if !follows(key.on_delete) {
                    self.gone_keys[at].remove(&group)?;
                }
                if !follows(key.on_update) {
                    self.moved_keys[at].remove(&group)?;
                }
            }
        }
        Ok(())
    }
}

/// Whether referring rows change with what they refer to.
pub(super) fn follows(action: ReferentialAction) -> bool {
    match action {
        ReferentialAction::NoAction | ReferentialAction::Restrict => false,
        ReferentialAction::Cascade | ReferentialAction::SetNull => true,
    }
}
