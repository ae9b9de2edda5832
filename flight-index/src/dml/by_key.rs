//! UPDATE and DELETE of a row that is named by its primary key. Nothing has to be planned to find it: it is looked up, and the
//! rest of WHERE and the right sides of SET are computed here.
//!
//! Whatever is not surely the same this way is left to the query: `None` says so.

use std::{collections::BTreeSet, ops::ControlFlow, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, RecordBatchOptions, new_empty_array},
    compute::{cast, concat_batches, filter_record_batch},
    datatypes::{DataType, Field, Schema},
};
use datafusion::{
    common::DFSchema,
    physical_expr::{PhysicalExpr, utils::collect_columns},
    sql::sqlparser::ast::{self, BinaryOperator, Expr},
};
use drsdb_core::{Result, SqlType, Table, floats::canonical, transit::transit_type};

use super::{
    executor::{Executor, check_type, full_width, nullable_schema, to_transit},
    expressions::{Expressions, evaluate},
    returning::{local_batch, qualified},
    select::{Assigned, TargetName, is_constant},
    target::Target,
};
use crate::{load::insert::parameter_columns, planner::Lookup, statement::identifier};

/// A statement about rows of one table, which names no other.
#[derive(Debug, Clone)]
pub struct OfOneTable {
    /// WHERE.
    pub selection: Expr,
    /// SET.
    pub assigned: Vec<Assigned>,
}

impl OfOneTable {
    /// `None` when something in it asks for rows itself.
    pub fn new(selection: Option<&Expr>, assigned: &[Assigned]) -> Option<Self> {
        let selection = selection?.clone();
        let values = assigned.iter().map(|(_, value)| value);
        let asks = std::iter::once(&selection).chain(values).any(asks_for_rows);
        (!asks).then(|| Self { selection, assigned: assigned.to_vec() })
    }
}

