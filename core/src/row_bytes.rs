//! How large rows are.

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    datatypes::DataType,
};

/// Bytes of the rows themselves, whatever else their buffers hold: the arrays of a decoded batch all point into one message,
/// which [`RecordBatch::get_array_memory_size`] counts for each of them.
pub fn row_bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(column_bytes).sum()
}

fn column_bytes(column: &ArrayRef) -> usize {
    match column.data_type() {
        DataType::Utf8View => 16 * column.len() + column.as_string_view().total_buffer_bytes_used(),
        DataType::BinaryView => 16 * column.len() + column.as_binary_view().total_buffer_bytes_used(),
        _ => column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{Int64Array, StringArray, StringViewArray},
        buffer::Buffer,
        ipc::{reader::StreamDecoder, writer::StreamWriter},
    };

    use super::*;

    #[test]
    fn rows_of_a_message_are_counted_once() {
        let numbers = || Arc::new(Int64Array::from_iter_values(0..1000)) as ArrayRef;
        let texts = vec!["twenty bytes of text"; 1000];
        let columns =
            [numbers(), numbers(), Arc::new(StringArray::from(texts.clone())), Arc::new(StringViewArray::from(texts))];
        let batch = RecordBatch::try_from_iter(["a", "b", "c", "d"].into_iter().zip(columns)).unwrap();
        let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        let mut message = Buffer::from(writer.into_inner().unwrap());
        let decoded = StreamDecoder::new().decode(&mut message).unwrap().unwrap();
        let expected = 2 * 8_000 + (4_004 + 20_000) + (16_000 + 20_000);
        assert_eq!((row_bytes(&batch), row_bytes(&decoded)), (expected, expected));
        assert_eq!(row_bytes(&decoded.slice(10, 1)), 2 * 8 + (8 + 20) + (16 + 20));
    }
}
