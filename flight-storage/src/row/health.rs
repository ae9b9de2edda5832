//! Whether the file can still be believed. It is one thing: damaged in one place, nothing that is read from it counts, and
//! nothing is written to it, for SQLite could carry the damage on. Then the whole of it is replaced (`crate::repair`).

use std::sync::OnceLock;

use drsdb_core::{Error, ErrorCode, Result, WireError};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Health {
    damage: OnceLock<WireError>,
}

impl Health {
    /// What was found to be damaged.
    pub(crate) fn damage(&self) -> Option<WireError> {
        self.damage.get().cloned()
    }

    /// Refuses to go on with a file that was found damaged.
    pub(crate) fn check(&self) -> Result<()> {
        self.damage.get().map_or(Ok(()), |damage| Err(Error::from(damage.clone())))
    }

    /// Remembers what an error says of the file.
    pub(crate) fn note<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && error.code() == ErrorCode::Corrupt
            && self.damage.set(error.to_wire()).is_ok()
        {
            tracing::error!(%error, "the row file is damaged, and not used any more");
        }
        result
    }
}
