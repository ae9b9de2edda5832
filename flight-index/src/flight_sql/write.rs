//! Statements and bulk loads that change rows: in the client's transaction, or in one of their own.
//!
//! A statement without a transaction is run again, with a fresh snapshot, when another one was faster or a storage server
//! was lost under it: nothing of the first run is seen by anybody. In a client's transaction it is undone and, when a storage
//! server was lost, run again at the same snapshot. Rows of a bulk load come only once, so that it is not.
//!
//! What still fails for want of a server has done nothing, and its error says so, in the field `outcome`.

use std::{sync::Arc, time::Duration};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use datafusion::sql::sqlparser::ast;
use drsdb_core::{Error, ErrorCode, Result, TableName, WireError, time_limit::TimeLimit};
use futures::Stream;

use super::{FlightSqlServer, execute::planner_statement, service::Caller};
use crate::{
    catalog::{CatalogState, Outcome},
    dml::{self, Executor, Written},
    load::{
        LoadOutcome,
        insert::{has_subquery, plain_values},
    },
    planner::{QueryContext, Resume, View},
    statement::{CreateTable, Statement},
    transaction::{OpenTransaction, Transaction},
};

/// How often a statement is run, at most.
pub(super) const ATTEMPTS: u32 = 8;
/// The wait before the second run, which doubles with each; after a conflict, a random part of it is taken.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The same after a server was lost. All of them together are longer than it takes until a dead server is suspect, should
/// the error not have named it.
const FIRST_PAUSE_WITHOUT_SERVER: Duration = Duration::from_millis(25);

impl FlightSqlServer {
    /// What the caller's query sees: the catalog now, as it was when the answer began, or as the transaction sees it.
    pub(super) async fn view_of(&self, caller: &Caller) -> Result<(Arc<CatalogState>, QueryContext)> {
        let Some(open) = self.open_transaction(caller)? else {
            let context = caller.context();
            return Ok(match caller.resume {
                // What is read is settled. Any state that has it says where it is, and this one has: it was waited for.
                Some(Resume { snapshot, .. }) => {
                    let view = Some(Arc::new(View::at(snapshot)));
                    (self.catalog.state(), QueryContext { view, ..context })
                }
                None => (self.state_to_read(&caller.session).await?, context),
            });
        };
        let mut held = open.hold().await?;
        let transaction = held.transaction();
        let view = View {
            own: transaction.own_writes(),
            holders: Arc::new(transaction.holders()),
            ..View::begin(Arc::clone(transaction.begun()))
        };
        let context = QueryContext { view: Some(Arc::new(view)), ..caller.context() };
        Ok((self.catalog.state(), context))
    }

    /// The transaction that the caller names, if any.
    pub(super) fn open_transaction(&self, caller: &Caller) -> Result<Option<Arc<OpenTransaction>>> {
        caller.transaction().map(|handle| self.sessions.find(handle, &caller.login)).transpose()
    }

    /// What the client was answered, or should have been, when it asked for the same write before.
    pub(super) fn done_before(&self, caller: &Caller) -> Result<Option<LoadOutcome>> {
        let first = caller.statement.and_then(|statement| self.catalog.state().statement_outcome(statement));
        Ok(match first {
            Some(Outcome::Committed { version, rows }) => Some(LoadOutcome { rows, version }),
            _ => None,
        })
    }

    /// Runs a statement that changes rows.
    pub(super) async fn write(
        &self,
        statement: &Statement,
        parameters: Option<RecordBatch>,
        caller: &Caller,
    ) -> Result<(Written, LoadOutcome)> {
        // Of all attempts together.
        let limit = caller.limit();
        let mut attempt = 1;
        if let Some(open) = self.open_transaction(caller)? {
            loop {
                let parameters = parameters.clone();
                let run = async |executor: &mut Executor<'_>| executor.run(statement, parameters).await;
                match self.in_transaction(&open, caller, limit, run).await {
                    Err((error, Again::Yes)) if attempt < ATTEMPTS => {
                        tracing::debug!(%error, attempt, "a statement of a transaction is run again");
                        limit.keep(pause(attempt, &error)).await?;
                        attempt += 1;
                    }
                    Err((error, _)) => return Err(error),
                    Ok(written) => {
                        let rows = written.rows;
                        return Ok((written, LoadOutcome { rows, version: 0 }));
                    }
                }
            }
        }
        // Without a leader there is no commit: better to hear that before anything is staged.
        let known = reads_nothing(statement) && self.catalog.knows_leader();
        let mut basis = if known { Basis::Known } else { Basis::Newest };
        loop {
            match self.write_once(statement, parameters.clone(), caller, limit, basis).await {
                Err((error, Again::Yes)) if basis == Basis::Known => {
                    tracing::debug!(%error, "a statement is run again, on the newest state");
                    basis = Basis::Newest;
                }
                Err((error, Again::Yes)) if attempt < ATTEMPTS => {
                    tracing::debug!(%error, attempt, "a statement is run again");
                    limit.keep(pause(attempt, &error)).await?;
                    attempt += 1;
                }
                Err((error, _)) => return Err(error),
                Ok(done) => return Ok(done),
            }
        }
    }

