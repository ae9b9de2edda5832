//! The column engine's two [`StageWriter`]s: for what a statement changes in a shard, and for the import of a whole one.

use std::{collections::HashSet, sync::Arc};

use arrow::record_batch::RecordBatch;
use drsdb_core::{Error, ErrorCode, Result, Table, Ulid, row_bytes};

use super::{
    Store,
    format::stored_schema,
    keys::{Clash, KeyFormat},
    manifest::Change,
    segment::Segment,
    stage::{NewRows, Stager},
    unique::UniqueCheck,
    write::{Loaded, Loader},
};
use crate::engine::{ShardId, StageOptions, StageWriter, StagedPiece};

/// Stages what a statement changes in one shard.
pub struct ColumnStageWriter {
    store: Arc<Store>,
    options: StageOptions,
    table: Arc<Table>,
    shard: ShardId,
    deletes: Vec<RecordBatch>,
    loader: Loader,
}

impl ColumnStageWriter {
    /// A writer without changes.
    pub fn new(store: Arc<Store>, options: StageOptions, table: Arc<Table>, shard: u32) -> Result<Self> {
        let author = (options.transaction, options.sequence);
        let loader = Loader::new(Arc::clone(&store), author, Arc::clone(&table), shard)?;
        let shard = ShardId { table: table.id, shard };
        Ok(Self { store, options, table, shard, deletes: Vec::new(), loader })
    }
}

impl StageWriter for ColumnStageWriter {
    fn delete(&mut self, keys: &RecordBatch) -> Result<()> {
        if self.table.primary_key.is_empty() {
            let message = format!("table {} has no primary key, so its rows cannot be deleted", self.table.name);
            return Err(Error::new(ErrorCode::Unsupported, message));
        }
        // The same arrays under the table's own schema: types and NULLs are checked on the way.
        let keys = RecordBatch::try_new(self.table.key_schema(), keys.columns().to_vec())?;
        if keys.num_rows() > 0 {
            self.deletes.push(keys);
        }
        Ok(())
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.loader.write(batch)
    }

    fn finish(self: Box<Self>) -> Result<StagedPiece> {
        let Self { store, options, table, shard, deletes, loader } = *self;
        let loaded = loader.finish(true)?;
        let primary = KeyFormat::new(&table, &table.primary_key)?;
        let mut piece = piece_of(&loaded)?;
        let rows = match loaded.segments.is_empty() {
            true => NewRows::Buffered(loaded.few),
            false => NewRows::Segments { segments: &loaded.segments, few: &loaded.few },
        };
        let stager = Stager { store: &store, options, table: &table, shard, primary: primary.as_ref() };
        piece.deleted = stager.stage(&deletes, rows)?;
        Ok(piece)
    }
}

fn piece_of(loaded: &Loaded) -> Result<StagedPiece> {
    let records = loaded.segments.iter().map(|segment| segment.record());
    let buffered = if loaded.segments.is_empty() { &loaded.few[..] } else { &[] };
    let rows = records.clone().map(|record| record.rows).sum::<u64>();
    let rows = rows + buffered.iter().map(|batch| batch.num_rows() as u64).sum::<u64>();
    if rows == 0 {
        return Ok(StagedPiece::default());
    }
    let buffered_bytes = buffered.iter().map(|batch| row_bytes(batch) as u64).sum::<u64>();
    Ok(StagedPiece {
        rows,
        deleted: 0,
        bytes: records.clone().map(|record| record.bytes).sum::<u64>() + buffered_bytes,
        segments: records.map(|record| record.id).collect(),
        columns: loaded.gatherer.clone().finish()?.columns(),
    })
}

/// Replaces a shard by segments.
pub struct ImportWriter {
    store: Arc<Store>,
    table: Arc<Table>,
    shard: ShardId,
    version: u64,
    loader: Loader,
}

impl ImportWriter {
    /// An import without rows.
    pub fn new(store: Arc<Store>, table: Arc<Table>, shard: u32, version: u64) -> Result<Self> {
        let loader = Loader::new(Arc::clone(&store), (Ulid::nil(), 0), Arc::clone(&table), shard)?.merging();
        let shard = ShardId { table: table.id, shard };
        Ok(Self { store, table, shard, version, loader })
    }

    /// A copy of a shard has each key once, or it is no copy.
    fn check(&self, segments: &[Arc<Segment>]) -> Result<()> {
        let Some(primary) = KeyFormat::new(&self.table, &self.table.primary_key)? else { return Ok(()) };
        let check = UniqueCheck {
            store: &self.store,
            table: &self.table,
            schema: &stored_schema(&self.table),
            key: &primary,
            sorted: self.table.cluster_key == self.table.primary_key,
            transaction: Ulid::nil(),
            committed: Clash::Committed,
        };
        check.check(segments, &[])
    }
}

impl StageWriter for ImportWriter {
    fn delete(&mut self, _: &RecordBatch) -> Result<()> {
        Err(Error::new(ErrorCode::InvalidArgument, "an import deletes nothing: it replaces the whole shard"))
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.loader.write(batch)
    }

    fn finish(mut self: Box<Self>) -> Result<StagedPiece> {
        let loader = Loader::new(Arc::clone(&self.store), (Ulid::nil(), 0), Arc::clone(&self.table), self.shard.shard)?;
        let loaded = std::mem::replace(&mut self.loader, loader).finish(false)?;
        self.check(&loaded.segments)?;
        let records = loaded.segments.iter().map(|segment| segment.record().clone()).collect();
        let changes = vec![
            Change::Define(Arc::clone(&self.table)),
            Change::Replace { shard: self.shard, segments: records, version: self.version },
        ];
        let gone = self.store.replace_shard(self.shard, changes, |state| {
            state.define(&self.table);
            let shard = state.shards.entry(self.shard).or_default();
            // What the shard was before the version is not known here.
            shard.horizon = self.version;
            for segment in &loaded.segments {
                segment.keep();
                segment.commit(self.version);
                shard.segments.push(Arc::clone(segment));
            }
        })?;
        self.store.forget(&gone);
        piece_of(&loaded)
    }
}

impl Store {
    /// Removes all of a shard, on disk together with `changes` and then in memory together with `change`. Answers the segments
    /// that are gone.
    pub fn replace_shard(
        &self,
        shard: ShardId,
        changes: Vec<Change>,
        change: impl FnOnce(&mut super::store::State),
    ) -> Result<HashSet<Ulid>> {
        let locks = self.locks(shard);
        let _staging = locks.staging.lock();
        let _switch = locks.switch.write();
        self.buffer.drop_shard(shard, changes)?;
        let mut state = self.state.write();
        let gone = state.remove_shards(&[shard]);
        // Those who wait for the shard's locks must find the same ones.
        state.shards.entry(shard).or_default().locks = Arc::clone(&locks);
        change(&mut state);
        Ok(gone)
    }
}
