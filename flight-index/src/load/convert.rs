//! A client's batches -> batches of the table, column by column. Columns are matched by name, so that their order does
//! not matter and a file may leave nullable ones out.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{RecordBatch, RecordBatchOptions, new_null_array},
    datatypes::{Field, Schema, SchemaRef},
};
use drsdb_core::{ErrorCode, Result, Table, WireError, nearest_name};

use super::cast::{check_assignable, convert_column, null_in_not_null, transit_type};

/// Converts batches of one schema for one table.
#[derive(Debug)]
pub struct Converter {
    table: Arc<Table>,
    /// For each column of the table, where it is in the source.
    sources: Vec<Option<usize>>,
    transit: SchemaRef,
}

/// The schema of a table's rows on their way to shards, see [`super::cast`].
pub fn transit_schema(table: &Table) -> SchemaRef {
    let field = |column: &drsdb_core::Column| Field::new(&column.name, transit_type(column.sql_type), !column.not_null);
    Arc::new(Schema::new(table.columns.iter().map(field).collect::<Vec<_>>()))
}

impl Converter {
    /// Matches the source's columns with the table's; no row is needed to find what does not fit.
    pub fn new(table: Arc<Table>, source: &Schema) -> Result<Self> {
        let mut sources = vec![None; table.columns.len()];
        let mut by_name = HashMap::with_capacity(table.columns.len());
        for (position, column) in table.columns.iter().enumerate() {
            by_name.insert(column.name.as_str(), position);
        }
        for (index, field) in source.fields().iter().enumerate() {
            let Some(&position) = by_name.get(field.name().as_str()) else {
                return Err(unknown_column(&table, field.name()).into());
            };
            if sources[position].replace(index).is_some() {
                let message = format!("the rows have two columns called {}", field.name());
                return Err(WireError::new(ErrorCode::InvalidArgument, message).into());
            }
            check_assignable(field.data_type(), &table.columns[position])?;
        }
        for (column, source) in table.columns.iter().zip(&sources) {
            if column.not_null && source.is_none() {
                let message =
                    format!("the rows have no column {}, which is NOT NULL in table {}", column.name, table.name);
                return Err(WireError::new(ErrorCode::ConstraintViolation, message)
                    .with_hint("add the column to the rows")
                    .with_field("constraint", "not_null")
                    .with_field("column", &column.name)
                    .into());
            }
        }
        let transit = transit_schema(&table);
        Ok(Self { table, sources, transit })
    }

    /// The batch in transit types; its first row has the number `first_row` in the load, from 1.
    pub fn convert(&self, batch: &RecordBatch, first_row: u64) -> Result<RecordBatch> {
        let columns = self.table.columns.iter().zip(&self.sources).map(|(column, source)| match source {
            Some(index) => convert_column(batch.column(*index), column, first_row),
            None if column.not_null && batch.num_rows() > 0 => Err(null_in_not_null(column, first_row)),
            None => Ok(new_null_array(&transit_type(column.sql_type), batch.num_rows())),
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.transit), columns, &options)?)
    }
}

/// The error of a column that the table does not have.
pub fn unknown_column(table: &Table, name: &str) -> WireError {
    let error = WireError::new(ErrorCode::NotFound, format!("table {} has no column {name}", table.name))
        .with_field("column", name)
        .with_field("table", &table.name);
    match nearest_name(name, table.columns.iter().map(|column| column.name.as_str())) {
        Some(near) => error.with_hint(format!("did you mean {near}?")),
        None => error.with_hint("leave it out, or create the table with it"),
    }
}
