//! A storage server that lost its disk comes back under the old URL as a new server. What is left of the old one in the
//! catalog has to go by the ways that an administrator has, while clients write.

use std::time::Instant;

use drsdb_client::{Client, Error, ErrorCode};

use crate::{
    cluster::{Cluster, pause},
    workload::{RECOVERY_TIME, ask, values},
};

/// Removes the servers whose disks are lost from the cluster, and waits until nothing misses them.
pub async fn forget_lost(cluster: &mut Cluster, client: &Client) -> Result<(), String> {
    for node in cluster.take_replaced() {
        let deadline = Instant::now() + RECOVERY_TIME;
        let sql = format!("SELECT id FROM drsdb.servers WHERE kind = 'storage' AND url = '{}'", cluster.url(node));
        // The new one has registered as soon as there are two.
        let lost = loop {
            let known = values(&ask(client, &sql).await?, 0);
            let new = cluster.storage_id(node);
            if new.as_ref().is_some_and(|new| known.contains(new)) {
                break known.into_iter().filter(|id| Some(id) != new.as_ref()).collect::<Vec<_>>();
            }
            if Instant::now() > deadline {
                return Err(format!("{node} lost its disk, and is not known as a new server after {RECOVERY_TIME:?}"));
            }
            pause().await;
        };
        for id in lost {
            alter(client, &format!("ALTER CLUSTER DRAIN STORAGE SERVER '{id}'"), deadline).await?;
            // Refused as long as it is said to hold something.
            alter(client, &format!("ALTER CLUSTER REMOVE STORAGE SERVER '{id}'"), deadline).await?;
        }
    }
    Ok(())
}

/// Runs a statement until it is done, or `deadline` has come.
async fn alter(client: &Client, sql: &str, deadline: Instant) -> Result<(), String> {
    loop {
        match client.execute(sql).await {
            Ok(_) => return Ok(()),
            Err(error) if may_come_right(&error) && Instant::now() < deadline => pause().await,
            Err(error) => return Err(format!("{sql}: {}: {error}", error.code())),
        }
    }
}

fn may_come_right(error: &Error) -> bool {
    error.code() == ErrorCode::Unavailable
        || error.code() == ErrorCode::InvalidArgument && error.message().contains("still has")
}
