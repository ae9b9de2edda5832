//! One statement's changes to one shard, on their way to all of its replicas.
//!
//! The first replica decides: what it refuses is refused. Another one that does not answer is left out of the
//! acknowledgements as long as a majority of the shard's replicas has the changes.
//!
//! All replicas are given the changes at the same time, so that a commit waits for the slowest fsync and not for their sum.
//! Of two transactions in each other's way one is refused by the first replica; another replica that has heard of the loser
//! first keeps the winner waiting until the loser has been undone there.

use std::sync::Arc;

use arrow::array::RecordBatch;
use drsdb_core::{Error, ErrorCode, Result, Table, TableKind, Ulid, WireError, v1, v1::stage_request::Part};
use futures::future::{join, join_all, try_join};
use tokio::sync::mpsc;

use super::{Writes, encode::encode, split::Piece, stager::Rows, stager::Staged};
use crate::{
    catalog::{Command, PieceInfo, ShardState, StorageServer},
    offload::{is_small, offload},
};

/// Messages that wait for one server.
const MESSAGES_AHEAD: usize = 1;

/// What a small statement changes in a shard.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub deleted: Vec<RecordBatch>,
    pub inserted: Vec<RecordBatch>,
}

pub(super) struct ShardWriter {
    pub writes: Arc<Writes>,
    pub transaction: Ulid,
    pub snapshot: u64,
    pub table: Arc<Table>,
    pub shard: u32,
    pub placed: Arc<ShardState>,
    /// The first replica, then the others that are written.
    pub servers: Vec<Arc<StorageServer>>,
}

/// What was sent, which is what must have been staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Sent {
    inserted: u64,
    deleted: u64,
}

impl ShardWriter {
    /// Stages changes that are complete.
    pub async fn stage(self, sequence: u32, changes: Changes) -> Result<Staged> {
        let sent = Sent { inserted: rows_in(&changes.inserted), deleted: rows_in(&changes.deleted) };
        let table = Arc::clone(&self.table);
        let small = is_small(changes.deleted.iter().chain(&changes.inserted));
        let encoding = offload(small, "encoding rows", move || {
            let mut parts = Vec::new();
            if !changes.deleted.is_empty() {
                let messages = encode(&table, Rows::Deleted, &changes.deleted)?;
                parts.extend(messages.into_iter().map(|bytes| Part::Deletes(bytes.into())));
            }
            if !changes.inserted.is_empty() {
                let messages = encode(&table, Rows::Inserted, &changes.inserted)?;
                parts.extend(messages.into_iter().map(|bytes| Part::Batch(bytes.into())));
            }
            Ok::<_, Error>(parts)
        });
        let parts = encoding.await?;
        let first = self.stage_at(&self.servers[0], self.header(sequence), &parts);
        let follower = self.follower_header(sequence);
        let others = self.servers[1..].iter().map(|server| self.stage_at(server, follower.clone(), &parts));
        self.decided(sequence, first, async { Ok((sent, join_all(others).await)) }).await
    }

    /// Waits for the first replica's answer and for the others'. Its refusal ends it at once.
    async fn decided(
        &self,
        sequence: u32,
        first: impl Future<Output = Result<v1::StageResponse>>,
        others: impl Future<Output = Result<(Sent, Vec<Result<v1::StageResponse>>)>>,
    ) -> Result<Staged> {
        let first = async {
            match first.await {
                Ok(answer) => Ok(answer),
                Err(error) => Err(self.first_failed(error).await),
            }
        };
        let (first, (sent, others)) = try_join(first, others).await?;
        let mut answers = vec![Ok(first)];
        answers.extend(others);
        self.staged(sequence, sent, answers).await
    }

    async fn stage_at(
        &self,
        server: &StorageServer,
        header: v1::StageHeader,
        parts: &[Part],
    ) -> Result<v1::StageResponse> {
        // All of it waits there already: what is small goes in one frame.
        let (sender, messages) = mpsc::channel(parts.len() + 1);
        for part in std::iter::once(Part::Header(header)).chain(parts.iter().cloned()) {
            let queued = sender.try_send(v1::StageRequest { part: Some(part) });
            queued.map_err(|_| Error::internal("a queue with room for every message is full"))?;
        }
        drop(sender);
        self.writes.transport.stage(server, messages).await
    }

