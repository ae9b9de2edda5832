//! What a snapshot sees of some shards: segments, which of their rows not, and the buffer's rows; all taken at one moment,
//! so that nothing that moves from the buffer into a segment is seen twice or not at all.
//!
//! A snapshot is asked only when all commits up to it have been applied, so nothing of it changes but its place.

use std::sync::Arc;

use datafusion::execution::SendableRecordBatchStream;
use drsdb_core::Result;

use super::{
    Store,
    deletes::Mask,
    segment::Segment,
    store::{Locks, Shard},
};
use crate::engine::{ScanRequest, ShardId};

/// See the module.
pub struct Snapshot {
    /// Segments, and the rows of them that the snapshot does not see.
    pub segments: Vec<(Arc<Segment>, Option<Arc<Mask>>)>,
    /// Rows of the buffer, if it has any of these shards.
    pub buffer: Option<SendableRecordBatchStream>,
}

/// Collects what a scan is to read. May block for a moment.
pub fn collect(store: &Store, request: &ScanRequest) -> Result<Snapshot> {
    let mut ids: Vec<ShardId> =
        request.shards.iter().map(|&shard| ShardId { table: request.table.id, shard }).collect();
    ids.sort_unstable();
    let locks: Vec<Arc<Locks>> = {
        let state = store.state.read();
        state.check_not_dropped(&request.table)?;
        ids.iter().filter_map(|id| state.shards.get(id)).map(|shard| Arc::clone(&shard.locks)).collect()
    };
    let _switches: Vec<_> = locks.iter().map(|locks| locks.switch.read()).collect();
    let state = store.state.read();
    state.check_not_dropped(&request.table)?;
    let shards: Vec<(u32, &Shard)> = request
        .shards
        .iter()
        .filter_map(|&shard| Some((shard, state.shards.get(&ShardId { table: request.table.id, shard })?)))
        .collect();
    let mut segments = Vec::new();
    for (_, shard) in &shards {
        shard.check(&request.table, request.snapshot.min(request.except.unwrap_or(u64::MAX)), false)?;
        let visible = shard.segments.iter().filter(|segment| segment.is_visible_at(request.snapshot, request.own));
        segments.extend(visible.map(|segment| {
            let excepted = request.except.filter(|except| segment.is_visible_at(*except, None));
            let gone = segment.mask(request.snapshot, request.own);
            (Arc::clone(segment), gone, excepted.map(|except| segment.mask(except, None)))
        }));
    }
    let buffered: Vec<u32> = shards.iter().filter(|(_, shard)| shard.buffered).map(|(number, _)| *number).collect();
    drop(state);
    let buffer = match buffered.is_empty() {
        true => None,
        false => Some(store.buffer.scan(ScanRequest { shards: buffered, ..request.clone() })?),
    };
    let segments = segments.into_iter().filter_map(|(segment, gone, excepted)| {
        let gone = match excepted {
            None => gone,
            // Of what both see, only rows are left that the other does not see any more.
            Some(mask) => Some(Arc::new(mask?.inverse(gone.as_deref(), segment.record().rows)?)),
        };
        Some((segment, gone))
    });
    Ok(Snapshot { segments: segments.collect(), buffer })
}
