//! What is worth compacting in a shard.
//!
//! Rows leave the buffer when there are many of them, and a segment is written anew when a quarter of it is deleted, or
//! with three others of its size: so that a row is written again a few times in its life, however small the writes are
//! that it came with. When nothing has changed in the shard since the last look, the rest is worth it too: any row of
//! the buffer, all small segments, and those with enough deletions to be felt by scans.

use std::{collections::BTreeMap, sync::Arc};

use drsdb_core::{Result, Table};

use super::{
    Store,
    segment::{NEVER, Segment},
};
use crate::engine::ShardId;

/// Rows in the buffer that are many.
const MANY_ROWS: usize = 8192;

/// Rows that leave the buffer in one step: others' writes wait while they are removed.
const STEP_ROWS: usize = 64 << 10;

/// A segment is written anew when one row of so many is deleted.
const WORN: u64 = 4;

/// The same, when nothing else is to be done.
const SLIGHTLY_WORN: u64 = 128;

/// So many small segments of about a size are written into one.
const TIER_SEGMENTS: usize = 4;

/// What to compact.
#[derive(Debug, Default)]
pub struct Plan {
    /// Rows of the buffer, at most.
    pub rows: usize,
    /// Segments.
    pub segments: Vec<Arc<Segment>>,
    /// Whether there is something that can wait.
    pub more: bool,
}

/// What a shard was when it was last looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Look {
    settled: usize,
    segments: usize,
    deleted: u64,
}

/// A segment that may be worth it.
struct Candidate {
    segment: Arc<Segment>,
    rows: u64,
    deleted: u64,
}

impl Candidate {
    fn left(&self) -> u64 {
        self.rows - self.deleted
    }

    fn is_worn(&self, one_of: u64) -> bool {
        self.deleted > 0 && self.deleted * one_of >= self.rows
    }
}

/// Looks at a shard.
pub fn plan(store: &Store, table: &Table, shard: ShardId, horizon: u64) -> Result<Plan> {
    let (segments, buffered) = {
        let state = store.state.read();
        let Some(shard) = state.shards.get(&shard).filter(|shard| !shard.damaged) else { return Ok(Plan::default()) };
        (shard.segments.clone(), shard.buffered)
    };
    let settled = if buffered { store.buffer.count_settled(shard, horizon, STEP_ROWS)? } else { 0 };
    let old = segments.into_iter().filter(|segment| {
        let from = segment.visible_from();
        from != NEVER && from <= horizon && !segment.is_damaged() && segment.record().columns() <= table.columns.len()
    });
    let candidates: Vec<Candidate> = old
        .map(|segment| {
            let deleted = segment.mask(horizon, None).map_or(0, |mask| mask.rows());
            Candidate { rows: segment.record().rows, segment, deleted }
        })
        .collect();
    let deleted = candidates.iter().map(|candidate| candidate.deleted).sum();
    let look = Look { settled, segments: candidates.len(), deleted };
    let before = store.state.write().shards.get_mut(&shard).map(|shard| std::mem::replace(&mut shard.look, look));
    let is_quiet = before == Some(look);
    let segment_rows = store.options.segment_rows as u64;
    let most = if table.cluster_key.is_empty() { usize::MAX } else { store.options.segment_rows };
    let thorough = choose(settled, &candidates, segment_rows, true, most);
    let more = thorough.rows > 0 || !thorough.segments.is_empty();
    let chosen = if is_quiet { thorough } else { choose(settled, &candidates, segment_rows, false, most) };
    Ok(Plan { more, ..chosen })
}

fn choose(settled: usize, candidates: &[Candidate], segment_rows: u64, is_quiet: bool, most: usize) -> Plan {
    let worn = if is_quiet { SLIGHTLY_WORN } else { WORN };
    let rows = if settled >= MANY_ROWS || is_quiet { settled } else { 0 };
    let mut chosen: Vec<&Candidate> = candidates.iter().filter(|candidate| candidate.is_worn(worn)).collect();
    let small = candidates.iter().filter(|one| !one.is_worn(worn) && one.left() < segment_rows / 2);
    let mut small: Vec<&Candidate> = small.collect();
    if is_quiet {
        // One alone is as good as it gets, unless it has company.
        if small.len() + chosen.len() + usize::from(rows > 0) > 1 {
            chosen.append(&mut small);
        }
    } else {
        let mut tiers: BTreeMap<u32, Vec<&Candidate>> = BTreeMap::new();
        small.into_iter().for_each(|one| tiers.entry((one.left().max(1)).ilog2() / 2).or_default().push(one));
        chosen.extend(tiers.into_values().filter(|tier| tier.len() >= TIER_SEGMENTS).flatten());
    }
    // As many as make one segment, and one in any case; the smallest first.
    chosen.sort_by_key(|candidate| candidate.left());
    let mut sum = rows as u64;
    let fit = chosen.iter().enumerate().take_while(|(at, candidate)| {
        sum += candidate.left();
        sum <= most as u64 || (*at == 0 && rows == 0)
    });
    let fit = fit.count();
    let segments = chosen[..fit].iter().map(|candidate| Arc::clone(&candidate.segment)).collect();
    Plan { rows, segments, more: false }
}
