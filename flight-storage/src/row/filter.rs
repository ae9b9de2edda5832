//! Filters of a plan as conditions of SQLite. A condition may let rows through that do not match, since the caller
//! filters again, and never keeps one out that does.
//!
//! NOT makes "may let through" into its opposite, so each expression is translated twice over: into a condition that
//! holds wherever the expression is TRUE, and into one that holds wherever it is FALSE. NOT swaps the two, and AND and OR
//! know which parts they can do without. What is not understood has neither.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::{
    logical_expr::Operator,
    physical_expr::{
        PhysicalExpr,
        expressions::{
            BinaryExpr, Column, DynamicFilterPhysicalExpr, InListExpr, IsNotNullExpr, IsNullExpr, Literal, NotExpr,
        },
    },
    scalar::ScalarValue,
};
use drsdb_core::{SqlType, Table};
use rusqlite::types::Value;

use super::encoding::{fold_decimal, fold_f32, fold_f64};

/// SQLite takes 32,766 parameters; a list longer than this is not worth sending it anyway.
const MAX_PARAMETERS: usize = 16_384;

/// SQLite takes expressions 1,000 deep, and a chain of ANDs is as deep as it is long.
const MAX_LEAVES: usize = 400;

/// How deep an expression is looked into: one may be deeper than this thread's stack.
const MAX_DEPTH: usize = 250;

/// A condition and what its `?` stand for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Condition {
    pub(super) sql: String,
    pub(super) parameters: Vec<Value>,
    leaves: usize,
}

impl Condition {
    fn leaf(sql: String, parameters: Vec<Value>) -> Self {
        Self { sql, parameters, leaves: 1 }
    }

    fn constant(value: bool) -> Self {
        Self::leaf(if value { "1" } else { "0" }.to_owned(), vec![])
    }

    fn join(self, word: &str, other: Condition) -> Option<Self> {
        let mut parameters = self.parameters;
        parameters.extend(other.parameters);
        let leaves = self.leaves + other.leaves;
        (leaves <= MAX_LEAVES && parameters.len() <= MAX_PARAMETERS).then(|| Condition {
            sql: format!("({} {word} {})", self.sql, other.sql),
            parameters,
            leaves,
        })
    }
}

/// The condition for a conjunction of filters, if anything of it is understood; and how many filters went into it.
pub(super) fn conjunction(table: &Table, filters: &[Arc<dyn PhysicalExpr>]) -> (Option<Condition>, usize) {
    let mut whole: Option<Condition> = None;
    let mut understood = 0;
    for filter in filters {
        let Some(condition) = translate(table, filter, true, MAX_DEPTH) else { continue };
        let joined = match whole.clone() {
            None => Some(condition),
            Some(sofar) => sofar.join("AND", condition),
        };
        if let Some(joined) = joined {
            whole = Some(joined);
            understood += 1;
        }
    }
    (whole, understood)
}

/// A condition that holds wherever `expr` is `wanted`.
fn translate(table: &Table, expr: &Arc<dyn PhysicalExpr>, wanted: bool, depth: usize) -> Option<Condition> {
    let deeper = depth.checked_sub(1)?;
    if let Some(not) = expr.downcast_ref::<NotExpr>() {
        return translate(table, not.arg(), !wanted, deeper);
    }
    if let Some(binary) = expr.downcast_ref::<BinaryExpr>() {
        return match binary.op() {
            Operator::And | Operator::Or => logical(table, binary, wanted, deeper),
            _ => comparison(table, binary, wanted),
        };
    }
    if let Some(test) = expr.downcast_ref::<IsNullExpr>() {
        return null_test(table, test.arg(), wanted);
    }
    if let Some(test) = expr.downcast_ref::<IsNotNullExpr>() {
        return null_test(table, test.arg(), !wanted);
    }
    if let Some(list) = expr.downcast_ref::<InListExpr>() {
        return in_list(table, list, wanted);
    }
    if let Some(learned) = expr.downcast_ref::<DynamicFilterPhysicalExpr>() {
        // What a join or a TOP has learned when the scan begins: usually all, since a join builds before it probes. It
        // only ever grows stricter, so its TRUE is safe to ask for and its FALSE is not.
        return if wanted { translate(table, &learned.current().ok()?, true, deeper) } else { None };
    }
    if let Some(literal) = expr.downcast_ref::<Literal>() {
        return match literal.value() {
            ScalarValue::Boolean(value) => Some(Condition::constant(*value == Some(wanted))),
            _ => None,
        };
    }
    // A BOOLEAN column is a condition by itself.
    let (position, sql_type) = column(table, expr)?;
    (sql_type == SqlType::Boolean).then(|| Condition::leaf(format!("c{position} = {}", i64::from(wanted)), vec![]))
}

