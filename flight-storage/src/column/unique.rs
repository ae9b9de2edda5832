//! The primary key's uniqueness across segments.
//!
//! Segments whose key ranges do not overlap cannot clash, and loads in key order make only such segments. Of the others,
//! only the chunks whose page bounds reach into another segment's range are looked at, and compared exactly:
//!
//! - clustered by the primary key: all segments are sorted, and one merge over them sees equal keys side by side
//!   (`merge`); it holds the keys of a row group of each;
//! - clustered otherwise: the new keys are collected in a hash set, a bounded part of them at a time, and the others are
//!   looked up (`probe`).
//!
//! Rows that were deleted, or that the transaction deletes itself, are passed over; one that another transaction deletes,
//! or has deleted since the snapshot, is a conflict. Few new rows are compared with
//! each other alone here: what is there already is searched for their keys, see `stage`.
//!
//! Not here: duplicates within one sorted buffer (`write`), which are seen before they reach a segment.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use arrow::{array::Array, datatypes::SchemaRef, row::Rows};
use drsdb_core::{Result, Table, Ulid};

use super::{
    Store,
    cache::Chunks,
    deletes::Mask,
    format::{CHUNK_ROWS, ChunkSet, chunks_of},
    keys::{Clash, KeyFormat, clash_error},
    prune::{all_chunks, zones},
    read::RowGroup,
    segment::{Footer, KeyRange, Segment},
};

/// Keys held at a time when segments are not sorted by the key.
const PASS_KEYS: u64 = 1 << 20;

/// What a check works on.
#[derive(Debug)]
pub struct UniqueCheck<'a> {
    /// Where columns and footers are.
    pub store: &'a Store,
    /// The table.
    pub table: &'a Table,
    /// Its stored schema.
    pub schema: &'a SchemaRef,
    /// Its primary key.
    pub key: &'a KeyFormat,
    /// Whether segments are sorted by the primary key.
    pub sorted: bool,
    /// Who writes.
    pub transaction: Ulid,
    /// What it means that a committed row has a key.
    pub committed: Clash,
}

/// A segment that is there already, as the transaction sees it.
#[derive(Debug)]
pub struct Present {
    /// The segment.
    pub segment: Arc<Segment>,
    /// Rows that are not there.
    pub gone: Option<Arc<Mask>>,
    /// Rows that others delete, or have deleted since the snapshot.
    pub contested: Option<Mask>,
}

/// A segment that takes part in a comparison.
struct Participant {
    segment: Arc<Segment>,
    footer: Arc<Footer>,
    is_new: bool,
    gone: Option<Arc<Mask>>,
    contested: Option<Mask>,
    /// The chunks that may clash, by row group.
    chunks: Vec<ChunkSet>,
}

