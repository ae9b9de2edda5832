//! From the spool into the engine.

use std::sync::Arc;

use drsdb_core::{Error, ErrorCode, Result, Table, v1::stage_request::Part};

use super::spool::Spool;
use crate::{engine::StageOptions, engines::Engines, row_messages::take};

/// Stages the complete calls from number `from` on whose changes are not in the copy, made at the snapshot `copied`, and
/// commits those that have committed. Answers up to where it came. Blocks.
pub fn replay(engines: &Engines, spool: &Spool, shard: u32, copied: u64, from: usize) -> Result<usize> {
    let mut at = from;
    loop {
        // An outcome that arrives now waits, and then finds staged what it decides about.
        let _outcomes_wait = spool.applying.lock();
        let Some(kept) = spool.kept(at) else { return Ok(at) };
        at += 1;
        let wanted = match kept.outcome {
            // In the copy, or never.
            Some(Some(version)) => version > copied,
            Some(None) => false,
            None => true,
        };
        if wanted && !kept.undone {
            stage(engines, shard, spool.messages(kept))?;
        }
        if let Some(Some(version)) = kept.outcome
            && wanted
            && kept.last
        {
            engines.commit(kept.transaction, version)?;
        }
    }
}

fn stage(
    engines: &Engines,
    shard: u32,
    mut messages: impl Iterator<Item = Result<drsdb_core::v1::StageRequest>>,
) -> Result<()> {
    let broken = || Error::new(ErrorCode::Corrupt, "a kept call does not begin with its header");
    let Some(Part::Header(header)) = messages.next().transpose()?.and_then(|message| message.part) else {
        return Err(broken());
    };
    let table = Arc::new(Table::from_proto(header.table.as_ref().ok_or_else(broken)?)?);
    let options = StageOptions {
        transaction: drsdb_core::parse_ulid(&header.transaction_id)?,
        sequence: header.sequence.max(1),
        snapshot: header.snapshot,
        checked: false,
    };
    let mut writer = engines.stage(options, &table, shard)?;
    for message in messages {
        take(&mut *writer, &table, message?.part)?;
    }
    writer.finish().map(drop)
}
