//! Bulk loads: rows in, one committed transaction out, in bounded memory.
//!
//! # Life of a load
//!
//! 1. [`Loader::load`] matches the columns of the rows with the table's ([`convert`]).
//! 2. Each batch is cast and checked ([`cast`]) and divided by shard ([`split`]), two at a time, off the async threads.
//! 3. Full pieces go to the shard's writer ([`stage`]), which encodes them ([`encode`]) and streams them to every replica
//!    ([`transport`]). Channels are short: a slow server slows the client down.
//! 4. When all servers have staged durably, one `CommitTransaction` makes the rows visible, all at once. Before that,
//!    any error, and a client that goes away, undoes everything.
//!
//! [`insert`] evaluates `INSERT ... VALUES` and loads the result the same way. Not here: what storage servers check
//! when they stage (the primary key), and who may load.

mod cast;
mod convert;
mod encode;
pub mod insert;
mod split;
mod stage;
#[cfg(test)]
pub mod testing;
mod transport;

use std::sync::Arc;

use arrow::{array::RecordBatch, datatypes::SchemaRef};
pub use cast::{parse_ulid, parse_uuid};
use drsdb_core::{Error, Result, ids::new_ulid};
use futures::{Stream, StreamExt, TryStreamExt, stream};
pub use transport::{GrpcTransport, StageTransport};

use crate::{catalog::TableState, raft::Catalog};
use convert::Converter;
pub use convert::unknown_column;
use split::Buffers;
use stage::Transaction;

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
    catalog: Arc<Catalog>,
    transport: Arc<dyn StageTransport>,
}

impl Loader {
    /// A loader that commits through `catalog` and stages through `transport`.
    pub fn new(catalog: Arc<Catalog>, transport: Arc<dyn StageTransport>) -> Self {
        Self { catalog, transport }
    }

    /// Loads batches of `schema` into the table as one transaction. Dropping the future undoes the load.
    pub async fn load(
        &self,
        table: &TableState,
        schema: SchemaRef,
        batches: impl Stream<Item = Result<RecordBatch>> + Send,
    ) -> Result<LoadOutcome> {
        let converter = Arc::new(Converter::new(Arc::clone(&table.table), &schema)?);
        let definition = Arc::clone(&table.table);
        let id = new_ulid();
        let mut transaction = Transaction::new(id, Arc::clone(&self.catalog), Arc::clone(&self.transport), table);
        let mut buffers = Buffers::new(table.table.shards);
        // Small loads without a shard key must not all go to shard 0.
        let (mut first_row, mut batch_number) = (1u64, id.random() as u64 >> 1);
        let slices = batches.map_ok(|batch| stream::iter(slices_of(batch).map(Ok))).try_flatten();
        let divided = slices.map_ok(move |batch| {
            let (converter, table) = (Arc::clone(&converter), Arc::clone(&definition));
            let (row, number) = (first_row, batch_number);
            first_row += batch.num_rows() as u64;
            batch_number += 1;
            async move {
                let work = move || split::split(&table, converter.convert(&batch, row)?, number);
                let done = tokio::task::spawn_blocking(work).await;
                done.unwrap_or_else(|panic| Err(Error::internal(format!("casting rows failed: {panic}"))))
            }
        });
        let mut divided = std::pin::pin!(divided.try_buffered(CONVERT_AHEAD));
        let (mut ready, mut rows) = (Vec::new(), 0);
        loop {
            // A server's refusal ends the load at once, and not when its channel is next written to.
            let next = tokio::select! {
                biased;
                error = transaction.failure() => Err(error),
                next = divided.next() => next.transpose(),
            };
            let parts = match next {
                Ok(Some(parts)) => parts,
                Ok(None) => break,
                Err(error) => return Err(transaction.abort(error).await),
            };
            for (shard, batch) in parts {
                rows += batch.num_rows() as u64;
                buffers.add(shard, batch, &mut ready);
            }
            for piece in ready.drain(..) {
                if let Err(error) = transaction.send(piece).await {
                    return Err(transaction.abort(error).await);
                }
            }
        }
        // A client that resets its call looks like one whose data has ended: HTTP/2 servers hide that from a body. But they
        // drop the call's future when it next waits. So it waits once, and nothing of a broken load goes on.
        tokio::task::yield_now().await;
        for piece in buffers.finish() {
            if let Err(error) = transaction.send(piece).await {
                return Err(transaction.abort(error).await);
            }
        }
        let version = transaction.commit().await?;
        Ok(LoadOutcome { rows, version })
    }
}

fn slices_of(batch: RecordBatch) -> impl Iterator<Item = RecordBatch> + Send {
    let rows = batch.num_rows();
    (0..rows).step_by(CONVERT_ROWS).map(move |start| batch.slice(start, CONVERT_ROWS.min(rows - start)))
}

#[cfg(test)]
mod tests;
