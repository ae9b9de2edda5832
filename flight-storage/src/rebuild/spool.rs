//! Staged calls of one shard on disk, as they came, until the shard has been copied.
//!
//! One file, only appended to. A record is its length and its CRC-32, then a byte for its kind, then:
//!
//! ```text
//!  P call, message            one message of a staged call
//!  E call, transaction, seq   the call was complete; what has no E does not count
//!  O transaction, version     the outcome; version 0 is an abort
//!  R transaction, seq         the statements after `seq` are undone
//! ```
//!
//! Records are durable when the method that appends them returns, but for `P`, which its `E` makes durable. Those who
//! append at the same time share an fsync. A torn tail, of a call that nobody was told about, is cut off.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use drsdb_core::{Error, ErrorCode, Result, Ulid, crash_point, v1};
use parking_lot::Mutex;
use prost::Message;

use crate::engine::ShardId;

const HEADER_BYTES: usize = 8;
/// No message is larger, see [`crate::server`].
const MAX_RECORD_BYTES: usize = 80 << 20;

/// The spool of one shard.
#[derive(Debug)]
pub struct Spool {
    file: File,
    path: PathBuf,
    log: Mutex<Log>,
    /// Whose calls are coming in, by their numbers.
    coming: Coming,
    synced: Mutex<u64>,
    /// Set when the disk failed: whether it has what was written before is not known any more.
    broken: AtomicBool,
    /// Something that was kept may not be there any more.
    lost: AtomicBool,
    /// Held while something of the spool is brought into the engine, and while an outcome is.
    pub(super) applying: Mutex<()>,
}

/// What is in the file.
#[derive(Debug, Default)]
struct Log {
    bytes: u64,
    next_call: u64,
    /// Where the messages of a call are: offset and length.
    parts: HashMap<u64, Vec<(u64, usize)>>,
    /// Complete calls in their order.
    ended: Vec<Ended>,
    by_transaction: HashMap<Ulid, Vec<usize>>,
    outcomes: HashMap<Ulid, Option<u64>>,
}

#[derive(Debug, Clone, Copy)]
struct Ended {
    call: u64,
    transaction: Ulid,
    sequence: u32,
    undone: bool,
}

type Coming = Arc<Mutex<BTreeMap<u64, Ulid>>>;

/// A call that is coming in.
#[derive(Debug)]
pub struct Call {
    number: u64,
    /// Whose it is.
    pub transaction: Ulid,
    sequence: u32,
    coming: Coming,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.coming.lock().remove(&self.number);
    }
}

/// A complete call, as [`crate::rebuild::replay`] sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    pub(super) transaction: Ulid,
    call: u64,
    /// A later statement of the transaction's own undid it.
    pub(super) undone: bool,
    /// What became of the transaction, if that is known.
    pub(super) outcome: Option<Option<u64>>,
    /// Nothing of the transaction follows.
    pub(super) last: bool,
}

/// The shards that have a spool under `dir`.
pub fn found(dir: &Path) -> Result<Vec<ShardId>> {
    let context = |error| Error::io(format!("reading {}", dir.display()), error);
    let mut shards = Vec::new();
    for entry in fs::read_dir(dir).map_err(context)? {
        let name = entry.map_err(context)?.file_name();
        let parsed = name.to_str().and_then(|name| name.strip_suffix(".spool")).and_then(|name| {
            let (table, shard) = name.split_once('-')?;
            Some(ShardId { table: Ulid::from_string(table).ok()?, shard: shard.parse().ok()? })
        });
        shards.extend(parsed);
    }
    shards.sort_unstable();
    Ok(shards)
}

fn path_of(dir: &Path, shard: ShardId) -> PathBuf {
    dir.join(format!("{}-{}.spool", shard.table, shard.shard))
}

