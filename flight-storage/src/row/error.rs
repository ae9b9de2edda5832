//! SQLite's errors as drsdb's: a full disk and a damaged file have codes of their own. Not here: constraint violations,
//! which need the row ([`super::primary_key`]).

use drsdb_core::{Error, ErrorCode, Result, WireError};
use rusqlite::ffi;

use crate::engine::ShardId;

/// Says what was being done when SQLite failed.
pub(crate) trait Context<T> {
    fn context(self, what: &str) -> Result<T>;
}

impl<T> Context<T> for rusqlite::Result<T> {
    fn context(self, what: &str) -> Result<T> {
        self.map_err(|error| from_sqlite(what, &error))
    }
}

/// The error of drsdb for an error of SQLite.
pub(crate) fn from_sqlite(what: &str, error: &rusqlite::Error) -> Error {
    let message = format!("row engine, {what}: {error}");
    let extended = error.sqlite_extended_error_code().unwrap_or(0);
    let wire = match error.sqlite_error_code() {
        // The shared-memory file beside the WAL is grown with its own error code when the disk is full.
        Some(ffi::ErrorCode::DiskFull) => disk_full(message),
        _ if extended == ffi::SQLITE_IOERR_SHMSIZE => disk_full(message),
        Some(ffi::ErrorCode::DatabaseCorrupt | ffi::ErrorCode::NotADatabase) => corrupt(message),
        Some(ffi::ErrorCode::TooBig) => {
            WireError::new(ErrorCode::InvalidValue, message).with_hint("a row can hold 1 GB at most: store less in it")
        }
        Some(ffi::ErrorCode::OutOfMemory) => WireError::new(ErrorCode::ResourceExhausted, message),
        _ => WireError::new(ErrorCode::Internal, message),
    };
    wire.into()
}

/// The file holds something that the engine cannot have written.
pub(crate) fn corrupt(message: impl Into<String>) -> WireError {
    WireError::new(ErrorCode::Corrupt, message)
        .with_hint("check the server's disk, then start it again: it has its shards copied from other replicas")
}

fn disk_full(message: String) -> WireError {
    WireError::new(ErrorCode::DiskFull, message).with_hint("free space on the server's disk, then retry")
}

/// Says which shard is damaged, so that it can be rebuilt.
pub(crate) fn name_shard(error: Error, id: ShardId) -> Error {
    match error.code() {
        ErrorCode::Corrupt => {
            let (table, shard) = (id.table, id.shard);
            let mut wire = error.to_wire().with_field("table_id", table).with_field("shard", shard);
            wire.message = format!("shard {shard} of table {table}: {}", wire.message);
            wire.into()
        }
        _ => error,
    }
}

/// Whether an INSERT failed because its key is there already.
pub(crate) fn is_duplicate(error: &rusqlite::Error) -> bool {
    error.sqlite_extended_error_code() == Some(ffi::SQLITE_CONSTRAINT_UNIQUE)
}
