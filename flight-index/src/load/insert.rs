//! `INSERT INTO table (a, b) VALUES (...), (...)`: the rows of a statement's text, as batches to load.
//!
//! Literals keep their text until the column's own cast reads it, so that `0.1` reaches a DECIMAL and a DOUBLE exactly
//! as written. Anything else is an expression for DataFusion. Parameters are columns: a batch of n rows of parameters
//! runs the statement n times at once, in one transaction.

use std::{borrow::Cow, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, StringArray},
    compute::{cast, concat},
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
};
use datafusion::{
    common::{
        DFSchema,
        tree_node::{Transformed, TreeNode},
    },
    execution::{FunctionRegistry, SessionState, SessionStateBuilder},
    logical_expr::{Expr as LogicalExpr, expr_rewriter::FunctionRewrite, simplify::SimplifyContext},
    optimizer::simplify_expressions::ExprSimplifier,
    prelude::col,
    sql::sqlparser::ast::{self, Expr, SetExpr, UnaryOperator, Value},
};
use drsdb_core::{
    Column, ErrorCode, Result, SqlType, Table, WireError,
    checked_arithmetic::{CheckIntegers, register_functions},
    edge::edge_schema,
    query_session::{QueryOptions, session_config},
};

use super::{
    cast::{check_assignable, convert_column, transit_type},
    convert::unknown_column,
};
use crate::statement::{identifier, positioned};

/// An INSERT whose names have been found.
#[derive(Debug)]
pub struct Insert<'a> {
    table: &'a Table,
    /// Positions of the columns that get values.
    columns: Vec<usize>,
    rows: Vec<&'a [Expr]>,
}

impl<'a> Insert<'a> {
    /// Looks the statement's columns up.
    pub fn new(insert: &'a ast::Insert, table: &'a Table) -> Result<Self> {
        let columns = target_columns(insert, table)?;
        let rows = values(insert)?;
        for (number, row) in rows.iter().enumerate() {
            if row.len() != columns.len() {
                let message =
                    format!("row {} of VALUES has {} values for {} columns", number + 1, row.len(), columns.len());
                let place = row
                    .first()
                    .map(ast::Spanned::span)
                    .unwrap_or_else(datafusion::sql::sqlparser::tokenizer::Span::empty);
                return Err(positioned(WireError::new(ErrorCode::InvalidArgument, message), place.start).into());
            }
        }
        Ok(Self { table, columns, rows })
    }

    /// The schema of the statement's parameters, `$1`, `$2`, ...: of the column they go to, if they go there as they are.
    pub fn parameters(&self) -> SchemaRef {
        let mut types: Vec<Option<Field>> = Vec::new();
        for row in &self.rows {
            for (cell, position) in row.iter().zip(&self.columns) {
                if let Some(number) = placeholder(cell) {
                    types.resize(types.len().max(number), None);
                    types[number - 1].get_or_insert_with(|| self.table.arrow_schema().field(*position).clone());
                } else {
                    each_placeholder(cell, &mut |number| types.resize(types.len().max(number), None));
                }
            }
        }
        let fields = types.into_iter().enumerate().map(|(index, field)| {
            let field = field.unwrap_or_else(|| Field::new("", DataType::Utf8, true));
            field.with_name(format!("${}", index + 1)).with_nullable(true)
        });
        edge_schema(&Schema::new(fields.collect::<Vec<_>>()))
    }

    /// The rows to load. `parameters` has a column for each `$n`, and a row for each time to run.
    pub fn evaluate(&self, parameters: Option<&RecordBatch>, options: &QueryOptions) -> Result<RecordBatch> {
        let cells = Cells::new(parameters, options)?;
        let mut arrays = Vec::with_capacity(self.columns.len());
        let mut fields = Vec::with_capacity(self.columns.len());
        for (index, &position) in self.columns.iter().enumerate() {
            let column = &self.table.columns[position];
            let array = self.column(index, column, &cells)?;
            fields.push(Field::new(&column.name, array.data_type().clone(), true));
            arrays.push(array);
        }
        let rows = self.rows.len() * cells.input.num_rows();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options)?)
    }

    fn column(&self, index: usize, column: &Column, cells: &Cells) -> Result<ArrayRef> {
        let runs = cells.input.num_rows();
        if runs == 1 {
            let texts: Option<Vec<Option<Cow<str>>>> =
                self.rows.iter().map(|row| literal(&row[index], column)).collect();
            if let Some(texts) = texts {
                return Ok(Arc::new(texts.into_iter().collect::<StringArray>()));
            }
        }
        let mut parts = Vec::with_capacity(self.rows.len());
        for (number, row) in self.rows.iter().enumerate() {
            let first_row = (number * runs) as u64 + 1;
            let values = match literal(&row[index], column) {
                Some(text) => Arc::new(std::iter::repeat_n(text, runs).collect::<StringArray>()),
                None => cells.evaluate(&row[index])?,
            };
            check_assignable(values.data_type(), column)?;
            parts.push(convert_column(&values, column, first_row)?);
        }
        let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
        debug_assert!(parts.iter().all(|part| part.data_type() == &transit_type(column.sql_type)));
        Ok(concat(&parts)?)
    }
}

