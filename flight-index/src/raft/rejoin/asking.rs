//! What a server asks of the others that has lost what it had written: whether it is one of them, to go on without it, and to add
//! it again; and whom it gives its vote meanwhile.
//!
//! Not here: what the leader does about it ([`super::readmit`]).

use std::{fs, time::Duration};

use drsdb_core::{Error, ErrorCode, Result, crash_point};
use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use tokio::time::Instant;
use tonic::Status;

use super::{
    Readmission, Readmitted, Rejoining, Standing,
    files::{ASKED, Known, forget_asking},
};
use crate::raft::{
    batch::stopped,
    codec,
    database::Change,
    members::{CHANGE_TIME, Changed, MemberChange, NodeStatus},
    peers::{Call, CallFailed, Leader, ask},
    propose::no_leader,
    shell::{Catalog, CatalogOptions},
    types::LogId,
};

/// How long it is tried to have the others go on without this server: longer than an election and an agreement take.
const ASKING_TIME: Duration = Duration::from_secs(30);
/// How long one server may take to answer; the leader waits for the others meanwhile.
const ANSWER_TIME: Duration = Duration::from_secs(23);
/// How long others may take to say whether a server without files is one of them.
const GREETING_TIME: Duration = Duration::from_secs(1);
/// The last entry of a log in which nothing was proposed yet: the first list, and what the first leader begins with.
const FOUNDING: u64 = 1;
/// How long it is waited before the others are asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Whether others say that a server without files is one of them.
pub(super) async fn is_missed(options: &CatalogOptions, known: &Known) -> bool {
    let mut answers: FuturesUnordered<_> = known
        .servers
        .values()
        .map(|url| ask::<_, NodeStatus>(&options.dial, url, Call::NodeStatus, &(), GREETING_TIME))
        .collect();
    while let Some(answer) = answers.next().await {
        // While a cluster is being made, nobody can have lost anything.
        if answer.is_ok_and(|status| status.cluster.is_some() && status.members.contains(&options.node_id)) {
            return true;
        }
    }
    false
}

/// Asks until a leader has had the others go on without this server.
pub(super) async fn ask_leave(options: &CatalogOptions, known: &Known) -> Result<Standing> {
    let asked = options.dir.join(ASKED);
    let mut request = Readmission { id: options.node_id, cluster: known.cluster, again: asked.exists() };
    let synced = fs::File::create(&asked).and_then(|file| {
        crash_point::reach("raft.rejoin.asking");
        file.sync_all()
    });
    synced.map_err(|error| Error::io(format!("writing {}", asked.display()), error))?;
    crash_point::reach("raft.rejoin.asked");
    let deadline = Instant::now() + ASKING_TIME;
    loop {
        let (mut failed, mut refused) = (no_leader(), None);
        for url in known.servers.values() {
            if Instant::now() >= deadline {
                break;
            }
            match ask::<_, Readmitted>(&options.dial, url, Call::Readmit, &request, ANSWER_TIME).await {
                Ok(Readmitted::Removed(standing)) => {
                    crash_point::reach("raft.rejoin.removed");
                    return Ok(standing);
                }
                Ok(Readmitted::Stranger) => {
                    // Nothing was asked for that may be carried out yet.
                    forget_asking(&options.dir)?;
                    let message = format!("it is not one of the index servers any more, as the one at {url} says");
                    return Err(Error::new(ErrorCode::NotFound, message));
                }
                Ok(Readmitted::Refused(why)) => refused = Some(why.into_wire().into()),
                Ok(Readmitted::Unsure(why)) => {
                    request.again = true;
                    refused = Some(why.into_wire().into());
                }
                Ok(Readmitted::NotLeading) => {}
                Err(CallFailed::NotSent(error)) => failed = error.into(),
                Err(CallFailed::Lost(error)) => {
                    request.again = true;
                    failed = error.into();
                }
            }
        }
        if Instant::now() >= deadline {
            return Err(refused.unwrap_or(failed));
        }
        wait_to_ask_again().await;
    }
}

impl Catalog {
    /// Whether this server has lost what it had written, and is not a voter again yet.
    pub(crate) fn is_rejoining(&self) -> bool {
        self.rejoining.lock().is_some()
    }