    async fn write_once(
        &self,
        statement: &Statement,
        parameters: Option<RecordBatch>,
        caller: &Caller,
        limit: TimeLimit,
        basis: Basis,
    ) -> Result<(Written, LoadOutcome), (Error, Again)> {
        let never = |error| (error, Again::No);
        let state = match basis {
            Basis::Known => self.catalog.state(),
            Basis::Newest => limit.keep(self.current_state()).await.map_err(never)?,
        };
        if let Some(outcome) = self.done_before(caller).map_err(never)? {
            return repeated(statement, outcome).map_err(never);
        }
        let mut transaction = self.writes.begin(state);
        let _listed = self.sessions.list(&transaction, &caller.login.user);
        let ran = limit.keep(self.run_alone(statement, parameters, caller, &mut transaction)).await;
        let written = match ran {
            Ok(written) => written,
            Err(error) => {
                transaction.abort().await;
                // What was in the way may have been the first run of the same statement.
                if let Some(outcome) = self.done_before(caller).map_err(never)? {
                    return repeated(statement, outcome).map_err(never);
                }
                let again = match basis {
                    _ if self.runs_elsewhere(caller) => Again::No,
                    Basis::Known => Again::Yes,
                    Basis::Newest => Again::after(&error),
                };
                return Err((nothing_done(error), again));
            }
        };
        match transaction.commit(caller.statement, Some(written.rows)).await {
            Ok(committed) => match committed.repeated {
                Some(rows) => repeated(statement, LoadOutcome { rows, version: committed.version }).map_err(never),
                None => {
                    let outcome = LoadOutcome { rows: written.rows, version: committed.version };
                    Ok((written, outcome))
                }
            },
            // Of anything but a conflict, nobody knows here what became of it.
            Err(error) if error.code() == ErrorCode::Conflict && !self.runs_elsewhere(caller) => {
                Err((error, Again::Yes))
            }
            Err(error) => Err(never(error)),
        }
    }

    /// Whether another run of the caller's statement makes a table: the client has asked again, and this run would only take the
    /// place of that one.
    fn runs_elsewhere(&self, caller: &Caller) -> bool {
        caller.statement.is_some() && self.catalog.state().making().any(|making| making.statement == caller.statement)
    }

    /// Runs a statement in a transaction of its own, which somebody else ends.
    async fn run_alone(
        &self,
        statement: &Statement,
        parameters: Option<RecordBatch>,
        caller: &Caller,
        transaction: &mut Transaction,
    ) -> Result<Written> {
        let mut fill = None;
        if let Statement::CreateTable(create) = statement {
            fill = self.make_table_of_query(create, caller, transaction).await?;
            if fill.is_none() {
                return Ok(Written::default());
            }
        }
        let mut executor = Executor::new(&self.services, &caller.login, caller.session.options(), transaction);
        executor.run(fill.as_ref().unwrap_or(statement), parameters).await
    }

