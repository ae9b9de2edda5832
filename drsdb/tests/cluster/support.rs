//! A cluster of processes for one test, and what tests ask of it.

use std::{path::PathBuf, time::Duration};

use arrow::util::pretty::pretty_format_batches;
use drsdb::local::{LocalCluster, LocalOptions};
use drsdb_client::{Client, Error};
use drsdb_core::{
    Column, Engine, SqlType, Table, TableName, Ulid,
    config::IndexConfig,
    net::ChannelPool,
    security::{TlsIdentity, tls::client_config},
    v1::{self, storage_client::StorageClient},
};
use tempfile::TempDir;
use tonic::transport::Channel;

/// A running cluster in a folder that goes away with it.
pub struct TestCluster {
    pub cluster: LocalCluster,
    pub client: Client,
    _folder: TempDir,
}

/// Options for servers that are processes of the binary under test.
pub fn options(folder: &TempDir, storage: usize) -> LocalOptions {
    LocalOptions {
        storage,
        processes: true,
        data: folder.path().join("data"),
        program: Some(PathBuf::from(env!("CARGO_BIN_EXE_drsdb"))),
        ..LocalOptions::default()
    }
}

impl TestCluster {
    pub async fn start(storage: usize) -> Self {
        Self::start_with(storage, |_| {}).await
    }

    pub async fn start_with(storage: usize, change: impl FnOnce(&mut LocalOptions)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut options = options(&folder, storage);
        change(&mut options);
        let cluster = LocalCluster::start(options).await.unwrap();
        let client = Client::connect(cluster.client_options()).await.unwrap();
        Self { cluster, client, _folder: folder }
    }

    /// Runs statements that must succeed.
    pub async fn run(&self, statements: &[&str]) {
        for statement in statements {
            self.client.execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
        }
    }

    /// A query's rows as a table of text.
    pub async fn table(&self, sql: &str) -> String {
        let result = self.client.collect(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        pretty_format_batches(&result.batches).unwrap().to_string()
    }

    /// The single value of a query, as text.
    pub async fn value(&self, sql: &str) -> String {
        let result = self.client.collect(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let batch = result.batches.iter().find(|batch| batch.num_rows() > 0).expect("the query gives a row");
        arrow::util::display::array_value_to_string(batch.column(0), 0).unwrap()
    }

    /// What storage server `number` (from 0) says about itself, to an index server.
    pub async fn status(&self, number: usize) -> v1::StatusResponse {
        self.storage(number).status(v1::StatusRequest::default()).await.unwrap().into_inner()
    }

    /// The digest of what storage server `number` has of a shard at a version, and how many rows that is.
    pub async fn checksum(
        &self,
        number: usize,
        table: &Table,
        shard: u32,
        version: u64,
    ) -> Result<(u64, Vec<u8>), drsdb_core::Error> {
        let request = v1::ChecksumRequest { table: Some(table.to_proto()), shard, version };
        let answer = self.storage(number).checksum(request).await?.into_inner();
        Ok((answer.rows, answer.checksum.to_vec()))
    }

    /// The definition of a table `name (id BIGINT PRIMARY KEY, text TEXT)`, as storage servers know it.
    pub async fn definition(&self, name: &str, engine: Engine, shards: u32) -> Table {
        let id = self.value(&format!("SELECT id FROM drsdb.tables WHERE table_name = '{name}'")).await;
        Table {
            id: Ulid::from_string(&id).unwrap(),
            name: TableName::new("public", name),
            columns: vec![Column::new("id", SqlType::BigInt, true), Column::new("text", SqlType::Text, false)],
            primary_key: vec![0],
            shard_key: vec![0],
            cluster_key: vec![0],
            engine,
            shards,
            ..Table::default()
        }
    }

    /// The service that storage server `number` (from 0) has for other servers.
    pub fn storage(&self, number: usize) -> StorageClient<Channel> {
        let file = self.cluster.client_file().with_file_name("index-1").join("index.toml");
        let config = IndexConfig::load(Some(&file), ()).unwrap();
        let channels = ChannelPool::new(client_config(&TlsIdentity::load(&config.tls).unwrap()).unwrap());
        StorageClient::new(channels.channel(self.cluster.storage_url(number)).unwrap())
    }

    /// The error of a statement that must fail.
    pub async fn error(&self, sql: &str) -> Error {
        match self.client.collect(sql).await {
            Ok(result) => panic!("{} bytes of SQL succeeded with {} rows", sql.len(), result.rows()),
            Err(error) => error,
        }
    }
}

/// Waits until `condition` holds; panics when it does not within a generous time.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while !condition().await {
            // A condition of another process: there is nothing to be woken by.
            #[allow(clippy::disallowed_methods)]
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("did not happen: {what}"));
}
