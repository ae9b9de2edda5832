//! Which type comes of which, and the values that come of exact ones.

use std::sync::Arc;

use arrow::datatypes::{DataType, Decimal128Type, Decimal256Type, DecimalType, Field};
use datafusion::{
    logical_expr::{Cast, Expr},
    scalar::ScalarValue,
};

/// The floating-point type that decimals among `types` become, if both kinds are there.
pub(super) fn common_float<'a>(types: impl IntoIterator<Item = &'a DataType> + Clone) -> Option<DataType> {
    let decimals = types.clone().into_iter().any(has_decimal);
    let widest =
        types.into_iter().filter_map(float_of).reduce(|one, other| if one == other { one } else { DataType::Float64 });
    widest.filter(|_| decimals)
}

pub(super) fn float_of(data_type: &DataType) -> Option<DataType> {
    match inner(data_type) {
        float @ (DataType::Float32 | DataType::Float64) => Some(float.clone()),
        DataType::Float16 => Some(DataType::Float32),
        _ => None,
    }
}

pub(super) fn has_decimal(data_type: &DataType) -> bool {
    inner(data_type).is_decimal()
}

/// The type of a list's items, or a type itself.
pub(super) fn inner(data_type: &DataType) -> &DataType {
    match data_type {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => inner(item.data_type()),
        other => other,
    }
}

/// An exact value as an approximate one. A literal keeps its name, so that the names of what it is in stay.
pub(super) fn cast(expr: Expr, from: &DataType, float: &DataType) -> Expr {
    match nearest_literal(&expr, float) {
        Some(literal) => literal.alias(expr.schema_name().to_string()),
        None => Expr::Cast(Cast::new(Box::new(expr), with_inner(from, float))),
    }
}

pub(super) fn nearest_literal(expr: &Expr, float: &DataType) -> Option<Expr> {
    let Expr::Literal(value, metadata) = expr else { return None };
    nearest(value, float).map(|value| Expr::Literal(value, metadata.clone()))
}

pub(super) fn with_inner(data_type: &DataType, target: &DataType) -> DataType {
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
