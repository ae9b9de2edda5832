//! Rows on their way to shards.
//!
//! Between a client and its shard, text and bytes are plain `Utf8` and `Binary`: rows that were taken apart by shard would
//! otherwise drag along what their views point into. In the messages in which they are staged, decimals of up to 18
//! digits have 64 bits, too. They become what is stored where they are stored.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, GenericByteArray, GenericByteViewArray, builder::GenericByteViewBuilder},
    datatypes::{
        BinaryType, BinaryViewType, ByteArrayType, ByteViewType, DECIMAL64_MAX_PRECISION, DataType, Decimal64Type,
        Decimal128Type, StringViewType, Utf8Type,
    },
    error::ArrowError,
};

use crate::SqlType;

/// Longer values are not in their views.
const INLINE_BYTES: usize = 12;

/// The Arrow type of a column while rows are on their way to shards.
pub fn transit_type(sql_type: SqlType) -> DataType {
    without_views(&sql_type.to_arrow())
}

/// The Arrow type of a column in the messages in which rows are staged.
pub fn message_type(stored_or_transit: &DataType) -> DataType {
    match stored_or_transit {
        DataType::Decimal128(precision, scale) if *precision <= DECIMAL64_MAX_PRECISION => {
            DataType::Decimal64(*precision, *scale)
        }
        other => without_views(other),
    }
}

fn without_views(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        other => other.clone(),
    }
}

/// A column in transit -> the same as it is in these messages.
pub fn message_array(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let (DataType::Decimal128(..), DataType::Decimal64(precision, scale)) =
        (column.data_type(), message_type(column.data_type()))
    else {
        return Ok(Arc::clone(column));
    };
    let narrow = column.as_primitive::<Decimal128Type>().try_unary::<_, Decimal64Type, _>(|value| {
        let too_large = |_| ArrowError::ComputeError(format!("{value} has more than {precision} digits"));
        i64::try_from(value).map_err(too_large)
    })?;
    Ok(Arc::new(narrow.with_precision_and_scale(precision, scale)?))
}

/// A column in transit -> the same in its stored type, compact.
pub fn stored_column(column: &ArrayRef, sql_type: SqlType) -> Result<ArrayRef, ArrowError> {
    stored_array(column, &sql_type.to_arrow())
}

/// A column in transit, or of such a message -> the same in its stored type, compact.
pub fn stored_array(column: &ArrayRef, stored: &DataType) -> Result<ArrayRef, ArrowError> {
    Ok(match (column.data_type(), stored) {
        (DataType::Utf8, DataType::Utf8View) => {
            Arc::new(views::<Utf8Type, StringViewType>(column.as_string::<i32>())) as ArrayRef
        }
        (DataType::Binary, DataType::BinaryView) => {
            Arc::new(views::<BinaryType, BinaryViewType>(column.as_binary::<i32>()))
        }
        (DataType::Decimal64(..), DataType::Decimal128(precision, scale)) => {
            let wide = column.as_primitive::<Decimal64Type>().unary::<_, Decimal128Type>(i128::from);
            Arc::new(wide.with_precision_and_scale(*precision, *scale)?)
        }
        _ => Arc::clone(column),
    })
}

/// Views with one buffer, of the long values alone.
fn views<T, V>(array: &GenericByteArray<T>) -> GenericByteViewArray<V>
where
    T: ByteArrayType<Offset = i32>,
    V: ByteViewType<Native = T::Native>,
{
    let lengths = array.value_offsets().windows(2).map(|ends| (ends[1] - ends[0]) as usize);
    let long: usize = lengths.filter(|length| *length > INLINE_BYTES).sum();
    let mut views = GenericByteViewBuilder::<V>::with_capacity(array.len());
    if let Some(block) = u32::try_from(long).ok().filter(|bytes| *bytes > 0) {
        views = views.with_fixed_block_size(block);
    }
    match array.null_count() {
        0 => (0..array.len()).for_each(|row| views.append_value(array.value(row))),
        _ => array.iter().for_each(|value| views.append_option(value)),
    }
    views.finish()
}

#[cfg(test)]
mod tests {
    use arrow::array::{BinaryArray, Decimal128Array, StringArray, StringViewArray};

    use super::*;

    #[test]
    fn stored_text_keeps_only_its_own_bytes() {
        let long = "a text longer than twelve bytes";
        let many: ArrayRef = Arc::new(StringArray::from(vec![long; 1000]));
        let stored = stored_column(&many.slice(10, 2), SqlType::Text).unwrap();
        let held: usize = stored.as_string_view().data_buffers().iter().map(|buffer| buffer.len()).sum();
        assert_eq!(held, 2 * long.len());
    }

    #[test]
    fn text_and_bytes_are_the_same_as_views() {
        let long = "x".repeat(100_000);
        let texts = [Some("short"), None, Some(""), Some("thirteen byte"), Some(&long), Some("twelve bytes")];
        let array: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
        let stored = stored_column(&array, SqlType::Text).unwrap();
        assert_eq!(stored.as_string_view(), &StringViewArray::from(texts.to_vec()));
        assert_eq!(stored.as_string_view().data_buffers().len(), 1);
        let array: ArrayRef = Arc::new(BinaryArray::from(vec![&b"\xff"[..], b"", b"more than twelve"]));
        let stored = stored_column(&array, SqlType::Bytea).unwrap();
        assert_eq!(
            stored.as_binary_view().iter().flatten().collect::<Vec<_>>(),
            [&b"\xff"[..], b"", b"more than twelve"]
        );
    }

    #[test]
    fn decimals_are_short_in_messages() {
        let decimal = |precision, values: Vec<Option<i128>>| -> ArrayRef {
            Arc::new(Decimal128Array::from(values).with_precision_and_scale(precision, 2).unwrap())
        };
        let most = 999_999_999_999_999_999;
        let short = decimal(18, vec![Some(most), None, Some(-most), Some(0)]);
        let message = message_array(&short).unwrap();
        assert_eq!(message.data_type(), &DataType::Decimal64(18, 2));
        assert_eq!(&stored_array(&message, short.data_type()).unwrap(), &short);
        let long = decimal(19, vec![Some(most * 10)]);
        assert_eq!(&message_array(&long).unwrap(), &long);
        // Whatever went wrong before: nothing becomes another number.
        assert!(message_array(&decimal(18, vec![Some(i128::MAX)])).is_err());
    }
}
