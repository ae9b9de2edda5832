//! Rows that come from outside, in bounded memory: bulk loads and INSERT.
//!
//! # Life of a load
//!
//! 1. [`Loader::load_into`] matches the columns of the rows with the table's ([`convert`]); columns that are not given get
//!    their DEFAULT.
//! 2. Each batch is cast and checked ([`cast`]), and what it changes is divided by shard ([`crate::dml::Target`]), two at a
//!    time, and off the async threads if they are large.
//! 3. The statement's [`Stager`](crate::transaction::Stager) takes it to the storage servers. Channels are short: a slow server slows the client down.
//! 4. When all servers have staged durably, the transaction may commit. Before that, any error, and a client that goes away,
//!    undoes everything.
//!
//! [`insert`] evaluates `INSERT ... VALUES`. Not here: what storage servers check when they stage (the primary key), and who
//! may load.

mod cast;
mod convert;
pub mod insert;
#[cfg(test)]
pub mod testing;

use std::sync::Arc;

use arrow::{array::RecordBatch, datatypes::SchemaRef};
pub use cast::{cast_column, check_assignable, convert_column, parse_ulid, parse_uuid};
pub use convert::{Converter, transit_schema, unknown_column};
use drsdb_core::{Result, query_session::QueryOptions};
use futures::{Stream, StreamExt, TryStreamExt, stream};

use crate::{
    catalog::TableState,
    dml::{Effects, Target},
    offload::{is_small, offload},
    raft::Catalog,
    replication::{ActiveTransactions, Liveness},
    transaction::{StageTransport, Transaction, Writes},
};

/// How many batches are cast and divided at a time.
const CONVERT_AHEAD: usize = 2;
/// Rows of a client's batch that are cast and divided together: what that takes must not depend on the client.
const CONVERT_ROWS: usize = 16 * 1024;

/// What came of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOutcome {
    /// Rows loaded.
    pub rows: u64,
    /// The commit version; of a load without rows, the catalog's version.
    pub version: u64,
}

/// Loads rows into tables.
#[derive(Debug)]
pub struct Loader {
    writes: Arc<Writes>,
}

impl Loader {
    /// A loader that commits through `catalog` and stages through `transport`, on the index server at `coordinator`.
    pub fn new(catalog: Arc<Catalog>, transport: Arc<dyn StageTransport>, coordinator: impl Into<String>) -> Self {
        Self { writes: Arc::new(Writes::new(catalog, transport, coordinator)) }
    }

    /// The same, leaving out servers that do not answer, and telling others which transactions run here.
    pub fn watched(self, liveness: Arc<Liveness>, active: ActiveTransactions) -> Self {
        let writes = Arc::into_inner(self.writes).expect("a loader is completed before it is used");
        Self { writes: Arc::new(writes.watched(liveness, active)) }
    }

    /// What transactions are made with.
    pub fn writes(&self) -> &Arc<Writes> {
        &self.writes
    }

    /// Loads batches of `schema` into a table without foreign keys, as a transaction of its own. Dropping the future undoes
    /// the load.
    pub async fn load(
        &self,
        table: &Arc<TableState>,
        schema: SchemaRef,
        batches: impl Stream<Item = Result<RecordBatch>> + Send,
    ) -> Result<LoadOutcome> {
        let mut transaction = self.writes.begin(self.writes.catalog().state());
        let options = QueryOptions::default();
        let target = Arc::new(Target::new(transaction.begun(), table, &options)?);
        let loaded = Self::load_into(&mut transaction, target, schema, &options, batches).await;
        match loaded {
            Ok(effects) => {
                transaction.statement_done();
                let version = transaction.commit(None, None).await?.version;
                Ok(LoadOutcome { rows: effects.rows, version })
            }
            Err(error) => {
                transaction.abort().await;
                Err(error)
            }
        }
    }

    /// Stages batches of `schema` as one statement of the transaction. What is left to look at, such as foreign keys, is in
    /// the answer. After an error, the statement must be rolled back.
    pub async fn load_into(
        transaction: &mut Transaction,
        target: Arc<Target>,
        schema: SchemaRef,
        options: &QueryOptions,
        batches: impl Stream<Item = Result<RecordBatch>> + Send,
    ) -> Result<Effects> {
        let converter = Arc::new(Converter::new(Arc::clone(&target.table), &schema, options)?);
        let mut stager = transaction.stager();
        let mut effects = Effects::new(&target, &mut stager)?;
        // Small loads without a shard key must not all go to shard 0.
        let (mut first_row, mut batch_number) = (1u64, transaction.id().random() as u64 >> 1);
        let slices = batches.map_ok(|batch| stream::iter(slices_of(batch).map(Ok))).try_flatten();
        let divided = slices.map_ok(move |batch| {
            let (converter, target) = (Arc::clone(&converter), Arc::clone(&target));
            let (row, number) = (first_row, batch_number);
            first_row += batch.num_rows() as u64;
            batch_number += 1;
            async move {
                let small = is_small([&batch]);
                let work = move || target.prepare(None, Some(converter.convert(&batch, row)?), row, number);
                offload(small, "casting rows", work).await
            }
        });
        let mut divided = std::pin::pin!(divided.try_buffered(CONVERT_AHEAD));
        loop {
            // A server's refusal ends the load at once, and not when its channel is next written to.
            let next = tokio::select! {
                biased;
                error = stager.failure() => Err(error),
                next = divided.next() => next.transpose(),
            };
            match next? {
                Some(prepared) => effects.take(prepared, &mut stager).await?,
                None => break,
            }
        }
        // A client that resets its call looks like one whose data has ended: HTTP/2 servers hide that from a body. But they
        // drop the call's future when it next waits. So it waits once, and nothing of a broken load goes on.
        tokio::task::yield_now().await;
        transaction.absorb(stager.finish().await?);
        Ok(effects)
    }
}

fn slices_of(batch: RecordBatch) -> impl Iterator<Item = RecordBatch> + Send {
    let rows = batch.num_rows();
    (0..rows).step_by(CONVERT_ROWS).map(move |start| batch.slice(start, CONVERT_ROWS.min(rows - start)))
}

#[cfg(test)]
mod tests;