    /// Loads rows of the client's into a table; outside of a transaction it may be one that is made for them.
    pub(super) async fn load(
        &self,
        name: &TableName,
        create: Option<&CreateTable>,
        schema: SchemaRef,
        batches: impl Stream<Item = Result<RecordBatch>> + Send,
        caller: &Caller,
    ) -> Result<LoadOutcome> {
        if let Some(open) = self.open_transaction(caller)? {
            let load = async |executor: &mut Executor<'_>| executor.load(name, schema, batches).await;
            let loaded = self.in_transaction(&open, caller, caller.limit(), load).await;
            let rows = loaded.map_err(|(error, _)| error)?;
            return Ok(LoadOutcome { rows, version: 0 });
        }
        let limit = caller.limit();
        let mut attempt = 1;
        let mut transaction = loop {
            let mut transaction = self.writes.begin(limit.keep(self.current_state()).await?);
            let exists = transaction.begun().table_by_name(name).is_some();
            let Some(create) = create.filter(|create| !(create.if_not_exists && exists)) else { break transaction };
            let failed = match limit.keep(self.make_table(create, caller, &mut transaction)).await {
                Ok(true) => break transaction,
                Ok(false) => None,
                Err(error) => Some(error),
            };
            transaction.abort().await;
            let is_in_the_way = |error: &Error| create.if_not_exists && error.code() == ErrorCode::Conflict;
            if let Some(error) = failed.filter(|error| attempt >= ATTEMPTS || !is_in_the_way(error)) {
                return self.done_before(caller)?.ok_or_else(|| nothing_done(error));
            }
            // Another load makes it, and this one is to add to it.
            limit.keep(self.while_made(name)).await?;
            attempt += 1;
        };
        let _listed = self.sessions.list(&transaction, &caller.login.user);
        let mut executor = Executor::new(&self.services, &caller.login, caller.session.options(), &mut transaction);
        match limit.keep(executor.load(name, schema, batches)).await {
            Ok(rows) => {
                let committed = transaction.commit(caller.statement, Some(rows)).await?;
                Ok(LoadOutcome { rows: committed.repeated.unwrap_or(rows), version: committed.version })
            }
            Err(error) => {
                transaction.abort().await;
                self.done_before(caller)?.ok_or_else(|| nothing_done(error))
            }
        }
    }

    /// Waits while somebody makes a table of that name.
    async fn while_made(&self, name: &TableName) -> Result<()> {
        let ended = |_: &u64| !self.catalog.state().is_name_in_making(name);
        // It ends with the server.
        self.catalog.watch().wait_for(ended).await.map(drop).map_err(|_| Error::internal("the catalog is closed"))
    }

    /// Runs a statement in an open transaction; one that fails is undone, and nothing else.
    async fn in_transaction<T>(
        &self,
        open: &OpenTransaction,
        caller: &Caller,
        limit: TimeLimit,
        run: impl AsyncFnOnce(&mut Executor<'_>) -> Result<T>,
    ) -> Result<T, (Error, Again)> {
        let mut held = limit.keep(open.hold()).await.map_err(|error| (error, Again::No))?;
        if open.is_read_only() {
            let error = WireError::new(ErrorCode::InvalidArgument, "the transaction is READ ONLY")
                .with_hint("begin it without READ ONLY")
                .with_field("transaction", open.id());
            return Err((error.into(), Again::No));
        }
        let before = held.transaction().sequence();
        let ran = {
            let options = caller.session.options();
            let mut executor = Executor::new(&self.services, &caller.login, options, held.transaction());
            limit.keep(run(&mut executor)).await
        };
        match ran {
            Ok(done) => Ok(done),
            Err(error) => {
                // A conflict stays one: the snapshot is the transaction's.
                let again = match held.failed(before, &error).await {
                    true => Again::after(&error),
                    false => Again::No,
                };
                Err((nothing_done(error), again))
            }
        }
    }

    /// EXPLAIN of a statement that changes rows.
    pub(super) async fn explain_write(
        &self,
        state: Arc<CatalogState>,
        statement: &Statement,
        verbose: bool,
        parameters: Option<&RecordBatch>,
        context: &QueryContext,
    ) -> Result<Vec<RecordBatch>> {
        let (query, with_hidden) = match dml::question(statement, &state)? {
            Some(question) => question,
            // VALUES asks nothing.
            None => match statement {
                Statement::Insert(insert) if insert.source.is_some() => {
                    let source = insert.source.clone().expect("it was just looked at");
                    (Box::new(ast::Statement::Query(source)), None)
                }
                _ => (Box::new(ast::Statement::Query(Box::new(crate::statement::parse_query("VALUES (1)")?))), None),
            },
        };
        let explain = ast::Statement::Explain {
            describe_alias: ast::DescribeAlias::Explain,
            analyze: false,
            verbose,
            query_plan: false,
            estimate: false,
            statement: query,
            format: None,
            options: None,
        };
        let view = View { with_hidden, ..View::begin(Arc::clone(&state)) };
        let context = QueryContext { view: Some(Arc::new(view)), ..context.clone() };
        self.planner.answer(state, planner_statement(Box::new(explain)), parameters, &context).await
    }
}

/// Which state of the catalog a statement is run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Basis {
    /// The one that this server has, which may be a moment old: what fails on it says nothing.
    Known,
    /// One with everything that was acknowledged before, for which the leader and most others have to be asked.
    Newest,
}

