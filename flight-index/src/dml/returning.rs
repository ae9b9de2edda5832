//! RETURNING: the rows that a statement answers with. They are computed here, of rows that are on their way, and travel in
//! the answer's ticket, so there is a limit to them.

use std::sync::Arc;

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    datatypes::{Field, FieldRef, Schema, SchemaRef},
};
use datafusion::{
    common::{DFSchema, TableReference},
    physical_expr::PhysicalExpr,
    sql::sqlparser::ast::{self, Expr, SelectItem},
};
use drsdb_core::{
    ErrorCode, Result, Table, WireError,
    edge::{EdgeConverter, edge_schema},
    query_session::QueryOptions,
    row_bytes,
};

use super::{
    expressions::{Expressions, evaluate, parameter_name},
    select::TargetName,
};
use crate::{
    load::{insert::parameter_columns, transit_schema},
    statement::identifier,
};

/// Bytes of all rows that one statement returns.
const MAX_RETURNED_BYTES: usize = 8 << 20;

/// Computes the rows.
pub struct Returning {
    items: Vec<Arc<dyn PhysicalExpr>>,
    input: SchemaRef,
    planned: SchemaRef,
    converter: EdgeConverter,
    parameters: Option<RecordBatch>,
    batches: Vec<RecordBatch>,
    bytes: usize,
}

impl Returning {
    /// Computes `items` over rows of `table`.
    pub fn new(
        items: &[SelectItem],
        target: &TargetName,
        table: &Table,
        parameters: Option<&RecordBatch>,
        options: &QueryOptions,
    ) -> Result<Self> {
        let parameters = parameters.map(parameter_columns).transpose()?;
        let mut input = local_fields(table);
        if let Some(parameters) = &parameters {
            input.extend(parameters.schema().fields().iter().cloned());
        }
        let input = Arc::new(Schema::new(input));
        let names = qualified(&[(target.local_name()?, table)], parameters.as_ref())?;
        let expressions = Expressions::new(options)?;
        let (mut compiled, mut fields) = (Vec::new(), Vec::new());
        let mut add = |expr: Expr, name: String| -> Result<()> {
            let expr = expressions.compile(expr, &names, &names)?;
            let field = expr.return_field(&input)?;
            fields.push(Arc::new(field.as_ref().clone().with_name(name)));
            compiled.push(expr);
            Ok(())
        };
        for item in items {
            match item {
                SelectItem::UnnamedExpr(expr) => add(expr.clone(), name_of(expr)?)?,
                SelectItem::ExprWithAlias { expr, alias } => add(expr.clone(), identifier(alias)?)?,
                SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..) => {
                    for (_, column) in table.visible_columns() {
                        add(Expr::Identifier(ast::Ident::with_quote('"', &column.name)), column.name.clone())?;
                    }
                }
                _ => return Err(super::select::refused("this item of RETURNING", "write an expression, or *")),
            }
        }
        let planned = Arc::new(Schema::new(fields));
        let converter = EdgeConverter::new(&planned, edge_schema(&planned))?;
        Ok(Self { items: compiled, input, planned, converter, parameters, batches: Vec::new(), bytes: 0 })
    }

    /// What clients see.
    pub fn schema(&self) -> &SchemaRef {
        self.converter.schema()
    }

    /// Adds rows of the table: as they are after the statement, or before it if it deletes them.
    pub fn add(&mut self, rows: &RecordBatch) -> Result<()> {
        let input = local_batch(&self.input, rows.columns(), self.parameters.as_ref(), rows.num_rows())?;
        let columns = self.items.iter().map(|item| evaluate(item, &input)).collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let fields = self.planned.fields().iter().zip(&columns);
        let fields = fields.map(|(field, column)| {
            field.as_ref().clone().with_data_type(column.data_type().clone()).with_nullable(true)
        });
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let batch = self.converter.convert(&RecordBatch::try_new_with_options(schema, columns, &options)?)?;
        self.bytes += row_bytes(&batch);
        if self.bytes > MAX_RETURNED_BYTES {
            let message = format!("RETURNING gives more than {MAX_RETURNED_BYTES} bytes of rows");
            return Err(WireError::new(ErrorCode::ResourceExhausted, message)
                .with_hint("return fewer columns, change fewer rows at a time, or query the rows afterwards")
                .into());
        }
        self.batches.push(batch);
        Ok(())
    }

    /// The rows, in edge types.
    pub fn finish(self) -> (SchemaRef, Vec<RecordBatch>) {
        (Arc::clone(self.converter.schema()), self.batches)
    }
}

fn name_of(expr: &Expr) -> Result<String> {
    match expr {
        Expr::Identifier(ident) => identifier(ident),
        Expr::CompoundIdentifier(parts) => parts.last().map_or(Ok(expr.to_string()), identifier),
        other => Ok(other.to_string()),
    }
}

/// The columns of a table's rows on their way, with what clients are told about their types.
pub fn local_fields(table: &Table) -> Vec<FieldRef> {
    let (transit, stored) = (transit_schema(table), table.arrow_schema());
    let fields = transit.fields().iter().zip(stored.fields()).enumerate();
    let fields = fields.map(|(at, (transit, stored))| {
        let visible = table.columns[at].is_visible();
        let name = if visible { transit.name().clone() } else { format!("hidden {at}") };
        Field::new(name, transit.data_type().clone(), true).with_metadata(stored.metadata().clone())
    });
    fields.map(Arc::new).collect()
}

/// Names of the columns of rows of several tables side by side, and of parameters after them.
pub fn qualified(tables: &[(String, &Table)], parameters: Option<&RecordBatch>) -> Result<DFSchema> {
    let mut fields: Vec<(Option<TableReference>, FieldRef)> = Vec::new();
    for (name, table) in tables {
        let of_table = local_fields(table).into_iter();
        fields.extend(of_table.map(|field| (Some(TableReference::bare(name.as_str())), field)));
    }
    if let Some(parameters) = parameters {
        fields.extend(parameters.schema().fields().iter().map(|field| (None, Arc::clone(field))));
    }
    Ok(DFSchema::new_with_metadata(fields, Default::default())?)
}

/// Rows, with the one row of parameters repeated beside them.
pub fn local_batch(
    schema: &SchemaRef,
    columns: &[arrow::array::ArrayRef],
    parameters: Option<&RecordBatch>,
    rows: usize,
) -> Result<RecordBatch> {
    let mut columns = columns.to_vec();
    if let Some(parameters) = parameters {
        let first = arrow::array::UInt32Array::from(vec![0; rows]);
        for column in parameters.columns() {
            columns.push(arrow::compute::take(column, &first, None)?);
        }
    }
    debug_assert!(parameters.is_none() || schema.column_with_name(&parameter_name(1)).is_some());
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}
