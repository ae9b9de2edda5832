//! How an index server that has lost what it had written becomes one of them again, by itself and under its number.
//!
//! A voter that forgets is dangerous: it would vote a second time, and for a log that lacks what it has acknowledged. So it
//! comes back as a new one, and nothing that it did before counts:
//!
//! 1. It asks the leader to go on without it ([`Readmission`]). Meanwhile it answers nobody. The others agree on that as on
//!    any removal, which takes a majority of those that vote, so two must be left of three.
//! 2. The leader says under which vote it leads, and which entry holds the list without the lost server ([`Standing`]).
//! 3. The server makes a new file that has the two and nothing else, and puts what was there aside, as `damaged-<time>`.
//! 4. With that it starts, and has itself added like any new server ([`Catalog::join_again`]).
//!
//! Why the number may be the same: whoever led before is turned away by the vote. Until the server's log has the entry of 2, it
//! votes for nobody ([`Catalog::check_may_vote`]), for it might make somebody the leader who believes it is what it was; nor for
//! itself, which the lists that it goes through while it learns may make it believe, one of them perhaps that it is alone. From then
//! on it votes only for those whose logs have that entry as well, and in whose lists it is not, or is as a new one. A leader
//! follows a server that was added from the start of its log, whatever it acknowledged before.
//!
//! A server whose files are gone altogether cannot know that it had any. When it starts it asks those that its configuration
//! names whether it is one of them. If none of them answers, it is taken for new, and waits to be sent entries; its vote it gives
//! only to who makes a new cluster.
//!
//! A list of the servers is beside the file ([`Known`]), for the configuration may be older than the cluster, or name none.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use drsdb_core::{Error, ErrorCode, Result, Ulid, WireError, crash_point, ids};
use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    batch::stopped,
    codec,
    database::{self, Change, Database},
    log_store::LogStore,
    members::{CHANGE_TIME, Changed, MemberChange, NodeStatus, NotChanged},
    peers::{Call, CallFailed, Leader, ask},
    propose::no_leader,
    seal::{self, Place},
    shell::{Catalog, CatalogOptions},
    state_machine::StateMachine,
    types::{LogId, NodeId, Vote},
};
use crate::catalog::Refusal;

/// How long it is tried to have the others go on without this server: longer than an election and an agreement take.
const ASKING_TIME: Duration = Duration::from_secs(30);
/// How long one server may take to answer; the leader waits for the others meanwhile.
const ANSWER_TIME: Duration = Duration::from_secs(23);
/// How long others may take to say whether a server without files is one of them.
const GREETING_TIME: Duration = Duration::from_secs(1);
/// The last entry of a log in which nothing was proposed yet: the first list, and what the first leader begins with.
const FOUNDING: u64 = 1;
/// How long a server may take to show that it is not lost.
const ALIVE_TIME: Duration = Duration::from_secs(2);
/// How long it is waited before the others are asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// The list of servers, in the catalog's folder.
const KNOWN: &str = "index_servers";
/// Says in the folder of damaged files that the others have been asked to go on without this server.
const ASKED: &str = "rejoining";

/// What a server says that has lost what it had written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Readmission {
    id: NodeId,
    /// Its cluster, if it knows it yet.
    cluster: Option<Ulid>,
    /// Whether the others may have gone on without it already, because it asked.
    again: bool,
}

/// What it is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Readmitted {
    NotLeading,
    Refused(Refusal),
    /// The others may go on without it, or may not.
    Unsure(Refusal),
    /// It is none of the index servers, and has not been one before.
    Stranger,
    /// It is none of the index servers any more, and may become one again.
    Removed(Standing),
}

/// What a server must know that joins again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Standing {
    cluster: Ulid,
    /// The leader's vote.
    vote: Vote,
    /// The entry with the list without the server, or a later one.
    after: LogId,
    servers: BTreeMap<NodeId, String>,
}

/// The index servers that a server last knew, in the file `index_servers`. It is a help for the worst case, so one that cannot
/// be read or written is no error.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    cluster: Option<Ulid>,
    servers: BTreeMap<NodeId, String>,
}

/// A server that joins again.
#[derive(Debug, Clone)]
pub(super) struct Rejoining {
    /// The entry that its log must have before it votes.
    after: LogId,
    known: Known,
}

/// A server's files, opened.
pub(super) struct Files {
    pub(super) database: Arc<Database>,
    pub(super) log: LogStore,
    pub(super) state_machine: StateMachine,
    /// Whose they are; `None` when they are new.
    pub(super) known: Option<NodeId>,
    pub(super) rejoining: Option<Rejoining>,
}