/// `a AND b` is FALSE where either is, and `a OR b` TRUE where either is: those need both sides. The other two need one.
fn logical(table: &Table, binary: &BinaryExpr, wanted: bool, depth: usize) -> Option<Condition> {
    let left = translate(table, binary.left(), wanted, depth);
    let right = translate(table, binary.right(), wanted, depth);
    if (*binary.op() == Operator::And) != wanted {
        return left?.join("OR", right?);
    }
    match (left, right) {
        // Too large together: the left one alone still lets through what it must.
        (Some(left), Some(right)) => left.clone().join("AND", right).or(Some(left)),
        (left, right) => left.or(right),
    }
}

fn null_test(table: &Table, expr: &Arc<dyn PhysicalExpr>, is_null: bool) -> Option<Condition> {
    let (position, _) = column(table, expr)?;
    let not = if is_null { "" } else { "NOT " };
    Some(Condition::leaf(format!("c{position} IS {not}NULL"), vec![]))
}

fn comparison(table: &Table, binary: &BinaryExpr, wanted: bool) -> Option<Condition> {
    let (expr, literal, operator) = match binary.right().downcast_ref::<Literal>() {
        Some(literal) => (binary.left(), literal, *binary.op()),
        None => (binary.right(), binary.left().downcast_ref::<Literal>()?, binary.op().swap()?),
    };
    let (position, sql_type) = column(table, expr)?;
    let operator = if wanted { operator } else { operator.negate()? };
    let operator_sql = match operator {
        Operator::Eq => "=",
        Operator::NotEq => "<>",
        Operator::Lt => "<",
        Operator::LtEq => "<=",
        Operator::Gt => ">",
        Operator::GtEq => ">=",
        _ => return None,
    };
    let (low, high) = match kept(sql_type, literal.value())? {
        Kept::Null => return Some(Condition::constant(false)),
        Kept::Value(value) => {
            return Some(Condition::leaf(format!("c{position} {operator_sql} ?"), vec![value]));
        }
        Kept::Zero { negative, positive } => (negative, positive),
    };
    // Both zeros are equal in SQL and two numbers here: every comparison reaches for the farther one.
    Some(match operator {
        Operator::Eq => Condition::leaf(format!("c{position} BETWEEN ? AND ?"), vec![low, high]),
        Operator::NotEq => Condition::leaf(format!("c{position} IS NOT NULL"), vec![]),
        Operator::Lt | Operator::LtEq => Condition::leaf(format!("c{position} {operator_sql} ?"), vec![high]),
        _ => Condition::leaf(format!("c{position} {operator_sql} ?"), vec![low]),
    })
}

fn in_list(table: &Table, list: &InListExpr, wanted: bool) -> Option<Condition> {
    let (position, sql_type) = column(table, list.expr())?;
    let member = list.negated() != wanted;
    let mut values = Vec::with_capacity(list.list().len());
    let mut has_null = false;
    for item in list.list() {
        match kept(sql_type, item.downcast_ref::<Literal>()?.value())? {
            Kept::Null => has_null = true,
            Kept::Value(value) => values.push(value),
            Kept::Zero { negative, positive } if member => values.extend([negative, positive]),
            // Which zeros are "not in" depends on the one comparing: leave them all.
            Kept::Zero { .. } => {}
        }
    }
    if values.len() > MAX_PARAMETERS {
        return None;
    }
    if !member && has_null {
        // `x NOT IN (..., NULL)` is never TRUE, and `x IN (..., NULL)` never FALSE.
        return Some(Condition::constant(false));
    }
    let marks = vec!["?"; values.len()].join(", ");
    let not = if member { "" } else { "NOT " };
    // NOT IN () also holds for NULL: more than needed, which is allowed.
    Some(Condition::leaf(format!("c{position} {not}IN ({marks})"), values))
}

