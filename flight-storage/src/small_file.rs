//! Small files that are written anew as a whole: whoever reads one finds what was there before, or all that is new.
//!
//! ```text
//! crc32 5f2a1c09                  of all that follows
//! {"all":0,"shards":[]}
//! ```
//!
//! The checksum comes first, so that a file that has lost its end is not taken for one from before there was any.

use std::{
    fmt,
    fs::{self, File},
    io::ErrorKind,
    path::Path,
};

use drsdb_core::{Error, ErrorCode, Result, WireError, crash_point};

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
    fs::write(&new, sealed(bytes)).map_err(context)?;
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
    fs::write(&new, sealed(bytes)).map_err(context)?;
    crash_point::reach(written);
    fs::rename(&new, file).map_err(context)?;
    crash_point::reach(renamed);
    Ok(())
}

/// What was written; `None` if nothing ever was.
///
/// Errors: `corrupt` when it is something else.
pub(crate) fn read(file: &Path) -> Result<Option<Vec<u8>>> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(format!("reading {}", file.display()), error)),
    };
    let (line, written) = bytes.split_at(bytes.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1));
    if line == seal(written).as_bytes() {
        return Ok(Some(written.to_vec()));
    }
    // From before there were checksums: a number, or JSON.
    if matches!(bytes.first(), Some(b'0'..=b'9' | b'[' | b'{')) {
        return Ok(Some(bytes));
    }
    Err(damaged(file, "it is not what was written"))
}

/// The same of what is only a hint: a damaged one is none.
pub(crate) fn read_hint(file: &Path) -> Result<Option<Vec<u8>>> {
    match read(file) {
        Err(error) if error.code() == ErrorCode::Corrupt => {
            tracing::warn!(%error, "this start takes longer without it");
            Ok(None)
        }
        kept => kept,
    }
}

/// The error for a file that holds what cannot have been written.
pub(crate) fn damaged(file: &Path, why: impl fmt::Display) -> Error {
    let message = format!("{} is damaged: {why}", file.display());
    WireError::new(ErrorCode::Corrupt, message).with_field("file", file.display()).into()
}

fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut sealed = seal(bytes).into_bytes();
    sealed.extend_from_slice(bytes);
    sealed
}

/// The line before what is written.
fn seal(bytes: &[u8]) -> String {
    format!("crc32 {:08x}\n", crc32fast::hash(bytes))
}

/// What may become of a file: a bit is altered, or the end is lost. For the tests of those who keep one.
#[cfg(test)]
pub(crate) fn damages(bytes: &[u8]) -> Vec<Vec<u8>> {
    let altered = (0..bytes.len() * 8).map(|bit| {
        let mut altered = bytes.to_vec();
        altered[bit / 8] ^= 1 << (bit % 8);
        altered
    });
    altered.chain((0..bytes.len()).map(|length| bytes[..length].to_vec())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        assert_eq!(read(&file).unwrap(), None);
        for written in [&b"42"[..], b"{\n}", b""] {
            replace_hint(&file, written, "applied_version.written", "applied_version.renamed").unwrap();
            assert_eq!(read(&file).unwrap().unwrap(), written);
            for damage in damages(&fs::read(&file).unwrap()) {
                fs::write(&file, &damage).unwrap();
                assert_eq!(read(&file).unwrap_err().code(), ErrorCode::Corrupt, "{damage:?}");
                assert_eq!(read_hint(&file).unwrap(), None);
            }
        }
    }

    #[test]
    fn files_from_before_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        for written in ["42", "[1]", "{\n  \"a\": 1\n}"] {
            fs::write(&file, written).unwrap();
            assert_eq!(read(&file).unwrap().unwrap(), written.as_bytes());
        }
    }
}
