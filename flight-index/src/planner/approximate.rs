//! DOUBLE and REAL beside DECIMAL. SQL says that what is approximate stays so: the decimal becomes the other's type. DataFusion
//! computes so, but compares the other way round and makes DECIMAL(30, 15) of a DOUBLE: `f = 0.0` then holds for 1e-20, and
//! `f > 0.5` fails for 1e15 and for infinity.
//!
//! So before types are coerced, decimals that meet a floating-point value in a comparison, IN, BETWEEN, CASE, a function that
//! wants one type, UNION or a join's USING are cast here. A literal is read anew, so that the value is the nearest one.
//! [`exponents`] is for literals such as `1e3`, which SQL counts as approximate.

use std::{ops::ControlFlow, sync::Arc};

use arrow::datatypes::{DataType, Decimal128Type, Decimal256Type, DecimalType, Field, Schema};
use datafusion::{
    catalog::cte_worktable::CteWorkTable,
    common::{
        DFSchema, DFSchemaRef, Result as DfResult,
        tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion},
    },
    datasource::provider_as_source,
    logical_expr::{
        BinaryExpr, Cast, Expr, ExprSchemable, Join, LogicalPlan, Operator, Projection, RecursiveQuery, Subquery,
        TableScan, TableScanBuilder, Union, Values,
        expr::{Alias, Between, Case, InList, InSubquery, SetComparison, WindowFunctionDefinition},
        expr_rewriter::{NamePreserver, coerce_plan_expr_for_schema},
        type_coercion::functions::{UDFCoercionExt, fields_with_udf},
        utils::merge_schema,
    },
    scalar::ScalarValue,
    sql::{
        parser::Statement,
        sqlparser::ast::{self, Value, VisitMut, VisitorMut},
    },
};

/// The statement, whose literals with an exponent are DOUBLE.
pub fn exponents(statement: Statement) -> Statement {
    match statement {
        Statement::Statement(mut inner) => {
            exponents_in(inner.as_mut());
            Statement::Statement(inner)
        }
        other => other,
    }
}

/// [`exponents`] of any part of a statement.
pub fn exponents_in(part: &mut impl VisitMut) {
    struct Exponents;
    impl VisitorMut for Exponents {
        type Break = ();

        fn post_visit_expr(&mut self, expr: &mut ast::Expr) -> ControlFlow<()> {
            if let ast::Expr::Value(value) = expr
                && let Value::Number(text, _) = &value.value
                && text.contains(['e', 'E'])
                // One out of range stays, for the planner to refuse it.
                && text.parse().is_ok_and(f64::is_finite)
            {
                *expr = ast::Expr::Cast {
                    kind: ast::CastKind::Cast,
                    expr: Box::new(ast::Expr::value(Value::SingleQuotedString(text.clone()))),
                    data_type: ast::DataType::DoublePrecision,
                    array: false,
                    format: None,
                };
            }
            ControlFlow::Continue(())
        }
    }
    let _ = part.visit(&mut Exponents);
}

/// The plan, in which nothing approximate is compared as a decimal. Types of its columns may change with it.
pub fn stay_approximate(plan: LogicalPlan) -> DfResult<LogicalPlan> {
    plan.transform_down_up(before_inputs, after_inputs).data()
}

/// The same for an expression over columns of `schema`, which is not a part of a plan.
pub fn stay_approximate_expr(expr: Expr, schema: &DFSchema) -> DfResult<Expr> {
    let rewritten = expr.transform_up(|expr| rewrite(expr, schema))?;
    Ok(if rewritten.transformed { rewritten.data.unalias_nested().data } else { rewritten.data })
}

