//! The way to storage servers, as transactions need it. The trait is there for tests of what they do when a server does
//! not.

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;
use drsdb_core::{
    Result, Ulid,
    net::{ChannelPool, name_server},
    v1::{self, stage_request::Part, storage_client::StorageClient},
};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::transport::Channel;
use url::Url;

use crate::catalog::StorageServer;

/// Stages and aborts on storage servers.
#[async_trait]
pub trait StageTransport: Debug + Send + Sync + 'static {
    /// Sends the messages, of one transaction and one shard; returns when all of them are staged durably.
    async fn stage(
        &self,
        server: &StorageServer,
        messages: mpsc::Receiver<v1::StageRequest>,
    ) -> Result<v1::StageResponse>;

    /// Undoes what the transaction staged there.
    async fn abort(&self, server: &StorageServer, transaction: Ulid) -> Result<()>;

    /// Undoes what the transaction's statements after `sequence` staged there, or are staging; `last` is the number of the
    /// last one so far.
    async fn rollback_to(&self, server: &StorageServer, transaction: Ulid, sequence: u32, last: u32) -> Result<()>;
}

/// The `Storage` service over the pool's connections.
#[derive(Debug)]
pub struct GrpcTransport {
    channels: Arc<ChannelPool>,
}

impl GrpcTransport {
    /// A transport over `channels`.
    pub fn new(channels: Arc<ChannelPool>) -> Self {
        Self { channels }
    }

    fn client(&self, url: &Url) -> Result<StorageClient<Channel>> {
        Ok(StorageClient::new(self.channels.channel(url)?))
    }
}

#[async_trait]
impl StageTransport for GrpcTransport {
    async fn stage(
        &self,
        server: &StorageServer,
        messages: mpsc::Receiver<v1::StageRequest>,
    ) -> Result<v1::StageResponse> {
        let url = server.address()?;
        // To this server: another one may be there now.
        let id = server.id.to_string();
        let addressed = ReceiverStream::new(messages).map(move |mut message| {
            if let Some(Part::Header(header)) = &mut message.part {
                header.server_id.clone_from(&id);
            }
            message
        });
        let response = self.client(&url)?.stage(addressed).await;
        response.map(tonic::Response::into_inner).map_err(|status| name_server(status, &url))
    }

    async fn abort(&self, server: &StorageServer, transaction: Ulid) -> Result<()> {
        let url = server.address()?;
        let request = v1::AbortRequest { transaction_id: transaction.to_string() };
        self.client(&url)?.abort(request).await.map_err(|status| name_server(status, &url))?;
        Ok(())
    }

    async fn rollback_to(&self, server: &StorageServer, transaction: Ulid, sequence: u32, last: u32) -> Result<()> {
        let url = server.address()?;
        let request = v1::RollbackToRequest { transaction_id: transaction.to_string(), sequence, last_sequence: last };
        self.client(&url)?.rollback_to(request).await.map_err(|status| name_server(status, &url))?;
        Ok(())
    }
}
