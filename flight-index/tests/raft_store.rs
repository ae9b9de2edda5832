//! The replicated catalog on real disks: openraft's own suite for stores, crashes, several voters, and how fast it is.
//!
//! - here: openraft's suite, and what survives an orderly restart;
//! - `crash`: `kill -9` of a process that proposes, and a disk that takes no more;
//! - `voters`: three index servers over TLS;
//! - `measure`: proposals a second and bytes an entry, run by hand (`--ignored`).

// Clippy allows these in test functions, and helpers of tests are none.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "raft_store/crash.rs"]
mod crash;
#[path = "raft_store/measure.rs"]
mod measure;
#[path = "raft_store/voters.rs"]
mod voters;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use drsdb_core::{ErrorCode, Ulid};
use drsdb_index::{
    catalog::{Command, Response},
    raft::{
        Catalog, CatalogOptions,
        store::{Database, LogStore, NodeId, StateMachine, TypeConfig},
    },
};
use futures::FutureExt;
use openraft::{
    CommittedLeaderId, Entry, EntryPayload, LogId, RaftLogReader, RaftSnapshotBuilder, StorageError, StorageIOError,
    Vote,
    storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine},
    testing::{StoreBuilder, Suite},
};
use tempfile::TempDir;

struct InTempDir;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for InTempDir {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<NodeId>> {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let database = Database::open(dir.path())?;
            Ok((LogStore::open(database.clone(), 1)?, StateMachine::open(database)?))
        };
        let (log, state_machine) =
            open().map_err(|error: drsdb_core::Error| StorageIOError::read(openraft::AnyError::new(&error)))?;
        Ok((dir, log, state_machine))
    }
}

#[test]
fn the_store_passes_openrafts_suite() {
    Suite::test_all(InTempDir).unwrap();
}

/// A leader's entries go to the others while its disk writes them, and what is committed waits for the disk.
#[tokio::test]
async fn a_leaders_entries_are_early_and_its_commits_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let open = |dir: &Path| LogStore::open(Database::open(dir).unwrap(), 1).unwrap();
    let id = |index| LogId::new(CommittedLeaderId::new(4, 1), index);
    let entry = |index| Entry::<TypeConfig> { log_id: id(index), payload: EntryPayload::Blank };
    let mut log = open(dir.path());
    log.save_vote(&Vote::new_committed(4, 1)).await.unwrap();
    log.save_committed(None).await.unwrap();
    let disk = rusqlite::Connection::open(dir.path().join("catalog.sqlite")).unwrap();
    disk.execute_batch("BEGIN IMMEDIATE").unwrap();
    log.blocking_append([entry(0), entry(1)]).await.unwrap();
    log.blocking_append([entry(2)]).await.unwrap();
    let sent = log.get_log_reader().await.try_get_log_entries(0..3).await.unwrap();
    assert_eq!(sent.len(), 3);
    let mut committer = log.clone();
    let mut committed = Box::pin(committer.save_committed(Some(id(1))));
    assert!((&mut committed).now_or_never().is_none(), "its own disk does not have it");

    let lost = crashed(dir.path());
    disk.execute_batch("ROLLBACK").unwrap();
    committed.await.unwrap();
    log.save_committed(Some(id(2))).await.unwrap();
    let kept = crashed(dir.path());
    assert_eq!(open(kept.path()).get_log_state().await.unwrap().last_log_id, Some(id(2)));

    // Had power been lost in between: it has voted, and neither has the entries nor leads in that term.
    let mut restarted = open(lost.path());
    assert_eq!(restarted.get_log_state().await.unwrap().last_log_id, None);
    assert_eq!(restarted.read_vote().await.unwrap(), Some(Vote::new(4, 1)));
    // The entries come from the next leader, and are on disk when they are said to be.
    restarted.save_vote(&Vote::new_committed(5, 2)).await.unwrap();
    restarted.blocking_append([entry(0), entry(1), entry(2)]).await.unwrap();
    let kept = crashed(lost.path());
    assert_eq!(open(kept.path()).get_log_state().await.unwrap().last_log_id, Some(id(2)));
}

