//! Statements: queries become tickets, everything else runs at once. Clients of DDL often never fetch the result, so
//! that it must have happened before GetFlightInfo answers.

use std::sync::Arc;

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
};
use arrow_flight::{
    FlightEndpoint, FlightInfo, Ticket,
    sql::{CommandPreparedStatementQuery, CommandStatementQuery, ProstMessageExt},
};
use datafusion::sql::{parser::Statement as PlannerStatement, sqlparser::ast};
use drsdb_core::{Error, ErrorCode, Result, Table, TableName, Ulid, WireError, ids::new_ulid, v1};
use prost::Message;

use super::{FlightSqlServer, metadata, prepared::encode_parameters, service::Caller, write::no_ddl};
use crate::{
    catalog::{CatalogState, Command},
    dml,
    load::LoadOutcome,
    offload::offload,
    planner::{PlannedQuery, QueryContext, Source, explain_schema},
    statement::{self, CreateTable, Show, Statement},
};

impl Caller {
    /// What the planner wants to know about the caller.
    pub(super) fn context(&self) -> QueryContext {
        QueryContext::new(self.login.user.clone(), self.session.options().clone())
    }
}

/// A query for the planner.
pub fn planner_statement(query: Box<ast::Statement>) -> PlannerStatement {
    PlannerStatement::Statement(query)
}

/// Parses; a large text off the async threads.
pub async fn parse(sql: &str) -> Result<Statement> {
    /// Parsed in microseconds.
    const SHORT: usize = 512;
    let text = sql.to_owned();
    offload(sql.len() <= SHORT, "parsing", move || statement::parse(&text)).await
}

impl FlightSqlServer {
    /// Runs a statement, or plans it if it returns rows.
    pub(super) async fn execute(
        &self,
        sql: &str,
        parameters: Option<RecordBatch>,
        caller: &mut Caller,
    ) -> Result<FlightInfo> {
        match parse(sql).await? {
            Statement::Query(query) | Statement::Explain(query) => {
                let planned = self.plan(query, parameters.clone(), caller).await?;
                self.query_info(planned, sql, parameters, caller)
            }
            Statement::ExplainWrite { .. } => {
                self.info(explain_schema(), vec![self.catalog_endpoint(replay(sql, parameters)?, caller)?], -1)
            }
            // Answered now: the session need not come along when the rows are pulled.
            Statement::Show(show @ (Show::Setting(_) | Show::AllSettings)) => {
                let batch = metadata::show(&show, &self.catalog.state(), &caller.session)?;
                let schema = batch.schema();
                self.info(Arc::clone(&schema), vec![self.rows_endpoint(&schema, &[batch], caller)?], -1)
            }
            Statement::Show(show) => {
                let schema = metadata::show_schema(&show);
                self.info(schema, vec![self.catalog_endpoint(replay(sql, None)?, caller)?], -1)
            }
            other if other.returns_rows() => {
                let (written, outcome) = self.write(&other, parameters, caller).await?;
                let (schema, rows) = written.returned.unwrap_or_else(|| (Schema::empty().into(), Vec::new()));
                let endpoint = self.rows_endpoint(&schema, &rows, caller)?;
                Ok(self.info(schema, vec![endpoint], -1)?.with_app_metadata(write_result(outcome)))
            }
            other => {
                let outcome = self.run(other, parameters, caller).await?;
                let endpoint = self.nothing_endpoint(caller)?;
                let info = self.info(Schema::empty().into(), vec![endpoint], outcome.rows as i64)?;
                Ok(info.with_app_metadata(write_result(outcome)))
            }
        }
    }

