//! What the catalog says about itself: Flight SQL's metadata commands, SHOW and DESCRIBE. Pure: a state and a command
//! in, one batch out, sorted as Flight SQL wants it.

mod keys;
mod show;
mod sql_info;
mod tables;
mod types;

use arrow::{array::RecordBatch, datatypes::SchemaRef, error::ArrowError};
use arrow_flight::{
    FlightInfo,
    error::FlightError,
    sql::{Command, metadata::SqlInfoDataBuilder},
};
use drsdb_core::{Error, Result};
use prost::Message;
pub use show::{show, show_schema};

use super::{
    FlightSqlServer,
    service::{Caller, unsupported},
};
use crate::catalog::CatalogState;

impl FlightSqlServer {
    /// GetFlightInfo of a metadata command.
    pub(super) fn metadata_info(&self, command: Command, caller: &Caller) -> Result<FlightInfo> {
        let schema = schema(&command)?;
        let endpoint = self.catalog_endpoint(command.into_any().encode_to_vec(), caller)?;
        self.info(schema, vec![endpoint], -1)
    }
}

/// The schema of a metadata command's answer.
pub fn schema(command: &Command) -> Result<SchemaRef> {
    Ok(match command {
        Command::CommandGetSqlInfo(_) => SqlInfoDataBuilder::schema().clone().into(),
        // The others' schemas do not depend on the catalog.
        other => answer(other, &CatalogState::default())?.schema(),
    })
}

/// The answer to a metadata command.
pub fn answer(command: &Command, state: &CatalogState) -> Result<RecordBatch> {
    match command {
        Command::CommandGetCatalogs(_) => tables::catalogs(),
        Command::CommandGetDbSchemas(command) => tables::schemas(command, state),
        Command::CommandGetTables(command) => tables::tables(command, state),
        Command::CommandGetTableTypes(_) => tables::table_types(),
        Command::CommandGetPrimaryKeys(command) => keys::primary_keys(command, state),
        Command::CommandGetExportedKeys(command) => keys::exported_keys(command, state),
        Command::CommandGetImportedKeys(command) => keys::imported_keys(command, state),
        Command::CommandGetCrossReference(command) => keys::cross_reference(command, state),
        Command::CommandGetSqlInfo(command) => sql_info::sql_info(command),
        Command::CommandGetXdbcTypeInfo(command) => types::type_info(command),
        other => Err(unsupported(&format!("the command {}", other.type_url()))),
    }
}

/// An error of the library that builds answers: its input is ours, so that the fault is too.
fn build_error(error: FlightError) -> Error {
    match error {
        FlightError::Arrow(error) => ArrowError::into(error),
        other => Error::internal(format!("building an answer failed: {other}")),
    }
}

/// Whether an optional filter lets a value through: a missing one lets everything through.
fn allows(filter: Option<&str>, value: &str) -> bool {
    filter.is_none_or(|filter| filter == value)
}
