//! Prepared statements. A handle is the statement itself, and its parameters once they are bound: no server remembers
//! anything, and every index server can go on where another one stopped.

use arrow::datatypes::Schema;
use arrow::{
    array::RecordBatch,
    compute::concat_batches,
    ipc::{reader::StreamReader, writer::StreamWriter},
};
use arrow_flight::{
    FlightInfo, IpcMessage,
    sql::{ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult, DoPutPreparedStatementResult},
};
use bytes::Bytes;
use drsdb_core::{Error, ErrorCode, Result, WireError, v1};
use prost::Message;

use super::{
    FlightSqlServer,
    service::{Caller, ipc_schema},
};
use crate::transaction::Handle;

/// Parameters bound in a handle, at most: the handle travels with every request.
const MAX_PARAMETER_BYTES: usize = 8 << 20;

impl FlightSqlServer {
    /// CreatePreparedStatement.
    pub(super) async fn prepare(
        &self,
        request: ActionCreatePreparedStatementRequest,
        caller: &Caller,
    ) -> Result<ActionCreatePreparedStatementResult> {
        let transaction = request.transaction_id.unwrap_or_default();
        if !transaction.is_empty() {
            Handle::decode(&transaction)?;
        }
        let (dataset, parameters) = self.describe(&request.query, caller).await?;
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: encode(request.query, Bytes::new(), transaction),
            dataset_schema: schema_bytes(&dataset)?,
            parameter_schema: schema_bytes(&parameters)?,
        })
    }

    /// GetFlightInfo of a handle.
    pub(super) async fn execute_prepared(&self, handle: &[u8], caller: &mut Caller) -> Result<FlightInfo> {
        let prepared = decode(handle)?;
        let parameters = decode_parameters(&prepared.parameters)?;
        caller.name_transaction(Some(&prepared.transaction))?;
        self.execute(&prepared.sql, parameters, caller).await
    }

    /// DoPut of parameters: a new handle that has them.
    pub(super) fn bind(&self, handle: &[u8], parameters: Option<RecordBatch>) -> Result<DoPutPreparedStatementResult> {
        let prepared = decode(handle)?;
        let parameters = parameters.as_ref().map(encode_parameters).transpose()?.unwrap_or_default();
        let handle = encode(prepared.sql, parameters, prepared.transaction);
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) })
    }
}

fn encode(sql: String, parameters: Bytes, transaction: Bytes) -> Bytes {
    v1::PreparedStatement { sql, parameters, transaction }.encode_to_vec().into()
}

/// The statement in a handle.
pub fn decode(handle: &[u8]) -> Result<v1::PreparedStatement> {
    let broken = |error: prost::DecodeError| {
        WireError::new(ErrorCode::InvalidArgument, format!("not the handle of a prepared statement: {error}"))
            .with_hint("prepare the statement again")
    };
    Ok(v1::PreparedStatement::decode(handle).map_err(broken)?)
}

/// A batch of parameters as a handle holds it.
pub fn encode_parameters(batch: &RecordBatch) -> Result<Bytes> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema())?;
    writer.write(batch)?;
    let bytes = writer.into_inner()?;
    if bytes.len() > MAX_PARAMETER_BYTES {
        let message = format!("parameters of {} bytes; at most {MAX_PARAMETER_BYTES} are accepted", bytes.len());
        return Err(WireError::new(ErrorCode::ResourceExhausted, message)
            .with_hint("send rows as a bulk load, or as parameters of an update")
            .into());
    }
    Ok(bytes.into())
}

/// The parameters in a handle; `None`: none are bound.
pub fn decode_parameters(bytes: &[u8]) -> Result<Option<RecordBatch>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let broken = |error| {
        Error::from(WireError::new(
            ErrorCode::InvalidArgument,
            format!("the parameters in the handle are broken: {error}"),
        ))
    };
    let reader = StreamReader::try_new(bytes, None).map_err(broken)?;
    let schema = reader.schema();
    let batches = reader.collect::<Result<Vec<_>, _>>().map_err(broken)?;
    Ok(Some(concat_batches(&schema, &batches)?))
}

/// No bytes for a schema without columns: that is how clients tell an update from a query.
fn schema_bytes(schema: &Schema) -> Result<Bytes> {
    if schema.fields().is_empty() {
        return Ok(Bytes::new());
    }
    let IpcMessage(bytes) = ipc_schema(schema)?;
    Ok(bytes)
}
