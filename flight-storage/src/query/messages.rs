//! Rows on their way to the client, in messages of about [`MESSAGE_BYTES`]: small batches are joined, large ones divided.

use std::time::Duration;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::concat_batches,
    datatypes::DataType,
};
use datafusion::execution::SendableRecordBatchStream;
use drsdb_core::{Result, edge::EdgeConverter};
use futures::TryStreamExt;
use tokio::{sync::mpsc, time::timeout};

/// Bytes of one message, about: large enough to be cheap, small enough for every client's limit.
pub(super) const MESSAGE_BYTES: usize = 2 * 1024 * 1024;

/// How long rows that are there wait for more.
const PATIENCE: Duration = Duration::from_millis(20);

/// Sends all of `stream` in edge types, until it ends or nobody listens any more.
pub(super) async fn send_all(
    mut stream: SendableRecordBatchStream,
    converter: &EdgeConverter,
    sender: &mpsc::Sender<Result<RecordBatch>>,
) -> Result<()> {
    let mut waiting = Waiting { converter, sender, batches: Vec::new(), bytes: 0 };
    loop {
        let next = if waiting.batches.is_empty() {
            stream.try_next().await?
        } else {
            match timeout(PATIENCE, stream.try_next()).await {
                Ok(next) => next?,
                Err(_) => {
                    waiting.flush().await?;
                    continue;
                }
            }
        };
        let Some(batch) = next else { return waiting.flush().await };
        let mut parts = vec![batch];
        while let Some(part) = parts.pop() {
            let bytes = logical_bytes(&part);
            if bytes > 2 * MESSAGE_BYTES && part.num_rows() > 1 {
                // Values that share memory inside do not outside: so they are divided before they are copied.
                let half = part.num_rows() / 2;
                parts.push(part.slice(half, part.num_rows() - half));
                parts.push(part.slice(0, half));
            } else {
                waiting.add(part, bytes).await?;
            }
        }
        if sender.is_closed() {
            return Ok(());
        }
    }
}

/// Batches that wait for more of their kind.
struct Waiting<'a> {
    converter: &'a EdgeConverter,
    sender: &'a mpsc::Sender<Result<RecordBatch>>,
    batches: Vec<RecordBatch>,
    bytes: usize,
}

impl Waiting<'_> {
    async fn add(&mut self, batch: RecordBatch, bytes: usize) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        if self.bytes + bytes > MESSAGE_BYTES / 4 * 5 {
            self.flush().await?;
        }
        self.batches.push(self.converter.convert(&batch)?);
        self.bytes += bytes;
        if self.bytes >= MESSAGE_BYTES / 4 * 3 {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        self.bytes = 0;
        let batches = std::mem::take(&mut self.batches);
        let joined = match batches.len() {
            0 => return Ok(()),
            1 => batches.into_iter().next(),
            _ => Some(concat_batches(self.converter.schema(), &batches)?),
        };
        if let Some(batch) = joined {
            // Nobody listens any more when this fails; the caller looks.
            let _ = self.sender.send(Ok(batch)).await;
        }
        Ok(())
    }
}

/// Bytes of a batch's values, were each written out.
fn logical_bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(column_bytes).sum()
}

fn column_bytes(column: &ArrayRef) -> usize {
    match column.data_type() {
        DataType::Utf8View => column.as_string_view().lengths().map(|length| length as usize + 4).sum(),
        DataType::BinaryView => column.as_binary_view().lengths().map(|length| length as usize + 4).sum(),
        _ => column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringViewBuilder};
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
    use drsdb_core::edge::edge_schema;
    use futures::stream;

    use super::*;

    async fn messages(batches: Vec<RecordBatch>) -> Vec<RecordBatch> {
        let schema = batches[0].schema();
        let converter = EdgeConverter::new(&schema, edge_schema(&schema)).unwrap();
        let stream = Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(batches.into_iter().map(Ok))));
        let (sender, mut receiver) = mpsc::channel(1);
        let sending = async move { send_all(stream, &converter, &sender).await };
        let receiving = async {
            let mut messages = Vec::new();
            while let Some(message) = receiver.recv().await {
                messages.push(message.unwrap());
            }
            messages
        };
        let (sent, messages) = tokio::join!(sending, receiving);
        sent.unwrap();
        messages
    }

    fn numbers(from: i64, rows: i64) -> RecordBatch {
        let values = Int64Array::from_iter_values(from..from + rows);
        RecordBatch::try_from_iter([("n", Arc::new(values) as ArrayRef)]).unwrap()
    }

    #[tokio::test]
    async fn small_batches_are_joined_in_order() {
        let sent = messages((0..300).map(|at| numbers(at * 8192, 8192)).collect()).await;
        let rows = 300 * 8192usize;
        assert!(sent.len() <= rows * 8 / (MESSAGE_BYTES / 2), "{} messages", sent.len());
        assert!(sent.iter().all(|message| message.get_array_memory_size() < 2 * MESSAGE_BYTES));
        let all = concat_batches(&sent[0].schema(), &sent).unwrap();
        assert_eq!(all, numbers(0, rows as i64));
    }

    #[tokio::test]
    async fn values_that_share_memory_are_divided_before_they_are_copied() {
        let mut builder = StringViewBuilder::new();
        let block = builder.append_block("x".repeat(1 << 20).into_bytes().into());
        for _ in 0..3000 {
            builder.try_append_view(block, 0, 1 << 20).unwrap();
        }
        let texts = RecordBatch::try_from_iter([("t", Arc::new(builder.finish()) as ArrayRef)]).unwrap();
        let sent = messages(vec![texts.slice(0, 64)]).await;
        assert_eq!(sent.iter().map(RecordBatch::num_rows).sum::<usize>(), 64);
        for message in &sent {
            assert!(message.get_array_memory_size() <= 3 * MESSAGE_BYTES, "compact, and not the whole block");
            assert!(message.column(0).as_string::<i32>().iter().all(|text| text.is_some_and(|t| t.len() == 1 << 20)));
        }
        // More than plain text columns can hold in one batch.
        assert_eq!(messages(vec![texts]).await.iter().map(RecordBatch::num_rows).sum::<usize>(), 3000);
    }
}