/// What a follower's log loses is in a snapshot that it has on disk, whenever it dies.
#[tokio::test]
async fn the_log_waits_for_a_snapshot_that_is_being_installed() {
    let (ahead, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let id = |index| LogId::new(CommittedLeaderId::new(4, 1), index);
    let entry = |index| Entry::<TypeConfig> { log_id: id(index), payload: EntryPayload::Blank };
    let mut leader = StateMachine::open(Database::open(ahead.path()).unwrap()).unwrap();
    leader.apply((0..10).map(entry)).await.unwrap();
    let snapshot = leader.get_snapshot_builder().await.build_snapshot().await.unwrap();

    let open = |dir: &Path| {
        let database = Database::open(dir).unwrap();
        (LogStore::open(database.clone(), 1).unwrap(), StateMachine::open(database).unwrap())
    };
    let (mut log, mut machine) = open(dir.path());
    log.blocking_append([entry(0), entry(1)]).await.unwrap();
    machine.begin_receiving_snapshot().await.unwrap();
    let mut purged = log.clone();
    let mut purge = Box::pin(purged.purge(id(9)));
    assert!((&mut purge).now_or_never().is_none(), "nothing is installed yet");
    let died = crashed(dir.path());
    let state = open(died.path()).0.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (None, Some(id(1))));
    machine.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
    purge.await.unwrap();
    let died = crashed(dir.path());
    let (mut log, mut machine) = open(died.path());
    assert_eq!(log.get_log_state().await.unwrap().last_purged_log_id, Some(id(9)));
    assert_eq!(machine.applied_state().await.unwrap().0, Some(id(9)));
}

/// A catalog with one voter.
async fn open(dir: &Path) -> Arc<Catalog> {
    Catalog::open(alone(dir, 1)).await.unwrap()
}

fn alone(dir: &Path, node_id: NodeId) -> CatalogOptions {
    CatalogOptions {
        dir: dir.to_owned(),
        node_id,
        voters: BTreeMap::from([(node_id, "https://127.0.0.1:1".to_owned())]),
        named: BTreeMap::new(),
        dial: Arc::new(|url| panic!("a single voter calls nobody, and not {url}")),
        snapshot_entries: 5_000,
    }
}

fn create_user(name: &str) -> Command {
    Command::CreateUser { name: name.to_owned(), password_hash: "hash".to_owned(), by: None }
}

#[tokio::test]
async fn a_restart_finds_everything() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).await;
    let mut versions = catalog.watch();
    let (first, response) = catalog.propose(create_user("ada")).await.unwrap();
    assert_eq!(response, Response::Done { changed: true });
    assert!(*versions.wait_for(|version| *version >= first).await.unwrap() >= first);
    let refused = catalog.propose(create_user("ada")).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::AlreadyExists);
    // A snapshot in between, and entries after it.
    catalog.snapshot().await.unwrap();
    for name in ["grace", "edsger"] {
        catalog.propose(create_user(name)).await.unwrap();
    }
    let before = catalog.state();
    catalog.shutdown().await;
    assert_eq!(catalog.propose(create_user("late")).await.unwrap_err().code(), ErrorCode::Unavailable);
    drop(catalog);

    let catalog = open(dir.path()).await;
    assert_eq!(catalog.state(), before);
    // The next version continues.
    let (next, _) = catalog.propose(create_user("barbara")).await.unwrap();
    assert!(next > before.version());
    catalog.shutdown().await;
}

