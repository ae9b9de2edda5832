//! One expression: values in it that get one type.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::{
    common::{DFSchema, Result as DfResult, tree_node::Transformed},
    logical_expr::{
        BinaryExpr, Expr, ExprSchemable, Operator, Subquery,
        expr::{Between, Case, InList, InSubquery, SetComparison, WindowFunctionDefinition},
        type_coercion::functions::{UDFCoercionExt, fields_with_udf},
    },
};

use super::{
    columns::cast_columns,
    types::{cast, common_float, float_of, has_decimal},
};

/// The expression, whose parts are done.
pub(super) fn rewrite(expr: Expr, schema: &DFSchema) -> DfResult<Transformed<Expr>> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_comparison(op) => {
            let mut operands = [left, right];
            let changed = align(operands.iter_mut().map(AsMut::as_mut).collect(), schema)?;
            let [left, right] = operands;
            Ok(either(changed, Expr::BinaryExpr(BinaryExpr { left, op, right })))
        }
        Expr::Between(Between { mut expr, negated, mut low, mut high }) => {
            let changed = align(vec![&mut expr, &mut low, &mut high], schema)?;
            Ok(either(changed, Expr::Between(Between { expr, negated, low, high })))
        }
        Expr::InList(InList { mut expr, mut list, negated }) => {
            let operands = std::iter::once(expr.as_mut()).chain(&mut list).collect();
            let changed = align(operands, schema)?;
            Ok(either(changed, Expr::InList(InList { expr, list, negated })))
        }
        Expr::InSubquery(InSubquery { mut expr, subquery, negated }) => {
            let (changed, subquery) = align_subquery(&mut expr, subquery, schema)?;
            Ok(either(changed, Expr::InSubquery(InSubquery { expr, subquery, negated })))
        }
        Expr::SetComparison(SetComparison { mut expr, subquery, op, quantifier }) => {
            let (changed, subquery) = align_subquery(&mut expr, subquery, schema)?;
            Ok(either(changed, Expr::SetComparison(SetComparison { expr, subquery, op, quantifier })))
        }
        Expr::Case(mut case) => {
            let changed = align_case(&mut case, schema)?;
            Ok(either(changed, Expr::Case(case)))
        }
        Expr::ScalarFunction(mut call) => {
            let changed = align_arguments(&mut call.args, call.func.as_ref(), schema)?;
            Ok(either(changed, Expr::ScalarFunction(call)))
        }
        Expr::AggregateFunction(mut call) => {
            let changed = align_arguments(&mut call.params.args, call.func.as_ref(), schema)?;
            Ok(either(changed, Expr::AggregateFunction(call)))
        }
        Expr::WindowFunction(mut call) => {
            let arguments = &mut call.params.args;
            let changed = match &call.fun {
                WindowFunctionDefinition::AggregateUDF(function) => {
                    align_arguments(arguments, function.as_ref(), schema)?
                }
                WindowFunctionDefinition::WindowUDF(function) => align_arguments(arguments, function.as_ref(), schema)?,
            };
            Ok(either(changed, Expr::WindowFunction(call)))
        }
        other => Ok(Transformed::no(other)),
    }
}

fn either(changed: bool, expr: Expr) -> Transformed<Expr> {
    if changed { Transformed::yes(expr) } else { Transformed::no(expr) }
}

fn is_comparison(op: Operator) -> bool {
    use Operator::{Eq, Gt, GtEq, IsDistinctFrom, IsNotDistinctFrom, Lt, LtEq, NotEq};
    matches!(op, Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom)
}

/// Casts the decimals among values that will get one type, if there is a floating-point one.
fn align(operands: Vec<&mut Expr>, schema: &DFSchema) -> DfResult<bool> {
    let types: Vec<Option<DataType>> = operands.iter().map(|operand| operand.get_type(schema).ok()).collect();
    let Some(target) = common_float(types.iter().flatten()) else { return Ok(false) };
    for (operand, data_type) in operands.into_iter().zip(&types) {
        if let Some(data_type) = data_type.as_ref().filter(|data_type| has_decimal(data_type)) {
            let exact = std::mem::take(operand);
            *operand = cast(exact, data_type, &target);
        }
    }
    Ok(true)
}

fn align_case(case: &mut Case, schema: &DFSchema) -> DfResult<bool> {
    let Case { expr, when_then_expr, else_expr } = case;
    let (mut compared, mut results) = (Vec::new(), Vec::new());
    let has_base = expr.is_some();
    compared.extend(expr.iter_mut().map(AsMut::as_mut));
    for (when, then) in when_then_expr {
        if has_base {
            compared.push(when.as_mut());
        }
        results.push(then.as_mut());
    }
    results.extend(else_expr.iter_mut().map(AsMut::as_mut));
    Ok(align(compared, schema)? | align(results, schema)?)
}

fn align_subquery(expr: &mut Expr, subquery: Subquery, schema: &DFSchema) -> DfResult<(bool, Subquery)> {
    let column = subquery.subquery.schema().field(0).data_type().clone();
    let Ok(data_type) = expr.get_type(schema) else { return Ok((false, subquery)) };
    let Some(target) = common_float([&data_type, &column]) else { return Ok((false, subquery)) };
    if has_decimal(&data_type) {
        *expr = cast(std::mem::take(expr), &data_type, &target);
        return Ok((true, subquery));
    }
    let plan = cast_columns(Arc::unwrap_or_clone(subquery.subquery), &[Some(target)])?;
    Ok((true, Subquery { subquery: Arc::new(plan), ..subquery }))
}

/// Arguments of a function that would turn one that is approximate into a decimal.
fn align_arguments(arguments: &mut [Expr], function: &impl UDFCoercionExt, schema: &DFSchema) -> DfResult<bool> {
    let fields: Option<Vec<_>> = arguments.iter().map(|argument| Some(argument.to_field(schema).ok()?.1)).collect();
    let Some(fields) = fields else { return Ok(false) };
    if common_float(fields.iter().map(|field| field.data_type())).is_none() {
        return Ok(false);
    }
    // What no function takes is an error for whoever coerces the types.
    let Ok(coerced) = fields_with_udf(&fields, function) else { return Ok(false) };
    let loses = fields
        .iter()
        .zip(&coerced)
        .any(|(field, coerced)| float_of(field.data_type()).is_some() && has_decimal(coerced.data_type()));
    if loses { align(arguments.iter_mut().collect(), schema) } else { Ok(false) }
}
