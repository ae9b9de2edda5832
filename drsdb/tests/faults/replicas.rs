//! Whether all replicas of a table hold the same rows.
//!
//! An endpoint of a plain scan lists every server that holds its shards. With the client's ways to all other storage
//! servers closed, it has to pull everything from the one that is left: so each server shows its own copy.

use std::time::Instant;

use arrow::util::display::array_value_to_string;
use drsdb_client::{Client, ErrorCode, QueryResult};

use crate::{
    cluster::{Cluster, pause},
    network::Node,
    workload::RECOVERY_TIME,
};

/// Compares the copies of `table` on all storage servers; all must be complete, or become so soon. Tables whose rows are on
/// one server only have nothing to compare.
pub async fn compare(cluster: &Cluster, client: &Client, table: &str) -> Result<(), String> {
    let sql = format!("SELECT * FROM {table}");
    let failed = |error: drsdb_client::Error| format!("{sql}: {error}");
    let storage: Vec<Node> = cluster.topology.storage_nodes().collect();
    let deadline = Instant::now() + RECOVERY_TIME;
    // One server cannot have all while the others are asked as well: then a replica is still behind.
    loop {
        let info = client.flight_info(&sql).await.map_err(failed)?;
        let locations: Vec<usize> = info.endpoint.iter().map(|endpoint| endpoint.location.len()).collect();
        // An empty table is answered without any of them.
        if locations.iter().all(|count| *count == 0) {
            return Ok(());
        }
        if storage.len() == 1 || locations.iter().all(|count| *count == 1) && !is_replicated(client).await {
            return Ok(());
        }
        if locations.iter().all(|count| *count == storage.len()) {
            break;
        }
        if Instant::now() > deadline {
            return Err(format!("replicas of {table} are still behind: endpoints have {locations:?} locations"));
        }
        pause().await;
    }
    let mut copies = Vec::new();
    for &server in &storage {
        for &other in storage.iter().filter(|other| **other != server) {
            cluster.network.refuse(Node::Client, other);
        }
        let copy = loop {
            match client.collect(&sql).await {
                Ok(copy) => break rows(&copy),
                Err(error) if error.code() == ErrorCode::Unavailable && Instant::now() < deadline => pause().await,
                Err(error) => {
                    cluster.network.heal_all();
                    return Err(format!("{server} alone: {}", failed(error)));
                }
            }
        };
        cluster.network.heal_all();
        copies.push((server, copy));
    }
    let (first, expected) = &copies[0];
    for (server, copy) in &copies[1..] {
        if copy != expected {
            let differs = |left: &[String], right: &[String]| left.iter().find(|row| !right.contains(row)).cloned();
            return Err(format!(
                "{table} differs: {first} has {} rows, among them {:?}; {server} has {}, among them {:?}",
                expected.len(),
                differs(expected, copy),
                copy.len(),
                differs(copy, expected)
            ));
        }
    }
    Ok(())
}

/// Whether the cluster keeps several copies at all.
async fn is_replicated(client: &Client) -> bool {
    client.collect("SELECT 1 FROM drsdb.replicas LIMIT 1").await.is_ok()
}

fn rows(result: &QueryResult) -> Vec<String> {
    let mut rows = Vec::new();
    for batch in &result.batches {
        for row in 0..batch.num_rows() {
            let cells = batch.columns().iter().map(|column| array_value_to_string(column, row).unwrap());
            rows.push(cells.collect::<Vec<_>>().join("|"));
        }
    }
    rows.sort_unstable();
    rows
}