impl UniqueCheck<'_> {
    /// Compares the `new` segments with each other and with the `present` ones of the same shard.
    pub fn check(&self, new: &[Arc<Segment>], present: &[Present]) -> Result<()> {
        let mut participants = self.participants(new, present)?;
        participants.retain(|participant| participant.chunks.iter().any(|chunks| !chunks.is_empty()));
        let lonely = participants.len() < 2 && self.sorted;
        if lonely || !participants.iter().any(|participant| participant.is_new) {
            return Ok(());
        }
        if self.sorted { self.merge(&participants) } else { self.probe(&participants) }
    }

    /// Segments with chunks that reach into the range of a segment that they could clash with.
    fn participants(&self, new: &[Arc<Segment>], present: &[Present]) -> Result<Vec<Participant>> {
        let range = |segment: &Arc<Segment>| segment.record().key_range.clone();
        let mut participants = Vec::new();
        let present_segments: Vec<Arc<Segment>> = present.iter().map(|other| Arc::clone(&other.segment)).collect();
        let new_ones = new.iter().map(|segment| (segment, None));
        for (segment, present) in new_ones.chain(present.iter().map(|other| (&other.segment, Some(other)))) {
            let is_new = present.is_none();
            let Some(own) = range(segment) else { continue };
            let rivals = new.iter().chain(if is_new { &present_segments[..] } else { &[] });
            let rivals = rivals.filter(|rival| rival.id() != segment.id()).filter_map(range);
            let rivals: Vec<KeyRange> = rivals.filter(|rival| rival.overlaps(&own)).collect();
            // A segment that is not sorted by the key may hold a key twice itself.
            let unsorted = is_new && !self.sorted;
            if rivals.is_empty() && !unsorted {
                continue;
            }
            let footer = self.store.footers.load(segment)?;
            let chunks = match unsorted {
                true => all_chunks(&footer),
                false => self.chunks_within(segment, &footer, &rivals)?,
            };
            let gone = present.and_then(|present| present.gone.clone());
            let contested = present.and_then(|present| present.contested.clone());
            let segment = Arc::clone(segment);
            participants.push(Participant { segment, footer, is_new, gone, contested, chunks });
        }
        Ok(participants)
    }

    /// The chunks of `segment` whose bounds of the key's first column reach into one of `ranges`.
    fn chunks_within(&self, segment: &Segment, footer: &Footer, ranges: &[KeyRange]) -> Result<Vec<ChunkSet>> {
        let mut chunks = all_chunks(footer);
        let position = self.key.columns()[0];
        let Some(zones) = zones(self.schema, segment, footer, position) else { return Ok(chunks) };
        let Some(first) = KeyFormat::new(self.table, &[position])? else { return Ok(chunks) };
        // A key's bytes begin with the bytes of its first column.
        let (mins, maxes) = (first.keys_of(&[zones.mins()])?, first.keys_of(&[zones.maxes()])?);
        let mut at = 0;
        for (row_group, set) in chunks.iter_mut().enumerate() {
            for chunk in 0..chunks_of(footer.group_rows(row_group)) {
                let known = zones.mins().is_valid(at) && zones.maxes().is_valid(at);
                let (min, max) = (mins.row(at), maxes.row(at));
                let reaches = |range: &KeyRange| {
                    let end = max.data().len().min(range.min.len());
                    *min.data() <= *range.max && *max.data() >= range.min[..end]
                };
                if known && !ranges.iter().any(reaches) {
                    *set = set.without(chunk);
                }
                at += 1;
            }
        }
        Ok(chunks)
    }

    /// Merges sorted segments; equal keys meet.
    fn merge(&self, participants: &[Participant]) -> Result<()> {
        let mut cursors: Vec<_> = participants.iter().map(|participant| Cursor::new(self, participant)).collect();
        let mut heap = BinaryHeap::with_capacity(cursors.len());
        for (at, cursor) in cursors.iter_mut().enumerate() {
            if cursor.advance()? {
                heap.push(Reverse((cursor.key().to_vec(), at)));
            }
        }
        let mut last: Option<(Vec<u8>, usize, u32)> = None;
        while let Some(Reverse((key, at))) = heap.pop() {
            let row = cursors[at].row();
            if let Some((before, other, other_row)) = &last
                && *before == key
                && let Some(clash) = self.clash((&participants[*other], *other_row), (&participants[at], row))
            {
                return Err(clash_error(self.table, self.key, &key, clash));
            }
            // As long as this segment stays ahead of all others, it needs no heap.
            let mut newest = (key, row);
            while cursors[at].advance()? {
                let ahead = heap.peek().is_none_or(|Reverse((rival, _))| cursors[at].key() < rival.as_slice());
                if !ahead {
                    heap.push(Reverse((cursors[at].key().to_vec(), at)));
                    break;
                }
                newest.0.clear();
                newest.0.extend_from_slice(cursors[at].key());
                newest.1 = cursors[at].row();
            }
            last = Some((newest.0, at, newest.1));
        }
        Ok(())
    }

    /// Looks every key up among the new ones, of which a part is held at a time.
    fn probe(&self, participants: &[Participant]) -> Result<()> {
        let rows = participants.iter().filter(|participant| participant.is_new).map(|new| new.segment.record().rows);
        let passes = rows.sum::<u64>().div_ceil(PASS_KEYS).max(1);
        let (new, present): (Vec<_>, Vec<_>) = participants.iter().partition(|participant| participant.is_new);
        let hasher = RandomState::new();
        for pass in 0..passes {
            let is_part = |key: &[u8]| passes == 1 || hasher.hash_one(key) % passes == pass;
            let mut keys: HashSet<Box<[u8]>> = HashSet::new();
            for participant in &new {
                let mut cursor = Cursor::new(self, participant);
                while cursor.advance()? {
                    if is_part(cursor.key()) && !keys.insert(cursor.key().into()) {
                        return Err(clash_error(self.table, self.key, cursor.key(), Clash::Itself));
                    }
                }
            }
            for participant in &present {
                let mut cursor = Cursor::new(self, participant);
                while cursor.advance()? {
                    if keys.contains(cursor.key())
                        && let Some(clash) = self.clash((new[0], 0), (participant, cursor.row()))
                    {
                        return Err(clash_error(self.table, self.key, cursor.key(), clash));
                    }
                }
            }
        }
        Ok(())
    }

    /// What it means that two segments share a key, each in the row given; nothing, when both were there before.
    fn clash(&self, one: (&Participant, u32), other: (&Participant, u32)) -> Option<Clash> {
        let (new, (other, row)) = if one.0.is_new { (one.0, other) } else { (other.0, one) };
        if !new.is_new {
            return None;
        }
        let is_contested = other.contested.as_ref().is_some_and(|mask| mask.contains(row));
        Some(match other.segment.is_staged() {
            _ if other.is_new || other.segment.record().transaction == self.transaction => Clash::Itself,
            true => Clash::OtherTransaction,
            false if is_contested => Clash::OtherTransaction,
            false => self.committed,
        })
    }
}

