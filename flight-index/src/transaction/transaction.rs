//! One transaction, from its snapshot to its outcome.

use std::{collections::BTreeMap, fmt, sync::Arc};

use drsdb_core::{Error, ErrorCode, Result, Table, Ulid, WireError, crash_point, ids::new_ulid, scan::OwnWrites};
use futures::future::join_all;
use tokio::runtime::Handle;

use super::{
    Writes,
    stager::{ABORT_TIMEOUT, Staged, Stager, Touched, undo, undo_in_background},
};
use crate::{
    catalog::{
        CatalogState, Command, Making, Outcome, PieceInfo, Response, StorageServer, TableChange, TableState, Validation,
    },
    planner::Holders,
    replication::ActiveGuard,
};

/// What a commit was answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The commit version; of a transaction that wrote nothing, the catalog's version.
    pub version: u64,
    /// Rows that the first run of the same statement changed, when it was this one's repetition.
    pub repeated: Option<u64>,
}

/// A transaction. Dropping it undoes it.
pub struct Transaction {
    id: Ulid,
    begun: Arc<CatalogState>,
    writes: Arc<Writes>,
    /// The last number that a statement has taken.
    sequence: u32,
    touched: Touched,
    staged: Vec<Staged>,
    /// What must hold at the commit, with the number of the statement that asked for it.
    validations: Vec<(u32, Validation)>,
    /// The table that it makes.
    made: Option<Arc<TableState>>,
    /// The catalog may have a table that goes only when the transaction is aborted there.
    makes: bool,
    /// A statement after this number began and was never heard of again.
    unfinished: Option<u32>,
    /// What was being undone when nobody waited for it any more: all after this number.
    undoing: Option<u32>,
    /// A server that may have something of a statement that was undone.
    not_undone_at: Option<Arc<StorageServer>>,
    /// Tells storage servers that it runs here, and what it reads.
    _active: ActiveGuard,
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("id", &self.id).field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl Transaction {
    pub(super) fn new(writes: Arc<Writes>, begun: Arc<CatalogState>) -> Self {
        let id = new_ulid();
        Self {
            id,
            _active: writes.active.enter(id, begun.version()),
            begun,
            writes,
            sequence: 0,
            touched: Touched::default(),
            staged: Vec::new(),
            validations: Vec::new(),
            made: None,
            makes: false,
            unfinished: None,
            undoing: None,
            not_undone_at: None,
        }
    }

    /// Its id.
    pub fn id(&self) -> Ulid {
        self.id
    }

    /// What it shares with all others.
    pub fn writes(&self) -> &Arc<Writes> {
        &self.writes
    }

    /// The catalog as the transaction sees it; its version is the snapshot.
    pub fn begun(&self) -> &Arc<CatalogState> {
        &self.begun
    }

    /// What a statement that begins now sees of the transaction's own changes.
    pub fn own_writes(&self) -> Option<OwnWrites> {
        let own = OwnWrites { transaction: self.id, sequence: self.sequence };
        (!self.staged.is_empty()).then_some(own)
    }

    /// The servers that have all of the transaction's own changes, shard by shard.
    pub fn holders(&self) -> Holders {
        let mut holders = Holders::new();
        for staged in &self.staged {
            let acks = &staged.piece.acks;
            let holding = holders.entry((staged.table.id, staged.piece.shard));
            let holding = holding.or_insert_with(|| acks.iter().copied().collect());
            holding.retain(|server| acks.contains(server));
        }
        holders
    }

    /// The number of the last statement: what [`Transaction::rollback_to`] comes back to.
    pub fn sequence(&self) -> u32 {
        self.sequence
    }

    /// Whether anything is staged.
    pub fn is_empty(&self) -> bool {
        self.staged.is_empty()
    }

    /// Makes a table for the transaction to fill, which nobody else sees before the commit. `statement` is the client's id of
    /// what the transaction does.
    pub async fn make_table(&mut self, table: Table, statement: Option<Ulid>) -> Result<()> {
        let id = table.id;
        let making = Making { transaction: self.id, coordinator: self.writes.coordinator.clone(), statement };
        // From here on it may be there, whatever is heard of it.
        self.makes = true;
        let made = self.writes.catalog.propose(Command::MakeTable { table, making }).await;
        crash_point::reach("table.made");
        if let Err(error) = made {
            // A table without a name is nothing done.
            let mut error = error.to_wire();
            self.makes = error.fields.remove("outcome").is_some_and(|outcome| outcome == "unknown");
            return Err(error.into());
        }
        let state = self.writes.catalog.state();
        let made = state.table(id).ok_or_else(|| {
            WireError::new(ErrorCode::Conflict, "the transaction was aborted while it made a table")
                .with_hint("run it again")
                .with_field("transaction", self.id)
        })?;
        self.made = Some(Arc::clone(made));
        Ok(())
    }

    /// The table that it makes, once it is there.
    pub fn made(&self) -> Option<&Arc<TableState>> {
        self.made.as_ref()
    }

    /// A stager for the next statement.
    pub fn stager(&mut self) -> Stager {
        self.unfinished.get_or_insert(self.sequence);
        let stager = Stager::new(
            Arc::clone(&self.writes),
            self.id,
            self.begun.version(),
            self.sequence + 1,
            self.touched.clone(),
        );
        // One for what it deletes, one for what it inserts.
        self.sequence += 2;
        stager
    }

    /// Takes what a stager has staged.
    pub fn absorb(&mut self, staged: Vec<Staged>) {
        self.staged.extend(staged);
    }

    /// The statement has come to its end: every stager that was given out has been absorbed, and foreign keys hold.
    pub fn statement_done(&mut self) {
        self.unfinished = None;
        self.touched.statement_over();
    }

    /// What must not have happened until the commit.
    pub fn validate(&mut self, validations: impl IntoIterator<Item = Validation>) {
        let sequence = self.sequence;
        self.validations.extend(validations.into_iter().map(|validation| (sequence, validation)));
    }

    /// Undoes a statement of which nobody waits for the end any more: its client went away, or its time was over. That may also
    /// have happened while it was being undone.
    pub async fn settle_unfinished(&mut self) {
        if let Some(sequence) = self.undoing.into_iter().chain(self.unfinished).min() {
            self.rollback_to(sequence).await;
        }
    }

    /// Undoes the statements after `sequence`. When a server does not say that it has, the transaction cannot commit any more:
    /// the server would make visible whatever it has of it. A statement that has sent nothing yet, since it did not come to know
    /// its rows, is undone nowhere.
    pub async fn rollback_to(&mut self, sequence: u32) {
        let sent = self.touched.statement_over();
        let unfinished = self.unfinished.take().is_some() && sent;
        let any = unfinished || self.undoing.is_some() || self.staged.iter().any(|staged| staged.sequence > sequence);
        self.staged.retain(|staged| staged.sequence <= sequence);
        self.validations.retain(|(of, _)| *of <= sequence);
        if !any {
            return;
        }
        let sequence = self.undoing.map_or(sequence, |undoing| undoing.min(sequence));
        self.undoing = Some(sequence);
        let servers = self.touched.servers();
        let undone = servers.iter().map(|server| {
            let undo = self.writes.transport.rollback_to(server, self.id, sequence, self.sequence);
            async { tokio::time::timeout(ABORT_TIMEOUT, undo).await }
        });
        let undone = join_all(undone).await;
        for (server, undone) in servers.iter().zip(undone) {
            let fault = match undone {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".to_owned(),
            };
            tracing::warn!(transaction = %self.id, server = %server.url, fault, "a statement could not be undone");
            self.not_undone_at = Some(Arc::clone(server));
        }
        self.undoing = None;
        // Numbers are not used again: a late message of an undone statement must not pass for a new one's.
    }

    /// Whether a server has kept something that was undone, so that the transaction can only be rolled back.
    pub fn is_spoiled(&self) -> bool {
        self.not_undone_at.is_some()
    }

    /// Commits; `statement` is the client's id of it, and `rows` what the client is told. A transaction without rows and without
    /// a table needs no commit.
    pub async fn commit(mut self, statement: Option<Ulid>, rows: Option<u64>) -> Result<Committed> {
        self.settle_unfinished().await;
        if let Some(server) = self.not_undone_at.take() {
            self.discard().await;
            let message = format!("storage server {} did not undo a statement of the transaction", server.url);
            return Err(WireError::new(ErrorCode::Conflict, message)
                .with_hint("run the transaction again")
                .with_field("server", server.id)
                .with_field("transaction", self.id)
                .into());
        }
        if self.staged.is_empty() && self.made.is_none() {
            self.discard().await;
            return Ok(Committed { version: self.writes.catalog.state().version(), repeated: None });
        }
        let tables = self.changes()?;
        let mut validations: Vec<Validation> = self.validations.drain(..).map(|(_, validation)| validation).collect();
        validations.sort();
        validations.dedup();
        let command = Command::CommitTransaction { transaction: self.id, tables, statement, rows, validations };
        // From here on only Raft decides. Whoever drops this future drops no staged rows: the proposal goes on without
        // it, and may commit. If it is never made, the storage servers ask about what they have staged, and whoever leads
        // about a table.
        let touched = self.touched.take();
        self.makes = false;
        crash_point::reach("commit.proposing");
        let decided = self.writes.catalog.propose(command).await;
        crash_point::reach("commit.decided");
        match decided {
            Ok((_, Response::Transaction(outcome))) => self.answer(outcome, touched).await,
            Ok(_) => Err(Error::internal("a commit was answered with something else")),
            Err(error) if error.code() == ErrorCode::Conflict => {
                undo(&self.writes, self.id, touched).await;
                Err(error)
            }
            Err(error) => self.settle(error, touched, statement).await,
        }
    }

    async fn answer(&self, outcome: Outcome, touched: Vec<Arc<StorageServer>>) -> Result<Committed> {
        let own = self.writes.catalog.state().outcome(self.id);
        match (outcome, own) {
            (Outcome::Committed { version, rows }, Some(Outcome::Aborted)) => {
                // An earlier run of the same statement did it, and this one's rows are aborted.
                undo(&self.writes, self.id, touched).await;
                Ok(Committed { version, repeated: Some(rows) })
            }
            // The own state may be behind when this server is cut off: only what it knows to be aborted is undone, and
            // servers that have staged rows too many ask about them.
            (Outcome::Committed { version, .. }, _) => Ok(Committed { version, repeated: None }),
            (Outcome::Aborted, _) => {
                undo(&self.writes, self.id, touched).await;
                Err(self.aborted())
            }
        }
    }

    fn aborted(&self) -> Error {
        WireError::new(ErrorCode::Conflict, "the transaction was aborted: it took too long to commit")
            .with_hint("run it again")
            .with_field("transaction", self.id)
            .into()
    }

    /// A proposal that fails may still take effect. Asking for an abort finds out: in Raft's order the first of the two
    /// wins.
    async fn settle(
        &self,
        error: Error,
        touched: Vec<Arc<StorageServer>>,
        statement: Option<Ulid>,
    ) -> Result<Committed> {
        let response = self.writes.catalog.propose(Command::AbortTransaction { transaction: self.id }).await;
        match response.map(|(_, response)| response) {
            Ok(Response::Transaction(Outcome::Committed { version, .. })) => Ok(Committed { version, repeated: None }),
            Ok(_) => {
                undo(&self.writes, self.id, touched).await;
                // An earlier run of the same statement may have done it, and this one was aborted for that.
                let first = statement.and_then(|statement| self.writes.catalog.state().statement_outcome(statement));
                if let Some(Outcome::Committed { version, rows }) = first {
                    return Ok(Committed { version, repeated: Some(rows) });
                }
                let unknown = error.to_wire().fields.get("outcome").is_some_and(|outcome| outcome == "unknown");
                // It is known now: the transaction is over, and a COMMIT must not be asked for again.
                Err(if unknown { self.aborted() } else { error })
            }
            Err(_) => {
                // Servers with staged rows will ask for the outcome themselves.
                let mut error = error.to_wire();
                error.hint =
                    "whether it was committed is unknown: look for its rows before running it again".to_owned();
                Err(error.with_field("transaction", self.id).into())
            }
        }
    }

    /// What is staged, as the log has it. The same changes make the same entry, whichever server was faster.
    fn changes(&mut self) -> Result<Vec<TableChange>> {
        let mut tables: BTreeMap<Ulid, TableChange> = BTreeMap::new();
        self.staged.sort_by_key(|staged| (staged.table.id, staged.piece.shard, staged.sequence));
        for staged in std::mem::take(&mut self.staged) {
            let table = &staged.table;
            let change = tables.entry(table.id).or_insert_with(|| TableChange {
                table: table.id,
                version: table.version,
                pieces: Vec::new(),
            });
            if change.version != table.version {
                return Err(super::stager::altered(table));
            }
            match change.pieces.last_mut() {
                Some(last) if joins(last, &staged.piece) => last.absorb(table, staged.piece),
                _ => change.pieces.push(staged.piece),
            }
        }
        Ok(tables.into_values().collect())
    }

    /// Undoes the transaction.
    pub async fn abort(mut self) {
        self.discard().await;
    }

    async fn discard(&mut self) {
        let touched = self.touched.take();
        undo(&self.writes, self.id, touched).await;
        if self.makes {
            unmake(&self.writes, self.id).await;
            self.makes = false;
        }
    }
}

/// Has the table go that an undone transaction made. Should it not come to that, whoever leads sees to it.
async fn unmake(writes: &Writes, transaction: Ulid) {
    if let Err(error) = writes.catalog.propose(Command::AbortTransaction { transaction }).await {
        tracing::warn!(%transaction, %error, "the table that an undone transaction made stays for a while");
    }
}

/// Whether two pieces of a shard may stand in the log as one.
fn joins(one: &PieceInfo, other: &PieceInfo) -> bool {
    one.shard == other.shard && one.epoch == other.epoch && one.acks == other.acks
}

/// A client that goes away drops its load in the middle.
impl Drop for Transaction {
    fn drop(&mut self) {
        undo_in_background(&self.writes, self.id, self.touched.take());
        if self.makes
            && let Ok(runtime) = Handle::try_current()
        {
            let (writes, id) = (Arc::clone(&self.writes), self.id);
            runtime.spawn(async move { unmake(&writes, id).await });
        }
    }
}
