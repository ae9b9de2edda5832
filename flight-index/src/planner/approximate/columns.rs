//! Columns that are brought together: by a join, by UNION, by VALUES.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::{
    common::{DFSchema, Result as DfResult, tree_node::TreeNode},
    logical_expr::{Expr, ExprSchemable, Join, LogicalPlan, Projection, Union, Values, expr::Alias},
};

use super::{
    stay_approximate,
    types::{cast, common_float, float_of, has_decimal, inner, nearest_literal, with_inner},
    with_outer,
};

/// Keys of joins that are written as USING, or stand for INTERSECT and EXCEPT; and what is LATERAL, and so reads the left side.
pub(super) fn rewrite_join(mut join: Join) -> DfResult<Join> {
    if join.right.exists(|node| Ok(matches!(node, LogicalPlan::Subquery(_))))? {
        let right = with_outer(Arc::unwrap_or_clone(join.right), join.left.schema())?;
        join.right = Arc::new(if right.transformed { stay_approximate(right.data)? } else { right.data });
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

pub(super) fn rewrite_union(union: Union) -> DfResult<Union> {
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
pub(super) fn rewrite_values(mut values: Values) -> DfResult<Values> {
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
pub(super) fn cast_columns(plan: LogicalPlan, types: &[Option<DataType>]) -> DfResult<LogicalPlan> {
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