impl Spool {
    /// Opens the shard's spool under `dir`, or makes one.
    pub fn open(dir: &Path, shard: ShardId) -> Result<Self> {
        let path = path_of(dir, shard);
        let context = |error| Error::io(format!("opening {}", path.display()), error);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(context)?;
        let log = read(&mut file).map_err(context)?;
        // Most likely the end of a call that nobody was told about; but it may have rotted.
        let lost = file.metadata().map_err(context)?.len() > log.bytes;
        file.set_len(log.bytes).map_err(context)?;
        file.seek(SeekFrom::Start(log.bytes)).map_err(context)?;
        crash_point::reach("spool.opened");
        file.sync_all().map_err(context)?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(context)?;
        crash_point::reach("spool.named");
        let synced = Mutex::new(log.bytes);
        Ok(Self {
            file,
            path,
            log: Mutex::new(log),
            coming: Coming::default(),
            synced,
            broken: AtomicBool::new(false),
            lost: AtomicBool::new(lost),
            applying: Mutex::new(()),
        })
    }

    /// Begins a call, see [`super::Rebuilds::begin_call`].
    pub(super) fn begin(&self, transaction: Ulid, sequence: u32) -> Call {
        let mut log = self.log.lock();
        let number = log.next_call;
        log.next_call += 1;
        self.coming.lock().insert(number, transaction);
        Call { number, transaction, sequence, coming: Arc::clone(&self.coming) }
    }

    /// Takes a message of a call.
    pub fn part(&self, call: &Call, message: &v1::StageRequest) -> Result<()> {
        let mut record = vec![b'P'];
        record.extend(call.number.to_le_bytes());
        message.encode(&mut record).map_err(|error| Error::internal(error.to_string()))?;
        self.append(&record).map(drop)
    }

    /// Makes a call durable.
    pub(super) fn end(&self, call: Call) -> Result<()> {
        let mut record = vec![b'E'];
        record.extend(call.number.to_le_bytes());
        record.extend(call.transaction.to_bytes());
        record.extend(call.sequence.to_le_bytes());
        let end = self.append(&record)?;
        self.sync(end)
    }

    /// Notes an outcome.
    pub(super) fn decide(&self, transaction: Ulid, outcome: Option<u64>) -> Result<()> {
        let mut record = vec![b'O'];
        record.extend(transaction.to_bytes());
        record.extend(outcome.unwrap_or(0).to_le_bytes());
        let end = self.append(&record)?;
        self.sync(end)
    }

    /// Undoes what a transaction did after its statement `sequence`.
    pub(super) fn rollback_to(&self, transaction: Ulid, sequence: u32) -> Result<()> {
        let mut record = vec![b'R'];
        record.extend(transaction.to_bytes());
        record.extend(sequence.to_le_bytes());
        let end = self.append(&record)?;
        self.sync(end)
    }

    /// Whether it has a call of the transaction, complete or coming in.
    pub(super) fn contains(&self, transaction: Ulid) -> bool {
        // In this order: a call is complete before it stops to come in.
        self.coming.lock().values().any(|coming| *coming == transaction)
            || self.log.lock().by_transaction.contains_key(&transaction)
    }

    /// The transactions that have a complete call, and no outcome that is known here.
    pub(super) fn undecided(&self) -> Vec<Ulid> {
        let log = self.log.lock();
        log.by_transaction.keys().filter(|transaction| !log.outcomes.contains_key(transaction)).copied().collect()
    }

    /// The complete call number `at`, in their order.
    pub(super) fn kept(&self, at: usize) -> Option<Kept> {
        let log = self.log.lock();
        let ended = log.ended.get(at)?;
        let later = log.by_transaction.get(&ended.transaction).into_iter().flatten();
        let last = later.filter(|other| **other > at).all(|other| log.ended[*other].undone);
        Some(Kept {
            transaction: ended.transaction,
            call: ended.call,
            undone: ended.undone,
            outcome: log.outcomes.get(&ended.transaction).copied(),
            last,
        })
    }

    /// The messages of a call, one after the other.
    pub(super) fn messages(&self, kept: Kept) -> impl Iterator<Item = Result<v1::StageRequest>> {
        let parts = self.log.lock().parts.get(&kept.call).cloned().unwrap_or_default();
        parts.into_iter().map(|(offset, length)| {
            let mut bytes = vec![0; length];
            let context = |error| Error::io(format!("reading {}", self.path.display()), error);
            self.file.read_exact_at(&mut bytes, offset).map_err(context)?;
            v1::StageRequest::decode(bytes.as_slice()).map_err(|error| {
                Error::new(ErrorCode::Corrupt, format!("{} has a broken message: {error}", self.path.display()))
            })
        })
    }

