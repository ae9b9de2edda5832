//! The log and the vote, as openraft wants to read and write them.
//!
//! The newest entries are also in memory: those that are not on disk yet, and as many before them as fit a budget. So an
//! entry that was just written is applied and replicated without reading it back. A leader's own entries are replicated
//! before they are on its disk ([`super::unsynced`]).

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    ops::{Bound, Range, RangeBounds},
    sync::Arc,
};

use drsdb_core::{Error, Result};
use openraft::{
    AnyError, ErrorSubject, ErrorVerb, LogState, OptionalSend, RaftLogReader, StorageIOError,
    storage::{LogFlushed, RaftLogStorage},
};
use parking_lot::Mutex;

use super::{
    codec,
    database::{Change, Database},
    types::{Entry, LogId, NodeId, StorageError, TypeConfig, Vote},
    unsynced::{Unsynced, are_own, forget_lead},
};

/// Entries that are on disk stay in memory up to this many bytes.
const TAIL_BYTES: usize = 8 << 20;
/// Entries sent to another voter at a time have about this many bytes.
const REPLICATION_BYTES: usize = 4 << 20;

/// openraft's log storage. Clones share the log.
#[derive(Debug, Clone)]
pub struct LogStore {
    node: NodeId,
    database: Arc<Database>,
    log: Arc<Mutex<Log>>,
    unsynced: Unsynced,
}

#[derive(Debug, Default)]
struct Log {
    last: Option<LogId>,
    purged: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    /// The newest entries up to `last`, with their bytes on disk.
    tail: BTreeMap<u64, (Entry, usize)>,
    tail_bytes: usize,
}

impl Log {
    fn push(&mut self, entry: Entry, bytes: usize) {
        self.last = Some(entry.log_id);
        self.tail.insert(entry.log_id.index, (entry, bytes));
        self.tail_bytes += bytes;
    }

    /// Drops the oldest entries of the tail above the budget; those after `flushed` are only here and stay.
    fn shrink(&mut self, flushed: u64) {
        while self.tail_bytes > TAIL_BYTES
            && let Some(first) = self.tail.first_entry()
            && *first.key() <= flushed
        {
            self.tail_bytes -= first.remove().1;
        }
    }

    fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        self.tail.retain(|index, _| keep(*index));
        self.tail_bytes = self.tail.values().map(|(_, bytes)| bytes).sum();
    }
}

impl LogStore {
    /// The log of `node` in `database`. Blocks.
    pub fn open(database: Arc<Database>, node: NodeId) -> Result<Self> {
        let decoded =
            |key: &str| database.meta(key)?.map(|bytes| codec::decode::<Option<LogId>>(key, &bytes)).transpose();
        let purged = decoded("purged")?.flatten();
        let committed = decoded("committed")?.flatten();
        let vote = database.meta("vote")?.map(|bytes| codec::decode("vote", &bytes)).transpose()?;
        let vote = vote.map(|vote| forget_lead(vote, node));
        let last = database.last_entry()?.map(|bytes| decode_entry(&bytes)).transpose()?;
        let last = last.map(|entry| entry.log_id).or(purged);
        let log = Log { last, purged, vote, committed, ..Log::default() };
        Ok(Self { node, database, log: Arc::new(Mutex::new(log)), unsynced: Unsynced::new() })
    }

    /// What of it is not on disk yet.
    pub(super) fn unsynced(&self) -> Unsynced {
        self.unsynced.clone()
    }

