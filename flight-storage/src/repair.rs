//! Has copied from other servers what is damaged here. There are three kinds of damage:
//!
//! | what | noticed by | what is done |
//! |---|---|---|
//! | a segment file, or its entry in the manifest | scans, scrubbing, the start | its shard is copied, as if it were stale |
//! | the row file, which both engines share | reading, scrubbing, the start | everything is given up and copied |
//! | the floors | the start | no rows are lost; nothing is read here at snapshots from before |
//!
//! Of lost rows the index servers hear first (`LoseReplicas`). From then on no acknowledgement of this server counts that it
//! gave before, nobody new reads here, and its replicas are stale until they are rebuilt ([`crate::rebuild`]). They refuse when
//! this server has the only current replica of a shard: then nothing is given up, the damage stays an error for whoever meets
//! it, and a server whose row file is damaged does not start.
//!
//! # A damaged row file
//!
//! ```text
//! 1. LoseReplicas for all shards, at version V      refused: the server does not start, and says which table it is about
//! 2. floors: nothing is read here below V           a ticket from before fails, and finds no fewer rows
//! 3. column/ and row/ move to damaged-<time>/        kept for whoever wants to look; may be deleted
//! 4. both start empty                               the index servers ask for rebuilds
//! ```
//!
//! A crash after any step begins again at the first: as long as the file is damaged, or not there. A server that is running
//! ends after step 1; who looks after it starts it again.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use drsdb_core::{
    Error, ErrorCode, Result, Ulid, WireError, crash_point, ids,
    net::ChannelPool,
    v1::{ListTablesRequest, LoseReplicasRequest, ShardRef, cluster_client::ClusterClient},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::{
    engine::ShardId,
    engines::{COLUMN_FOLDER, ROW_FOLDER},
    index_servers::IndexServers,
    rebuild::{copy::Rebuilder, floors::Floors},
    row,
    server::LOAD_MESSAGE_BYTES,
};

/// How often it is looked for damage.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long an index server may take to answer: its own patience with an election, and some.
const ASK_TIME: Duration = Duration::from_secs(15);
/// After how long a shard is given up again that is still damaged.
const AGAIN_AFTER: Duration = Duration::from_secs(30);
/// How long to wait when no index server answers.
const PAUSE: Duration = Duration::from_millis(500);

/// Says to the index servers that this one has lost data, and asks them how things stand.
#[derive(Debug, Clone)]
pub struct Reporter {
    /// Connections to them.
    pub channels: ChannelPool,
    /// The index servers.
    pub index_servers: IndexServers,
    /// This server.
    pub server_id: Ulid,
}

impl Reporter {
    /// Has the shard, or all of this server's shards, taken from among the current replicas; the version at which that was
    /// done. Asks one index server after the other, once each.
    ///
    /// Errors: `corrupt` when that would leave a shard without any; `not_found` when there is no such replica;
    /// `unavailable` when nobody answers, which may have been heard all the same.
    pub async fn lost(&self, shard: Option<ShardId>) -> Result<u64> {
        let shard = shard.map(|id| ShardRef { table_id: id.table.to_string(), shard: id.shard });
        let request = LoseReplicasRequest { server_id: self.server_id.to_string(), shard };
        let asked = self.ask(|mut client| {
            let request = request.clone();
            async move { client.lose_replicas(request).await }
        });
        Ok(asked.await?.version)
    }

    /// The newest version that there is. Asks one index server after the other, once each.
    async fn newest_version(&self) -> Result<u64> {
        let asked = self.ask(|client| async move {
            // As many tables as there are.
            client.max_decoding_message_size(LOAD_MESSAGE_BYTES).list_tables(ListTablesRequest {}).await
        });
        Ok(asked.await?.version)
    }

