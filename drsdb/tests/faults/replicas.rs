//! Whether all replicas hold the same rows: of every shard of every table that there is, those included that keep the keys of
//! UNIQUE constraints. Each storage server gives the checksum of what it has itself, all of them at one version.

use std::time::{Duration, Instant};

use drsdb_core::{
    Error, ErrorCode,
    net::name_server,
    v1::{
        ChecksumRequest, ListTablesRequest, ListTablesResponse, Table, cluster_client::ClusterClient,
        storage_client::StorageClient,
    },
};
use tokio::time::timeout;
use url::Url;

use crate::{
    cluster::{Cluster, pause},
    network::Node,
    workload::RECOVERY_TIME,
};

/// How long one server may take, to read a whole shard if need be.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// What was found.
enum Found {
    Equal,
    /// What is under way may change it.
    NotYet(String),
    Different(String),
}

/// How many rows there are, and their checksum.
type Content = (u64, Vec<u8>);

/// Compares all replicas; all must be current, or become so soon.
pub async fn compare(cluster: &Cluster) -> Result<(), String> {
    let deadline = Instant::now() + RECOVERY_TIME;
    loop {
        let found = look(cluster).await.unwrap_or_else(|error| match error.code() {
            // A conflict: the version was compacted away meanwhile, or is older than a copy.
            ErrorCode::Unavailable | ErrorCode::Conflict => Found::NotYet(error.to_string()),
            _ => Found::Different(error.to_string()),
        });
        match found {
            Found::Equal => return Ok(()),
            Found::NotYet(_) if Instant::now() < deadline => pause().await,
            Found::NotYet(what) | Found::Different(what) => return Err(format!("comparing replicas: {what}")),
        }
    }
}

async fn look(cluster: &Cluster) -> Result<Found, Error> {
    let ListTablesResponse { version, tables } = list_tables(cluster).await?;
    for listed in &tables {
        let table = listed.table.as_ref().expect("a listed table has a definition");
        for (number, shard) in (0..).zip(&listed.shards) {
            let which = format!("shard {number} of {} at version {version}", table.name);
            if shard.current.len() < shard.replicas as usize {
                let (current, all) = (shard.current.len(), shard.replicas);
                return Ok(Found::NotYet(format!("{which} has {current} current replicas of {all}")));
            }
            let mut contents = Vec::new();
            for url in &shard.current {
                contents.push((url, checksum(cluster, url, table, number, version).await?));
            }
            let differ = contents.windows(2).find(|pair| pair[0].1 != pair[1].1);
            if let Some([(one, (left, _)), (other, (right, _))]) = differ {
                let what = format!("{which} differs: {left} rows on {one}, {right} rows on {other}");
                // A table that was dropped meanwhile has no old versions.
                let is_newest = list_tables(cluster).await?.version == version;
                return Ok(if is_newest { Found::Different(what) } else { Found::NotYet(what) });
            }
        }
    }
    Ok(Found::Equal)
}

async fn list_tables(cluster: &Cluster) -> Result<ListTablesResponse, Error> {
    let url = cluster.url(Node::Index(1));
    let mut index = ClusterClient::new(cluster.channel(&url)?);
    let answer = timeout(ANSWER_TIME, index.list_tables(ListTablesRequest {})).await.map_err(|_| hangs(&url))?;
    Ok(answer.map_err(|status| name_server(status, &url))?.into_inner())
}

/// What the storage server at `url` has of a shard.
async fn checksum(cluster: &Cluster, url: &str, table: &Table, shard: u32, version: u64) -> Result<Content, Error> {
    let url = Url::parse(url).expect("a storage server has registered with its URL");
    let mut storage = StorageClient::new(cluster.channel(&url)?);
    let request = ChecksumRequest { table: Some(table.clone()), shard, version };
    let answer = timeout(ANSWER_TIME, storage.checksum(request)).await.map_err(|_| hangs(&url))?;
    let answer = answer.map_err(|status| name_server(status, &url))?.into_inner();
    Ok((answer.rows, answer.checksum.to_vec()))
}

fn hangs(server: &Url) -> Error {
    Error::new(ErrorCode::Timeout, format!("{server} does not answer within {ANSWER_TIME:?}"))
}
