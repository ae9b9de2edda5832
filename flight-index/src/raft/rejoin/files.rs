//! A server's own files: what is there of them, new ones in their place, and the list of the index servers beside them.
//!
//! New files are made beside the folder, and take its place when they are whole; what was there is set aside. A start ends what
//! a crash has interrupted in between ([`settle`]).
//!
//! Not here: whether the others can do without the server, which is asked before ([`super::asking`]).

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use drsdb_core::{Error, Result, Ulid, crash_point, ids};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{Files, Rejoining, Standing};
use crate::raft::{
    codec,
    database::{self, Change, Database},
    log_store::LogStore,
    seal::Place,
    shell::{Catalog, CatalogOptions},
    state_machine::StateMachine,
    types::{LogId, NodeId},
};

/// The list of servers, in the catalog's folder.
const KNOWN: &str = "index_servers";
/// Says in the folder of damaged files that the others have been asked to go on without this server.
pub(super) const ASKED: &str = "rejoining";

/// The index servers that a server last knew, in the file `index_servers`. It is a help for the worst case, so one that cannot
/// be read or written is no error.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) cluster: Option<Ulid>,
    pub(super) servers: BTreeMap<NodeId, String>,
}

/// A server that is whole has not asked for anything that still counts.
pub(super) fn forget_asking(dir: &Path) -> Result<()> {
    let asked = dir.join(ASKED);
    match fs::remove_file(&asked) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", asked.display()), error))
        }
        _ => Ok(()),
    }
}

/// Opens the files as they are. The server asks `others` if it joins again.
pub(super) async fn read(options: &CatalogOptions, others: &Known) -> Result<Files> {
    let (dir, node, others) = (options.dir.clone(), options.node_id, others.clone());
    let opened = tokio::task::spawn_blocking(move || {
        let database = Database::open(&dir)?;
        let (log, state_machine) = (LogStore::open(database.clone(), node)?, StateMachine::open(database.clone())?);
        let known = database.meta("node")?.map(|bytes| codec::decode::<NodeId>("node", &bytes)).transpose()?;
        let after = database.meta("rejoined")?.map(|bytes| codec::decode::<Option<LogId>>("rejoined", &bytes));
        let rejoining = after.transpose()?.flatten().map(|after| Rejoining { after, known: others });
        Ok(Files { database, log, state_machine, known, rejoining })
    });
    opened.await.map_err(|error| Error::internal(error.to_string())).flatten()
}

/// Whether there are files of a server, in whatever state.
pub(super) fn has_files(dir: &Path) -> bool {
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
pub(super) fn settle(dir: &Path) -> Result<()> {
    let new = new_folder(dir, ".new");
    if !new.exists() {
        return Ok(());
    }
    let context = |error| Error::io(format!("settling {} and {}", new.display(), dir.display()), error);
    // What was there goes first, and then they take its place.
    let settled = if dir.exists() {
        fs::remove_dir_all(&new)
    } else {
        rename(&new, dir, ["raft.rejoin.settling", "raft.rejoin.settled"])
    };
    settled.map_err(context)
}

/// Renames, durably. The crash points are when it is done, and when it is on disk.
fn rename(from: &Path, to: &Path, [done, durable]: [&'static str; 2]) -> io::Result<()> {
    fs::rename(from, to)?;
    crash_point::reach(done);
    if let Some(parent) = to.parent() {
        fs::File::open(parent)?.sync_all()?;
    }
    crash_point::reach(durable);
    Ok(())
}

/// Puts the files of a server that knows nothing but `standing` in the place of what is there, which is set aside. `lock` is that
/// of the folder, and is held as long.
pub(super) async fn replace(dir: &Path, node: NodeId, standing: &Standing, lock: fs::File) -> Result<()> {
    let made = |error| Error::io(format!("making {}", dir.display()), error);
    let had_files = has_files(dir);
    let aside = dir.with_file_name(format!("damaged-{}", ids::unix_ms()));
    let new = new_folder(dir, ".new");
    let unfinished = new_folder(dir, ".unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(made)?;
    }
    make_new(&unfinished, node, standing).await?;
    rename(&unfinished, &new, ["raft.rejoin.making", "raft.rejoin.made"]).map_err(made)?;
    let moved = |error| Error::io(format!("moving {} to {}", dir.display(), aside.display()), error);
    rename(dir, &aside, ["raft.rejoin.moving", "raft.rejoin.moved"]).map_err(moved)?;
    rename(&new, dir, ["raft.rejoin.naming", "raft.rejoin.named"]).map_err(moved)?;
    drop(lock);
    if had_files {
        tracing::warn!(folder = %aside.display(), "what was left of this index server's files is kept here");
    } else {
        fs::remove_dir_all(&aside).map_err(moved)?;
    }
    Ok(())
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
    Known::of(standing).write(new).map_err(made)?;
    let closed = tokio::task::spawn_blocking(move || database.close()).await;
    closed.map_err(|error| Error::internal(error.to_string()))?;
    crash_point::reach("raft.rejoin.written");
    fs::File::open(new).and_then(|folder| folder.sync_all()).map_err(made)?;
    crash_point::reach("raft.rejoin.synced");
    Ok(())
}

impl Known {
    pub(super) fn read(dir: &Path) -> Self {
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

    /// Those that go on without the server.
    pub(super) fn of(standing: &Standing) -> Self {
        Self { cluster: Some(standing.cluster), servers: standing.servers.clone() }
    }

    /// Replaces the file as a whole.
    fn write(&self, dir: &Path) -> io::Result<()> {
        let unfinished = dir.join(format!("{KNOWN}.new"));
        fs::write(&unfinished, Place::Note(KNOWN).seal(&codec::encode(self)))?;
        crash_point::reach("raft.rejoin.known_written");
        fs::File::open(&unfinished)?.sync_all()?;
        crash_point::reach("raft.rejoin.known_synced");
        rename(&unfinished, &dir.join(KNOWN), ["raft.rejoin.known_renamed", "raft.rejoin.known_named"])
    }

    /// Without the server itself, and with those that its configuration names.
    pub(super) fn others(mut self, named: &BTreeMap<NodeId, String>, id: NodeId) -> Self {
        for (named, url) in named {
            self.servers.entry(*named).or_insert_with(|| url.clone());
        }
        self.servers.remove(&id);
        self
    }
}

impl Catalog {
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
}