    /// Stages pieces as they come, at all replicas at the same time.
    pub async fn stream(self, sequence: u32, rows: Rows, pieces: mpsc::Receiver<Piece>) -> Result<Staged> {
        let channels = self.servers.iter().map(|_| mpsc::channel(MESSAGES_AHEAD));
        let (senders, receivers): (Vec<_>, Vec<_>) = channels.unzip();
        let mut stages = self.servers.iter().zip(receivers).map(|(server, messages)| {
            let transport = &self.writes.transport;
            async move { transport.stage(server, messages).await }
        });
        let first = stages.next().expect("a shard has a first replica");
        let others = join_all(stages);
        let others = async {
            let (sent, others) = join(self.feed(sequence, rows, pieces, senders), others).await;
            Ok((sent?, others))
        };
        self.decided(sequence, first, others).await
    }

    async fn feed(
        &self,
        sequence: u32,
        rows: Rows,
        mut pieces: mpsc::Receiver<Piece>,
        mut senders: Vec<mpsc::Sender<v1::StageRequest>>,
    ) -> Result<Sent> {
        let header = self.header(sequence);
        // What only inserts is checked by each.
        let other = match rows {
            Rows::Inserted if sequence <= 2 => header.clone(),
            _ => self.follower_header(sequence),
        };
        let mut open = true;
        for (at, sender) in senders.iter().enumerate() {
            let header = if at == 0 { header.clone() } else { other.clone() };
            let sent = sender.send(v1::StageRequest { part: Some(Part::Header(header)) }).await;
            open &= at != 0 || sent.is_ok();
        }
        let mut count = 0;
        while open && let Some(piece) = pieces.recv().await {
            count += rows_in(&piece.batches);
            let table = Arc::clone(&self.table);
            let encoded = offload(false, "encoding rows", move || encode(&table, rows, &piece.batches)).await?;
            for bytes in encoded {
                let part = match rows {
                    Rows::Deleted => Part::Deletes(bytes.into()),
                    Rows::Inserted => Part::Batch(bytes.into()),
                };
                open = open && send_all(&mut senders, part).await;
            }
        }
        Ok(match rows {
            Rows::Deleted => Sent { deleted: count, inserted: 0 },
            Rows::Inserted => Sent { inserted: count, deleted: 0 },
        })
    }

    fn header(&self, sequence: u32) -> v1::StageHeader {
        v1::StageHeader {
            transaction_id: self.transaction.to_string(),
            table: Some(self.table.to_proto()),
            shard: self.shard,
            snapshot: self.snapshot,
            sequence,
            coordinator: self.writes.coordinator.clone(),
            ..v1::StageHeader::default()
        }
    }

    /// For a replica that takes what the first one lets through. What the transaction has seen must be there; whatever is on
    /// its way there since then is in the way of the changes until it has come.
    fn follower_header(&self, sequence: u32) -> v1::StageHeader {
        v1::StageHeader { follower: true, ..self.header(sequence) }
    }

    async fn staged(&self, sequence: u32, sent: Sent, answers: Vec<Result<v1::StageResponse>>) -> Result<Staged> {
        let mut acks = Vec::with_capacity(answers.len());
        let mut piece = None;
        let mut missed = None;
        for (answer, server) in answers.into_iter().zip(&self.servers) {
            let answer = match answer {
                Ok(answer) => answer,
                // The next entry of the log makes it stale.
                Err(error) if acks_missing_is_fine(&error) => {
                    tracing::warn!(server = %server.url, %error, "a replica did not stage a change");
                    if error.code() == ErrorCode::Unavailable {
                        self.writes.failed(server.id, false).await;
                    }
                    missed = Some(error);
                    continue;
                }
                Err(error) => return Err(self.name_constraint(error)),
            };
            let staged = Sent { inserted: answer.rows, deleted: answer.deleted };
            if staged != sent {
                let message = format!("storage server {} staged {staged:?} of {sent:?}", server.url);
                return Err(Error::internal(message));
            }
            if piece.is_none() {
                piece = Some(PieceInfo::from_stage(&self.table, self.shard, &answer)?);
            }
            acks.push(server.id);
        }
        let enough = self.placed.current().filter(|server| acks.contains(server)).count() >= self.placed.majority();
        match (piece, missed) {
            (Some(piece), _) if enough => Ok(Staged {
                sequence,
                table: Arc::clone(&self.table),
                piece: PieceInfo { acks, epoch: self.placed.epoch, ..piece },
            }),
            (_, Some(error)) => Err(error),
            _ => Err(Error::new(
                ErrorCode::Unavailable,
                format!(
                    "{} of {} replicas of shard {} of table {} are there, which is no majority",
                    acks.len(),
                    self.placed.replicas.len(),
                    self.shard,
                    self.table.name
                ),
            )),
        }
    }

