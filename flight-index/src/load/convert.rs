//! A client's batches -> batches of the table, column by column. Columns are matched by name, so that their order does
//! not matter and a file may leave nullable ones out.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array},
    datatypes::{Field, Schema, SchemaRef},
};
use datafusion::{common::DFSchema, physical_expr::PhysicalExpr};
use drsdb_core::{
    Column, ErrorCode, Result, Table, WireError, id_functions::snowflake_ids, nearest_name,
    query_session::QueryOptions, transit::transit_type,
};

use super::{
    cast::{check_assignable, convert_column},
    insert::default_expression,
};
use crate::dml::{
    check_not_null,
    expressions::{Expressions, evaluate},
};

/// Converts batches of one schema for one table.
#[derive(Debug)]
pub struct Converter {
    table: Arc<Table>,
    /// Its columns, as if none were NOT NULL: that is looked at when rows are whole, and can be told by their keys.
    columns: Vec<Column>,
    /// Where each column of the table comes from.
    sources: Vec<Source>,
    transit: SchemaRef,
}

#[derive(Debug)]
enum Source {
    /// A column of the batch.
    Given(usize),
    /// DEFAULT.
    Default(Arc<dyn PhysicalExpr>),
    /// The identity of rows that have no other.
    RowId,
    Null,
}

/// The schema of a table's rows on their way to shards.
pub fn transit_schema(table: &Table) -> SchemaRef {
    let field = |column: &Column| Field::new(&column.name, transit_type(column.sql_type), !column.not_null);
    Arc::new(Schema::new(table.columns.iter().map(field).collect::<Vec<_>>()))
}

impl Converter {
    /// Matches the source's columns with the table's; no row is needed to find what does not fit.
    pub fn new(table: Arc<Table>, source: &Schema, options: &QueryOptions) -> Result<Self> {
        let mut given = vec![None; table.columns.len()];
        let mut by_name = HashMap::with_capacity(table.columns.len());
        for (position, column) in table.visible_columns() {
            by_name.insert(column.name.as_str(), position);
        }
        for (index, field) in source.fields().iter().enumerate() {
            let Some(&position) = by_name.get(field.name().as_str()) else {
                return Err(unknown_column(&table, field.name()).into());
            };
            if given[position].replace(index).is_some() {
                let message = format!("the rows have two columns called {}", field.name());
                return Err(WireError::new(ErrorCode::InvalidArgument, message).into());
            }
            check_assignable(field.data_type(), &table.columns[position])?;
        }
        let mut expressions = None;
        let mut sources = Vec::with_capacity(given.len());
        for (position, (column, given)) in table.columns.iter().zip(given).enumerate() {
            let source = match given {
                Some(index) => Source::Given(index),
                None if column.hidden && !column.dropped => Source::RowId,
                None if column.default.is_some() && !column.dropped => {
                    let expressions = match &mut expressions {
                        Some(expressions) => expressions,
                        none => none.insert(Expressions::new(options)?),
                    };
                    let empty = DFSchema::empty();
                    Source::Default(expressions.compile(default_expression(column)?, &empty, &empty)?)
                }
                None if column.not_null && !column.dropped => return Err(missing(&table, position)),
                None => Source::Null,
            };
            sources.push(source);
        }
        let transit = transit_schema(&table);
        let columns = table.columns.iter().map(|column| Column { not_null: false, ..column.clone() }).collect();
        Ok(Self { table, columns, sources, transit })
    }

    /// The batch in transit types; its first row has the number `first_row` in the load, from 1.
    pub fn convert(&self, batch: &RecordBatch, first_row: u64) -> Result<RecordBatch> {
        let rows = batch.num_rows();
        let columns = self.columns.iter().zip(&self.sources).map(|(column, source)| match source {
            Source::Given(index) => convert_column(batch.column(*index), column, first_row),
            Source::Default(expr) => default_values(expr, column, rows, first_row),
            Source::RowId => Ok(Arc::new(snowflake_ids(rows)) as ArrayRef),
            Source::Null => Ok(new_null_array(&transit_type(column.sql_type), rows)),
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        check_not_null(&self.table, &columns, first_row, false)?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.transit), columns, &options)?)
    }
}

/// A column's DEFAULT for each of `rows` rows.
fn default_values(expr: &Arc<dyn PhysicalExpr>, column: &Column, rows: usize, first_row: u64) -> Result<ArrayRef> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    let nothing = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &options)?;
    let values = evaluate(expr, &nothing)?;
    check_assignable(values.data_type(), column)?;
    convert_column(&values, column, first_row)
}

fn missing(table: &Table, position: usize) -> drsdb_core::Error {
    let column = &table.columns[position];
    let message = format!("the rows have no column {}, which is NOT NULL in table {}", column.name, table.name);
    WireError::new(ErrorCode::ConstraintViolation, message)
        .with_hint("add the column to the rows, or give it a DEFAULT")
        .with_field("constraint", table.not_null_name(position))
        .with_field("table", &table.name)
        .with_field("column", &column.name)
        .into()
}

/// The error of a column that the table does not have.
pub fn unknown_column(table: &Table, name: &str) -> WireError {
    let error = WireError::new(ErrorCode::NotFound, format!("table {} has no column {name}", table.name))
        .with_field("column", name)
        .with_field("table", &table.name);
    match nearest_name(name, table.visible_columns().map(|(_, column)| column.name.as_str())) {
        Some(near) => error.with_hint(format!("did you mean {near}?")),
        None => error.with_hint("leave it out, or create the table with it"),
    }
}
