//! DoGet on the index server: answers that the catalog alone gives.
//!
//! Such a ticket is signed like any other. Its `catalog_answer` is the Flight SQL command to answer (a metadata command,
//! or the query or SHOW statement again), so that a ticket stays small however large the catalog is; empty bytes are an
//! empty result, of a statement that has run. What RETURNING gave is in the ticket itself. Nothing that changes anything is ever run from here.

use std::{future::ready, sync::Arc, time::Duration};

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
    ipc::{reader::StreamReader, writer::StreamWriter},
};
use arrow_flight::{
    FlightData, FlightEndpoint, Ticket, encode::FlightDataEncoderBuilder, error::FlightError, sql::Command,
};
use drsdb_core::{
    Error, ErrorCode, Result, WireError,
    ids::{new_ulid, unix_ms},
    query_session::QueryOptions,
    security::ticket,
    time_limit::TimeLimit,
    v1::{self, ticket::Fragment},
};
use futures::{StreamExt, TryStreamExt, stream};
use prost::Message;
use tonic::Status;

use super::{
    FlightSqlServer, MAX_RESPONSE_BYTES,
    execute::{parse, planner_statement},
    limits::apart,
    metadata, prepared,
    service::{Answers, Caller, decode_command},
    session::bounded,
};
use crate::{
    planner::{QueryContext, explain_schema},
    raft::ReadConsistency,
    statement::{Show, Statement},
};

/// What a message of an answer aims at.
const MESSAGE_BYTES: usize = 2 << 20;

impl FlightSqlServer {
    /// An endpoint that this server redeems: one without locations.
    pub(super) fn catalog_endpoint(&self, command: Vec<u8>, caller: &Caller) -> Result<FlightEndpoint> {
        self.own_endpoint(Fragment::CatalogAnswer(command.into()), caller)
    }

    /// An endpoint whose ticket has the rows in it.
    pub(super) fn rows_endpoint(
        &self,
        schema: &SchemaRef,
        rows: &[RecordBatch],
        caller: &Caller,
    ) -> Result<FlightEndpoint> {
        let mut writer = StreamWriter::try_new(Vec::new(), schema)?;
        for batch in rows {
            writer.write(batch)?;
        }
        self.own_endpoint(Fragment::Rows(writer.into_inner()?.into()), caller)
    }

    /// Of a statement without rows: clients may want to pull that there are none. The same for a user's statements for a while,
    /// since a signature takes as long as much of a small write.
    pub(super) fn nothing_endpoint(&self, caller: &Caller) -> Result<FlightEndpoint> {
        const USERS: usize = 256;
        let now = unix_ms();
        let known = self.nothing.lock().get(&caller.login.user).filter(|(until, _)| now < *until).cloned();
        if let Some((_, endpoint)) = known {
            return Ok(endpoint);
        }
        let endpoint = self.catalog_endpoint(Vec::new(), caller)?;
        let until = now + self.config.ticket_lifetime().as_millis() as u64 / 2;
        let mut nothing = self.nothing.lock();
        if nothing.len() >= USERS {
            nothing.clear();
        }
        nothing.insert(caller.login.user.clone(), (until, endpoint.clone()));
        Ok(endpoint)
    }

    fn own_endpoint(&self, fragment: Fragment, caller: &Caller) -> Result<FlightEndpoint> {
        let state = self.catalog.state();
        let lifetime: Duration = self.config.ticket_lifetime();
        let ticket = v1::Ticket {
            query_id: new_ulid().to_bytes().to_vec().into(),
            user: caller.login.user.clone(),
            expires_unix_ms: unix_ms() + lifetime.as_millis() as u64,
            snapshot: state.version(),
            workers: Vec::new(),
            // Clients need not send their session along with a ticket.
            options: Some(v1::SessionOptions {
                read_bound_ms: caller.session.read_bound_ms(),
                ..caller.session.options().to_proto()
            }),
            analyze: false,
            schema: Default::default(),
            fragment: Some(fragment),
            // All of it: what is answered here is computed when it is pulled.
            time_limit: caller.limit().to_proto(),
        };
        let sealed = ticket::seal(&*self.planner.signing_key(&state)?, ticket);
        Ok(FlightEndpoint::new().with_ticket(Ticket::new(sealed)))
    }

