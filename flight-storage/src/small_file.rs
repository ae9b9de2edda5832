//! Small files that are written anew as a whole: whoever reads one finds what was there before, or all that is new.

use std::{
    fs::{self, File},
    path::Path,
};

use drsdb_core::{Error, Result, crash_point};

/// The crash points of [`replace`], in their order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Points {
    /// The new file is written beside the old one.
    pub(crate) written: &'static str,
    /// It is on disk.
    pub(crate) synced: &'static str,
    /// It has the old one's name.
    pub(crate) renamed: &'static str,
    /// The name is on disk.
    pub(crate) named: &'static str,
}

/// Replaces a file. Durable when it returns.
pub(crate) fn replace(file: &Path, bytes: &[u8], points: Points) -> Result<()> {
    let context = |error| Error::io(format!("writing {}", file.display()), error);
    let new = file.with_extension("new");
    fs::write(&new, bytes).map_err(context)?;
    crash_point::reach(points.written);
    File::open(&new).and_then(|new| new.sync_all()).map_err(context)?;
    crash_point::reach(points.synced);
    fs::rename(&new, file).map_err(context)?;
    crash_point::reach(points.renamed);
    if let Some(dir) = file.parent() {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(context)?;
    }
    crash_point::reach(points.named);
    Ok(())
}

/// The same of what is only a hint: after a power loss it may be the old one, or none, which costs time and nothing else.
pub(crate) fn replace_hint(file: &Path, bytes: &[u8], written: &'static str, renamed: &'static str) -> Result<()> {
    let context = |error| Error::io(format!("writing {}", file.display()), error);
    let new = file.with_extension("new");
    fs::write(&new, bytes).map_err(context)?;
    crash_point::reach(written);
    fs::rename(&new, file).map_err(context)?;
    crash_point::reach(renamed);
    Ok(())
}