    fn query_info(
        &self,
        planned: PlannedQuery,
        sql: &str,
        parameters: Option<RecordBatch>,
        caller: &Caller,
    ) -> Result<FlightInfo> {
        let endpoints = match planned.source {
            Source::Endpoints(endpoints) => endpoints
                .into_iter()
                .map(|endpoint| {
                    let ticket = FlightEndpoint::new().with_ticket(Ticket::new(endpoint.ticket));
                    endpoint.locations.into_iter().fold(ticket, |ticket, url| ticket.with_location(flight_uri(&url)))
                })
                .collect(),
            Source::Catalog => vec![self.catalog_endpoint(replay(sql, parameters)?, caller)?],
            Source::Rows(rows) => vec![self.rows_endpoint(&planned.schema, &rows, caller)?],
        };
        // An estimate must not be taken for a count: some clients stop reading there.
        let mut info = self.info(planned.schema, endpoints, -1)?.with_ordered(planned.ordered);
        if let Some(resume) = planned.resume {
            let repeatable = v1::RepeatableAnswer { resume: resume.to_string() };
            info = info.with_app_metadata(repeatable.encode_to_vec());
        }
        tracing::debug!(
            user = caller.login.user,
            endpoints = info.endpoint.len(),
            rows = planned.rows_estimate,
            "query planned"
        );
        Ok(info)
    }

    pub(super) fn info(&self, schema: SchemaRef, endpoints: Vec<FlightEndpoint>, rows: i64) -> Result<FlightInfo> {
        let info = FlightInfo::new().try_with_schema(&schema)?.with_total_records(rows).with_total_bytes(-1);
        Ok(info.with_endpoints(endpoints))
    }

    /// Runs a statement that returns no rows.
    pub(super) async fn run(
        &self,
        statement: Statement,
        parameters: Option<RecordBatch>,
        caller: &mut Caller,
    ) -> Result<LoadOutcome> {
        if statement.writes_rows() {
            return Ok(self.write(&statement, parameters, caller).await?.1);
        }
        if parameters.is_some() {
            return Err(Error::new(ErrorCode::InvalidArgument, "this statement takes no parameters"));
        }
        if let Statement::Transaction(step) = statement {
            let version = self.step(step, caller).await?;
            return Ok(LoadOutcome { rows: 0, version });
        }
        let is_query = statement.returns_rows();
        if !is_query && !matches!(statement, Statement::Set { .. }) && caller.transaction().is_some() {
            return Err(no_ddl("this statement"));
        }
        if caller.statement.is_some() && !is_query && !matches!(statement, Statement::Set { .. }) {
            // The first time may have been at another server.
            self.current_state().await?;
            if let Some(outcome) = self.done_before(caller)? {
                return Ok(outcome);
            }
        }
        let id = caller.statement;
        let version = match statement {
            Statement::CreateTable(table) if table.query.is_some() => {
                return self.create_table_as(table, caller).await;
            }
            Statement::CreateTable(table) => self.create_table(&table, id).await?,
            Statement::DropTable { names, if_exists, cascade } => {
                self.propose(Command::DropTables { names, if_exists, cascade }, id).await?
            }
            Statement::AlterTable(alter) => self.alter_table(&alter, caller).await?,
            Statement::CreateView(view) => self.create_view(&view, caller).await?,
            Statement::DropView { names, if_exists, cascade } => {
                self.propose(Command::DropViews { names, if_exists, cascade }, id).await?
            }
            Statement::Comment { on, if_exists, text } => self.comment(on, if_exists, text, id).await?,
            Statement::CreateSchema { name, if_not_exists } => {
                self.propose(Command::CreateSchema { name, if_not_exists }, id).await?
            }
            Statement::DropSchema { names, if_exists, cascade } => {
                let mut version = self.catalog.state().version();
                let last = names.len().saturating_sub(1);
                for (at, name) in names.into_iter().enumerate() {
                    // Done is the statement with its last schema.
                    let id = id.filter(|_| at == last);
                    version = self.propose(Command::DropSchema { name, if_exists, cascade }, id).await?;
                }
                version
            }
            Statement::CreateUser { name, password, if_not_exists } => {
                self.create_user(name, password, if_not_exists, caller).await?
            }
            Statement::AlterUser { name, password } => self.alter_user(name, password, caller).await?,
            Statement::DropUser { name, if_exists } => self.drop_user(name, if_exists, caller).await?,
            Statement::AlterCluster(change) => self.alter_cluster(change, &caller.login).await?,
            Statement::Set { name, value } => {
                caller.session.set(name.as_deref(), value.as_deref())?;
                self.catalog.state().version()
            }
            _ => {
                return Err(WireError::new(ErrorCode::InvalidArgument, "this statement returns rows")
                    .with_hint("execute it as a query, not as an update")
                    .into());
            }
        };
        Ok(LoadOutcome { rows: 0, version })
    }