    /// Whether something that was kept may be lost: true until [`Spool::told`].
    pub(super) fn has_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// The index servers know.
    pub(super) fn told(&self) {
        self.lost.store(false, Ordering::Relaxed);
    }

    /// Deletes the file.
    pub(super) fn remove(&self) -> Result<()> {
        fs::remove_file(&self.path).map_err(|error| Error::io(format!("removing {}", self.path.display()), error))
    }

    /// Writes a record and answers where it ends.
    fn append(&self, record: &[u8]) -> Result<u64> {
        let mut framed = Vec::with_capacity(HEADER_BYTES + record.len());
        framed.extend((record.len() as u32).to_le_bytes());
        framed.extend(crc32fast::hash(record).to_le_bytes());
        framed.extend(record);
        let mut log = self.log.lock();
        let written = (&self.file).write_all(&framed);
        if let Err(error) = written {
            // Half a record would hide what follows.
            let cut = self.file.set_len(log.bytes).and_then(|()| (&self.file).seek(SeekFrom::Start(log.bytes)));
            drop(cut);
            return Err(Error::io(format!("writing {}", self.path.display()), error));
        }
        log.take(record);
        Ok(log.bytes)
    }

    fn sync(&self, end: u64) -> Result<()> {
        let mut synced = self.synced.lock();
        if *synced >= end {
            return Ok(());
        }
        let all = self.log.lock().bytes;
        if self.broken.load(Ordering::Relaxed) {
            return Err(Error::internal(format!("{} could not be written before", self.path.display())));
        }
        crash_point::reach("spool.written");
        if let Err(error) = self.file.sync_data() {
            self.broken.store(true, Ordering::Relaxed);
            return Err(Error::io(format!("writing {}", self.path.display()), error));
        }
        *synced = all;
        crash_point::reach("spool.synced");
        Ok(())
    }
}

/// What is in a file, up to the first record that is not whole.
fn read(file: &mut File) -> std::io::Result<Log> {
    let mut log = Log::default();
    let mut reader = std::io::BufReader::new(file);
    let mut header = [0; HEADER_BYTES];
    while reader.read_exact(&mut header).is_ok() {
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let checksum = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let mut record = vec![0; if length <= MAX_RECORD_BYTES { length } else { 0 }];
        let whole = reader.read_exact(&mut record).is_ok() && length <= MAX_RECORD_BYTES;
        if !whole || crc32fast::hash(&record) != checksum || !log.take(&record) {
            break;
        }
    }
    // Messages of calls that never ended stay in the file, and count for nothing.
    Ok(log)
}

