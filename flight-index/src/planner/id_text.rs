//! Text that stands for a UUID or a ULID: `WHERE id = '01ARZ3…'` compares 16 bytes with a literal, which DataFusion
//! refuses. The literals, and the values of parameters, are parsed here.

use std::collections::HashMap;

use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::{
    common::{DFSchema, Result as DfResult, tree_node::Transformed},
    config::ConfigOptions,
    logical_expr::{
        Expr, ExprSchemable,
        expr::{Between, InList},
        expr_rewriter::FunctionRewrite,
        planner::{ExprPlanner, PlannerResult, RawBinaryExpr},
    },
    scalar::ScalarValue,
    sql::sqlparser::ast::BinaryOperator,
};
use drsdb_core::{ErrorCode, Result, SQL_TYPE_KEY, WireError};

use crate::load::{parse_ulid, parse_uuid};

const ID: DataType = DataType::FixedSizeBinary(16);

/// Parses the literals of comparisons with ids. A planner of expressions for operators, whose types are looked at while
/// SQL is planned; a rewrite for IN and BETWEEN, which have no such hook and need none.
#[derive(Debug)]
pub struct ParseIds;

impl ExprPlanner for ParseIds {
    fn plan_binary_op(&self, mut raw: RawBinaryExpr, schema: &DFSchema) -> DfResult<PlannerResult<RawBinaryExpr>> {
        let compares = matches!(
            raw.op,
            BinaryOperator::Eq
                | BinaryOperator::NotEq
                | BinaryOperator::Lt
                | BinaryOperator::LtEq
                | BinaryOperator::Gt
                | BinaryOperator::GtEq
                | BinaryOperator::Spaceship
        );
        if compares {
            if is_text(&raw.right)
                && let Some(id) = id_field(&raw.left, schema)
            {
                raw.right = parsed(raw.right, &id)?;
            } else if is_text(&raw.left)
                && let Some(id) = id_field(&raw.right, schema)
            {
                raw.left = parsed(raw.left, &id)?;
            }
        }
        Ok(PlannerResult::Original(raw))
    }
}

impl FunctionRewrite for ParseIds {
    fn name(&self) -> &str {
        "parse_ids"
    }

    fn rewrite(&self, expr: Expr, schema: &DFSchema, _: &ConfigOptions) -> DfResult<Transformed<Expr>> {
        match expr {
            Expr::InList(InList { expr, list, negated }) if list.iter().any(is_text) => {
                let Some(id) = id_field(&expr, schema) else {
                    return Ok(Transformed::no(Expr::InList(InList { expr, list, negated })));
                };
                let list = list.into_iter().map(|item| parsed(item, &id)).collect::<DfResult<_>>()?;
                Ok(Transformed::yes(Expr::InList(InList { expr, list, negated })))
            }
            Expr::Between(Between { expr, negated, low, high }) if is_text(&low) || is_text(&high) => {
                let Some(id) = id_field(&expr, schema) else {
                    return Ok(Transformed::no(Expr::Between(Between { expr, negated, low, high })));
                };
                let (low, high) = (Box::new(parsed(*low, &id)?), Box::new(parsed(*high, &id)?));
                Ok(Transformed::yes(Expr::Between(Between { expr, negated, low, high })))
            }
            other => Ok(Transformed::no(other)),
        }
    }
}

/// The values of a statement's parameters, where text given for an id becomes the id. `fields` are the parameters that
/// the statement has, as `$1`, `$2`, ...
pub fn parse_parameters(values: &mut [ScalarValue], fields: &HashMap<String, Option<FieldRef>>) -> Result<()> {
    for (number, value) in values.iter_mut().enumerate() {
        let field = fields.get(&format!("${}", number + 1)).and_then(Option::as_ref);
        if let Some(field) = field
            && field.data_type() == &ID
            && let Some(text) = value.try_as_str()
        {
            *value = text.map_or(Ok(ScalarValue::FixedSizeBinary(16, None)), |text| parse_id(text, field))?;
        }
    }
    Ok(())
}

fn is_text(expr: &Expr) -> bool {
    matches!(expr, Expr::Literal(value, _) if value.try_as_str().is_some())
}

fn id_field(expr: &Expr, schema: &DFSchema) -> Option<FieldRef> {
    let (_, field) = expr.to_field(schema).ok()?;
    (field.data_type() == &ID).then_some(field)
}

fn parsed(expr: Expr, id: &Field) -> DfResult<Expr> {
    match expr {
        Expr::Literal(value, metadata) => match value.try_as_str() {
            Some(Some(text)) => {
                let value = parse_id(text, id).map_err(drsdb_core::Error::into_datafusion)?;
                Ok(Expr::Literal(value, metadata))
            }
            Some(None) => Ok(Expr::Literal(ScalarValue::FixedSizeBinary(16, None), metadata)),
            None => Ok(Expr::Literal(value, metadata)),
        },
        other => Ok(other),
    }
}

/// An expression that is no column has lost its SQL type: then the text is whichever of the two it can be.
fn parse_id(text: &str, field: &Field) -> Result<ScalarValue> {
    let (bytes, name) = match field.metadata().get(SQL_TYPE_KEY).map(String::as_str) {
        Some("ULID") => (parse_ulid(text), "ULID"),
        Some("UUID") => (parse_uuid(text), "UUID"),
        _ => (parse_ulid(text).or_else(|| parse_uuid(text)), "UUID or ULID"),
    };
    match bytes {
        Some(bytes) => Ok(ScalarValue::FixedSizeBinary(16, Some(bytes.to_vec()))),
        None => Err(WireError::new(ErrorCode::InvalidValue, format!("{text:?} is no {name}"))
            .with_field("value", text)
            .with_field("column", field.name())
            .into()),
    }
}
