//! How an index server that has lost what it had written becomes one of them again, by itself and under its number.
//!
//! A voter that forgets is dangerous: it would vote a second time, and for a log that lacks what it has acknowledged. So it
//! comes back as a new one, and nothing that it did before counts:
//!
//! 1. It asks the leader to go on without it ([`Readmission`]). Meanwhile it answers nobody. The others agree on that as on
//!    any removal, which takes a majority of those that vote, so two must be left of three.
//! 2. The leader says under which vote it leads, and which entry holds the list without the lost server ([`Standing`]).
//! 3. The server makes a new file that has the two and nothing else, and puts what was there aside, as `damaged-<time>`.
//! 4. With that it starts, and has itself added like any new server ([`Catalog::join_again`](super::Catalog::join_again)).
//!
//! Why the number may be the same: whoever led before is turned away by the vote. Until the server's log has the entry of 2, it
//! votes for nobody ([`Catalog::check_may_vote`](super::Catalog::check_may_vote)), for it might make somebody the leader who
//! believes it is what it was; nor for itself, which the lists that it goes through while it learns may make it believe, one of
//! them perhaps that it is alone. From then on it votes only for those whose logs have that entry as well, and in whose lists it
//! is not, or is as a new one. A leader follows a server that was added from the start of its log, whatever it acknowledged before.
//!
//! A server whose files are gone altogether cannot know that it had any. When it starts it asks those that its configuration
//! names whether it is one of them. If none of them answers, it is taken for new, and waits to be sent entries; its vote it gives
//! only to who makes a new cluster.
//!
//! A list of the servers is beside the file ([`Known`]), for the configuration may be older than the cluster, or name none.
//!
//! Here is the way through a start, and what the parts share. What a server does with its own files is in [`files`], what it asks
//! of the others in [`asking`], and what the leader does about it in [`readmit`].

mod asking;
mod files;
mod readmit;

use std::{collections::BTreeMap, fs, sync::Arc};

use drsdb_core::{Error, ErrorCode, Result, Ulid, WireError};
use serde::{Deserialize, Serialize};

use self::{
    asking::{ask_leave, is_missed},
    files::{ASKED, Known, forget_asking, has_files},
};
use super::{
    database::{self, Database},
    log_store::LogStore,
    seal,
    shell::CatalogOptions,
    state_machine::StateMachine,
    types::{LogId, NodeId, Vote},
};
use crate::catalog::Refusal;

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
    files::settle(dir)?;
    let known = Known::read(dir).others(&options.named, id);
    if !has_files(dir) {
        if !dir.join(ASKED).exists() && !is_missed(options, &known).await {
            return files::read(options, &known).await;
        }
        tracing::warn!(dir = %dir.display(), "others count on this index server, which has no files; it joins as a new one");
        return match rejoin(options, &known).await {
            // Whoever said so was behind the others.
            Err(error) if error.code() == ErrorCode::NotFound => files::read(options, &known).await,
            joined => joined,
        };
    }
    let damage = match files::read(options, &known).await {
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

/// Has the others go on without this server, and makes its new files.
async fn rejoin(options: &CatalogOptions, known: &Known) -> Result<Files> {
    let dir = &options.dir;
    fs::create_dir_all(dir).map_err(|error| Error::io(format!("making {}", dir.display()), error))?;
    let lock = database::lock(dir)?;
    let standing = ask_leave(options, known).await?;
    files::replace(dir, options.node_id, &standing, lock).await?;
    let known = Known::of(&standing).others(&options.named, options.node_id);
    files::read(options, &known).await
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