/// Walks over the keys of a participant's chunks, in the order of the file.
struct Cursor<'a> {
    check: &'a UniqueCheck<'a>,
    participant: &'a Participant,
    /// Chunks to come: row group, chunk, and the chunk's first row in the segment.
    rest: Vec<(usize, usize, u32)>,
    /// The key columns of the row group it stands in.
    columns: Option<(usize, Vec<Arc<Chunks>>)>,
    keys: Option<Rows>,
    /// The first row of the chunk it stands in.
    start: u32,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn new(check: &'a UniqueCheck<'a>, participant: &'a Participant) -> Self {
        let mut rest = Vec::new();
        let mut before = 0;
        for (group, set) in participant.chunks.iter().enumerate() {
            rest.extend(set.iter().map(|chunk| (group, chunk, ((before + chunk) * CHUNK_ROWS) as u32)));
            before += chunks_of(participant.footer.group_rows(group));
        }
        rest.reverse();
        Self { check, participant, rest, columns: None, keys: None, start: 0, at: 0 }
    }

    /// Reads the keys of the next chunk. Whether there is one.
    fn next_chunk(&mut self) -> Result<bool> {
        let Some((number, chunk, start)) = self.rest.pop() else { return Ok(false) };
        let (segment, footer, UniqueCheck { store, table, key, .. }) =
            (&self.participant.segment, &self.participant.footer, self.check);
        if self.columns.as_ref().is_none_or(|(read, _)| *read != number) {
            let group = RowGroup { table, segment, footer, number };
            let file = segment.note(segment.open_file())?;
            let wanted = self.participant.chunks[number];
            let columns = key.columns().iter().map(|&column| Ok(group.column(store, &file, column, wanted)?.0));
            self.columns = Some((number, columns.collect::<Result<_>>()?));
        }
        let columns = self.columns.iter().flat_map(|(_, columns)| columns);
        let columns =
            columns.map(|column| Arc::clone(column.get(chunk).expect("the row group was read with this chunk")));
        self.keys = Some(key.keys_of(&columns.collect::<Vec<_>>())?);
        (self.start, self.at) = (start, 0);
        Ok(true)
    }

    /// Goes to the next key that is there. Whether there is one.
    fn advance(&mut self) -> Result<bool> {
        self.at += 1;
        loop {
            while self.keys.as_ref().is_none_or(|keys| self.at >= keys.num_rows()) {
                if !self.next_chunk()? {
                    return Ok(false);
                }
            }
            if self.participant.gone.as_ref().is_none_or(|gone| !gone.contains(self.row())) {
                return Ok(true);
            }
            self.at += 1;
        }
    }

    /// The row of the segment that it stands on.
    fn row(&self) -> u32 {
        self.start + self.at as u32
    }

    /// The key it stands on.
    fn key(&self) -> &[u8] {
        self.keys.as_ref().expect("advance has found a key").row(self.at).data()
    }
}