fn target_columns(insert: &ast::Insert, table: &Table) -> Result<Vec<usize>> {
    if insert.columns.is_empty() {
        return Ok((0..table.columns.len()).collect());
    }
    let mut positions = Vec::with_capacity(insert.columns.len());
    for name in &insert.columns {
        let ident = match name.0.as_slice() {
            [part] => part.as_ident(),
            _ => None,
        };
        let ident = ident.ok_or_else(|| {
            WireError::new(ErrorCode::Syntax, format!("{name} is not the name of a column of table {}", table.name))
        })?;
        let column = identifier(ident)?;
        let at = |error| positioned(error, ident.span.start);
        let position = table.column_position(&column).ok_or_else(|| at(unknown_column(table, &column)))?;
        if positions.contains(&position) {
            let message = format!("column {column} is there twice");
            return Err(at(WireError::new(ErrorCode::InvalidArgument, message)).into());
        }
        positions.push(position);
    }
    Ok(positions)
}

fn values(insert: &ast::Insert) -> Result<Vec<&[Expr]>> {
    let query = insert.source.as_deref();
    let plain = query.filter(|query| {
        query.with.is_none() && query.order_by.is_none() && query.limit_clause.is_none() && query.fetch.is_none()
    });
    match plain.map(|query| query.body.as_ref()) {
        Some(SetExpr::Values(values)) => Ok(values.rows.iter().map(|row| row.content.as_slice()).collect()),
        _ => Err(WireError::new(ErrorCode::Unsupported, "INSERT ... SELECT is not done")
            .with_hint("write INSERT ... VALUES, or query the rows and load the result")
            .into()),
    }
}

/// The number of a placeholder that stands alone.
fn placeholder(cell: &Expr) -> Option<usize> {
    match cell {
        Expr::Value(value) => match &value.value {
            Value::Placeholder(name) => name.strip_prefix('$')?.parse().ok().filter(|number| *number > 0),
            _ => None,
        },
        Expr::Nested(inner) => placeholder(inner),
        _ => None,
    }
}

fn each_placeholder(cell: &Expr, found: &mut impl FnMut(usize)) {
    let _ = ast::visit_expressions(cell, |part: &Expr| {
        if let Some(number) = placeholder(part) {
            found(number);
        }
        std::ops::ControlFlow::<()>::Continue(())
    });
}

/// The text of a literal (`Some(None)`: NULL), if the column's cast reads it just as SQL would.
fn literal<'a>(cell: &'a Expr, column: &Column) -> Option<Option<Cow<'a, str>>> {
    match cell {
        Expr::Value(value) => match &value.value {
            Value::Null => Some(None),
            Value::SingleQuotedString(text) => Some(Some(Cow::Borrowed(text))),
            Value::Number(text, false) => {
                let whole = matches!(column.sql_type, SqlType::SmallInt | SqlType::Integer | SqlType::BigInt);
                let number =
                    whole || matches!(column.sql_type, SqlType::Real | SqlType::Double | SqlType::Decimal { .. });
                (number && !(whole && text.contains(['.', 'e', 'E']))).then_some(Some(Cow::Borrowed(text)))
            }
            Value::Boolean(flag) if column.sql_type == SqlType::Boolean => {
                Some(Some(Cow::Borrowed(if *flag { "true" } else { "false" })))
            }
            _ => None,
        },
        Expr::UnaryOp { op: op @ (UnaryOperator::Plus | UnaryOperator::Minus), expr } => match expr.as_ref() {
            Expr::Value(value) if matches!(value.value, Value::Number(..)) => {
                let text = literal(expr, column)??;
                Some(Some(if *op == UnaryOperator::Minus { Cow::Owned(format!("-{text}")) } else { text }))
            }
            _ => None,
        },
        Expr::Nested(inner) => literal(inner, column),
        _ => None,
    }
}

