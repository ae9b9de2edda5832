//! The primary key's uniqueness across segments.
//!
//! Segments whose key ranges do not overlap cannot clash, and loads in key order make only such segments. Of the others,
//! only the chunks whose page bounds reach into another segment's range are looked at; a load of few rows is first
//! compared with the bloom filters, so that it reads nearly nothing of a large table. What is left is compared exactly:
//!
//! - clustered by the primary key: all segments are sorted, and one merge over them sees equal keys side by side
//!   (`merge`); it holds a chunk of each;
//! - clustered otherwise: the new keys are collected in a hash set, a bounded part of them at a time, and the others are
//!   looked up (`probe`).
//!
//! Not here: duplicates within one sorted buffer (`write`), which are seen before they reach a segment.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef},
    datatypes::SchemaRef,
    row::Rows,
};
use datafusion::scalar::ScalarValue;
use drsdb_core::{Result, Table};
use parquet::bloom_filter::Sbbf;

use super::{
    cache::Chunks,
    decode::decode_column,
    format::{ChunkSet, chunks_of, read_error},
    keys::{Clash, KeyFormat, clash_error},
    prune::{all_chunks, may_contain, zones},
    segment::{Footer, Footers, KeyRange, Segment},
};

/// Loads of up to this many rows ask the bloom filters first.
const FEW_KEYS: u64 = 16 << 10;

/// Keys held at a time when segments are not sorted by the key.
const PASS_KEYS: u64 = 1 << 20;

/// What a check works on.
#[derive(Debug)]
pub struct UniqueCheck<'a> {
    /// The table.
    pub table: &'a Table,
    /// Its stored schema.
    pub schema: &'a SchemaRef,
    /// The schema of its files.
    pub file_schema: &'a SchemaRef,
    /// Its primary key.
    pub key: &'a KeyFormat,
    /// Whether segments are sorted by the primary key.
    pub sorted: bool,
    /// Where footers are.
    pub footers: &'a Footers,
}

/// A segment that takes part in a comparison.
struct Participant {
    segment: Arc<Segment>,
    footer: Arc<Footer>,
    is_new: bool,
    /// The chunks that may clash, by row group.
    chunks: Vec<ChunkSet>,
}

impl UniqueCheck<'_> {
    /// Compares the `new` segments with each other and with the `present` ones of the same shard.
    pub fn check(&self, new: &[Arc<Segment>], present: &[Arc<Segment>]) -> Result<()> {
        let mut participants = self.participants(new, present)?;
        if new.iter().map(|segment| segment.record().rows).sum::<u64>() <= FEW_KEYS {
            self.ask_bloom_filters(&mut participants)?;
        }
        participants.retain(|participant| participant.chunks.iter().any(|chunks| !chunks.is_empty()));
        let lonely = participants.len() < 2 && self.sorted;
        if lonely || !participants.iter().any(|participant| participant.is_new) {
            return Ok(());
        }
        if self.sorted { self.merge(&participants) } else { self.probe(&participants) }
    }

    /// Segments with chunks that reach into the range of a segment that they could clash with.
    fn participants(&self, new: &[Arc<Segment>], present: &[Arc<Segment>]) -> Result<Vec<Participant>> {
        let range = |segment: &Arc<Segment>| segment.record().key_range.clone();
        let mut participants = Vec::new();
        let all = new.iter().map(|segment| (segment, true)).chain(present.iter().map(|segment| (segment, false)));
        for (segment, is_new) in all.filter(|(segment, _)| segment.is_live()) {
            let Some(own) = range(segment) else { continue };
            let rivals = new.iter().chain(if is_new { present } else { &[] });
            let rivals = rivals.filter(|rival| rival.id() != segment.id() && rival.is_live()).filter_map(range);
            let rivals: Vec<KeyRange> = rivals.filter(|rival| rival.overlaps(&own)).collect();
            // A segment that is not sorted by the key may hold a key twice itself.
            let unsorted = is_new && !self.sorted;
            if rivals.is_empty() && !unsorted {
                continue;
            }
            let footer = self.footers.load(segment, self.file_schema)?;
            let chunks = match unsorted {
                true => all_chunks(&footer),
                false => self.chunks_within(segment, &footer, &rivals)?,
            };
            participants.push(Participant { segment: Arc::clone(segment), footer, is_new, chunks });
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

    /// Empties the row groups of present segments that hold none of the new keys, by their bloom filters.
    fn ask_bloom_filters(&self, participants: &mut [Participant]) -> Result<()> {
        let (new, present): (Vec<_>, Vec<_>) = participants.iter_mut().partition(|participant| participant.is_new);
        if present.is_empty() {
            return Ok(());
        }
        let mut keys: Vec<(Box<[u8]>, Vec<ScalarValue>)> = Vec::new();
        for participant in &new {
            let mut cursor = Cursor::new(self, participant);
            while let Some((columns, rows)) = cursor.next_chunk()? {
                for (row, key) in rows.iter().enumerate() {
                    let values = columns.iter().map(|column| ScalarValue::try_from_array(column, row));
                    keys.push((key.data().into(), values.collect::<Result<_, _>>()?));
                }
            }
        }
        for participant in present {
            let range = participant.segment.record().key_range.clone();
            let keys: Vec<_> =
                keys.iter().filter(|(key, _)| range.as_ref().is_none_or(|range| range.contains(key))).collect();
            let file = participant.segment.open_file()?;
            for row_group in 0..participant.chunks.len() {
                if participant.chunks[row_group].is_empty() {
                    continue;
                }
                let columns = self.key.columns().iter().map(|&column| {
                    let chunk = participant.footer.parquet().row_group(row_group).column(column);
                    Ok(Sbbf::read_from_column_chunk(chunk, &file)?.map(|filter| (filter, chunk)))
                });
                let filters: Vec<_> = columns
                    .collect::<Result<_, _>>()
                    .map_err(|error| read_error(&format!("reading {}", participant.segment.describe()), error))?;
                let possible = |values: &[ScalarValue]| {
                    filters.iter().zip(values).all(|(filter, value)| {
                        filter.as_ref().is_none_or(|(filter, chunk)| may_contain(filter, chunk, value))
                    })
                };
                if !keys.iter().any(|(_, values)| possible(values)) {
                    participant.chunks[row_group] = ChunkSet(0);
                }
            }
        }
        Ok(())
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
        let mut last: Option<(Vec<u8>, usize)> = None;
        while let Some(Reverse((key, at))) = heap.pop() {
            if let Some((before, other)) = &last
                && *before == key
                && let Some(clash) = clash(&participants[*other], &participants[at])
            {
                return Err(clash_error(self.table, self.key, &key, clash));
            }
            // As long as this segment stays ahead of all others, it needs no heap.
            let mut newest = key;
            while cursors[at].advance()? {
                let ahead = heap.peek().is_none_or(|Reverse((rival, _))| cursors[at].key() < rival.as_slice());
                if !ahead {
                    heap.push(Reverse((cursors[at].key().to_vec(), at)));
                    break;
                }
                newest.clear();
                newest.extend_from_slice(cursors[at].key());
            }
            last = Some((newest, at));
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
                        && let Some(clash) = clash(new[0], participant)
                    {
                        return Err(clash_error(self.table, self.key, cursor.key(), clash));
                    }
                }
            }
        }
        Ok(())
    }
}