/// The recursive part of a query reads what its first part makes, in types that were decided before.
fn before_inputs(plan: LogicalPlan) -> DfResult<Transformed<LogicalPlan>> {
    let LogicalPlan::RecursiveQuery(query) = plan else { return Ok(Transformed::no(plan)) };
    let RecursiveQuery { name, static_term, recursive_term, is_distinct, schema } = query;
    let before = Arc::clone(static_term.schema());
    let static_term = Arc::new(stay_approximate(Arc::unwrap_or_clone(static_term))?);
    let first = static_term.schema();
    let changed: Vec<bool> =
        before.fields().iter().zip(first.fields()).map(|(old, new)| old.data_type() != new.data_type()).collect();
    let mut recursive_term = Arc::unwrap_or_clone(recursive_term);
    if changed.contains(&true) {
        recursive_term = without_casts(reading(recursive_term, &name, first)?, &before, &changed);
    }
    let recursive_term = Arc::new(coerce_plan_expr_for_schema(stay_approximate(recursive_term)?, first)?);
    let query = RecursiveQuery { name, static_term, recursive_term, is_distinct, schema };
    // Both parts are done.
    Ok(Transformed::new(LogicalPlan::RecursiveQuery(query), true, TreeNodeRecursion::Jump))
}

/// The recursive part, which reads its own rows with the types of `first`.
fn reading(recursive_term: LogicalPlan, name: &str, first: &DFSchemaRef) -> DfResult<LogicalPlan> {
    let read = recursive_term.transform_up_with_subqueries(|node| match node {
        LogicalPlan::TableScan(scan) if is_work_table(&scan, name) => {
            work_table_like(scan, name, first).map(Transformed::yes)
        }
        other => other.recompute_schema().map(Transformed::yes),
    });
    read.data()
}

fn is_work_table(scan: &TableScan, name: &str) -> bool {
    scan.table_name.table() == name && scan.table_name.schema().is_none() && scan.projection.is_none()
}

/// The scan of a recursion's own rows, with the types of `first`.
fn work_table_like(scan: TableScan, name: &str, first: &DFSchemaRef) -> DfResult<LogicalPlan> {
    let known = scan.source.schema();
    if known.fields().len() != first.fields().len() {
        return Ok(LogicalPlan::TableScan(scan));
    }
    let fields = known.fields().iter().zip(first.fields());
    let fields: Vec<Field> =
        fields.map(|(field, first)| field.as_ref().clone().with_data_type(first.data_type().clone())).collect();
    let table = CteWorkTable::new(name, Arc::new(Schema::new(fields)));
    let source = provider_as_source(Arc::new(table));
    let scan = TableScanBuilder::new(scan.table_name, source).with_filters(scan.filters).with_fetch(scan.fetch);
    scan.build().map(LogicalPlan::TableScan)
}

/// Without the casts to the types that the first part had before, where they are `changed`: the planner has put them on top.
fn without_casts(plan: LogicalPlan, before: &DFSchemaRef, changed: &[bool]) -> LogicalPlan {
    let LogicalPlan::Projection(mut projection) = plan else { return plan };
    for (at, expr) in projection.expr.iter_mut().enumerate() {
        if !changed.get(at).is_some_and(|changed| *changed) {
            continue;
        }
        let (relation, name) = expr.qualified_name();
        let computed = if let Expr::Alias(alias) = &mut *expr { alias.expr.as_mut() } else { &mut *expr };
        let inner = cast_to(computed, before.field(at).data_type());
        if let Some(inner) = inner {
            *expr = inner.alias_qualified(relation, name);
        }
    }
    LogicalPlan::Projection(projection)
}

/// What is cast to that type.
fn cast_to(expr: &mut Expr, data_type: &DataType) -> Option<Expr> {
    match expr {
        Expr::Cast(cast) if cast.field.data_type() == data_type => Some(std::mem::take(cast.expr.as_mut())),
        _ => None,
    }
}