/// Whether what the statement does depends on no row that others have written. Keys that are taken, tables that were altered
/// and parents that are gone are found when its rows are staged, or by the commit.
fn reads_nothing(statement: &Statement) -> bool {
    match statement {
        Statement::Insert(insert) => {
            let given = || plain_values(insert).is_some_and(|rows| !has_subquery(&rows));
            insert.on.is_none() && (insert.source.is_none() || given())
        }
        _ => false,
    }
}

/// Whether a statement that failed may be run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    Yes,
    No,
}

impl Again {
    /// After an error before the commit: nothing was seen by anybody.
    fn after(error: &Error) -> Self {
        match error.code() {
            ErrorCode::Conflict | ErrorCode::Unavailable => Again::Yes,
            _ => Again::No,
        }
    }
}

/// The answer to a statement that was done before.
fn repeated(statement: &Statement, outcome: LoadOutcome) -> Result<(Written, LoadOutcome)> {
    if statement.returns_rows() {
        let message =
            format!("the statement is done, at version {}; what it returned is not known any more", outcome.version);
        return Err(WireError::new(ErrorCode::AlreadyExists, message)
            .with_hint("query the rows")
            .with_field("version", outcome.version)
            .into());
    }
    Ok((Written { rows: outcome.rows, returned: None }, outcome))
}

/// The error of a statement of which all was undone: when a server was lost, clients are told that they may run it again.
fn nothing_done(error: Error) -> Error {
    let wire = error.to_wire();
    if wire.code != ErrorCode::Unavailable || wire.fields.contains_key("outcome") {
        return error;
    }
    wire.with_field("outcome", "none").into()
}

/// Waits before run `attempt` + 1, the one before having failed.
pub(super) async fn pause(attempt: u32, error: &Error) -> Result<()> {
    let part = (drsdb_core::ids::random_bits() % 1000) as u32;
    // Time is what helps here: there is nothing that would tell when the others are done.
    #[allow(clippy::disallowed_methods)]
    tokio::time::sleep(pause_after(attempt, error.code(), part)).await;
    Ok(())
}

/// Others are at the same rows: who waits a random time, of which `part` is the thousandths, meets fewer of them. A server
/// that is gone is no rival.
fn pause_after(attempt: u32, code: ErrorCode, part: u32) -> Duration {
    let doubled = 2u32.saturating_pow(attempt - 1);
    match code {
        ErrorCode::Unavailable => FIRST_PAUSE_WITHOUT_SERVER * doubled,
        _ => FIRST_PAUSE * doubled * part / 1000,
    }
}

/// The error of a change of the catalog in a transaction.
pub fn no_ddl(what: &str) -> Error {
    WireError::new(ErrorCode::Unsupported, format!("{what} cannot be a part of a transaction"))
        .with_hint("COMMIT or ROLLBACK first: changes of tables and users are transactions of their own")
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::KILLED_IS_SUSPECT_WITHIN;

    #[test]
    fn a_statement_is_run_again_until_a_dead_server_is_suspect() {
        let waited = |code, part| (1..ATTEMPTS).map(|attempt| pause_after(attempt, code, part)).sum::<Duration>();
        let patience = waited(ErrorCode::Unavailable, 0);
        assert!(patience > KILLED_IS_SUSPECT_WITHIN + Duration::from_secs(1), "{patience:?}");
        assert!(patience < Duration::from_secs(5), "{patience:?}");
        assert_eq!(waited(ErrorCode::Conflict, 0), Duration::ZERO);
        assert!(waited(ErrorCode::Conflict, 999) < Duration::from_secs(2));
    }

    #[test]
    fn only_what_was_lost_for_want_of_a_server_is_said_to_have_done_nothing() {
        let outcome = |error: WireError| nothing_done(error.into()).to_wire().fields.get("outcome").cloned();
        let error = |code| WireError::new(code, "m");
        assert_eq!(outcome(error(ErrorCode::Unavailable)).as_deref(), Some("none"));
        assert_eq!(outcome(error(ErrorCode::InvalidValue)), None);
        let unknown = error(ErrorCode::Unavailable).with_field("outcome", "unknown");
        assert_eq!(outcome(unknown).as_deref(), Some("unknown"));
    }
}