/// Opens the files of a server; those that are damaged or gone are replaced by new ones if the others can do without it.
///
/// Errors: `corrupt` with the reason why they cannot.
pub(super) async fn open(options: &CatalogOptions) -> Result<Files> {
    let (dir, id) = (&options.dir, options.node_id);
    settle(dir)?;
    let known = Known::read(dir).others(&options.named, id);
    if !has_files(dir) {
        if !dir.join(ASKED).exists() && !is_missed(options, &known).await {
            return read(options).await;
        }
        tracing::warn!(dir = %dir.display(), "others count on this index server, which has no files; it joins as a new one");
        return match rejoin(options, &known).await {
            // Whoever said so was behind the others.
            Err(error) if error.code() == ErrorCode::NotFound => read(options).await,
            joined => joined,
        };
    }
    let damage = match read(options).await {
        Ok(files) => {
            forget_asking(dir)?;
            return Ok(files);
        }
        Err(error) if seal::is_damage(&error) => error,
        Err(error) => return Err(error),
    };
    if known.servers.is_empty() {
        return Err(damage);
    }
    tracing::error!(%damage, "this index server's file is damaged; it joins the others again");
    rejoin(options, &known).await.map_err(|reason| cannot_join(&damage, &reason))
}

/// A server that is whole has not asked for anything that still counts.
fn forget_asking(dir: &Path) -> Result<()> {
    let asked = dir.join(ASKED);
    match fs::remove_file(&asked) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", asked.display()), error))
        }
        _ => Ok(()),
    }
}

async fn read(options: &CatalogOptions) -> Result<Files> {
    let (dir, node) = (options.dir.clone(), options.node_id);
    let named = options.named.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let database = Database::open(&dir)?;
        let (log, state_machine) = (LogStore::open(database.clone(), node)?, StateMachine::open(database.clone())?);
        let known = database.meta("node")?.map(|bytes| codec::decode::<NodeId>("node", &bytes)).transpose()?;
        let after = database.meta("rejoined")?.map(|bytes| codec::decode::<Option<LogId>>("rejoined", &bytes));
        let rejoining = after.transpose()?.flatten();
        let rejoining = rejoining.map(|after| Rejoining { after, known: Known::read(&dir).others(&named, node) });
        Ok(Files { database, log, state_machine, known, rejoining })
    });
    opened.await.map_err(|error| Error::internal(error.to_string())).flatten()
}

/// Whether there are files of a server, in whatever state.
fn has_files(dir: &Path) -> bool {
    // The mark too: who lost the one only has had it.
    [database::FILE, database::MARK].iter().any(|name| dir.join(name).exists())
}

/// Where the new files are made, and where they are when they are whole.
fn new_folder(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    dir.with_file_name(name)
}

/// Ends what was interrupted while files were replaced.
fn settle(dir: &Path) -> Result<()> {
    let new = new_folder(dir, ".new");
    if !new.exists() {
        return Ok(());
    }
    let context = |error| Error::io(format!("settling {} and {}", new.display(), dir.display()), error);
    // What was there goes first, and then they take its place.
    if dir.exists() { fs::remove_dir_all(&new).map_err(context) } else { rename(&new, dir).map_err(context) }
}

/// Renames, durably.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    match to.parent() {
        Some(parent) => fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Whether others say that a server without files is one of them.
