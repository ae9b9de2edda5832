//! Storage servers for tests: they live in memory, and can be made to fail.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use arrow::{array::RecordBatch, ipc::reader::StreamReader};
use async_trait::async_trait;
use drsdb_core::{
    Error, ErrorCode, Result, Table, Ulid, WireError,
    transit::{message_type, stored_array},
    v1,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::{
    catalog::{Command, StorageServer},
    transaction::{MAX_MESSAGE_BYTES, StageTransport},
};

/// Storage servers in memory.
#[derive(Debug, Default)]
pub struct Servers {
    pub staged: Mutex<BTreeMap<(Ulid, u32), Vec<RecordBatch>>>,
    pub aborted: Mutex<BTreeSet<(Ulid, String)>>,
    pub rolled_back: Mutex<BTreeSet<(Ulid, u32)>>,
    pub messages: AtomicUsize,
    /// Refuses this message, counted over all servers.
    pub refuse_message: Option<usize>,
    /// Answers only when told.
    pub hold: Option<Notify>,
    pub abort_seen: Notify,
}

#[async_trait]
impl StageTransport for Servers {
    async fn stage(
        &self,
        server: &StorageServer,
        mut messages: mpsc::Receiver<v1::StageRequest>,
    ) -> Result<v1::StageResponse> {
        let Some(v1::stage_request::Part::Header(header)) = messages.recv().await.and_then(|message| message.part)
        else {
            return Err(Error::internal("a stage begins with its header"));
        };
        let table = Table::from_proto(header.table.as_ref().unwrap())?;
        let key = (Ulid::from_string(&header.transaction_id).unwrap(), header.shard);
        let mut rows = 0;
        if let Some(hold) = &self.hold {
            hold.notified().await;
        }
        while let Some(message) = messages.recv().await {
            let Some(v1::stage_request::Part::Batch(batch)) = message.part else {
                return Err(Error::internal("only the first message is a header"));
            };
            assert!(batch.len() <= MAX_MESSAGE_BYTES);
            let number = self.messages.fetch_add(1, Ordering::SeqCst);
            if self.refuse_message == Some(number) {
                let error = WireError::new(ErrorCode::DiskFull, "no space is left").with_field("server", &server.url);
                return Err(error.into());
            }
            for batch in StreamReader::try_new(&batch[..], None)? {
                let (batch, schema) = (batch?, table.arrow_schema());
                let columns = batch.columns().iter().zip(schema.fields());
                let columns = columns.map(|(array, field)| {
                    assert_eq!(*array.data_type(), message_type(field.data_type()));
                    stored_array(array, field.data_type())
                });
                let batch = RecordBatch::try_new(Arc::clone(&schema), columns.collect::<Result<_, _>>()?)?;
                rows += batch.num_rows() as u64;
                self.staged.lock().entry(key).or_default().push(batch);
            }
        }
        Ok(v1::StageResponse { rows, bytes: rows * 10, ..v1::StageResponse::default() })
    }

    async fn abort(&self, server: &StorageServer, transaction: Ulid) -> Result<()> {
        self.aborted.lock().insert((transaction, server.url.clone()));
        self.abort_seen.notify_waiters();
        Ok(())
    }

    async fn rollback_to(&self, _: &StorageServer, transaction: Ulid, sequence: u32, _last: u32) -> Result<()> {
        self.rolled_back.lock().insert((transaction, sequence));
        Ok(())
    }
}

/// Commands that register three storage servers.
pub fn registrations() -> impl Iterator<Item = Command> {
    (1..=3u128).map(|number| Command::RegisterStorage {
        server: StorageServer {
            id: Ulid(number),
            url: format!("https://storage-{number}:1"),
            cores: 2,
            labels: BTreeMap::new(),
        },
    })
}
