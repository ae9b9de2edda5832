//! A server that lost its disk comes back under the old URL as a new server. What is left of the old one in the catalog has to
//! go by the ways that an administrator has, while clients write.

use std::time::Instant;

use drsdb_client::{Client, Error, ErrorCode};

use crate::{
    cluster::{Cluster, pause},
    network::Node,
    workload::{RECOVERY_TIME, ask, column, values},
};

/// Removes the servers whose disks are lost from the cluster, and waits until nothing misses them.
pub async fn forget_lost(cluster: &mut Cluster, client: &Client) -> Result<(), String> {
    for node in cluster.take_replaced() {
        match node {
            Node::Index(_) => replace_index(cluster, client, node).await?,
            _ => forget_storage(cluster, client, node).await?,
        }
    }
    Ok(())
}

async fn forget_storage(cluster: &Cluster, client: &Client, node: Node) -> Result<(), String> {
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
    Ok(())
}

/// Removes an index server whose disk is lost; nobody may be started in its place before, for whoever is there is taken for it.
pub async fn remove_index(cluster: &mut Cluster, client: &Client, node: Node) -> Result<(), String> {
    let (deadline, id) = (Instant::now() + RECOVERY_TIME, cluster.index_id(node));
    alter(client, &format!("ALTER CLUSTER REMOVE INDEX SERVER {id}"), deadline).await?;
    cluster.renumber(node);
    Ok(())
}

async fn replace_index(cluster: &mut Cluster, client: &Client, node: Node) -> Result<(), String> {
    if cluster.is_lost(node) {
        remove_index(cluster, client, node).await?;
    }
    cluster.start_server(node).await;
    let (deadline, id, url) = (Instant::now() + RECOVERY_TIME, cluster.index_id(node), cluster.url(node));
    // It votes when this is done.
    alter(client, &format!("ALTER CLUSTER ADD INDEX SERVER {id} '{url}'"), deadline).await?;
    let voters = "role IN ('leader', 'follower', 'candidate')";
    let sql = format!("SELECT count(*) FROM drsdb.raft WHERE id = {id} AND {voters}");
    while column(&ask(client, &sql).await?, 0) != [1] {
        if Instant::now() > deadline {
            return Err(format!("{node} was added as index server {id}, and does not vote after {RECOVERY_TIME:?}"));
        }
        pause().await;
    }
    Ok(())
}

/// Runs a statement until it is done, or `deadline` has come.
async fn alter(client: &Client, sql: &str, deadline: Instant) -> Result<(), String> {
    loop {
        match client.execute(sql).await {
            Ok(_) => return Ok(()),
            // An earlier attempt did it, and its answer was lost: what is removed here is there.
            Err(error) if error.code() == ErrorCode::NotFound && sql.contains("REMOVE INDEX") => return Ok(()),
            Err(error) if may_come_right(&error) && Instant::now() < deadline => pause().await,
            Err(error) => return Err(format!("{sql}: {}: {error}", error.code())),
        }
    }
}

fn may_come_right(error: &Error) -> bool {
    matches!(error.code(), ErrorCode::Unavailable | ErrorCode::Conflict)
        || error.code() == ErrorCode::InvalidArgument && error.message().contains("still has")
}
