//! Notices when a page of the file is not what was written. SQLite has no checksums of its own outside its write-ahead log:
//! a bit that flips in a number is another number.
//!
//! In WAL mode pages of the file are written by checkpoints and by nothing else. So the writer makes all checkpoints itself,
//! and after each one it notes the CRC-32 of the pages that the log had, in a file beside:
//!
//! ```text
//! checkpoint ──▶ log to file, synced ──▶ sums of the log's pages, synced ──▶ the log may begin anew with the next write
//! ```
//!
//! A crash in between leaves pages with an old sum; the log still has these pages, so they are left out when the file is
//! verified at the next start, and the checkpoint that follows writes and sums them again. Everything else has to match,
//! at each start and, piece by piece, while the server runs.
//!
//! A page without a sum, of a file from before there were any, gets one when the file is opened.
//!
//! Not here: a log that lost its end ([`super::mark`]).

use std::{
    collections::BTreeSet,
    fs::File,
    io::{ErrorKind, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use drsdb_core::{Error, Result, crash_point};
use parking_lot::Mutex;
use rusqlite::Connection;

use super::{
    checked_reads::Expected,
    error::{Context, corrupt},
};

/// Frames in the log from which on there is a checkpoint: 32 MiB of pages.
const CHECKPOINT_FRAMES: i64 = 8192;
/// Frames that the log has to grow by for another attempt, after a checkpoint that could not copy all of it.
const TRY_FRAMES: i64 = 1024;
/// Pages that [`Pages::verify_some`] looks at.
const VERIFY_PAGES: usize = 4096;
/// Bytes that are read at once.
const BLOCK_BYTES: usize = 1 << 20;

const MAGIC: [u8; 8] = *b"drsSums1";
/// The magic number, the size of a page, and nothing.
const HEADER_BYTES: usize = 16;

/// A sum that is not known. A page whose CRC is 0 has 1 instead.
pub(super) const UNKNOWN: u32 = 0;

/// The sums of a file's pages.
#[derive(Debug)]
pub(super) struct Pages {
    paths: Paths,
    /// Open as long as the engine is: closing it would take away the locks that SQLite has on the file.
    data: File,
    sums: File,
    page_bytes: usize,
    known: Mutex<Known>,
    /// The same sums, for whoever reads; of pages that a checkpoint writes, none.
    expected: Arc<Expected>,
}

#[derive(Debug, Default)]
struct Known {
    /// By page, from page 1.
    sums: Vec<u32>,
    /// Sums that are not on disk yet: from this page to that one.
    unsaved: Option<(usize, usize)>,
    /// Where the next look begins.
    next: usize,
    /// How long the log was at the last checkpoint that could not copy all of it.
    tried: i64,
}

#[derive(Debug, Clone)]
struct Paths {
    data: PathBuf,
    log: PathBuf,
    sums: PathBuf,
}

impl Paths {
    fn of(data: &Path) -> Self {
        let beside = |suffix: &str| {
            let mut name = data.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        Self { data: data.to_owned(), log: beside("-wal"), sums: data.with_extension("sums") }
    }
}

/// Verifies a file that nobody has open. Changes nothing.
///
/// Errors: `corrupt`.
pub(super) fn verify(data: &Path) -> Result<()> {
    let paths = Paths::of(data);
    let Some((page_bytes, sums)) = read_sums(&paths.sums)? else { return Ok(()) };
    let context = |error| Error::io(format!("reading {}", data.display()), error);
    let file = match File::open(data) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(context(error)),
    };
    let logged = logged_pages(&paths.log, page_bytes)?;
    let mut at = 0;
    while at < sums.len() {
        let wanted = (BLOCK_BYTES / page_bytes).clamp(1, sums.len() - at);
        let found = read_pages(&file, page_bytes, at, wanted).map_err(context)?;
        compare(&paths.data, &found, page_bytes, &sums, at, at + wanted, |page| logged.contains(&page))?;
        at += wanted;
    }
    Ok(())
}

/// Compares pages with the sums from `from` to `to`; `found` has the bytes of as many of them as the file has.
fn compare(
    data: &Path,
    found: &[u8],
    page_bytes: usize,
    sums: &[u32],
    from: usize,
    to: usize,
    left_out: impl Fn(usize) -> bool,
) -> Result<()> {
    for (page, &sum) in (from..to).zip(&sums[from..to]) {
        if sum == UNKNOWN || left_out(page) {
            continue;
        }
        let start = (page - from) * page_bytes;
        let damage = match found.get(start..start + page_bytes) {
            Some(bytes) if sum_of(bytes) == sum => continue,
            Some(_) => format!("page {} of {} is not what was written", page + 1, data.display()),
            None => format!("{} has lost its end: page {} is missing", data.display(), page + 1),
        };
        return Err(corrupt(damage).with_field("file", data.display()).into());
    }
    Ok(())
}

impl Pages {
    /// Of a file that its writer has just opened, after [`verify`]. Makes a checkpoint.
    pub(super) fn open(data: &Path, connection: &Connection, expected: Arc<Expected>) -> Result<Self> {
        let paths = Paths::of(data);
        let page_bytes: i64 =
            connection.query_row("PRAGMA page_size", [], |row| row.get(0)).context("reading its file's header")?;
        let page_bytes = page_bytes as usize;
        let sums = match read_sums(&paths.sums)? {
            Some((of, sums)) if of == page_bytes => sums,
            _ => Vec::new(),
        };
        let open = |path: &Path, write: bool| {
            let file = File::options().read(true).write(write).create(write).truncate(false).open(path);
            file.map_err(|error| Error::io(format!("opening {}", path.display()), error))
        };
        let (data, sums_file) = (open(&paths.data, false)?, open(&paths.sums, true)?);
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&(page_bytes as u32).to_le_bytes());
        sums_file
            .write_all_at(&header, 0)
            .map_err(|error| Error::io(format!("writing {}", paths.sums.display()), error))?;
        let known = Mutex::new(Known { sums, ..Known::default() });
        let pages = Self { paths, data, sums: sums_file, page_bytes, known, expected };
        pages.checkpoint(connection)?;
        pages.sum_unknown()?;
        pages.expected.begin(page_bytes, &pages.known.lock().sums);
        Ok(pages)
    }

    /// Makes a checkpoint when the log has grown long. Called by the writer between two transactions.
    pub(super) fn checkpoint_if_due(&self, connection: &Connection) -> Result<()> {
        let (frames, copied) = run_checkpoint(connection, "NOOP")?;
        if frames < CHECKPOINT_FRAMES || copied >= frames {
            return Ok(());
        }
        {
            let mut known = self.known.lock();
            // A long scan holds it up: the same pages need not be summed each time.
            if (known.tried..known.tried + TRY_FRAMES).contains(&frames) {
                return Ok(());
            }
            known.tried = frames;
        }
        let complete = self.checkpoint(connection)?;
        if complete {
            self.known.lock().tried = 0;
        }
        Ok(())
    }

    /// Brings the log into the file and sums what changed there. True when the log has nothing more.
    pub(super) fn checkpoint(&self, connection: &Connection) -> Result<bool> {
        let mut known = self.known.lock();
        let logged = logged_pages(&self.paths.log, self.page_bytes)?;
        logged.iter().for_each(|page| self.expected.set(*page, UNKNOWN));
        crash_point::reach("row.checkpoint.before");
        let done = run_checkpoint(connection, "PASSIVE");
        crash_point::reach("row.checkpoint.synced");
        // Also after a failure: some pages may have been written.
        self.sum(&mut known, &logged)?;
        self.save(&mut known)?;
        done.map(|(frames, copied)| copied >= frames)
    }

    /// Writes sums that could not be written before. Until it has been done, nothing may be written to the log: it could
    /// begin anew, and with it goes the only trace of which pages have an old sum.
    pub(super) fn settle(&self) -> Result<()> {
        let mut known = self.known.lock();
        if known.unsaved.is_some() { self.save(&mut known) } else { Ok(()) }
    }

    /// At the end: leaves a file without a log, so that the next start can verify all of it.
    pub(super) fn close(&self, connection: &Connection) -> Result<()> {
        if self.checkpoint(connection)? {
            run_checkpoint(connection, "TRUNCATE")?;
        }
        Ok(())
    }

    /// Verifies the next pages. False at the end of a round.
    ///
    /// Errors: `corrupt`.
    pub(super) fn verify_some(&self) -> Result<bool> {
        let mut known = self.known.lock();
        let from = if known.next < known.sums.len() { known.next } else { 0 };
        let to = (from + VERIFY_PAGES).min(known.sums.len());
        let found = read_pages(&self.data, self.page_bytes, from, to - from).map_err(|error| self.reading(error))?;
        // Nobody reads those that the log has, and the next checkpoint writes them anew.
        let logged = logged_pages(&self.paths.log, self.page_bytes)?;
        let left_out = |page| logged.contains(&page);
        compare(&self.paths.data, &found, self.page_bytes, &known.sums, from, to, left_out)?;
        known.next = to;
        Ok(to < known.sums.len())
    }

    fn sum(&self, known: &mut Known, pages: &BTreeSet<usize>) -> Result<()> {
        for &page in pages {
            let bytes = read_pages(&self.data, self.page_bytes, page, 1).map_err(|error| self.reading(error))?;
            // Beyond the file's end: it is only in the log so far.
            if bytes.len() == self.page_bytes {
                let sum = sum_of(&bytes);
                known.set(page, sum);
                self.expected.set(page, sum);
            }
        }
        Ok(())
    }

    fn sum_unknown(&self) -> Result<()> {
        let mut known = self.known.lock();
        let length = self.data.metadata().map_err(|error| self.reading(error))?.len();
        let pages = usize::try_from(length).unwrap_or(usize::MAX) / self.page_bytes;
        let unknown = |page: &usize| known.sums.get(*page).is_none_or(|sum| *sum == UNKNOWN);
        let unknown: BTreeSet<usize> = (0..pages).filter(unknown).collect();
        self.sum(&mut known, &unknown)?;
        self.save(&mut known)
    }

    fn save(&self, known: &mut Known) -> Result<()> {
        let Some((first, last)) = known.unsaved else { return Ok(()) };
        let bytes: Vec<u8> = known.sums[first..=last].iter().flat_map(|sum| sum.to_le_bytes()).collect();
        let context = |error| Error::io(format!("writing {}", self.paths.sums.display()), error);
        self.sums.write_all_at(&bytes, (HEADER_BYTES + 4 * first) as u64).map_err(context)?;
        crash_point::reach("row.sums.written");
        self.sums.sync_data().map_err(context)?;
        crash_point::reach("row.sums.synced");
        known.unsaved = None;
        Ok(())
    }

    fn reading(&self, error: std::io::Error) -> Error {
        Error::io(format!("reading {}", self.paths.data.display()), error)
    }
}

impl Known {
    fn set(&mut self, page: usize, sum: u32) {
        if self.sums.len() <= page {
            self.sums.resize(page + 1, UNKNOWN);
        }
        self.sums[page] = sum;
        let (first, last) = self.unsaved.unwrap_or((page, page));
        self.unsaved = Some((first.min(page), last.max(page)));
    }
}

pub(super) fn sum_of(page: &[u8]) -> u32 {
    crc32fast::hash(page).max(1)
}

/// The bytes of `count` pages from page `from` on, or of as many as there are.
fn read_pages(file: &File, page_bytes: usize, from: usize, count: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; count * page_bytes];
    let (mut filled, start) = (0, (from * page_bytes) as u64);
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], start + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled - filled % page_bytes);
    Ok(bytes)
}