fn after_inputs(plan: LogicalPlan) -> DfResult<Transformed<LogicalPlan>> {
    // Of all inputs: it is for looking up types only.
    let schema = merge_schema(&plan.inputs());
    let plan = plan.map_subqueries(|node| match node {
        LogicalPlan::Subquery(subquery) => {
            let plan = with_outer(Arc::unwrap_or_clone(subquery.subquery), &schema)?.data;
            let outer = subquery.outer_ref_columns.into_iter().map(|expr| retyped(expr, &schema)).collect();
            let plan = Arc::new(stay_approximate(plan)?);
            let subquery = Subquery { subquery: plan, outer_ref_columns: outer, spans: subquery.spans };
            Ok(Transformed::yes(LogicalPlan::Subquery(subquery)))
        }
        other => Ok(Transformed::no(other)),
    })?;
    let names = NamePreserver::new(&plan.data);
    let plan = plan.data.map_expressions(|expr| {
        let name = names.save(&expr);
        let rewritten = expr.transform_up(|expr| rewrite(expr, &schema))?;
        Ok(rewritten.update_data(|expr| name.restore(expr)))
    })?;
    let plan = match plan.data {
        LogicalPlan::Join(join) => LogicalPlan::Join(rewrite_join(join)?),
        LogicalPlan::Union(union) => LogicalPlan::Union(rewrite_union(union)?),
        LogicalPlan::Values(values) => LogicalPlan::Values(rewrite_values(values)?),
        other => other,
    };
    plan.recompute_schema().map(Transformed::yes)
}

/// A subquery that reads the columns of `outer` with the types that they have now.
fn with_outer(plan: LogicalPlan, outer: &DFSchema) -> DfResult<Transformed<LogicalPlan>> {
    plan.transform_up_with_subqueries(|node| {
        node.map_expressions(|expr| {
            expr.transform_up(|expr| match expr {
                Expr::OuterReferenceColumn(..) => {
                    let new = retyped(expr.clone(), outer);
                    Ok(if new == expr { Transformed::no(expr) } else { Transformed::yes(new) })
                }
                other => Ok(Transformed::no(other)),
            })
        })
    })
}

fn retyped(expr: Expr, outer: &DFSchema) -> Expr {
    match &expr {
        Expr::OuterReferenceColumn(field, column) => match outer.qualified_field_from_column(column) {
            // Only so far as this pass changes types: a column of the same name may be in a nearer scope, which is looked at later.
            Ok((_, now)) if has_decimal(field.data_type()) && float_of(now.data_type()).is_some() => {
                let field = field.as_ref().clone().with_data_type(now.data_type().clone());
                Expr::OuterReferenceColumn(Arc::new(field), column.clone())
            }
            _ => expr,
        },
        _ => expr,
    }
}