    async fn ask<T, F>(&self, call: impl Fn(ClusterClient<Channel>) -> F) -> Result<T>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let mut failure = Error::new(ErrorCode::Unavailable, "no index server is known");
        for url in self.index_servers.list() {
            let asked = async {
                let client = ClusterClient::new(self.channels.channel(&url)?);
                let asked = tokio::time::timeout(ASK_TIME, call(client)).await;
                let silent = |_| Error::new(ErrorCode::Unavailable, format!("{url} does not answer"));
                Ok::<T, Error>(asked.map_err(silent)??.into_inner())
            };
            match asked.await {
                Ok(answer) => return Ok(answer),
                Err(error) if is_answer(&error) => return Err(error),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

/// Whether an index server has decided; otherwise another one may know better.
fn is_answer(error: &Error) -> bool {
    matches!(error.code(), ErrorCode::Corrupt | ErrorCode::NotFound)
}

/// Gives up everything in `dir` whose row file is damaged, as `damage` says, and makes room for an empty one; see the
/// module. Asks until an index server answers.
///
/// Errors: what is wrong with the file, when nothing may be given up.
pub async fn give_up_everything(dir: &Path, damage: Error, reporter: &Reporter, floors: &Floors) -> Result<()> {
    tracing::error!(error = %damage, "the row file is damaged: asking whether all of it is elsewhere");
    let version = loop {
        match reporter.lost(None).await {
            Ok(version) => break version,
            Err(error) if is_answer(&error) => return Err(cannot_start(&damage, &error)),
            Err(error) => tracing::warn!(%error, "no index server says whether the data is elsewhere; asking on"),
        }
        pause().await;
    };
    let (dir, floors) = (dir.to_owned(), floors.clone());
    let moved = tokio::task::spawn_blocking(move || {
        floors.set_all(version)?;
        move_aside(&dir)
    });
    let moved = moved.await.map_err(|error| Error::internal(format!("moving damaged files failed: {error}")))??;
    if let Some(aside) = moved {
        tracing::warn!(folder = %aside.display(), version, "the damaged files are kept here; everything is copied anew");
    }
    Ok(())
}

/// The floors in `file`. Where they are damaged, nothing can be read here below the newest version that there is: no copy is
/// newer, and whoever plans at it knows where the shards are. Asks until an index server answers.
pub async fn open_floors(file: PathBuf, reporter: &Reporter) -> Result<Floors> {
    let damage = match Floors::open(file.clone()) {
        Err(damage) if damage.code() == ErrorCode::Corrupt => damage,
        opened => return opened,
    };
    tracing::error!(error = %damage, "older snapshots cannot be read here any more: asking for the newest version");
    loop {
        match reporter.newest_version().await {
            Ok(version) => return Floors::lost(file, version),
            Err(error) => tracing::warn!(%error, "no index server says what the newest version is; asking on"),
        }
        pause().await;
    }
}

/// Whether the row file should be there and is not. One that is gone looks like one of a new server, which has no rows.
pub fn missing(dir: &Path, was_registered: bool) -> Result<()> {
    let row = dir.join(ROW_FOLDER);
    if !was_registered || row::has_file(&row) {
        return Ok(());
    }
    let message = format!("{} is empty, and this server has been a part of a cluster before", row.display());
    Err(WireError::new(ErrorCode::Corrupt, message).with_field("file", row.display()).into())
}

/// Moves both engines' folders into one that is named with the time. `None` when there is nothing.
fn move_aside(dir: &Path) -> Result<Option<PathBuf>> {
    let aside = dir.join(format!("damaged-{}", ids::unix_ms()));
    let mut moved = None;
    // The row file last: until it is away, the next start finds it damaged and does this again.
    for name in [COLUMN_FOLDER, ROW_FOLDER] {
        let folder = dir.join(name);
        if !folder.exists() {
            continue;
        }
        let context = |error| Error::io(format!("moving {} to {}", folder.display(), aside.display()), error);
        fs::create_dir_all(&aside).map_err(context)?;
        crash_point::reach("repair.moving");
        fs::rename(&folder, aside.join(name)).map_err(context)?;
        for (changed, point) in [(aside.as_path(), "repair.moved"), (dir, "repair.kept")] {
            crash_point::reach(point);
            fs::File::open(changed).and_then(|changed| changed.sync_all()).map_err(context)?;
        }
        crash_point::reach("repair.named");
        moved = Some(aside.clone());
    }
    Ok(moved)
}

fn cannot_start(damage: &Error, refusal: &Error) -> Error {
    let (mut damage, refusal) = (damage.to_wire(), refusal.to_wire());
    damage.message = format!("{}; {}", damage.message, refusal.message);
    damage.fields.extend(refusal.fields);
    damage.hint = refusal.hint;
    damage.into()
}

/// Until `shutdown`, has repaired what is found damaged. Ends with an error when the server has to be started again for it.
pub async fn run(rebuilder: Rebuilder, shutdown: CancellationToken) -> Result<()> {
    let reporter = Reporter {
        channels: rebuilder.follower.channels.clone(),
        index_servers: rebuilder.follower.index_servers.clone(),
        server_id: rebuilder.follower.server_id,
    };
    let mut repairs = Repairs { rebuilder, reporter, tried: HashMap::new() };
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        if let Some(Err(damage)) = shutdown.run_until_cancelled(repairs.look()).await {
            return Err(damage);
        }
    }
    Ok(())
}

struct Repairs {
    rebuilder: Rebuilder,
    reporter: Reporter,
    /// When each was last asked about; `None` is the row file.
    tried: HashMap<Option<ShardId>, Instant>,
}

impl Repairs {
    async fn look(&mut self) -> Result<()> {
        if let Some(damage) = self.rebuilder.follower.engines.file_damage()
            && self.is_due(None)
        {
            match self.reporter.lost(None).await {
                Ok(_) => {
                    let message = format!("this server ends, to be started again without its data: {}", damage.message);
                    return Err(WireError { message, ..damage }.into());
                }
                // Until somebody does something about it, nothing of the file is read.
                Err(error) => tracing::error!(%error, "the row file is damaged, and cannot be given up"),
            }
        }
        for shard in self.rebuilder.follower.engines.damaged() {
            // One that is being rebuilt is damaged until its copy is complete.
            if self.rebuilder.is_running(shard) || !self.is_due(Some(shard)) {
                continue;
            }
            let (table, number) = (shard.table, shard.shard);
            match self.reporter.lost(Some(shard)).await {
                Ok(_) => {
                    tracing::warn!(%table, shard = number, "a damaged shard is copied from another server");
                    self.rebuilder.start(shard);
                }
                // It lives elsewhere, or nowhere: that is found out in the same way.
                Err(error) if error.code() == ErrorCode::NotFound => self.rebuilder.start(shard),
                Err(error) => tracing::error!(%table, shard = number, %error, "a damaged shard cannot be given up"),
            }
        }
        Ok(())
    }

    fn is_due(&mut self, what: Option<ShardId>) -> bool {
        let now = Instant::now();
        self.tried.retain(|_, tried| now.duration_since(*tried) < AGAIN_AFTER);
        let due = !self.tried.contains_key(&what);
        if due {
            self.tried.insert(what, now);
        }
        due
    }
}

async fn pause() {
    // Nothing tells when an index server answers again.
    #[allow(clippy::disallowed_methods)]
    tokio::time::sleep(PAUSE).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_folders_move_aside_together() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(move_aside(dir.path()).unwrap(), None);
        for name in [ROW_FOLDER, COLUMN_FOLDER] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("file"), name).unwrap();
        }
        let aside = move_aside(dir.path()).unwrap().unwrap();
        for name in [ROW_FOLDER, COLUMN_FOLDER] {
            assert!(!dir.path().join(name).exists());
            assert_eq!(fs::read_to_string(aside.join(name).join("file")).unwrap(), name);
        }
    }

    #[test]
    fn a_file_that_is_gone_is_no_new_server() {
        let dir = tempfile::tempdir().unwrap();
        missing(dir.path(), false).unwrap();
        assert_eq!(missing(dir.path(), true).unwrap_err().code(), ErrorCode::Corrupt);
        drop(row::RowEngine::open(&dir.path().join(ROW_FOLDER)).unwrap());
        missing(dir.path(), true).unwrap();
    }

    #[test]
    fn who_cannot_start_says_what_is_wrong_and_what_to_do() {
        let damage = WireError::new(ErrorCode::Corrupt, "page 3 is not what was written").with_hint("check the disk");
        let refusal = WireError::new(ErrorCode::Corrupt, "it has the only replica of shard 0 of table t")
            .with_hint("restore a backup")
            .with_field("table", "t");
        let error = cannot_start(&damage.into(), &refusal.into()).to_wire();
        assert_eq!(error.message, "page 3 is not what was written; it has the only replica of shard 0 of table t");
        assert_eq!((error.hint.as_str(), error.fields["table"].as_str()), ("restore a backup", "t"));
    }
}