    /// Whether this server's vote may count for a candidate with this last entry.
    ///
    /// Errors: `unavailable`, if it has lost what it had written and has not learnt yet that the others know, or may have: one
    /// with an empty log, or the list that a founder begins with, is asked for its vote only while a cluster is being made.
    pub(in super::super) fn check_may_vote(&self, candidates: Option<LogId>) -> Result<(), Status> {
        let after = self.rejoining.lock().as_ref().map(|rejoining| rejoining.after.index);
        // The index is enough: whoever it takes entries from has that one. The metrics may be behind, never ahead.
        let may = match (self.peers.raft.metrics().borrow().last_log_index, after) {
            (last, Some(after)) => last >= Some(after),
            (None | Some(0), None) => candidates.is_none_or(|last| last.index <= FOUNDING),
            (Some(_), None) => true,
        };
        if may {
            return Ok(());
        }
        Err(Status::unavailable("this index server has no votes to remember: it is new, or has lost them"))
    }

    /// Has a server that has lost what it had written added again, and returns when it votes; of any other server, at once.
    pub async fn join_again(&self, url: &str) -> Result<()> {
        let Some(rejoining) = self.rejoining.lock().clone() else { return Ok(()) };
        let mut metrics = self.peers.raft.metrics();
        let may_lead = async {
            if metrics.wait_for(|metrics| metrics.last_log_index >= Some(rejoining.after.index)).await.is_ok() {
                // It may be the only one that has the newest entries, and then must lead.
                self.peers.raft.runtime_config().elect(true);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            joined = self.ask_to_join(&rejoining, url) => joined?,
            () = may_lead => unreachable!("it waits for the other"),
        }
        self.peers.raft.runtime_config().elect(true);
        let settled = self.database.write(Change::Rejoined(codec::encode(&None::<LogId>))).await;
        settled.map_err(|error| Error::io("cannot write the catalog", error))?;
        self.rejoining.lock().take();
        tracing::warn!(id = self.peers.id, "this index server has joined the others again");
        Ok(())
    }

    /// Asks the others to add this server until it votes.
    async fn ask_to_join(&self, rejoining: &Rejoining, url: &str) -> Result<()> {
        let id = self.peers.id;
        let change = MemberChange::Add { id, url: url.to_owned() };
        while !self.votes_after(rejoining.after).await? {
            if self.peers.leader() == Leader::Here {
                // Elected on the way from the list without it to the one with it, which nobody else ends now.
                self.change_members_here(&change).await;
            }
            let mut others = rejoining.known.servers.clone();
            let now = self.index_servers().into_iter().filter(|server| server.id != id);
            others.extend(now.map(|server| (server.id, server.url)));
            let asked = others.values().map(|url| async {
                match self.peers.call(url, Call::ChangeMembers, &change, CHANGE_TIME).await {
                    Ok(Changed::Refused(why)) => Some(why.into_wire()),
                    Ok(Changed::Done | Changed::NotLeading) => None,
                    Err(failed) => Some(failed.into()),
                }
            });
            for error in join_all(asked).await.into_iter().flatten() {
                tracing::warn!(%error, "this index server is not added again yet; trying on");
            }
            if let Some(stopped) = self.stopped_because() {
                return Err(stopped);
            }
            wait_to_ask_again().await;
        }
        Ok(())
    }

    async fn votes_after(&self, after: LogId) -> Result<bool> {
        let id = self.peers.id;
        let votes = self.peers.raft.with_raft_state(move |state| {
            let agreed = state.membership_state.committed();
            // On the way from one list to another, both count.
            let settled = agreed.membership().get_joint_config().len() == 1;
            settled && *agreed.log_id() > Some(after) && agreed.voter_ids().any(|voter| voter == id)
        });
        votes.await.map_err(|_| self.stopped_because().unwrap_or_else(stopped))
    }
}

/// Others may be starting, or electing: nobody here hears of it.
#[allow(clippy::disallowed_methods)]
async fn wait_to_ask_again() {
    tokio::time::sleep(ASK_AGAIN).await;
}
