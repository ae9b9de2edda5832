//! DoPut: updates, parameters, and bulk loads.

use arrow::{array::RecordBatch, compute::concat_batches, datatypes::SchemaRef};
use arrow_flight::{
    FlightData, PutResult,
    decode::FlightRecordBatchStream,
    error::FlightError,
    sql::{Command, CommandStatementIngest, TableDefinitionOptions, TableExistsOption, TableNotExistOption},
};
use drsdb_core::{Error, ErrorCode, Result, TableName, WireError, row_bytes};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use prost::Message;
use tonic::{Status, Streaming};

use super::{
    FlightSqlServer,
    execute::{parse, write_result},
    prepared,
    service::{Caller, command, unsupported},
    write::no_ddl,
};
use crate::{
    catalog::CatalogState,
    load::LoadOutcome,
    statement::{ColumnClause, CreateTable, TableOptions, parse_name_list, parse_type},
};

/// Parameters that come with one update, at most: they are in memory all at once.
const MAX_PARAMETER_BYTES: usize = 64 << 20;

impl FlightSqlServer {
    /// Carries out the command of the stream's first message.
    pub(super) async fn put(&self, mut messages: Streaming<FlightData>, caller: &mut Caller) -> Result<PutResult> {
        let first = messages.message().await?.ok_or_else(|| no_command("the stream is empty"))?;
        let descriptor =
            first.flight_descriptor.clone().ok_or_else(|| no_command("its first message has no descriptor"))?;
        let messages = rows_of(first, messages);
        match command(&descriptor)? {
            Command::CommandStatementUpdate(update) => {
                caller.name_transaction(update.transaction_id.as_deref())?;
                let outcome = self.run(parse(&update.query).await?, None, caller).await?;
                Ok(put_result(write_result(outcome)))
            }
            Command::CommandPreparedStatementUpdate(update) => {
                let prepared = prepared::decode(&update.prepared_statement_handle)?;
                // Parameters come with the update, or were bound before.
                let parameters = match parameters(messages).await? {
                    Some(batch) => Some(batch),
                    None => prepared::decode_parameters(&prepared.parameters)?,
                };
                caller.name_transaction(Some(&prepared.transaction))?;
                let outcome = self.run(parse(&prepared.sql).await?, parameters, caller).await?;
                Ok(put_result(write_result(outcome)))
            }
            Command::CommandPreparedStatementQuery(query) => {
                let bound = self.bind(&query.prepared_statement_handle, parameters(messages).await?)?;
                Ok(put_result(bound.encode_to_vec()))
            }
            Command::CommandStatementIngest(ingest) => {
                caller.name_transaction(ingest.transaction_id.as_deref())?;
                let outcome = self.ingest(ingest, messages, caller).await?;
                Ok(put_result(write_result(outcome)))
            }
            other => Err(unsupported(&format!("DoPut of {}", other.type_url()))),
        }
    }

    async fn ingest(
        &self,
        ingest: CommandStatementIngest,
        messages: impl Stream<Item = Result<FlightData, FlightError>> + Send + 'static,
        caller: &Caller,
    ) -> Result<LoadOutcome> {
        if ingest.temporary {
            return Err(unsupported("a bulk load into a temporary table"));
        }
        if ingest.catalog.as_deref().is_some_and(|catalog| !matches!(catalog, "" | "drsdb")) {
            return Err(Error::new(ErrorCode::NotFound, "the only catalog is drsdb"));
        }
        let schema = ingest.schema.as_deref().filter(|schema| !schema.is_empty()).unwrap_or("public");
        let name = TableName::new(schema, &ingest.table);
        let mut batches = FlightRecordBatchStream::new_from_flight_data(messages);
        // The schema is known with the first batch, or at the end when there is none.
        let first = batches.next().await.transpose().map_err(flight_error)?;
        let schema = match (&first, batches.schema()) {
            (Some(batch), _) => batch.schema(),
            (None, Some(schema)) => SchemaRef::clone(schema),
            (None, None) => return Err(no_command("the bulk load has no schema")),
        };
        // The first time may have been at another server.
        let state = self.current_state().await?;
        if let Some(done) = self.done_before(caller)? {
            return Ok(done);
        }
        let create = table_to_make(&state, &name, &schema, &ingest, caller)?;
        let batches = stream::iter(first.map(Ok)).chain(batches.map_err(flight_error));
        self.load(&name, create.as_ref(), schema, batches, caller).await
    }
}

