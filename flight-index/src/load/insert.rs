//! `INSERT INTO table (a, b) VALUES (...), (...)`: the rows of a statement's text, as batches to load.
//!
//! Literals keep their text until the column's own cast reads it, so that `0.1` reaches a DECIMAL and a DOUBLE exactly
//! as written. Anything else is an expression for DataFusion. Parameters are columns: a batch of n rows of parameters
//! runs the statement n times at once, in one transaction. Subqueries are asked before, and their values are parameters,
//! too ([`take_subqueries`]).

use std::{borrow::Cow, cell::OnceCell, ops::ControlFlow, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, StringArray},
    compute::concat,
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use datafusion::{
    common::DFSchema,
    sql::sqlparser::ast::{self, Expr, SetExpr, UnaryOperator, Value},
};
use drsdb_core::{
    Column, ErrorCode, Result, SqlType, Table, WireError, edge::edge_schema, floats::canonical,
    query_session::QueryOptions, transit::transit_type,
};

use super::{
    cast::{check_assignable, convert_column},
    convert::unknown_column,
};
use crate::{
    dml::expressions::{Expressions, evaluate, parameter_name},
    statement::{identifier, parse_expression, positioned},
};

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
        let rows = match (plain_values(insert), &insert.source) {
            (Some(rows), _) => rows,
            // DEFAULT VALUES: one row that names no column.
            (None, None) => return Ok(Self { table, columns: Vec::new(), rows: vec![&[]] }),
            (None, Some(_)) => return Err(drsdb_core::Error::internal("the rows of this INSERT are a query's")),
        };
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
            // NULL is looked for when rows are whole, by what is told about them.
            let column = &Column { not_null: false, ..self.table.columns[position].clone() };
            let array = self.column(index, column, &cells)?;
            fields.push(Field::new(&column.name, array.data_type().clone(), true));
            arrays.push(array);
        }
        let rows = self.rows.len() * cells.input.num_rows();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options)?)
    }

    fn column(&self, index: usize, column: &Column, cells: &Cells<'_>) -> Result<ArrayRef> {
        let runs = cells.input.num_rows();
        let default = match self.rows.iter().any(|row| is_default(&row[index])) {
            true => Some(default_expression(column)?),
            false => None,
        };
        let cell_of = |row: &'a [Expr]| match &default {
            Some(default) if is_default(&row[index]) => Cow::Owned(default.clone()),
            _ => Cow::Borrowed(&row[index]),
        };
        if runs == 1 {
            let texts: Option<Vec<Option<Cow<str>>>> =
                self.rows.iter().map(|row| literal(&row[index], column)).collect();
            if let Some(texts) = texts.filter(|_| default.is_none()) {
                return Ok(Arc::new(texts.into_iter().collect::<StringArray>()));
            }
        }
        let mut parts = Vec::with_capacity(self.rows.len());
        for (number, row) in self.rows.iter().enumerate() {
            let first_row = (number * runs) as u64 + 1;
            let cell = cell_of(row);
            let values = match literal(&cell, column) {
                Some(text) => Arc::new(std::iter::repeat_n(text, runs).collect::<StringArray>()) as ArrayRef,
                None => cells.evaluate(&cell)?,
            };
            check_assignable(values.data_type(), column)?;
            parts.push(convert_column(&values, column, first_row)?);
        }
        let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
        debug_assert!(parts.iter().all(|part| part.data_type() == &transit_type(column.sql_type)));
        Ok(concat(&parts)?)
    }
}

/// Positions of the columns that an INSERT gives values to.
pub fn target_columns(insert: &ast::Insert, table: &Table) -> Result<Vec<usize>> {
    if insert.columns.is_empty() {
        return Ok(table.visible_columns().map(|(position, _)| position).collect());
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

/// The rows of INSERT ... VALUES, if it is nothing more.
pub fn plain_values(insert: &ast::Insert) -> Option<Vec<&[Expr]>> {
    let query = insert.source.as_deref();
    let plain = query.filter(|query| {
        query.with.is_none() && query.order_by.is_none() && query.limit_clause.is_none() && query.fetch.is_none()
    });
    match plain.map(|query| query.body.as_ref()) {
        Some(SetExpr::Values(values)) => Some(values.rows.iter().map(|row| row.content.as_slice()).collect()),
        _ => None,
    }
}

/// Whether these are so few values, all of them literals, that evaluating them is no work.
pub fn are_few_literals(rows: &[&[Expr]]) -> bool {
    const FEW: usize = 64;
    const SHORT: usize = 1024;
    let is_literal = |cell: &Expr| match cell {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => text.len() <= SHORT,
            Value::Number(..) | Value::Boolean(_) | Value::Null => true,
            _ => false,
        },
        Expr::UnaryOp { expr, .. } => matches!(expr.as_ref(), Expr::Value(_)),
        _ => false,
    };
    rows.iter().map(|row| row.len()).sum::<usize>() <= FEW && rows.iter().copied().flatten().all(is_literal)
}

/// Whether a cell says DEFAULT.
pub fn is_default(cell: &Expr) -> bool {
    matches!(cell, Expr::Identifier(ident) if ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case("default"))
}

/// A column's DEFAULT, or NULL.
pub fn default_expression(column: &Column) -> Result<Expr> {
    parse_expression(column.default.as_deref().unwrap_or("NULL"))
}

/// The number of a placeholder that stands alone.
pub fn placeholder(cell: &Expr) -> Option<usize> {
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
        ControlFlow::<()>::Continue(())
    });
}