fn rewrite(expr: Expr, schema: &DFSchema) -> DfResult<Transformed<Expr>> {
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

/// Keys of joins that are written as USING, or stand for INTERSECT and EXCEPT; and what is LATERAL, and so reads the left side.
fn rewrite_join(mut join: Join) -> DfResult<Join> {
    let right = with_outer(join.right.as_ref().clone(), join.left.schema())?;
    if right.transformed {
        join.right = Arc::new(stay_approximate(right.data)?);
    }
    for (left, right) in &mut join.on {
        let (Ok(left_type), Ok(right_type)) = (left.get_type(join.left.schema()), right.get_type(join.right.schema()))
        else {
            continue;
        };
        let Some(target) = common_float([&left_type, &right_type]) else { continue };
        let (exact, data_type) = if has_decimal(&left_type) { (left, left_type) } else { (right, right_type) };
        *exact = cast(std::mem::take(exact), &data_type, &target);
    }
    join.filter = join.filter.map(|filter| filter.unalias_nested().data);
    Ok(join)
}

fn rewrite_union(union: Union) -> DfResult<Union> {
    let columns = union.schema.fields().len();
    // Its own type is what its inputs had before.
    let of_column = |at: usize| {
        let schemas = union.inputs.iter().map(|input| input.schema()).chain([&union.schema]);
        let types: Vec<DataType> =
            schemas.filter_map(|schema| Some(schema.fields().get(at)?.data_type().clone())).collect();
        common_float(&types)
    };
    let targets: Vec<Option<DataType>> = (0..columns).map(of_column).collect();
    let inputs = union.inputs.iter().map(|input| {
        let fields = input.schema().fields();
        let wanted: Vec<_> = fields
            .iter()
            .zip(&targets)
            .map(|(field, target)| target.clone().filter(|_| has_decimal(field.data_type())))
            .collect();
        if wanted.iter().all(Option::is_none) {
            return Ok(Arc::clone(input));
        }
        cast_columns(input.as_ref().clone(), &wanted).map(Arc::new)
    });
    let inputs = inputs.collect::<DfResult<Vec<_>>>()?;
    let fields = union.schema.iter().zip(&targets).map(|((qualifier, field), target)| {
        let data_type = field.data_type();
        let data_type = target.as_ref().map_or_else(|| data_type.clone(), |target| with_inner(data_type, target));
        (qualifier.cloned(), Arc::new(field.as_ref().clone().with_data_type(data_type)))
    });
    let schema = DFSchema::new_with_metadata(fields.collect(), union.schema.metadata().clone())?;
    Ok(Union { inputs, schema: Arc::new(schema) })
}

/// The cells of VALUES have got the column's type already.
fn rewrite_values(mut values: Values) -> DfResult<Values> {
    let nothing = DFSchema::empty();
    let mut fields = Vec::with_capacity(values.schema.fields().len());
    for (at, (qualifier, field)) in values.schema.iter().enumerate() {
        let column = field.data_type();
        let mut types = Vec::new();
        for row in &values.values {
            let data_type = row[at].get_type(&nothing)?;
            if float_of(&data_type).is_some() {
                // It was a decimal when the column got its type.
                types.push(column.clone());
            }
            types.push(written(&row[at], column).get_type(&nothing)?);
        }
        let Some(target) = common_float(&types).filter(|_| has_decimal(column)) else {
            fields.push((qualifier.cloned(), Arc::clone(field)));
            continue;
        };
        let data_type = with_inner(column, &target);
        for row in &mut values.values {
            let cell = written(&row[at], column).clone();
            row[at] = match nearest_literal(&cell, &target) {
                Some(literal) => literal,
                None => cell.cast_to(&data_type, &nothing)?,
            };
        }
        fields.push((qualifier.cloned(), Arc::new(field.as_ref().clone().with_data_type(data_type))));
    }
    values.schema = Arc::new(DFSchema::new_with_metadata(fields, values.schema.metadata().clone())?);
    Ok(values)
}

/// A cell as it was before the planner cast it to its column's type. Casts that the statement has itself stay.
fn written<'a>(cell: &'a Expr, column: &DataType) -> &'a Expr {
    match cell {
        Expr::Cast(cast) if cast.field.data_type() == column => match cast.expr.get_type(&DFSchema::empty()) {
            Ok(from) if from.is_decimal() || comes_of_float(column, &from) => &cast.expr,
            _ => cell,
        },
        _ => cell,
    }
}

/// Whether the planner can have chosen the decimal type with that float among the cells: it takes a DOUBLE for DECIMAL(30, 15),
/// and a REAL for DECIMAL(14, 7).
fn comes_of_float(column: &DataType, float: &DataType) -> bool {
    let digits = match inner(float) {
        DataType::Float64 => 15,
        DataType::Float32 => 7,
        _ => return false,
    };
    match inner(column) {
        DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale) => {
            i16::from(*scale) >= digits && i16::from(*precision) - i16::from(*scale) >= digits
        }
        _ => false,
    }
}

