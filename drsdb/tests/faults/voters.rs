//! Whether the index servers agree: when all is well, all of them have applied the same, and have one state, byte for byte.

use std::time::Instant;

use arrow::util::pretty::pretty_format_batches;
use drsdb_client::Client;

use crate::{
    cluster::{Cluster, pause},
    workload::{RECOVERY_TIME, ask, column, values},
};

/// Waits until all have one state, whose hash is that of one version; shows what each has if they do not come to that, or if
/// one has found before that another differs from it.
pub async fn compare(cluster: &Cluster, client: &Client) -> Result<(), String> {
    let sql = "SELECT id, role, applied, state_hash, disagrees_since FROM drsdb.raft ORDER BY id";
    let deadline = Instant::now() + RECOVERY_TIME;
    loop {
        let servers = ask(client, sql).await?;
        let hashes = values(&servers, 3);
        let differed = column(&servers, 4).iter().any(|since| *since != i64::MIN);
        // One that does not answer has none.
        let agree = hashes.iter().all(|hash| *hash == hashes[0] && !hash.is_empty());
        if agree && !differed && hashes.len() == cluster.topology.index {
            return Ok(());
        }
        if differed || Instant::now() > deadline {
            let shown = pretty_format_batches(&servers.batches).expect("numbers and texts can be shown");
            return Err(format!("the index servers do not have one state:\n{shown}"));
        }
        pause().await;
    }
}