    /// Redeems a ticket.
    pub(super) async fn answer(&self, sealed: &[u8], caller: &Caller) -> Result<Answers<FlightData>> {
        let state = self.catalog.state();
        let key = self.planner.signing_key(&state)?;
        let ticket = ticket::open(&key.verifying_key(), sealed, &caller.login.user)?;
        if let Some(Fragment::Rows(rows)) = &ticket.fragment {
            let reader = StreamReader::try_new(&rows[..], None)?;
            let schema = reader.schema();
            return Ok(encode(schema, reader.collect::<Result<Vec<_>, _>>()?));
        }
        let Some(Fragment::CatalogAnswer(command)) = &ticket.fragment else {
            return Err(WireError::new(ErrorCode::TicketInvalid, "the rows of this ticket are on storage servers")
                .with_hint("pull it from one of the locations of its endpoint")
                .into());
        };
        let options = ticket.options.as_ref().map(QueryOptions::from_proto).unwrap_or_default();
        let limit = TimeLimit::resume(&ticket);
        let consistency = bounded(ticket.options.as_ref().and_then(|options| options.read_bound_ms));
        let context = QueryContext { limit, ..QueryContext::new(ticket.user.clone(), options) };
        let (schema, batches) = match command.is_empty() {
            true => (Schema::empty().into(), Vec::new()),
            false => limit.keep(self.replay(decode_command(command)?, &context, consistency, caller)).await?,
        };
        Ok(encode(schema, batches))
    }

    async fn replay(
        &self,
        command: Command,
        context: &QueryContext,
        consistency: ReadConsistency,
        caller: &Caller,
    ) -> Result<(SchemaRef, Vec<RecordBatch>)> {
        let (sql, parameters) = match command {
            Command::CommandStatementQuery(query) => (query.query, None),
            Command::CommandPreparedStatementQuery(query) => {
                let prepared = prepared::decode(&query.prepared_statement_handle)?;
                let parameters = prepared::decode_parameters(&prepared.parameters)?;
                (prepared.sql, parameters)
            }
            other => {
                let state = self.catalog.read(consistency).await?;
                let batch = metadata::answer(&other, &state)?;
                return Ok((batch.schema(), vec![batch]));
            }
        };
        let state = self.catalog.read(consistency).await?;
        match parse(&sql).await? {
            Statement::Query(query) | Statement::Explain(query) => {
                let statement = planner_statement(query);
                let (planner, asked) = (Arc::clone(&self.planner), context.clone());
                let (schema, batches) = apart(context, async move {
                    let (schema, _) = planner.describe(state.clone(), statement.clone(), &asked).await?;
                    let batches = planner.answer(state, statement, parameters.as_ref(), &asked).await?;
                    Ok((schema, batches))
                })
                .await?;
                // The rows' own schema is more exact than the description when there were parameters.
                Ok((batches.first().map_or(schema, RecordBatch::schema), batches))
            }
            Statement::Show(Show::Cluster) => {
                let batch = self.show_cluster(&state, &caller.login).await?;
                Ok((batch.schema(), vec![batch]))
            }
            Statement::Show(show) => {
                let batch = metadata::show(&show, &state, &caller.session)?;
                Ok((batch.schema(), vec![batch]))
            }
            Statement::ExplainWrite { statement, verbose } => {
                let batches = self.explain_write(state, &statement, verbose, parameters.as_ref(), context).await?;
                Ok((explain_schema(), batches))
            }
            _ => Err(Error::internal("a ticket for a statement that returns no rows")),
        }
    }
}

fn encode(schema: SchemaRef, batches: Vec<RecordBatch>) -> Answers<FlightData> {
    let encoder = FlightDataEncoderBuilder::new()
        .with_schema(schema)
        .with_max_flight_data_size(MESSAGE_BYTES)
        .build(stream::iter(batches.into_iter().map(Ok::<_, FlightError>)));
    let encoded = encoder.map_err(|error| Error::internal(format!("encoding an answer failed: {error}")));
    encoded.and_then(|message| ready(sendable(message))).map_err(Status::from).boxed()
}

/// A row goes in one message, however long it is.
fn sendable(message: FlightData) -> Result<FlightData> {
    let bytes = message.encoded_len();
    if bytes > MAX_RESPONSE_BYTES {
        let error = format!("the answer has a row of {bytes} bytes; at most {MAX_RESPONSE_BYTES} are sent");
        return Err(WireError::new(ErrorCode::ResourceExhausted, error).with_hint("ask for shorter values").into());
    }
    Ok(message)
}