/// The size of a page and the sums; `None` when there is no such file.
fn read_sums(path: &Path) -> Result<Option<(usize, Vec<u32>)>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) if bytes.is_empty() => return Ok(None),
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(format!("reading {}", path.display()), error)),
    };
    let number = |at: usize| bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map(u32::from_le_bytes);
    let page_bytes = number(8).filter(|size| bytes.starts_with(&MAGIC) && size.is_power_of_two() && *size >= 512);
    let Some(page_bytes) = page_bytes else {
        let message = format!("{}, the checksums of the row file, is damaged", path.display());
        return Err(corrupt(message).with_field("file", path.display()).into());
    };
    let (sums, _) = bytes[HEADER_BYTES..].as_chunks::<4>();
    Ok(Some((page_bytes as usize, sums.iter().map(|four| u32::from_le_bytes(*four)).collect())))
}

/// The pages, from 0, that a write-ahead log has: a header of 32 bytes, then frames of a header of 24 bytes and a page
/// (<https://sqlite.org/fileformat2.html#walformat>). Frames of an earlier log have another salt.
fn logged_pages(log: &Path, page_bytes: usize) -> Result<BTreeSet<usize>> {
    let context = |error| Error::io(format!("reading {}", log.display()), error);
    let mut pages = BTreeSet::new();
    let mut file = match File::open(log) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(pages),
        Err(error) => return Err(context(error)),
    };
    let mut header = [0; 32];
    match file.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(pages),
        Err(error) => return Err(context(error)),
    }
    let mut frame = [0; 24];
    for at in 0_u64.. {
        match file.read_exact_at(&mut frame, 32 + at * (24 + page_bytes as u64)) {
            Ok(()) if frame[8..16] == header[16..24] => {
                let page = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]);
                pages.extend((page as usize).checked_sub(1));
            }
            Ok(()) => break,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(context(error)),
        }
    }
    Ok(pages)
}

/// Frames in the log, and how many of them are in the file.
fn run_checkpoint(connection: &Connection, mode: &str) -> Result<(i64, i64)> {
    connection
        .prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))
        .and_then(|mut statement| statement.query_row([], |row| Ok((row.get(1)?, row.get(2)?))))
        .context("copying its log into its file")
}