/// The plan, of whose columns those with a type are cast to it. Names stay.
fn cast_columns(plan: LogicalPlan, types: &[Option<DataType>]) -> DfResult<LogicalPlan> {
    let columns = plan.schema().iter().zip(types).map(|((qualifier, field), target)| {
        let column = Expr::Column((qualifier, field).into());
        match target {
            Some(target) => {
                let expr = Box::new(cast(column, field.data_type(), target));
                let (relation, name) = (qualifier.cloned(), field.name().clone());
                Expr::Alias(Alias { expr, relation, name, metadata: None })
            }
            None => column,
        }
    });
    let columns: Vec<Expr> = columns.collect();
    Projection::try_new(columns, Arc::new(plan)).map(LogicalPlan::Projection)
}

/// The floating-point type that decimals among `types` become, if both kinds are there.
fn common_float<'a>(types: impl IntoIterator<Item = &'a DataType> + Clone) -> Option<DataType> {
    let decimals = types.clone().into_iter().any(has_decimal);
    let widest =
        types.into_iter().filter_map(float_of).reduce(|one, other| if one == other { one } else { DataType::Float64 });
    widest.filter(|_| decimals)
}

fn float_of(data_type: &DataType) -> Option<DataType> {
    match inner(data_type) {
        float @ (DataType::Float32 | DataType::Float64) => Some(float.clone()),
        DataType::Float16 => Some(DataType::Float32),
        _ => None,
    }
}

fn has_decimal(data_type: &DataType) -> bool {
    inner(data_type).is_decimal()
}

/// The type of a list's items, or a type itself.
fn inner(data_type: &DataType) -> &DataType {
    match data_type {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => inner(item.data_type()),
        other => other,
    }
}

/// An exact value as an approximate one. A literal keeps its name, so that the names of what it is in stay.
fn cast(expr: Expr, from: &DataType, float: &DataType) -> Expr {
    match nearest_literal(&expr, float) {
        Some(literal) => literal.alias(expr.schema_name().to_string()),
        None => Expr::Cast(Cast::new(Box::new(expr), with_inner(from, float))),
    }
}

fn nearest_literal(expr: &Expr, float: &DataType) -> Option<Expr> {
    let Expr::Literal(value, metadata) = expr else { return None };
    nearest(value, float).map(|value| Expr::Literal(value, metadata.clone()))
}

fn with_inner(data_type: &DataType, target: &DataType) -> DataType {
    let item = |field: &Field| Arc::new(field.clone().with_data_type(with_inner(field.data_type(), target)));
    match data_type {
        DataType::List(field) => DataType::List(item(field)),
        DataType::LargeList(field) => DataType::LargeList(item(field)),
        DataType::FixedSizeList(field, size) => DataType::FixedSizeList(item(field), *size),
        _ => target.clone(),
    }
}