    /// Entries of `range` in order: all, or the first ones that have `max_bytes` together, and at least one.
    async fn read(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<Entry>, StorageError> {
        // Memory first, under one lock: entries leave it only after they are on disk, so that what is not found here is
        // found there.
        let (older, newer) = {
            let log = self.log.lock();
            let first = log.tail.first_key_value().map_or(u64::MAX, |(index, _)| *index).clamp(range.start, range.end);
            let newer: Vec<(Entry, usize)> = log.tail.range(first..range.end).map(|(_, entry)| entry.clone()).collect();
            (range.start..first, newer)
        };
        let (mut entries, mut bytes) = (Vec::new(), 0);
        if !older.is_empty() {
            let database = self.database.clone();
            let read = tokio::task::spawn_blocking(move || database.entries(older, max_bytes)).await;
            let read = read.map_err(|error| Error::internal(error.to_string())).flatten();
            let (encoded, complete) = read.map_err(read_error)?;
            for encoded in encoded {
                bytes += encoded.len();
                entries.push(decode_entry(&encoded).map_err(read_error)?);
            }
            if !complete {
                return Ok(entries);
            }
        }
        for (entry, size) in newer {
            bytes += size;
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start..end, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.read(start..end, REPLICATION_BYTES).await
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let log = self.log.lock();
        Ok(LogState { last_purged_log_id: log.purged, last_log_id: log.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let kept = forget_lead(*vote, self.node);
        let written = self.database.write(Change::Vote(codec::encode(&kept))).await;
        written.map_err(|error| write_error(ErrorSubject::Vote, error))?;
        self.log.lock().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.log.lock().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let synced = self.unsynced.wait(committed.map_or(0, |committed| committed.index)).await;
        synced.map_err(|error| write_error(ErrorSubject::Logs, error))?;
        self.log.lock().committed = committed;
        // A hint, written with the next entry; if it cannot be written, neither can the entry, which says so.
        self.database.submit(Change::Committed(codec::encode(&committed)), drop);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.log.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let encoded: Vec<(u64, Vec<u8>)> =
            entries.iter().map(|entry| (entry.log_id.index, codec::encode(entry))).collect();
        let (Some(first), Some(last)) = (encoded.first(), encoded.last()) else {
            callback.log_io_completed(Ok(()));
            return Ok(());
        };
        let (first, flushed) = (first.0, last.0);
        let is_early = {
            let mut log = self.log.lock();
            let is_early = are_own(&entries, log.vote.as_ref(), self.node);
            for (entry, (_, bytes)) in entries.into_iter().zip(&encoded) {
                log.push(entry, bytes.len());
            }
            is_early
        };
        let log = self.log.clone();
        let shrink = move |written: &io::Result<()>| {
            if written.is_ok() {
                log.lock().shrink(flushed);
            }
        };
        match is_early.then(|| self.unsynced.begin(first)).flatten() {
            Some(early) => {
                self.database.submit(Change::Append(encoded), move |written| {
                    shrink(&written);
                    if written.is_ok() {
                        early.written();
                    }
                });
                callback.log_io_completed(Ok(()));
            }
            None => self.database.submit(Change::Append(encoded), move |written| {
                shrink(&written);
                callback.log_io_completed(written);
            }),
        }
        Ok(())
    }

    async fn truncate(&mut self, from: LogId) -> Result<(), StorageError> {
        let written = self.database.write(Change::Truncate(from.index)).await;
        written.map_err(|error| write_error(ErrorSubject::Logs, error))?;
        let before = match from.index.checked_sub(1) {
            Some(before) => self.read(before..from.index, usize::MAX).await?.pop().map(|entry| entry.log_id),
            None => None,
        };
        let mut log = self.log.lock();
        log.retain(|index| index < from.index);
        log.last = before.or(log.purged);
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        let covered = self.database.covered(upto.index).await;
        covered.map_err(|error| write_error(ErrorSubject::Logs, error))?;
        let written = self.database.write(Change::Purge(upto.index, codec::encode(&Some(upto)))).await;
        written.map_err(|error| write_error(ErrorSubject::Logs, error))?;
        let mut log = self.log.lock();
        log.retain(|index| index > upto.index);
        log.purged = Some(upto);
        log.last = log.last.max(Some(upto));
        Ok(())
    }
}

fn decode_entry(bytes: &[u8]) -> Result<Entry> {
    codec::decode("log", bytes)
}

fn read_error(error: Error) -> StorageError {
    StorageIOError::<NodeId>::read_logs(AnyError::new(&error)).into()
}

fn write_error(subject: ErrorSubject<NodeId>, error: io::Error) -> StorageError {
    StorageIOError::new(subject, ErrorVerb::Write, AnyError::new(&error)).into()
}