/// Evaluates cells over the parameters.
struct Cells {
    state: SessionState,
    schema: DFSchema,
    /// One row without columns, when there are no parameters.
    input: RecordBatch,
}

impl Cells {
    fn new(parameters: Option<&RecordBatch>, options: &QueryOptions) -> Result<Self> {
        let config = session_config(options)?;
        let mut state = SessionStateBuilder::new().with_config(config).with_default_features().build();
        state.mark_start_execution();
        register_functions(&mut state)?;
        state.register_function_rewrite(Arc::new(CheckIntegers::default()))?;
        let input = match parameters {
            Some(batch) => {
                let fields = batch
                    .schema()
                    .fields()
                    .iter()
                    .enumerate()
                    .map(|(index, field)| {
                        field.as_ref().clone().with_name(parameter_name(index + 1)).with_nullable(true)
                    })
                    .collect::<Vec<_>>();
                let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
                RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), batch.columns().to_vec(), &options)?
            }
            None => {
                let options = RecordBatchOptions::new().with_row_count(Some(1));
                RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &options)?
            }
        };
        Ok(Self { state, schema: DFSchema::try_from(input.schema().as_ref().clone())?, input })
    }

    fn evaluate(&self, cell: &Expr) -> Result<ArrayRef> {
        let given = self.input.num_columns();
        if let Some(number) = placeholder(cell) {
            self.require(number)?;
            return Ok(Arc::clone(self.input.column(number - 1)));
        }
        let mut missing = None;
        each_placeholder(cell, &mut |number| missing = missing.or((number > given).then_some(number)));
        if let Some(number) = missing {
            self.require(number)?;
        }
        let cell = ast::ExprWithAlias { expr: cell.clone(), alias: None };
        // A column's name would find a parameter's column only by its reserved name.
        let logical = self.state.create_logical_expr_from_sql_expr(cell, &DFSchema::empty())?;
        let over_rows =
            |expr: &LogicalExpr| Ok(matches!(expr, LogicalExpr::AggregateFunction(_) | LogicalExpr::WindowFunction(_)));
        if logical.exists(over_rows)? {
            let message = "VALUES has no rows for an aggregate or window function";
            return Err(WireError::new(ErrorCode::InvalidArgument, message).with_hint("write a value").into());
        }
        let logical = logical.transform(|expr| match &expr {
            LogicalExpr::Placeholder(holder) => {
                let number = holder.id.trim_start_matches('$').parse().unwrap_or(0);
                Ok(Transformed::yes(col(parameter_name(number))))
            }
            _ => Ok(Transformed::no(expr)),
        })?;
        // now() and its like exist only until an expression is simplified; but what folds constants wraps integers around,
        // so they become checked ones before.
        let options = self.state.config_options();
        let context = SimplifyContext::builder()
            .with_schema(Arc::new(self.schema.clone()))
            .with_config_options(Arc::clone(options))
            .with_query_execution_start_time(self.state.execution_props().query_execution_start_time)
            .build();
        let simplifier = ExprSimplifier::new(context);
        let checked = simplifier
            .coerce(logical.data, &self.schema)?
            .transform_up(|expr| CheckIntegers::default().rewrite(expr, &self.schema, options))?;
        let physical = self.state.create_physical_expr(simplifier.simplify(checked.data)?, &self.schema)?;
        let values = physical.evaluate(&self.input)?.into_array(self.input.num_rows())?;
        match values.data_type() {
            // Expressions compute with nanoseconds, now() to begin with; columns have microseconds, as SQL's users know.
            DataType::Timestamp(TimeUnit::Nanosecond, zone) => {
                Ok(cast(&values, &DataType::Timestamp(TimeUnit::Microsecond, zone.clone()))?)
            }
            _ => Ok(values),
        }
    }

    fn require(&self, number: usize) -> Result<()> {
        let given = self.input.num_columns();
        if number <= given {
            return Ok(());
        }
        let message = format!("parameter ${number} has no value: {given} were given");
        Err(WireError::new(ErrorCode::InvalidArgument, message).with_hint("bind a value for each placeholder").into())
    }
}

fn parameter_name(number: usize) -> String {
    format!("parameter_{number}")
}

#[cfg(test)]
mod tests;