impl Log {
    /// Takes a record that begins where the file ends so far; false if it is none.
    fn take(&mut self, record: &[u8]) -> bool {
        let start = self.bytes;
        let number = |at: usize| record.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        let short = |at: usize| record.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
        let id = |at: usize| record.get(at..at + 16).and_then(|b| b.try_into().ok()).map(Ulid::from_bytes);
        let taken = (|| {
            match record.first()? {
                b'P' => {
                    let call = number(1)?;
                    self.next_call = self.next_call.max(call + 1);
                    let message = (start + (HEADER_BYTES + 9) as u64, record.len() - 9);
                    self.parts.entry(call).or_default().push(message);
                }
                b'E' => {
                    let (call, transaction, sequence) = (number(1)?, id(9)?, short(25)?);
                    self.next_call = self.next_call.max(call + 1);
                    self.by_transaction.entry(transaction).or_default().push(self.ended.len());
                    self.ended.push(Ended { call, transaction, sequence, undone: false });
                }
                b'O' => {
                    let version = number(17)?;
                    let known = self.outcomes.entry(id(1)?).or_default();
                    // A commit stays one.
                    *known = known.or((version > 0).then_some(version));
                }
                b'R' => {
                    let (transaction, sequence) = (id(1)?, short(17)?);
                    for &at in self.by_transaction.get(&transaction).into_iter().flatten() {
                        self.ended[at].undone |= self.ended[at].sequence > sequence;
                    }
                }
                _ => return None,
            }
            Some(())
        })();
        if taken.is_some() {
            self.bytes += (HEADER_BYTES + record.len()) as u64;
        }
        taken.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId { table: Ulid(7), shard: 3 };

    fn message(text: &str) -> v1::StageRequest {
        v1::StageRequest { part: Some(v1::stage_request::Part::Batch(text.as_bytes().to_vec().into())) }
    }

    fn call(spool: &Spool, transaction: u128, sequence: u32, texts: &[&str]) {
        let call = spool.begin(Ulid(transaction), sequence);
        for text in texts {
            spool.part(&call, &message(text)).unwrap();
        }
        spool.end(call).unwrap();
    }

    fn texts(spool: &Spool, at: usize) -> Vec<v1::StageRequest> {
        spool.messages(spool.kept(at).unwrap()).collect::<Result<_>>().unwrap()
    }

    #[test]
    fn calls_come_back_in_the_order_in_which_they_ended() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), SHARD).unwrap();
        let first = spool.begin(Ulid(1), 1);
        spool.part(&first, &message("a")).unwrap();
        call(&spool, 2, 1, &["x", "y"]);
        spool.part(&first, &message("b")).unwrap();
        spool.end(first).unwrap();
        let unfinished = spool.begin(Ulid(3), 1);
        spool.part(&unfinished, &message("lost")).unwrap();
        spool.decide(Ulid(2), Some(17)).unwrap();
        drop(spool);

        assert_eq!(found(dir.path()).unwrap(), [SHARD]);
        let spool = Spool::open(dir.path(), SHARD).unwrap();
        assert_eq!(texts(&spool, 0), [message("x"), message("y")]);
        assert_eq!(texts(&spool, 1), [message("a"), message("b")]);
        assert!(spool.kept(2).is_none() && !spool.contains(Ulid(3)));
        assert_eq!(spool.kept(0).unwrap().outcome, Some(Some(17)));
        assert_eq!(spool.kept(1).unwrap().outcome, None);
        assert_eq!(spool.undecided(), [Ulid(1)]);
        spool.decide(Ulid(2), None).unwrap();
        assert_eq!(spool.kept(0).unwrap().outcome, Some(Some(17)), "a commit stays one");
        spool.remove().unwrap();
        assert_eq!(found(dir.path()).unwrap(), []);
    }

    #[test]
    fn undone_statements_are_marked_and_the_last_one_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), SHARD).unwrap();
        call(&spool, 1, 1, &["one"]);
        call(&spool, 1, 2, &["two"]);
        assert!(!spool.kept(0).unwrap().last);
        spool.rollback_to(Ulid(1), 1).unwrap();
        assert!(spool.kept(0).unwrap().last && spool.kept(1).unwrap().undone);
        // A statement of the same number comes again after it.
        call(&spool, 1, 2, &["two again"]);
        assert!(!spool.kept(2).unwrap().undone && !spool.kept(0).unwrap().last);
    }

    #[test]
    fn a_torn_or_rotten_tail_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), SHARD).unwrap();
        call(&spool, 1, 1, &["kept"]);
        let whole = spool.log.lock().bytes;
        call(&spool, 2, 1, &["torn"]);
        let (path, end) = (spool.path.clone(), spool.log.lock().bytes);
        drop(spool);
        let bytes = fs::read(&path).unwrap();
        for cut in whole..end {
            fs::write(&path, &bytes[..cut as usize]).unwrap();
            let spool = Spool::open(dir.path(), SHARD).unwrap();
            assert_eq!(texts(&spool, 0), [message("kept")]);
            assert!(!spool.contains(Ulid(2)));
            call(&spool, 3, 1, &["after"]);
            drop(spool);
            assert!(Spool::open(dir.path(), SHARD).unwrap().contains(Ulid(3)));
        }
        let mut rotten = bytes.clone();
        rotten[whole as usize + HEADER_BYTES + 12] ^= 1;
        fs::write(&path, &rotten).unwrap();
        let spool = Spool::open(dir.path(), SHARD).unwrap();
        assert!(!spool.contains(Ulid(2)) && spool.has_lost());
    }
}
