//! Notices when the node's file has lost its end. SQLite takes a write-ahead log that was cut, or whose end is damaged, for
//! one that ends there: votes that were given and entries that were acknowledged would be missing without a word, and Raft
//! relies on neither ever being forgotten.
//!
//! So each group of changes counts itself in the file, and its number is also written to a second file when the group is on
//! disk and before anybody is told. That file is not synced, which costs no time: after a power loss it may be behind, and
//! then proves less. It is never ahead of what was synced.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use drsdb_core::{Error, Result};

use super::seal::{Place, damaged};

/// The place that the mark's digest names.
const PLACE: Place<'_> = Place::Note("mark");

/// The number of the last group, and where it is written.
#[derive(Debug)]
pub(super) struct Mark {
    file: File,
    path: PathBuf,
    groups: u64,
}

impl Mark {
    /// Opens the mark beside the file `data`, which ends with the group `groups`.
    ///
    /// Errors: `corrupt` when the file is behind.
    pub(super) fn open(path: &Path, data: &Path, groups: u64) -> Result<Self> {
        let context = |error| Error::io(format!("opening {}", path.display()), error);
        let options = File::options().create(true).truncate(false).read(true).write(true).open(path);
        let mut file = options.map_err(context)?;
        let mut bytes = [0; 16];
        // One that was never written, or not to its end, says nothing.
        let marked = match file.read_exact(&mut bytes) {
            Ok(()) => PLACE.open(bytes.to_vec()).ok().and_then(|number| number.try_into().ok()).map(u64::from_le_bytes),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => None,
            Err(error) => return Err(context(error)),
        };
        match marked {
            Some(marked) if marked > groups => Err(damaged(format!(
                "{} has lost its latest writes: it ends with group {groups}, and group {marked} was written",
                data.display()
            ))),
            _ => Ok(Self { file, path: path.to_owned(), groups }),
        }
    }

    /// The number of the group that is written next.
    pub(super) fn next(&self) -> u64 {
        self.groups + 1
    }

    /// Notes that it is on disk.
    pub(super) fn advance(&mut self) {
        self.groups += 1;
        if let Err(error) = self.file.write_all_at(&PLACE.seal(&self.groups.to_le_bytes()), 0) {
            // The mark stays behind, which weakens it and harms nothing.
            tracing::warn!(%error, file = %self.path.display(), "could not write the catalog's mark");
        }
    }
}
