//! Prepared statements. A server keeps no state for one: its handle is the statement, so any index server runs it.

use std::sync::Arc;

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
};
use arrow_flight::{
    IpcMessage,
    sql::{
        ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult, Any, CommandPreparedStatementQuery,
        CommandPreparedStatementUpdate, DoPutPreparedStatementResult, ProstMessageExt,
    },
};
use bytes::Bytes;
use futures::stream;
use prost::Message;
use url::Url;

use crate::{
    Client, Executed, QueryStream, Result, WriteResult, client::Planned, error::Failure, ingest::Batches, is_read_only,
    route::Kind,
};

/// A statement that is parsed and typed, with or without values for its parameters.
#[derive(Debug, Clone)]
pub struct Prepared {
    client: Client,
    handle: Bytes,
    dataset: SchemaRef,
    parameters: SchemaRef,
    read_only: bool,
    bound: Option<RecordBatch>,
}

impl Prepared {
    pub(crate) async fn create(client: Client, sql: &str) -> Result<Self> {
        let request =
            ActionCreatePreparedStatementRequest { query: sql.to_owned(), transaction_id: client.transaction_id() };
        let body = request.as_any().encode_to_vec().into();
        let (server, answer) = client.action(&client.route(Kind::Read)?, "CreatePreparedStatement", body).await?;
        let broken = |what: String| Failure::broken_data(&what, &server).error;
        let any = Any::decode(answer.unwrap_or_default()).map_err(|error| broken(error.to_string()))?;
        let result: ActionCreatePreparedStatementResult =
            any.unpack()?.ok_or_else(|| broken(format!("{} for a prepared statement", any.type_url)))?;
        Ok(Prepared {
            client,
            handle: result.prepared_statement_handle,
            dataset: schema(result.dataset_schema, &server)?,
            parameters: schema(result.parameter_schema, &server)?,
            read_only: is_read_only(sql),
            bound: None,
        })
    }

    /// The columns of its rows; empty for a statement that returns none.
    pub fn dataset_schema(&self) -> SchemaRef {
        self.dataset.clone()
    }

    /// Its parameters in order.
    pub fn parameter_schema(&self) -> SchemaRef {
        self.parameters.clone()
    }

    /// Gives its parameters values: one column each, in order, and one row. Replaces earlier values.
    pub async fn bind(&mut self, values: RecordBatch) -> Result<()> {
        if !self.dataset.fields().is_empty() {
            let command = CommandPreparedStatementQuery { prepared_statement_handle: self.handle.clone() };
            let (_, metadata) = self.client.put(&command, values.clone(), Kind::Read).await?;
            // Servers without state answer with a handle that carries the values.
            if let Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) }) =
                DoPutPreparedStatementResult::decode(metadata)
            {
                self.handle = handle;
            }
        }
        self.bound = Some(values);
        Ok(())
    }

    /// Runs it, whatever it is.
    pub async fn execute(&self) -> Result<Executed> {
        if self.dataset.fields().is_empty() {
            return self.execute_write().await.map(Executed::Write);
        }
        self.client.executed(self.info().await?)
    }

    /// Runs it and streams its rows.
    pub async fn query(&self) -> Result<QueryStream> {
        self.client.stream(self.info().await?)
    }

    async fn info(&self) -> Result<Planned> {
        let command = CommandPreparedStatementQuery { prepared_statement_handle: self.handle.clone() };
        self.client.command_info(&command, self.kind()).await
    }

    /// Each execution is a statement of its own.
    fn kind(&self) -> Kind {
        if self.read_only { Kind::Read } else { Kind::write() }
    }

    async fn execute_write(&self) -> Result<WriteResult> {
        let command = CommandPreparedStatementUpdate { prepared_statement_handle: self.handle.clone() };
        let values = self.bound.clone().unwrap_or_else(|| RecordBatch::new_empty(Arc::new(Schema::empty())));
        let (_, metadata) = self.client.put(&command, values, self.kind()).await?;
        let result = WriteResult::decode(&metadata);
        self.client.has_seen(result.version);
        Ok(result)
    }
}

fn schema(ipc: Bytes, server: &Url) -> Result<SchemaRef> {
    if ipc.is_empty() {
        return Ok(Arc::new(Schema::empty()));
    }
    let schema = Schema::try_from(IpcMessage(ipc));
    schema.map(Arc::new).map_err(|error| Failure::broken_data(&format!("a schema: {error}"), server).error)
}

impl Client {
    /// DoPut of one batch; the answer's metadata.
    async fn put<M: ProstMessageExt>(&self, command: &M, batch: RecordBatch, kind: Kind) -> Result<(Url, Bytes)> {
        let schema = batch.schema();
        let attempt = || -> Result<Batches> {
            let batches = (batch.num_rows() > 0).then(|| Ok(batch.clone()));
            Ok(Box::pin(stream::iter(batches)))
        };
        self.put_stream(command, schema, attempt, kind).await
    }
}