/// Snapshots are written in pieces beside the log; each replaces the one before, and a file keeps only one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_of_many_pieces_replace_one_another_while_entries_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).await;
    for round in 0..3 {
        for number in 0..4 {
            let name = format!("large {round} {number}");
            catalog.propose(Command::CreateUser { name, password_hash: "x".repeat(3 << 20), by: None }).await.unwrap();
        }
        let writing = async {
            for number in 0..20 {
                catalog.propose(create_user(&format!("during {round} {number}"))).await.unwrap();
            }
        };
        let (made, ()) = tokio::join!(catalog.snapshot(), writing);
        made.unwrap();
    }
    let before = catalog.state();
    catalog.shutdown().await;
    drop(catalog);
    let catalog = open(dir.path()).await;
    assert_eq!(catalog.state(), before);
    catalog.shutdown().await;
    let bytes = std::fs::metadata(dir.path().join("catalog.sqlite")).unwrap().len();
    assert!(bytes < 110 << 20, "36 MB of state and the log make {bytes} bytes");
}

#[tokio::test]
async fn a_directory_belongs_to_one_process_and_one_node() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).await;
    let second = Catalog::open(alone(dir.path(), 1)).await.unwrap_err();
    assert_eq!(second.code(), ErrorCode::InvalidArgument, "{second}");
    catalog.shutdown().await;
    drop(catalog);
    let other = Catalog::open(alone(dir.path(), 2)).await.unwrap_err();
    assert_eq!(other.code(), ErrorCode::InvalidArgument, "{other}");
    open(dir.path()).await.shutdown().await;
}

#[tokio::test]
async fn damaged_files_are_refused_and_not_repaired() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("catalog.sqlite"), vec![0x5A; 8192]).unwrap();
    let error = Catalog::open(alone(dir.path(), 1)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Corrupt, "{error}");
    assert!(error.to_string().contains("catalog.sqlite"), "{error}");
    assert_eq!(std::fs::read(dir.path().join("catalog.sqlite")).unwrap(), vec![0x5A; 8192]);
}

/// The files of a node as a crash right now would leave them.
fn crashed(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in ["catalog.sqlite", "catalog.sqlite-wal", "catalog.mark"] {
        let file = dir.join(name);
        if file.exists() {
            std::fs::copy(file, copy.path().join(name)).unwrap();
        }
    }
    copy
}

/// Whoever flips a bit anywhere, or cuts the file, gets a clear error or the very same state; never another one.
#[tokio::test]
async fn a_flipped_bit_or_a_lost_end_is_noticed_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).await;
    for number in 0..20 {
        catalog.propose(create_user(&format!("before {number}"))).await.unwrap();
    }
    catalog.snapshot().await.unwrap();
    for number in 0..20 {
        catalog.propose(create_user(&format!("after {number}"))).await.unwrap();
    }
    let state = catalog.state();
    catalog.shutdown().await;
    drop(catalog);
    // Without a log beside the file, which would have most of it once more.
    let settled = crashed(dir.path());
    let connection = rusqlite::Connection::open(settled.path().join("catalog.sqlite")).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    connection.close().unwrap();
    let whole = std::fs::read(settled.path().join("catalog.sqlite")).unwrap();
    let mut refused = 0;
    let opens = async |bytes: &[u8]| {
        let damaged = crashed(settled.path());
        std::fs::write(damaged.path().join("catalog.sqlite"), bytes).unwrap();
        match Catalog::open(alone(damaged.path(), 1)).await {
            Ok(catalog) => {
                let found = catalog.state();
                catalog.shutdown().await;
                Ok(found)
            }
            Err(error) => Err(error),
        }
    };
    // Past the header, whose damage the other test is about. A prime step: every place of a page is hit.
    let places: Vec<usize> = (100..whole.len()).step_by((whole.len() / 70) | 1).collect();
    for &place in &places {
        let mut flipped = whole.clone();
        flipped[place] ^= 0x10;
        match opens(&flipped).await {
            // Nothing is stored there.
            Ok(found) => assert_eq!(found, state, "byte {place}"),
            Err(error) => {
                assert_eq!(error.code(), ErrorCode::Corrupt, "byte {place}: {error}");
                refused += 1;
            }
        }
    }
    assert!(refused * 10 > places.len(), "only {refused} of {} were noticed", places.len());
    for kept in [whole.len() / 2, whole.len() - 4096, whole.len() - 1] {
        let error = opens(&whole[..kept]).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Corrupt, "{kept} of {} bytes: {error}", whole.len());
    }
    assert_eq!(opens(&whole).await.unwrap(), state);
}

