//! Work that would hold up an async thread, on threads for that; small work where it is, since waking a thread and being
//! woken by it costs more.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::{
    array::{Array, RecordBatch},
    datatypes::DataType,
};
use drsdb_core::{Error, Result, row_bytes};

/// Up to this many bytes and rows are small, unless they are packed.
const SMALL_BYTES: usize = 64 << 10;
const SMALL_ROWS: usize = 1024;

/// Whether working on these rows takes about as long as waking a thread.
pub fn is_small<'a>(batches: impl IntoIterator<Item = &'a RecordBatch>) -> bool {
    let (mut bytes, mut rows, mut packed) = (0, 0, false);
    for batch in batches {
        bytes += row_bytes(batch);
        rows += batch.num_rows();
        packed |= batch.columns().iter().any(|column| column.data_type().is_nested() || is_packed(column.data_type()));
    }
    bytes <= SMALL_BYTES && rows <= SMALL_ROWS && !packed
}

/// Whether there may be much more in it than its bytes.
fn is_packed(of: &DataType) -> bool {
    matches!(of, DataType::Dictionary(..) | DataType::RunEndEncoded(..))
}

/// Runs work, which `what` names in the error if it panics.
pub async fn offload<T: Send + 'static>(
    small: bool,
    what: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let failed = |why: &str| Err(Error::internal(format!("{what} failed: {why}")));
    if small {
        return catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| failed("a panic"));
    }
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| failed(&panic.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_wherever_the_work_is() {
        for small in [true, false] {
            assert_eq!(offload(small, "counting", || Ok(7)).await.unwrap(), 7);
            let error = offload::<()>(small, "counting", || panic!("for the test")).await.unwrap_err();
            assert!(error.to_string().contains("counting failed"), "{error}");
        }
    }
}