    /// The replica that decides gave an error: its refusal, or it does not answer, or it cannot, like one whose disk is full.
    /// Then another one decides, if there are enough.
    async fn first_failed(&self, error: Error) -> Error {
        let first = &self.servers[0];
        match error.code() {
            ErrorCode::Unavailable => self.writes.failed(first.id, true).await,
            ErrorCode::DiskFull | ErrorCode::Corrupt => {
                tracing::warn!(server = %first.url, %error, "a replica that decides about writes cannot");
                let (table, shard, server) = (self.table.id, self.shard, first.id);
                let demoted = Command::DemoteReplica { table, shard, server, last: true };
                // Somebody else may have been faster.
                if !self.another_decides()
                    && let Err(error) = self.writes.catalog().propose(demoted).await
                {
                    tracing::warn!(server = %first.url, %error, "it could not be demoted");
                }
                if self.another_decides() {
                    let message = format!("another replica takes the place of the one on {}", first.url);
                    return WireError::new(ErrorCode::Unavailable, message)
                        .with_hint("run it again")
                        .with_field("cause", error.to_wire().message)
                        .into();
                }
            }
            _ => {}
        }
        self.name_constraint(error)
    }

    /// Whether the shard can be written by way of another replica than the first that this writer knows.
    fn another_decides(&self) -> bool {
        let state = self.writes.catalog().state();
        let shard = state.table(self.table.id).and_then(|table| table.shards.get(self.shard as usize));
        shard.is_some_and(|shard| shard.is_writable() && shard.current().next() != Some(self.servers[0].id))
    }

    /// A violation in the keys of a UNIQUE constraint is the constraint's.
    fn name_constraint(&self, error: Error) -> Error {
        if !matches!(self.table.kind, TableKind::UniqueIndex { .. }) {
            return error;
        }
        let TableKind::UniqueIndex { of } = self.table.kind else { return error };
        let state = self.writes.catalog().state();
        let Some(base) = state.table(of) else { return error };
        let Some(unique) = base.table.uniques.iter().find(|unique| unique.index == self.table.id) else {
            return error;
        };
        let mut wire = error.to_wire();
        let names: Vec<&str> =
            unique.columns.iter().map(|&position| base.table.columns[position].name.as_str()).collect();
        let key = wire.fields.get("key").cloned().unwrap_or_default();
        let what = match wire.code {
            ErrorCode::ConstraintViolation => "is there already",
            ErrorCode::Conflict => "is being written by another transaction",
            _ => return error,
        };
        wire.message =
            format!("{} of table {}: the key ({}) = ({key}) {what}", unique.name, base.table.name, names.join(", "));
        wire.with_field("constraint", &unique.name).with_field("table", &base.table.name).into()
    }
}

/// Whether a replica that gave this error may be left behind.
fn acks_missing_is_fine(error: &Error) -> bool {
    matches!(error.code(), ErrorCode::Unavailable | ErrorCode::DiskFull | ErrorCode::Corrupt | ErrorCode::Timeout)
}

/// False when the first server has stopped listening: its answer says why. Others are left out.
async fn send_all(senders: &mut Vec<mpsc::Sender<v1::StageRequest>>, part: Part) -> bool {
    let mut at = 0;
    while at < senders.len() {
        let sent = senders[at].send(v1::StageRequest { part: Some(part.clone()) }).await;
        match sent {
            Ok(()) => at += 1,
            Err(_) if at == 0 => return false,
            Err(_) => drop(senders.remove(at)),
        }
    }
    true
}

fn rows_in(batches: &[RecordBatch]) -> u64 {
    batches.iter().map(|batch| batch.num_rows() as u64).sum()
}