#[tokio::test]
async fn a_log_that_lost_its_end_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).await;
    for number in 0..20 {
        catalog.propose(create_user(&format!("user {number}"))).await.unwrap();
    }
    let whole = crashed(dir.path());
    catalog.shutdown().await;
    let log = std::fs::read(whole.path().join("catalog.sqlite-wal")).unwrap();
    let refused = async |log: &[u8]| {
        let damaged = crashed(whole.path());
        std::fs::write(damaged.path().join("catalog.sqlite-wal"), log).unwrap();
        Catalog::open(alone(damaged.path(), 1)).await.unwrap_err()
    };
    let size = log.len();
    for kept in [0, size / 2, size - 1] {
        let error = refused(&log[..kept]).await;
        assert_eq!(error.code(), ErrorCode::Corrupt, "{kept} of {size} bytes: {error}");
    }
    // The last pages with their headers, each of which SQLite takes for no longer there when its checksum is wrong.
    for place in (size - 3 * (24 + 4096)..size).step_by(311) {
        let mut flipped = log.clone();
        flipped[place] ^= 0x10;
        let error = refused(&flipped).await;
        assert_eq!(error.code(), ErrorCode::Corrupt, "byte {place} of {size}: {error}");
    }
    let catalog = open(whole.path()).await;
    assert!(catalog.state().user("user 19").is_some());
    catalog.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_proposals_share_entries_and_their_versions() {
    const PROPOSALS: usize = 500;
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).await;
    let proposals = (0..PROPOSALS).map(|user| {
        let catalog = catalog.clone();
        tokio::spawn(async move {
            let name = format!("user {user}");
            let (version, _) = catalog.propose(create_user(&name)).await.unwrap();
            // Acknowledged is readable.
            assert!(catalog.state().user(&name).is_some() && catalog.state().version() >= version);
            version
        })
    });
    let proposals: Vec<_> = proposals.collect();
    let mut versions = Vec::new();
    for proposal in proposals {
        versions.push(proposal.await.unwrap());
    }
    versions.sort_unstable();
    versions.dedup();
    catalog.shutdown().await;
    drop(catalog);

    let entries = last_index(dir.path()).await;
    assert!(versions.iter().all(|version| *version <= entries), "a version is a log index");
    assert!(versions.len() as u64 <= entries);
    assert!(entries < PROPOSALS as u64 / 4, "{entries} entries, so about as many fsyncs, for {PROPOSALS} proposals");
}

#[tokio::test]
async fn a_command_that_is_too_large_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path()).await;
    let huge = Command::CreateUser { name: "ada".to_owned(), password_hash: "x".repeat(9 << 20), by: None };
    assert_eq!(catalog.propose(huge).await.unwrap_err().code(), ErrorCode::ResourceExhausted);
    // Large ones that are not too large fit, several at once too, and leave memory for disk.
    let large =
        |user: u32| Command::CreateUser { name: format!("user {user}"), password_hash: "x".repeat(3 << 20), by: None };
    let proposals = (0..6).map(|user| catalog.propose(large(user)));
    for proposed in futures::future::join_all(proposals).await {
        proposed.unwrap();
    }
    let before = catalog.state();
    catalog.shutdown().await;
    drop(catalog);
    let catalog = open(dir.path()).await;
    assert_eq!(catalog.state(), before);
    catalog.shutdown().await;
}

/// The index of the log's last entry, of a catalog that is closed.
async fn last_index(dir: &Path) -> u64 {
    let database = Database::open(dir).unwrap();
    let state = LogStore::open(database, 1).unwrap().get_log_state().await.unwrap();
    state.last_log_id.map_or(0, |last| last.index)
}

/// A new id, for transactions and tables.
fn id() -> Ulid {
    drsdb_core::ids::new_ulid()
}
