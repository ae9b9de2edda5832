//! Everything in the node's file carries a digest of itself and of where it belongs: SQLite notices a page that makes no
//! sense, and not a bit that flipped inside a vote or an entry.
//!
//! ```text
//! payload, first 8 bytes of SHA-256(place, payload)
//! ```
//!
//! Not here: a file that has lost its end ([`super::mark`]).

use std::{fmt, path::Path};

use drsdb_core::{Error, ErrorCode, Result, WireError, security::digest::sha256};
use rusqlite::{Connection, params};

const DIGEST_BYTES: usize = 8;

/// Keys of `meta`.
const KEYS: [&str; 6] = ["node", "vote", "committed", "purged", "groups", "rejoined"];

/// Where something belongs in the file.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    /// A log entry.
    Entry(i64),
    /// A note.
    Note(&'a str),
    /// A piece of a snapshot.
    Part(i64, i64),
    /// A snapshot's id, its number of pieces, and its last entry.
    Head(i64, i64, i64),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Entry(index) => write!(f, "entry {index}"),
            Place::Note(key) => write!(f, "note {key}"),
            Place::Part(id, part) => write!(f, "piece {part} of snapshot {id}"),
            Place::Head(id, parts, last) => write!(f, "snapshot {id} of {parts} pieces up to entry {last}"),
        }
    }
}

impl Place<'_> {
    fn digest(self, payload: &[u8]) -> [u8; DIGEST_BYTES] {
        let mut all = self.to_string().into_bytes();
        all.push(0);
        all.extend_from_slice(payload);
        let digest = sha256(&all);
        std::array::from_fn(|at| digest[at])
    }

    /// The payload as it is written.
    pub(super) fn seal(self, payload: &[u8]) -> Vec<u8> {
        let mut sealed = payload.to_vec();
        sealed.extend(self.digest(payload));
        sealed
    }

    /// The payload of what was read.
    pub(super) fn open(self, mut sealed: Vec<u8>) -> Result<Vec<u8>> {
        let length = sealed.len().saturating_sub(DIGEST_BYTES);
        if sealed.len() < DIGEST_BYTES || sealed[length..] != self.digest(&sealed[..length]) {
            return Err(damaged(format!("the catalog's file is damaged: {self} is not what was written")));
        }
        sealed.truncate(length);
        Ok(sealed)
    }
}

/// The error for a file that holds something that cannot have been written.
pub(super) fn damaged(message: String) -> Error {
    WireError::new(ErrorCode::Corrupt, message)
        .with_field(DAMAGED, "true")
        .with_hint(
            "check this server's disk; where other index servers have a majority, remove it from the cluster and let it \
             join again with an empty data_dir and a new node_id, else restore its data_dir from a backup",
        )
        .into()
}

/// The field of [`damaged`]. What can be read and is not understood is `corrupt` too, and is not damaged.
const DAMAGED: &str = "damaged";

/// Whether it is an error of [`damaged`].
pub(super) fn is_damage(error: &Error) -> bool {
    error.to_wire().fields.contains_key(DAMAGED)
}

/// Looks at the whole file: its structure, every entry, every note. The snapshot is looked at when it is read.
///
/// Errors: `corrupt`.
pub(super) fn verify(connection: &Connection, path: &Path) -> Result<()> {
    let unreadable = |error: rusqlite::Error| match error.sqlite_error_code() {
        // It may be whole.
        Some(
            rusqlite::ErrorCode::SystemIoFailure
            | rusqlite::ErrorCode::OutOfMemory
            | rusqlite::ErrorCode::DatabaseBusy
            | rusqlite::ErrorCode::DatabaseLocked
            | rusqlite::ErrorCode::DiskFull
            | rusqlite::ErrorCode::ReadOnly
            | rusqlite::ErrorCode::PermissionDenied
            | rusqlite::ErrorCode::FileLockingProtocolFailed
            | rusqlite::ErrorCode::OperationInterrupted
            | rusqlite::ErrorCode::CannotOpen,
        ) => Error::io(format!("cannot read {}", path.display()), std::io::Error::other(error)),
        _ => damaged(format!("{} is damaged: {error}", path.display())),
    };
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(unreadable)?;
    if verdict != "ok" {
        return Err(damaged(format!("{} is damaged: {verdict}", path.display())));
    }
    for table in ["SELECT one, id, parts, last, meta FROM snapshot_head", "SELECT id, part, bytes FROM snapshot_part"] {
        connection.prepare(table).map_err(unreadable)?;
    }
    let named = |error: Error| damaged(format!("{}: {}", path.display(), error.to_wire().message));
    let mut statement = connection.prepare("SELECT idx, entry FROM log ORDER BY idx").map_err(unreadable)?;
    let mut rows = statement.query([]).map_err(unreadable)?;
    let mut before: Option<i64> = None;
    while let Some(row) = rows.next().map_err(unreadable)? {
        let (index, entry) = (row.get(0).map_err(unreadable)?, row.get(1).map_err(unreadable)?);
        Place::Entry(index).open(entry).map_err(named)?;
        if before.is_some_and(|before| index != before + 1) {
            return Err(damaged(format!("{} is damaged: entries before {index} are missing", path.display())));
        }
        before = Some(index);
    }
    let mut statement = connection.prepare("SELECT key, value FROM meta").map_err(unreadable)?;
    let mut rows = statement.query([]).map_err(unreadable)?;
    while let Some(row) = rows.next().map_err(unreadable)? {
        let (key, value): (String, Vec<u8>) = (row.get(0).map_err(unreadable)?, row.get(1).map_err(unreadable)?);
        if !KEYS.contains(&key.as_str()) {
            return Err(damaged(format!("{} is damaged: it has a note {key:?}", path.display())));
        }
        Place::Note(&key).open(value).map_err(named)?;
    }
    Ok(())
}