/// What it means that two segments share a key; nothing, when both were there before.
fn clash(one: &Participant, other: &Participant) -> Option<Clash> {
    let (new, other) = if one.is_new { (one, other) } else { (other, one) };
    if !new.is_new {
        return None;
    }
    Some(match other.segment.is_staged() {
        _ if other.is_new || other.segment.record().transaction == new.segment.record().transaction => Clash::Itself,
        true => Clash::OtherTransaction,
        false => Clash::Committed,
    })
}

/// Walks over the keys of a participant's chunks, in the order of the file.
struct Cursor<'a> {
    check: &'a UniqueCheck<'a>,
    participant: &'a Participant,
    /// Chunks to come: row group and chunk.
    rest: Vec<(usize, usize)>,
    keys: Option<Rows>,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn new(check: &'a UniqueCheck<'a>, participant: &'a Participant) -> Self {
        let chunks = participant.chunks.iter().enumerate();
        let mut rest: Vec<_> = chunks.flat_map(|(group, set)| set.iter().map(move |chunk| (group, chunk))).collect();
        rest.reverse();
        Self { check, participant, rest, keys: None, at: 0 }
    }

    /// The key columns of the next chunk, and the keys.
    fn next_chunk(&mut self) -> Result<Option<(Vec<ArrayRef>, Rows)>> {
        let Some((row_group, chunk)) = self.rest.pop() else { return Ok(None) };
        let (segment, footer) = (&self.participant.segment, &self.participant.footer);
        let file = segment.open_file()?;
        let columns = self.check.key.columns().iter().map(|&column| {
            let mut chunks = Chunks::none(chunks_of(footer.group_rows(row_group)));
            let (stored, wanted) = (self.check.schema.field(column).data_type(), ChunkSet(0).with(chunk));
            decode_column(segment, &file, footer, row_group, column, stored, wanted, &mut chunks)?;
            Ok(Arc::clone(chunks.get(chunk).expect("it was decoded just now")))
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let keys = self.check.key.keys_of(&columns)?;
        Ok(Some((columns, keys)))
    }

    /// Goes to the next key. Whether there is one.
    fn advance(&mut self) -> Result<bool> {
        self.at += 1;
        while self.keys.as_ref().is_none_or(|keys| self.at >= keys.num_rows()) {
            let Some((_, keys)) = self.next_chunk()? else { return Ok(false) };
            (self.keys, self.at) = (Some(keys), 0);
        }
        Ok(true)
    }

    /// The key it stands on.
    fn key(&self) -> &[u8] {
        self.keys.as_ref().expect("advance has found a key").row(self.at).data()
    }
}