/// Whether there are subqueries in VALUES.
pub fn has_subquery(rows: &[&[Expr]]) -> bool {
    let mut cells = rows.iter().copied().flatten().filter(|cell| !matches!(cell, Expr::Value(_)));
    cells.any(|cell| ast::visit_expressions(cell, stop_at_subquery).is_break())
}

fn stop_at_subquery(expr: &Expr) -> ControlFlow<()> {
    match expr {
        Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    }
}

/// Takes the subqueries out of VALUES, for their values to be parameters after those that are `given`: of the first one
/// `$given + 1`, and so on.
pub fn take_subqueries(insert: &mut ast::Insert, given: usize) -> Result<Vec<ast::Query>> {
    let mut take = TakeSubqueries { given, taken: Vec::new() };
    if let Some(source) = &mut insert.source
        && let SetExpr::Values(values) = source.body.as_mut()
    {
        for cell in values.rows.iter_mut().flat_map(|row| &mut row.content) {
            if let ControlFlow::Break(error) = ast::VisitMut::visit(cell, &mut take) {
                return Err(error);
            }
        }
    }
    Ok(take.taken)
}

struct TakeSubqueries {
    given: usize,
    taken: Vec<ast::Query>,
}

impl ast::VisitorMut for TakeSubqueries {
    type Break = drsdb_core::Error;

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Self::Break> {
        match expr {
            Expr::Subquery(_) => {
                let number = self.given + self.taken.len() + 1;
                let parameter = Expr::value(Value::Placeholder(format!("${number}")));
                if let Expr::Subquery(query) = std::mem::replace(expr, parameter) {
                    self.taken.push(*query);
                }
                ControlFlow::Continue(())
            }
            Expr::Exists { .. } | Expr::InSubquery { .. } | Expr::AnyOp { .. } | Expr::AllOp { .. } => {
                let message = "EXISTS, IN, ANY and ALL with a subquery are not done in VALUES";
                ControlFlow::Break(
                    WireError::new(ErrorCode::Unsupported, message)
                        .with_hint("write INSERT INTO table (column, ...) SELECT ...")
                        .into(),
                )
            }
            // A number that has no value must not find a subquery's.
            _ => match placeholder(expr).filter(|number| *number > self.given) {
                Some(number) => ControlFlow::Break(no_value(number, self.given)),
                None => ControlFlow::Continue(()),
            },
        }
    }
}

fn no_value(number: usize, given: usize) -> drsdb_core::Error {
    let message = format!("parameter ${number} has no value: {given} were given");
    WireError::new(ErrorCode::InvalidArgument, message).with_hint("bind a value for each placeholder").into()
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
struct Cells<'a> {
    options: &'a QueryOptions,
    /// Made for the first cell that needs them: most are literals.
    expressions: OnceCell<Expressions>,
    schema: DFSchema,
    /// One row without columns, when there are no parameters.
    input: RecordBatch,
}

impl<'a> Cells<'a> {
    fn new(parameters: Option<&RecordBatch>, options: &'a QueryOptions) -> Result<Self> {
        let input = match parameters {
            Some(batch) => parameter_columns(batch)?,
            None => one_row()?,
        };
        let schema = DFSchema::try_from(input.schema().as_ref().clone())?;
        Ok(Self { options, expressions: OnceCell::new(), schema, input })
    }

    fn expressions(&self) -> Result<&Expressions> {
        if let Some(expressions) = self.expressions.get() {
            return Ok(expressions);
        }
        let expressions = Expressions::new(self.options)?;
        Ok(self.expressions.get_or_init(|| expressions))
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
        let compiled = self.expressions()?.compile(cell.clone(), &DFSchema::empty(), &self.schema)?;
        evaluate(&compiled, &self.input)
    }

    fn require(&self, number: usize) -> Result<()> {
        let given = self.input.num_columns();
        if number <= given { Ok(()) } else { Err(no_value(number, given)) }
    }
}

/// One row without columns.
fn one_row() -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(1));
    Ok(RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &options)?)
}

/// Parameters under the names by which expressions find them, and as a column would have them: they are compared with some.
pub fn parameter_columns(batch: &RecordBatch) -> Result<RecordBatch> {
    let fields = batch
        .schema()
        .fields()
        .iter()
        .enumerate()
        .map(|(index, field)| field.as_ref().clone().with_name(parameter_name(index + 1)).with_nullable(true))
        .collect::<Vec<_>>();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let columns = batch.columns().iter().map(|column| canonical(Arc::clone(column))).collect();
    Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?)
}

#[cfg(test)]
mod tests;