/// Up to three numbers that say where it is, and what is there.
type Stored = (i64, i64, i64, Vec<u8>);

/// Seals what is in a file from before there were digests.
pub(super) fn seal_all(connection: &Connection) -> rusqlite::Result<()> {
    let transaction = connection.unchecked_transaction()?;
    let rows = |sql: &str| -> rusqlite::Result<Vec<Stored>> {
        let mut statement = transaction.prepare(sql)?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
        rows.collect()
    };
    for (index, _, _, entry) in rows("SELECT idx, 0, 0, entry FROM log")? {
        let sealed = Place::Entry(index).seal(&entry);
        transaction.execute("UPDATE log SET entry = ?2 WHERE idx = ?1", params![index, sealed])?;
    }
    for (id, part, _, bytes) in rows("SELECT id, part, 0, bytes FROM snapshot_part")? {
        let sealed = Place::Part(id, part).seal(&bytes);
        let sql = "UPDATE snapshot_part SET bytes = ?3 WHERE id = ?1 AND part = ?2";
        transaction.execute(sql, params![id, part, sealed])?;
    }
    for (id, parts, last, meta) in rows("SELECT id, parts, last, meta FROM snapshot_head")? {
        let sealed = Place::Head(id, parts, last).seal(&meta);
        transaction.execute("UPDATE snapshot_head SET meta = ?1", [sealed])?;
    }
    for key in KEYS {
        let sql = "SELECT value FROM meta WHERE key = ?1";
        let value: Option<Vec<u8>> =
            rusqlite::OptionalExtension::optional(transaction.query_row(sql, [key], |row| row.get(0)))?;
        if let Some(value) = value {
            let sealed = Place::Note(key).seal(&value);
            transaction.execute("UPDATE meta SET value = ?2 WHERE key = ?1", params![key, sealed])?;
        }
    }
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_altered_or_moved_is_noticed() {
        let sealed = Place::Entry(7).seal(b"entry");
        assert_eq!(Place::Entry(7).open(sealed.clone()).unwrap(), b"entry");
        assert_eq!(Place::Entry(8).open(sealed.clone()).unwrap_err().code(), ErrorCode::Corrupt);
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 4;
            assert!(Place::Entry(7).open(altered).is_err());
            assert!(Place::Entry(7).open(sealed[..at].to_vec()).is_err());
        }
    }

    #[test]
    fn a_file_from_before_there_were_digests_is_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.sqlite");
        drop(super::super::database::Database::open(dir.path()).unwrap());
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch(
                "INSERT INTO log VALUES (7, x'0102'), (8, x'03');
                 INSERT INTO snapshot_head VALUES (1, 4, 2, 6, x'aa');
                 INSERT INTO snapshot_part VALUES (4, 0, x'01'), (4, 1, x'02');
                 INSERT OR REPLACE INTO meta VALUES ('vote', x'05');
                 PRAGMA user_version = 2;",
            )
            .unwrap();
        drop(connection);
        for _ in 0..2 {
            let database = super::super::database::Database::open(dir.path()).unwrap();
            assert_eq!(database.entries(0..100, 1000).unwrap(), (vec![vec![1, 2], vec![3]], true));
            assert_eq!(database.meta("vote").unwrap(), Some(vec![5]));
            assert_eq!(database.snapshot().unwrap(), Some((vec![0xaa], vec![1, 2])));
        }
    }
}