/// The column that `expr` is.
fn column(table: &Table, expr: &Arc<dyn PhysicalExpr>) -> Option<(usize, SqlType)> {
    let position = expr.downcast_ref::<Column>()?.index();
    Some((position, table.columns.get(position)?.sql_type))
}

/// A literal as a column keeps it.
enum Kept {
    Null,
    Value(Value),
    /// A floating-point zero, whichever sign.
    Zero {
        negative: Value,
        positive: Value,
    },
}

/// The literal in the form of a column of `sql_type`; `None` when it is of another type, or the type has no order here.
fn kept(sql_type: SqlType, literal: &ScalarValue) -> Option<Kept> {
    if sql_type == SqlType::Interval {
        return None;
    }
    if literal.is_null() {
        return Some(Kept::Null);
    }
    let integer = |value: i64| Some(Kept::Value(Value::Integer(value)));
    let is_bytes = matches!(sql_type.to_arrow(), DataType::BinaryView | DataType::FixedSizeBinary(_));
    match (sql_type, literal) {
        (SqlType::Boolean, ScalarValue::Boolean(Some(value))) => integer(i64::from(*value)),
        (SqlType::SmallInt, ScalarValue::Int16(Some(value))) => integer(i64::from(*value)),
        (SqlType::Integer, ScalarValue::Int32(Some(value))) => integer(i64::from(*value)),
        (SqlType::BigInt, ScalarValue::Int64(Some(value))) => integer(*value),
        (SqlType::Real, ScalarValue::Float32(Some(value))) if *value == 0.0 => {
            Some(zero(fold_f32(-0.0), fold_f32(0.0)))
        }
        (SqlType::Real, ScalarValue::Float32(Some(value))) => integer(fold_f32(*value)),
        (SqlType::Double, ScalarValue::Float64(Some(value))) if *value == 0.0 => {
            Some(zero(fold_f64(-0.0), fold_f64(0.0)))
        }
        (SqlType::Double, ScalarValue::Float64(Some(value))) => integer(fold_f64(*value)),
        (SqlType::Decimal { precision, scale }, ScalarValue::Decimal128(Some(value), _, literal_scale))
            if *literal_scale == scale && value.unsigned_abs() < 10_u128.pow(u32::from(precision)) =>
        {
            Some(Kept::Value(fold_decimal(*value, precision)))
        }
        (SqlType::Date, ScalarValue::Date32(Some(value))) => integer(i64::from(*value)),
        (SqlType::Time, ScalarValue::Time64Microsecond(Some(value))) => integer(*value),
        (SqlType::Timestamp, ScalarValue::TimestampMicrosecond(Some(value), None)) => integer(*value),
        (SqlType::TimestampTz, ScalarValue::TimestampMicrosecond(Some(value), Some(_))) => integer(*value),
        (_, ScalarValue::Utf8(Some(text)) | ScalarValue::LargeUtf8(Some(text)) | ScalarValue::Utf8View(Some(text)))
            if sql_type.is_text() =>
        {
            Some(Kept::Value(Value::Text(text.clone())))
        }
        (
            _,
            ScalarValue::Binary(Some(bytes))
            | ScalarValue::LargeBinary(Some(bytes))
            | ScalarValue::BinaryView(Some(bytes))
            | ScalarValue::FixedSizeBinary(_, Some(bytes)),
        ) if is_bytes => Some(Kept::Value(Value::Blob(bytes.clone()))),
        _ => None,
    }
}

fn zero(negative: i64, positive: i64) -> Kept {
    Kept::Zero { negative: Value::Integer(negative), positive: Value::Integer(positive) }
}