/// The table that is to be made, if the options say so and it is not there.
fn table_to_make(
    state: &CatalogState,
    name: &TableName,
    schema: &SchemaRef,
    ingest: &CommandStatementIngest,
    caller: &Caller,
) -> Result<Option<CreateTable>> {
    let options = ingest.table_definition_options.unwrap_or_default();
    if state.table_by_name(name).is_some() {
        return may_append(name, options).map(|()| None);
    }
    if options.if_not_exist() != TableNotExistOption::Create {
        return state.find_table(name).map(|_| None);
    }
    if caller.transaction().is_some() {
        return Err(no_ddl("a bulk load that creates its table"));
    }
    let if_not_exists = may_append(name, options).is_ok();
    let table = table_of_rows(name.clone(), schema, &ingest.options)?;
    Ok(Some(CreateTable { if_not_exists, ..table }))
}

fn may_append(name: &TableName, options: TableDefinitionOptions) -> Result<()> {
    match options.if_exists() {
        TableExistsOption::Append | TableExistsOption::Unspecified => Ok(()),
        TableExistsOption::Fail => {
            let error = WireError::new(ErrorCode::AlreadyExists, format!("table {name} exists already"));
            Err(error.with_hint("append to it, or choose another name").with_field("table", name).into())
        }
        TableExistsOption::Replace => {
            Err(WireError::new(ErrorCode::Unsupported, "a bulk load that replaces a table is not done")
                .with_hint(format!("DROP TABLE {name}, then load"))
                .into())
        }
    }
}

/// The definition of a table that is made for rows: their columns, and the options of the bulk load.
fn table_of_rows(
    name: TableName,
    schema: &SchemaRef,
    options: &std::collections::HashMap<String, String>,
) -> Result<CreateTable> {
    let mut table_options = TableOptions::default();
    let mut primary_key = Vec::new();
    for (option, value) in options {
        if option == "primary_key" {
            primary_key = parse_name_list(value).ok_or_else(|| {
                WireError::new(ErrorCode::InvalidArgument, format!("{value:?} is no list of columns"))
                    .with_hint("write primary_key = 'column, column'")
            })?;
        } else {
            table_options.set(option, value)?;
        }
    }
    let columns = schema.fields().iter().map(|field| {
        let sql_type = match field.metadata().get(drsdb_core::SQL_TYPE_KEY) {
            // Rows that came out of a table go back into the same types.
            Some(text) => parse_type(text)?,
            None => drsdb_core::SqlType::from_arrow(field.data_type())?,
        };
        Ok(ColumnClause::new(field.name(), sql_type, !field.is_nullable()))
    });
    Ok(CreateTable {
        columns: columns.collect::<Result<_>>()?,
        primary_key,
        options: table_options,
        ..CreateTable::new(name)
    })
}

fn no_command(why: &str) -> Error {
    WireError::new(ErrorCode::InvalidArgument, format!("DoPut without a command: {why}"))
        .with_hint("send a descriptor with a Flight SQL command in the first message")
        .into()
}

fn put_result(app_metadata: Vec<u8>) -> PutResult {
    PutResult { app_metadata: app_metadata.into() }
}

/// The messages with rows. A first message may have only the descriptor.
fn rows_of(
    first: FlightData,
    rest: Streaming<FlightData>,
) -> impl Stream<Item = Result<FlightData, FlightError>> + Send + 'static {
    let first = (!first.data_header.is_empty()).then_some(Ok(first));
    stream::iter(first).chain(rest).map_err(|status| FlightError::Tonic(Box::new(status)))
}

/// All rows of parameters as one batch; `None` when there are none.
async fn parameters(
    messages: impl Stream<Item = Result<FlightData, FlightError>> + Send + 'static,
) -> Result<Option<RecordBatch>> {
    let mut batches = FlightRecordBatchStream::new_from_flight_data(messages);
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(batch) = batches.next().await.transpose().map_err(flight_error)? {
        bytes += row_bytes(&batch);
        if bytes > MAX_PARAMETER_BYTES {
            let message = format!("more than {MAX_PARAMETER_BYTES} bytes of parameters");
            let error = WireError::new(ErrorCode::ResourceExhausted, message);
            return Err(error.with_hint("send the rows as a bulk load").into());
        }
        if batch.num_columns() > 0 {
            rows.push(batch);
        }
    }
    match rows.first() {
        None => Ok(None),
        Some(first) => Ok(Some(concat_batches(&first.schema(), &rows)?)),
    }
}

/// What went wrong with a stream of rows: the connection, or what is in it.
fn flight_error(error: FlightError) -> Error {
    match error {
        FlightError::Tonic(status) => Status::into(*status),
        other => WireError::new(ErrorCode::InvalidArgument, format!("the stream of rows is broken: {other}")).into(),
    }
}
