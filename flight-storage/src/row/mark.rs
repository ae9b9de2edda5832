//! Notices when the file has lost its end. SQLite takes a write-ahead log that was cut, or whose end is damaged, for one
//! that ends there: what it held, staged and committed alike, would be missing without a word.
//!
//! So each group of writes counts itself in the file, and its number is also written to a second file when the group is on
//! disk and before anybody is told; a group that need not be on disk yet leaves that to the next. That file is not synced,
//! which costs no time: after a power loss it may be behind, and then proves less. It is never ahead of what was synced, so a
//! data file that is behind it has lost something.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use drsdb_core::{Error, Result};
use rusqlite::Connection;

use super::{
    error::{Context, corrupt},
    file::execute,
};

/// The number of the last group, and where it is written.
#[derive(Debug)]
pub(super) struct Mark {
    file: File,
    path: PathBuf,
    groups: i64,
}

impl Mark {
    /// Opens the mark beside a data file and compares the two.
    ///
    /// Errors: `corrupt` when the data file is behind.
    pub(super) fn open(path: &Path, data: &Path, connection: &Connection) -> Result<Self> {
        let groups: i64 = connection
            .query_row("SELECT value FROM counters WHERE name = 'groups'", [], |row| row.get(0))
            .context("reading its counters")?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(|error| Error::io(format!("opening {}", path.display()), error))?;
        let mark = Self { file, path: path.to_owned(), groups };
        if let Some(marked) = mark.read()?
            && marked > groups
        {
            let message = format!(
                "{} has lost its latest writes: it ends with group {groups}, and group {marked} was written",
                data.display()
            );
            return Err(corrupt(message).with_field("file", data.display()).into());
        }
        Ok(mark)
    }

    /// The number in the file; none when it was never written, or not to its end.
    fn read(&self) -> Result<Option<i64>> {
        let mut bytes = [0; 12];
        match (&self.file).read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(Error::io(format!("reading {}", self.path.display()), error)),
        }
        let (number, checksum) = bytes.split_at(8);
        let valid = crc32fast::hash(number).to_le_bytes() == checksum;
        Ok(valid.then(|| i64::from_le_bytes(number.try_into().expect("eight bytes were split off"))))
    }

    /// Counts the group that is being written, in its own transaction.
    pub(super) fn count(&self, connection: &Connection) -> Result<()> {
        execute(connection, "UPDATE counters SET value = ?1 WHERE name = 'groups'", [self.groups + 1]).map(drop)
    }

    /// Notes that the group was written, and whether it is on disk, and with it all groups before it.
    pub(super) fn advance(&mut self, is_synced: bool) {
        self.groups += 1;
        if !is_synced {
            return;
        }
        let number = self.groups.to_le_bytes();
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&number);
        bytes[8..].copy_from_slice(&crc32fast::hash(&number).to_le_bytes());
        if let Err(error) = self.file.write_all_at(&bytes, 0) {
            // The mark stays behind, which weakens it and harms nothing.
            tracing::warn!(%error, file = %self.path.display(), "could not write the row engine's mark");
        }
    }
}