/// The float next to a decimal literal: a cast would round twice where there are more than 15 digits.
fn nearest(value: &ScalarValue, float: &DataType) -> Option<ScalarValue> {
    let text = match value {
        ScalarValue::Decimal128(value, precision, scale) => {
            value.map(|value| Decimal128Type::format_decimal(value, *precision, *scale))
        }
        ScalarValue::Decimal256(value, precision, scale) => {
            value.map(|value| Decimal256Type::format_decimal(value, *precision, *scale))
        }
        _ => return None,
    };
    match float {
        DataType::Float32 => Some(ScalarValue::Float32(text.map(|text| text.parse()).transpose().ok()?)),
        _ => Some(ScalarValue::Float64(text.map(|text| text.parse()).transpose().ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{ArrayRef, Decimal128Array, Float32Array, Float64Array, Int64Array, RecordBatch},
        util::pretty::pretty_format_batches,
    };
    use datafusion::{
        prelude::{SessionConfig, SessionContext},
        sql::parser::DFParser,
    };

    use super::*;

    /// `t`: a DOUBLE, a REAL and a DECIMAL(10, 2).
    async fn answer(sql: &str) -> DfResult<String> {
        let mut config = SessionConfig::new().with_target_partitions(1);
        config.options_mut().sql_parser.parse_float_as_decimal = true;
        let context = SessionContext::new_with_config(config);
        let decimals = Decimal128Array::from(vec![Some(0), Some(50), Some(1000), Some(10), None]);
        let columns: [(&str, ArrayRef); 4] = [
            ("id", Arc::new(Int64Array::from_iter_values(1..=5))),
            ("f", Arc::new(Float64Array::from(vec![Some(1e-20), Some(0.5), Some(1e300), Some(f64::INFINITY), None]))),
            ("r", Arc::new(Float32Array::from(vec![Some(0.1), Some(0.5), Some(1e30), Some(f32::NAN), None]))),
            ("d", Arc::new(decimals.with_precision_and_scale(10, 2)?)),
        ];
        context.register_batch("t", RecordBatch::try_from_iter(columns)?)?;
        let statement = exponents(DFParser::parse_sql(sql)?.pop_front().expect("a statement"));
        let plan = stay_approximate(context.state().statement_to_plan(statement).await?)?;
        let schema = Arc::clone(plan.schema());
        let rows = context.execute_logical_plan(plan).await?.collect().await?;
        for batch in &rows {
            let types = |schema: &Schema| -> Vec<DataType> {
                schema.fields().iter().map(|field| field.data_type().clone()).collect()
            };
            assert_eq!(types(&batch.schema()), types(schema.as_arrow()), "{sql}: the plan says what comes");
        }
        Ok(pretty_format_batches(&rows)?.to_string())
    }

    /// The first column, its values one after the other.
    async fn values(sql: &str) -> String {
        let table = answer(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let rows = table.lines().filter(|line| line.starts_with("| ")).skip(1);
        rows.map(|row| row.split('|').nth(1).unwrap_or_default().trim()).collect::<Vec<_>>().join(" ")
    }

    #[tokio::test]
    async fn a_condition_finds_what_it_says() {
        for (condition, found) in [
            ("f = 0.0", ""),
            ("f <> 0.0", "1 2 3 4"),
            ("f > 0.5", "3 4"),
            ("0.5 < f", "3 4"),
            ("f = d", "2"),
            ("d IS NOT DISTINCT FROM f", "2 5"),
            ("f BETWEEN 0.0 AND 0.5", "1 2"),
            ("d BETWEEN 0.1 AND f", "2 3 4"),
            ("f IN (0.0, 0.5)", "2"),
            ("d IN (f, 10.0)", "2 3"),
            ("f NOT IN (0.0, 0.5)", "1 3 4"),
            ("r = 0.1", "1"),
            ("r > 0.4", "2 3 4"),
            ("f IN (SELECT d FROM t)", "2"),
            ("d IN (SELECT f FROM t)", "2"),
            ("f > (SELECT max(d) FROM t)", "3 4"),
            ("f >= ALL (SELECT d FROM t WHERE d IS NOT NULL)", "3 4"),
            ("EXISTS (SELECT 1 FROM t AS u WHERE u.d = t.f)", "2"),
            ("CASE f WHEN 0.0 THEN false ELSE true END", "1 2 3 4 5"),
            ("nullif(f, 0.0) IS NOT NULL", "1 2 3 4"),
            ("f = 5e-1", "2"),
            ("d = 5e-1", "2"),
            ("f = 1e300", "3"),
            ("f = 0.50", "2"),
            ("abs(f) > 0.5 AND NOT (f = 0.5 OR r = 0.5)", "3 4"),
        ] {
            assert_eq!(values(&format!("SELECT id FROM t WHERE {condition} ORDER BY id")).await, found, "{condition}");
        }
    }

    #[tokio::test]
    async fn a_value_is_what_it_was() {
        for (expression, value) in [
            ("coalesce(f, 0.0)", "1e-20 0.5 1e300 inf 0.0"),
            ("CASE WHEN f IS NULL THEN 0.0 ELSE f END", "1e-20 0.5 1e300 inf 0.0"),
            ("greatest(f, 0.25)", "0.25 0.5 1e300 inf 0.25"),
            ("least(d, f)", "0.0 0.5 10.0 0.1 "),
            ("coalesce(r, 0.25)", "0.1 0.5 1e30 NaN 0.25"),
            ("coalesce(d, 0.25)", "0.00 0.50 10.00 0.10 0.25"),
            ("nullif(f, 0.5)", "1e-20  1e300 inf "),
            ("array_max(make_array(f, 0.25))", "0.25 0.5 1e300 inf 0.25"),
        ] {
            let values = values(&format!("SELECT {expression} AS v FROM t ORDER BY id")).await;
            assert_eq!(values.trim_end(), value.trim_end(), "{expression}");
        }
    }

    #[tokio::test]
    async fn results_that_are_brought_together_keep_their_values() {
        for (sql, found) in [
            ("SELECT f FROM t WHERE id = 1 UNION ALL SELECT d FROM t WHERE id = 2", "1e-20 0.5"),
            ("SELECT d FROM t WHERE id = 2 UNION SELECT f FROM t WHERE id = 2", "0.5"),
            (
                "SELECT x FROM (SELECT d AS x FROM t WHERE id = 2 UNION ALL SELECT f FROM t WHERE id = 3) WHERE x > 1.5",
                "1e300",
            ),
            ("SELECT f FROM t INTERSECT SELECT d FROM t WHERE id = 2", "0.5"),
            ("SELECT d FROM t WHERE id < 3 EXCEPT SELECT f FROM t", "0.00"),
            ("SELECT a.id FROM t AS a JOIN t AS b ON a.f = b.d", "2"),
            ("SELECT id FROM (SELECT id, f AS k FROM t) AS a JOIN (SELECT d AS k FROM t) AS b USING (k)", "2"),
            ("SELECT max(id) FROM t GROUP BY f HAVING max(f) = 0.5", "2"),
            ("SELECT lag(f, 1, 0.25) OVER (ORDER BY id) FROM t WHERE id < 3", "0.25 1e-20"),
            ("WITH x AS (SELECT coalesce(f, 0.0) AS g FROM t) SELECT g FROM x WHERE g > 0.5 ORDER BY g", "1e300 inf"),
            (
                "WITH RECURSIVE x AS (SELECT coalesce(f, 0.0) AS g, 1 AS n FROM t WHERE id = 1 \
                 UNION ALL SELECT g, n + 1 FROM x WHERE n < 2 AND g < 0.5) SELECT g FROM x",
                "1e-20 1e-20",
            ),
            (
                "WITH RECURSIVE x AS (SELECT coalesce(f, 0.0) AS g, 1 AS n FROM t WHERE id = 3 \
                 UNION ALL SELECT g * 2, n + 1 FROM x WHERE n < 3) SELECT g FROM x",
                "1e300 2e300 4e300",
            ),
            ("SELECT coalesce(f, 0.0) AS v FROM t WHERE id = 1 UNION ALL SELECT f FROM t WHERE id = 3", "1e-20 1e300"),
            (
                "SELECT v FROM (SELECT coalesce(f, 0.0) AS v FROM t UNION SELECT coalesce(f, 0.1) FROM t) \
                 WHERE v > 0.5 ORDER BY v",
                "1e300 inf",
            ),
            ("SELECT x FROM (VALUES (1e-20), (0.5), (NULL), (3)) AS v(x)", "1e-20 0.5  3.0"),
            ("SELECT x FROM (VALUES (1.5), (0.25)) AS v(x)", "1.50 0.25"),
            ("SELECT x FROM (VALUES (CAST(sqrt(2) AS DECIMAL(10, 2))), (0.25), (NULL)) AS v(x)", "1.41 0.25 "),
            ("SELECT x FROM (VALUES (coalesce(1e-20, 0.5)), (3)) AS v(x)", "1e-20 3.0"),
            ("SELECT x[1] FROM (VALUES (make_array(1e0)), (make_array(0.5))) AS v(x)", "1.0 0.5"),
            (
                "SELECT v[1] FROM (SELECT make_array(f) AS v FROM t WHERE id = 1 UNION ALL SELECT make_array(0.5)) AS x",
                "1e-20 0.5",
            ),
            (
                "SELECT count(*) FROM (SELECT 'a' AS v) AS x WHERE EXISTS (SELECT 1 FROM (SELECT 1 AS v) AS x \
                 WHERE EXISTS (SELECT 1 FROM t WHERE t.id = x.v + 1))",
                "1",
            ),
            ("SELECT f > 0.5, count(*) FROM t WHERE id < 4 GROUP BY ROLLUP (f > 0.5) ORDER BY 2", "true false "),
            ("SELECT count(*), grouping(f > 0.5) FROM t WHERE id < 4 GROUP BY CUBE (f > 0.5) ORDER BY 1", "1 2 3"),
            (
                "SELECT coalesce(f, 0.0) AS g FROM t GROUP BY coalesce(f, 0.0) HAVING coalesce(f, 0.0) > 0.5 \
                 ORDER BY coalesce(f, 0.0)",
                "1e300 inf",
            ),
            ("SELECT DISTINCT ON (f > 0.5) id FROM t WHERE id < 4 ORDER BY f > 0.5, id", "1 3"),
            (
                "SELECT x.g FROM (SELECT coalesce(f, 0.0) AS g FROM t) AS x \
                 CROSS JOIN LATERAL (SELECT t.id FROM t WHERE t.d = x.g) AS y ORDER BY 1",
                "0.0 0.5",
            ),
            (
                "SELECT x.g FROM (SELECT coalesce(f, 0.0) AS g FROM t) AS x WHERE x.g IN \
                 (SELECT t.d FROM t WHERE t.d < 0.6) ORDER BY 1",
                "0.0 0.5",
            ),
            (
                "SELECT g FROM (SELECT coalesce(f, 0.0) AS g FROM t) AS x WHERE EXISTS (SELECT 1 FROM t WHERE t.d = x.g) ORDER BY g",
                "0.0 0.5",
            ),
        ] {
            assert_eq!(values(sql).await, found, "{sql}");
        }
    }

    /// Each recursion reads the one before it: what is done to one must not double with each.
    #[tokio::test]
    async fn recursions_over_recursions_are_planned_once() {
        let mut sql = "WITH RECURSIVE a0 AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM a0 WHERE n < 2)".to_owned();
        for at in 1..25 {
            let before = at - 1;
            sql += &format!(", a{at} AS (SELECT n FROM a{before} UNION ALL SELECT n + 1 FROM a{at} WHERE n < 2)");
        }
        let context = SessionContext::new();
        let statement = DFParser::parse_sql(&format!("{sql} SELECT n FROM a24")).unwrap().pop_front().unwrap();
        let plan = context.state().statement_to_plan(statement).await.unwrap();
        let plan = stay_approximate(plan).unwrap();
        assert_eq!(plan.schema().fields().len(), 1);
    }

    #[tokio::test]
    async fn a_literal_is_the_nearest_value_and_decimals_alone_stay_exact() {
        let next = "SELECT id FROM t WHERE coalesce(f - f, 0.1) + 0.2 = 0.30000000000000004 AND id = 5";
        assert_eq!(values(next).await, "5", "doubles are added");
        assert_eq!(
            values("SELECT 1 AS v WHERE CAST('0.30000000000000004' AS DOUBLE) = 0.30000000000000004").await,
            "1"
        );
        assert_eq!(
            values("SELECT 1 AS v WHERE CAST('0.123456789012345678' AS DOUBLE) = 0.123456789012345678").await,
            "1"
        );
        assert_eq!(values("SELECT 0.1 + 0.2 AS v").await, "0.3");
        assert_eq!(values("SELECT 1e0 / 3 AS v").await, "0.3333333333333333");
        assert!(answer("SELECT 1e400 AS v").await.is_err());
    }
}