fn asks_for_rows(expr: &Expr) -> bool {
    let found = ast::visit_expressions(expr, |part| match part {
        Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    found.is_break()
}

/// What computes the statement over the row.
struct Compiled {
    condition: Arc<dyn PhysicalExpr>,
    values: Vec<Arc<dyn PhysicalExpr>>,
    names: DFSchema,
    parameters: Option<RecordBatch>,
}

impl Executor<'_> {
    /// The rows that the statement changes, at most one: the columns `old` as they are, and then the assigned ones as they
    /// become. `None`: it does not name a row, or is to be planned for another reason.
    pub(super) async fn by_key(
        &self,
        target: &Target,
        name: &TargetName,
        statement: &OfOneTable,
        old: &[usize],
    ) -> Result<Option<RecordBatch>> {
        let table = &target.table;
        if !table.has_user_key() {
            return Ok(None);
        }
        let constants = table.primary_key.iter().map(|&at| fixed(&statement.selection, &table.columns[at].name));
        let Some(constants) = constants.collect::<Option<Vec<&Expr>>>() else { return Ok(None) };
        let expressions = Expressions::new(self.options)?;
        let parameters = self.parameters.as_ref().map(parameter_columns).transpose()?;
        let Some(values) = key_of(table, &constants, &expressions, parameters.as_ref()) else { return Ok(None) };
        // Whatever is wrong with it, the planner says it better.
        let compiled = Compiled::new(name, table, statement, &expressions, parameters);
        let Ok(compiled) = compiled else { return Ok(None) };
        let mut positions: BTreeSet<usize> = old.iter().copied().collect();
        positions.extend(compiled.columns(table));
        let positions: Vec<usize> = positions.into_iter().collect();
        let key = table.primary_key.clone();
        let lookup = Lookup { table: &table.name, positions: positions.clone(), key, values, limit: None };
        let found = self.lookup(lookup).await?;
        let rows = found.iter().map(|batch| full_width(table, &positions, batch.columns(), batch.num_rows(), 1));
        let rows = concat_batches(&nullable_schema(table), &rows.collect::<Result<Vec<_>>>()?)?;
        compiled.changes(table, &rows, old, &statement.assigned)
    }
}

/// The key of these constants, one for each of its columns.
fn key_of(
    table: &Table,
    constants: &[&Expr],
    expressions: &Expressions,
    parameters: Option<&RecordBatch>,
) -> Option<Vec<ArrayRef>> {
    let names = qualified(&[], parameters).ok()?;
    let input = local_batch(&Arc::new(names.as_arrow().clone()), &[], parameters, 1).ok()?;
    let key = table.primary_key.iter().zip(constants).map(|(&at, constant)| {
        // What most statements name a row by needs nothing that computes it.
        if let Some(integer) = integer(constant) {
            return as_key(table, at, &(Arc::new(Int64Array::from(vec![integer])) as ArrayRef));
        }
        let compiled = expressions.compile((*constant).clone(), &names, &names).ok()?;
        as_key(table, at, &evaluate(&compiled, &input).ok()?)
    });
    key.collect()
}

impl Compiled {
    fn new(
        name: &TargetName,
        table: &Table,
        statement: &OfOneTable,
        expressions: &Expressions,
        parameters: Option<RecordBatch>,
    ) -> Result<Self> {
        let names = qualified(&[(name.local_name()?, table)], parameters.as_ref())?;
        let condition = expressions.compile(statement.selection.clone(), &names, &names)?;
        let values = statement.assigned.iter().map(|(_, value)| expressions.compile(value.clone(), &names, &names));
        Ok(Self { condition, values: values.collect::<Result<_>>()?, names, parameters })
    }

    /// Positions of the table's columns that are computed with: they come before the parameters.
    fn columns(&self, table: &Table) -> BTreeSet<usize> {
        let all = std::iter::once(&self.condition).chain(&self.values).flat_map(collect_columns);
        all.map(|column| column.index()).filter(|&at| at < table.columns.len()).collect()
    }

    fn changes(
        &self,
        table: &Table,
        rows: &RecordBatch,
        old: &[usize],
        assigned: &[Assigned],
    ) -> Result<Option<RecordBatch>> {
        let schema = Arc::new(self.names.as_arrow().clone());
        let local =
            |rows: &RecordBatch| local_batch(&schema, rows.columns(), self.parameters.as_ref(), rows.num_rows());
        let holds = evaluate(&self.condition, &local(rows)?)?;
        let Some(holds) = holds.as_boolean_opt() else { return Ok(None) };
        let rows = filter_record_batch(rows, holds)?;
        let input = local(&rows)?;
        let mut columns: Vec<ArrayRef> = old.iter().map(|&at| Arc::clone(rows.column(at))).collect();
        for ((position, _), value) in assigned.iter().zip(&self.values) {
            if rows.num_rows() > 0 {
                columns.push(to_transit(table, *position, &evaluate(value, &input)?, 1)?);
            } else {
                // Its type may be wrong all the same.
                check_type(table, *position, &value.data_type(&schema)?)?;
                columns.push(new_empty_array(&transit_type(table.columns[*position].sql_type)));
            }
        }
        let fields = columns.iter().enumerate();
        let fields = fields.map(|(at, column)| Field::new(format!("column {at}"), column.data_type().clone(), true));
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        Ok(Some(RecordBatch::try_new_with_options(schema, columns, &options)?))
    }
}

/// The constant that a column must be equal to for a condition to hold, if there is one.
fn fixed<'a>(condition: &'a Expr, column: &str) -> Option<&'a Expr> {
    match condition {
        Expr::Nested(inner) => fixed(inner, column),
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => fixed(left, column).or_else(|| fixed(right, column)),
        Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => {
            let is_it = |expr: &Expr| column_name(expr).is_some_and(|name| name == column);
            match (left.as_ref(), right.as_ref()) {
                (named, value) | (value, named) if is_it(named) && is_constant(value) => Some(value),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The last part of a column's name: there is one table only that it can be of. Names that the planner may read in another
/// way are left to it.
fn column_name(expr: &Expr) -> Option<String> {
    let ident = match expr {
        Expr::Identifier(ident) => ident,
        Expr::CompoundIdentifier(parts) if parts.len() == 2 => parts.last()?,
        Expr::Nested(inner) => return column_name(inner),
        _ => return None,
    };
    (ident.quote_style.is_some() || ident.value.is_ascii()).then(|| identifier(ident).ok())?
}

fn integer(constant: &Expr) -> Option<i64> {
    match constant {
        Expr::Value(ast::ValueWithSpan { value: ast::Value::Number(digits, false), .. }) => digits.parse().ok(),
        _ => None,
    }
}

/// A value as the column has it, where no other value of the column compares as equal to it.
fn as_key(table: &Table, position: usize, value: &ArrayRef) -> Option<ArrayRef> {
    let sql_type = table.columns[position].sql_type;
    let wanted = transit_type(sql_type);
    let is_text = matches!(value.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let exact = value.data_type() == &wanted
        || value.data_type().is_integer() && wanted.is_integer()
        || is_text && wanted == DataType::Utf8;
    let value = if exact {
        cast(value, &wanted).ok()?
    } else if is_text && matches!(sql_type, SqlType::Uuid | SqlType::Ulid) {
        to_transit(table, position, value, 1).ok()?
    } else {
        return None;
    };
    (value.null_count() == 0).then(|| canonical(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statement::parse_expression;

    #[test]
    fn a_key_is_fixed_by_what_must_hold() {
        let fixed_to = |condition: &str| {
            let condition = parse_expression(condition).unwrap();
            fixed(&condition, "id").map(ToString::to_string)
        };
        assert_eq!(fixed_to("id = 7").as_deref(), Some("7"));
        assert_eq!(fixed_to("n > 3 AND (t.ID = -7 AND m)").as_deref(), Some("-7"));
        assert_eq!(fixed_to("$1 = id").as_deref(), Some("$1"));
        for no in [
            "a.t.id = 7",
            "id = 7 OR n = 1",
            "id > 7",
            "NOT id = 7",
            "id = n",
            "id = id + 1",
            "id IN (7)",
            "n = 7",
            "\"ID\" = 7",
        ] {
            assert_eq!(fixed_to(no), None, "{no}");
        }
    }

    #[test]
    fn what_asks_for_rows_is_planned() {
        let of = |selection: &str, value: &str| {
            let assigned = [(1, parse_expression(value).unwrap())];
            OfOneTable::new(Some(&parse_expression(selection).unwrap()), &assigned).is_some()
        };
        assert!(of("id = 1", "n + 1"));
        assert!(!of("id = (SELECT 1)", "n + 1"));
        assert!(!of("id = 1 AND EXISTS (SELECT 1)", "n + 1"));
        assert!(!of("id = 1", "(SELECT max(n) FROM t)"));
    }
}