async fn is_missed(options: &CatalogOptions, known: &Known) -> bool {
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

/// Has the others go on without this server, and makes its new files.
async fn rejoin(options: &CatalogOptions, known: &Known) -> Result<Files> {
    let dir = &options.dir;
    let made = |error| Error::io(format!("making {}", dir.display()), error);
    fs::create_dir_all(dir).map_err(made)?;
    let lock = database::lock(dir)?;
    let had_files = has_files(dir);
    let standing = ask_leave(options, known).await?;
    let aside = dir.with_file_name(format!("damaged-{}", ids::unix_ms()));
    let new = new_folder(dir, ".new");
    let unfinished = new_folder(dir, ".unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(made)?;
    }
    make_new(&unfinished, options.node_id, &standing).await?;
    rename(&unfinished, &new).map_err(made)?;
    crash_point::reach("raft.rejoin.made");
    let moved = |error| Error::io(format!("moving {} to {}", dir.display(), aside.display()), error);
    rename(dir, &aside).map_err(moved)?;
    crash_point::reach("raft.rejoin.moved");
    rename(&new, dir).map_err(moved)?;
    crash_point::reach("raft.rejoin.named");
    drop(lock);
    if had_files {
        tracing::warn!(folder = %aside.display(), "what was left of this index server's files is kept here");
    } else {
        fs::remove_dir_all(&aside).map_err(moved)?;
    }
    read(options).await
}

/// Asks until a leader has had the others go on without this server.
async fn ask_leave(options: &CatalogOptions, known: &Known) -> Result<Standing> {
    let asked = options.dir.join(ASKED);
    let mut request = Readmission { id: options.node_id, cluster: known.cluster, again: asked.exists() };
    let synced = fs::File::create(&asked).and_then(|file| file.sync_all());
    synced.map_err(|error| Error::io(format!("writing {}", asked.display()), error))?;
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

/// Makes the files of a server that knows nothing but `standing`.
async fn make_new(new: &Path, node: NodeId, standing: &Standing) -> Result<()> {
    let made = |error| Error::io(format!("making {}", new.display()), error);
    let folder = new.to_owned();
    let database = tokio::task::spawn_blocking(move || Database::open(&folder));
    let database = database.await.map_err(|error| Error::internal(error.to_string())).flatten()?;
    for change in [
        Change::Node(codec::encode(&node)),
        Change::Vote(codec::encode(&standing.vote)),
        Change::Rejoined(codec::encode(&Some(standing.after))),
    ] {
        database.write(change).await.map_err(made)?;
    }
    let known = Known { cluster: Some(standing.cluster), servers: standing.servers.clone() };
    known.write(new).map_err(made)?;
    let closed = tokio::task::spawn_blocking(move || database.close()).await;
    closed.map_err(|error| Error::internal(error.to_string()))?;
    fs::File::open(new).and_then(|folder| folder.sync_all()).map_err(made)
}

fn cannot_join(damage: &Error, reason: &Error) -> Error {
    let (damage, reason) = (damage.to_wire(), reason.to_wire());
    let message = format!("{}; and it cannot join the other index servers again: {}", damage.message, reason.message);
    let hint = "start index servers until most of them run, and then this one; else restore its data_dir from a backup, or \
                remove it from the cluster, and add it with an empty data_dir and a new node_id";
    let mut error = WireError::new(ErrorCode::Corrupt, message).with_hint(hint);
    error.fields.extend(damage.fields);
    error.into()
}

impl Known {
    fn read(dir: &Path) -> Self {
        let sealed = match fs::read(dir.join(KNOWN)) {
            Ok(sealed) => sealed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(error) => {
                tracing::warn!(%error, "cannot read which index servers there were");
                return Self::default();
            }
        };
        let opened = Place::Note(KNOWN).open(sealed).and_then(|bytes| codec::decode(KNOWN, &bytes));
        opened.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read which index servers there were");
            Self::default()
        })
    }

    /// Replaces the file as a whole.
    fn write(&self, dir: &Path) -> io::Result<()> {
        let unfinished = dir.join(format!("{KNOWN}.new"));
        fs::write(&unfinished, Place::Note(KNOWN).seal(&codec::encode(self)))?;
        fs::File::open(&unfinished)?.sync_all()?;
        rename(&unfinished, &dir.join(KNOWN))
    }

    /// Without the server itself, and with those that its configuration names.
    fn others(mut self, named: &BTreeMap<NodeId, String>, id: NodeId) -> Self {
        for (named, url) in named {
            self.servers.entry(*named).or_insert_with(|| url.clone());
        }
        self.servers.remove(&id);
        self
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
    pub(super) fn check_may_vote(&self, candidates: Option<LogId>) -> Result<(), Status> {
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

    /// Keeps the list of the index servers beside the file.
    pub async fn keep_known_servers(&self, shutdown: CancellationToken) {
        let (mut servers, mut versions) = (self.watch_index_servers(), self.watch());
        let mut written = None;
        loop {
            let known = Known {
                cluster: self.state().cluster_id(),
                servers: servers.borrow_and_update().iter().map(|server| (server.id, server.url.clone())).collect(),
            };
            // One that joins again goes through lists that were.
            if known.cluster.is_some() && !self.is_rejoining() && written.as_ref() != Some(&known) {
                let (dir, writing) = (self.dir.clone(), known.clone());
                match tokio::task::spawn_blocking(move || writing.write(&dir)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::warn!(%error, "cannot write which index servers there are"),
                    Err(error) => tracing::warn!(%error, "cannot write which index servers there are"),
                }
                written = Some(known);
            }
            tokio::select! {
                changed = servers.changed() => if changed.is_err() { return },
                // Until it has an id, and this server is a part of it.
                changed = versions.changed(), if written.is_none() => if changed.is_err() { return },
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Of a node that leads, for one that has lost what it had written.
    pub(super) async fn readmit_another(&self, request: Readmission) -> Readmitted {
        if self.peers.leader() != Leader::Here {
            return Readmitted::NotLeading;
        }
        match self.let_go(&request).await {
            Ok(answer) => answer,
            Err(NotChanged::NotLeading) => Readmitted::NotLeading,
            Err(NotChanged::Refused(error)) => Readmitted::Refused(error.to_wire().into()),
        }
    }

    async fn let_go(&self, request: &Readmission) -> Result<Readmitted, NotChanged> {
        let refuse = |code, message: String| Err(NotChanged::Refused(Error::new(code, message)));
        let _one = self.changing.lock().await;
        // Whoever leads no more must not say what there is.
        self.linearize().await.map_err(NotChanged::Refused)?;
        let Some(cluster) = self.state().cluster_id() else {
            return refuse(ErrorCode::Unavailable, "the cluster is being made".to_owned());
        };
        if request.cluster.is_some_and(|theirs| theirs != cluster) {
            return refuse(ErrorCode::InvalidArgument, format!("the index servers here belong to cluster {cluster}"));
        }
        let known = self.index_servers();
        let voters = known.iter().filter(|server| server.voter).count();
        match known.iter().find(|server| server.id == request.id) {
            None if !request.again => return Ok(Readmitted::Stranger),
            None => {}
            // Whoever asks under the leader's own number has another one's configuration.
            Some(_) if request.id == self.peers.id => {
                return refuse(ErrorCode::AlreadyExists, format!("index server {} runs, and leads", request.id));
            }
            // What would be agreed on without them could not be undone.
            Some(lost) if lost.voter && voters - 1 <= voters / 2 => {
                let message = format!("of {voters} that vote, the others are no majority");
                return refuse(ErrorCode::Unavailable, message);
            }
            Some(lost) => {
                let runs = self.peers.call::<_, NodeStatus>(&lost.url, Call::NodeStatus, &(), ALIVE_TIME).await;
                if runs.is_ok_and(|status| status.id == lost.id && status.cluster == Some(cluster)) {
                    let message = format!("index server {} runs, at {}", lost.id, lost.url);
                    return refuse(ErrorCode::AlreadyExists, message);
                }
                tracing::warn!(id = lost.id, url = %lost.url, "an index server has lost its files, and joins again");
                if let Err(failed) = self.remove(lost.id).await {
                    return Ok(unsure(failed));
                }
            }
        }
        match self.standing_without(request.id, cluster).await {
            Ok(standing) => Ok(Readmitted::Removed(standing)),
            Err(failed) => Ok(unsure(failed)),
        }
    }

    /// What a server that is none any more must know to join again.
    async fn standing_without(&self, id: NodeId, cluster: Ulid) -> Result<Standing, NotChanged> {
        self.linearize().await.map_err(NotChanged::Refused)?;
        let own = self.peers.id;
        let standing = self.peers.raft.with_raft_state(move |state| {
            let membership = state.membership_state.committed();
            let vote = *state.vote_ref();
            let leads = vote.is_committed() && vote.leader_id().voted_for() == Some(own);
            let gone = membership.nodes().all(|(member, _)| *member != id);
            let servers = membership.nodes().map(|(member, node)| (*member, node.addr.clone())).collect();
            let after = membership.log_id().filter(|_| leads && gone)?;
            Some(Standing { cluster, vote, after, servers })
        });
        match standing.await {
            Ok(Some(standing)) => Ok(standing),
            Ok(None) => Err(NotChanged::NotLeading),
            Err(_) => Err(NotChanged::Refused(self.stopped_because().unwrap_or_else(stopped))),
        }
    }
}

/// The answer when the others may have begun to go on without the server that asks.
fn unsure(failed: NotChanged) -> Readmitted {
    let error = match failed {
        NotChanged::NotLeading => no_leader(),
        NotChanged::Refused(error) => error,
    };
    Readmitted::Unsure(error.to_wire().into())
}

/// Others may be starting, or electing: nobody here hears of it.
#[allow(clippy::disallowed_methods)]
async fn wait_to_ask_again() {
    tokio::time::sleep(ASK_AGAIN).await;
}