    /// Proposes a change, and returns the version at which it took effect; `statement` is the client's id of it.
    pub(super) async fn propose(&self, command: Command, statement: Option<Ulid>) -> Result<u64> {
        Ok(self.catalog.propose(once(command, statement)).await?.0)
    }

    /// CREATE TABLE; the version at which it took effect.
    pub(super) async fn create_table(&self, create: &CreateTable, statement: Option<Ulid>) -> Result<u64> {
        let state = self.current_state().await?;
        if create.if_not_exists && state.table_by_name(&create.name).is_some() {
            return Ok(state.version());
        }
        let table = self.definition(&state, create)?;
        self.propose(Command::CreateTable { table, if_not_exists: create.if_not_exists }, statement).await
    }

    /// The definition of a new table, with an id of its own.
    pub(super) fn definition(&self, state: &Arc<CatalogState>, create: &CreateTable) -> Result<Table> {
        let parents = |name: &TableName| Ok(state.find_table(name)?.table.clone());
        let definition = create.resolve(new_ulid(), self.config.default_shards, &parents)?;
        self.planner.check_definition(state, &definition, &QueryContext::new("", self.options.clone()))?;
        Ok(definition)
    }

    /// The schemas of a statement's rows and parameters; empty when it has none.
    pub(super) async fn describe(&self, sql: &str, caller: &Caller) -> Result<(Schema, Schema)> {
        let statement = parse(sql).await?;
        let state = self.state_to_read(&caller.session).await?;
        match statement {
            Statement::Query(query) | Statement::Explain(query) => {
                let described = self.planner.describe(state, planner_statement(query), &caller.context()).await?;
                Ok((described.0.as_ref().clone(), described.1.as_ref().clone()))
            }
            Statement::Show(show) => Ok((metadata::show_schema(&show).as_ref().clone(), Schema::empty())),
            Statement::ExplainWrite { statement, .. } => {
                let described = dml::describe(&self.services, &statement, &caller.context()).await?;
                Ok((explain_schema().as_ref().clone(), described.parameters.as_ref().clone()))
            }
            other if other.writes_rows() => {
                let described = dml::describe(&self.services, &other, &caller.context()).await?;
                Ok((described.rows.as_ref().clone(), described.parameters.as_ref().clone()))
            }
            _ => Ok((Schema::empty(), Schema::empty())),
        }
    }

    /// The schema of a statement's rows when its parameters have values: these say of which types they are.
    pub(super) async fn describe_bound(&self, sql: &str, values: &RecordBatch, caller: &Caller) -> Result<Schema> {
        let Statement::Query(query) = parse(sql).await? else { return Ok(self.describe(sql, caller).await?.0) };
        let state = self.state_to_read(&caller.session).await?;
        let planned = self.planner.plan(state, planner_statement(query), Some(values), &caller.context()).await?;
        Ok(planned.schema.as_ref().clone())
    }
}

fn once(command: Command, statement: Option<Ulid>) -> Command {
    match statement {
        Some(statement) => Command::Once { statement, command: Box::new(command) },
        None => command,
    }
}

/// What DoGet is to do: the statement again.
fn replay(sql: &str, parameters: Option<RecordBatch>) -> Result<Vec<u8>> {
    let any = match parameters {
        None => CommandStatementQuery { query: sql.to_owned(), transaction_id: None }.as_any(),
        Some(batch) => {
            let parameters = encode_parameters(&batch)?;
            let prepared = v1::PreparedStatement { sql: sql.to_owned(), parameters, ..Default::default() };
            CommandPreparedStatementQuery { prepared_statement_handle: prepared.encode_to_vec().into() }.as_any()
        }
    };
    Ok(any.encode_to_vec())
}

/// Flight's name for a server with TLS.
fn flight_uri(url: &str) -> String {
    match url.strip_prefix("https://") {
        Some(rest) => format!("grpc+tls://{}", rest.trim_end_matches('/')),
        None => url.to_owned(),
    }
}

/// What `app_metadata` says about a write.
pub fn write_result(outcome: LoadOutcome) -> Vec<u8> {
    v1::WriteResult { rows: outcome.rows, version: outcome.version }.encode_to_vec()
}
