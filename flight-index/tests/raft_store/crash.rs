//! A process that proposes is killed at any moment; whoever opens its files next finds every acknowledged command.
//!
//! The process is this test binary, started again with [`DIR`] set. It writes a line for each acknowledgement. What it
//! wrote before the kill has to be there; more may be there, as its last lines can be lost.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command as Process, Stdio},
};

use super::{create_user, open};

const DIR: &str = "DRSDB_TEST_CRASH_DIR";
const ROUND: &str = "DRSDB_TEST_CRASH_ROUND";
const PROPOSERS: usize = 8;

/// The child's side. Started by `cargo test`, it does nothing.
#[test]
fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let round = std::env::var(ROUND).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let catalog = open(Path::new(&dir)).await;
        let proposers = (0..PROPOSERS).map(|proposer| {
            let (catalog, round) = (catalog.clone(), round.clone());
            tokio::spawn(async move {
                for count in 0.. {
                    let name = format!("{round}.{proposer}.{count}");
                    match catalog.propose(create_user(&name)).await {
                        Ok((version, _)) => say(&format!("ack {name} {version}")),
                        Err(error) => {
                            say(&format!("stop {} {error}", error.code()));
                            break;
                        }
                    }
                    // Snapshots and purges of the log are as likely to be hit as appends.
                    if proposer == 0 && count % 20 == 19 {
                        // If the node has stopped, the next proposal says so.
                        drop(catalog.snapshot().await);
                    }
                }
            })
        });
        for proposer in proposers.collect::<Vec<_>>() {
            proposer.await.unwrap();
        }
        say(&format!("halted {}", catalog.halted().await.code()));
    });
}

/// Past the test harness, which keeps output for itself.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

fn start(dir: &Path, round: usize, shell: Option<&str>) -> (Child, impl Iterator<Item = String>) {
    let binary = std::env::current_exe().unwrap();
    let mut process = match shell {
        None => Process::new(&binary),
        Some(script) => {
            let mut process = Process::new("sh");
            process.args(["-c", script, "sh"]).arg(&binary);
            process
        }
    };
    process.args(["--exact", "crash::child", "--nocapture"]).env(DIR, dir).env(ROUND, round.to_string());
    let mut child = process.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    (child, lines)
}

/// `name, version` of an acknowledgement. A line that the kill cut off is none.
fn acknowledged(line: &str) -> Option<(String, u64)> {
    let mut words = line.strip_prefix("ack ")?.split(' ');
    Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_command_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut all = Vec::new();
    let (mut earlier, mut newest) = (0, 0);
    // Different moments: in the first proposals, between, and around snapshots.
    for (round, acks) in [0, 1, 7, 60, 150, 400, 3, 250].into_iter().enumerate() {
        let (mut child, mut lines) = start(dir.path(), round, None);
        let mut seen: Vec<(String, u64)> = Vec::new();
        while seen.len() < acks {
            let line = lines.next().expect("the child goes on until it is killed");
            assert!(!line.starts_with("stop"), "{line}");
            seen.extend(acknowledged(&line));
        }
        child.kill().unwrap();
        // What it said before it died counts too.
        seen.extend(lines.filter_map(|line| acknowledged(&line)));
        child.wait().unwrap();
        all.append(&mut seen);

        let catalog = open(dir.path()).await;
        let state = catalog.state();
        for (name, version) in &all {
            assert!(state.user(name).is_some(), "round {round}: {name} was acknowledged at version {version}");
            assert!(*version <= state.version());
        }
        // What was acknowledged in this round came after everything that the round before had.
        assert!(all.iter().skip(earlier).all(|(_, version)| *version > newest), "round {round} began at {newest}");
        (earlier, newest) = (all.len(), state.version());
        catalog.shutdown().await;
    }
    assert!(all.len() > 800);
}

/// A file-size limit stands in for a full disk: writes fail in the midst of a transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_takes_no_more_stops_the_node_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // Blocks of 512 bytes. The signal would kill; ignored, writes fail.
    let (mut child, lines) = start(dir.path(), 0, Some("trap '' XFSZ; ulimit -f 800; exec \"$@\""));
    let lines: Vec<String> = lines.collect();
    let status = child.wait().unwrap();
    assert!(status.success(), "it ends in order: {status}, {lines:?}");
    let stopped: Vec<&String> = lines.iter().filter(|line| line.starts_with("stop ")).collect();
    assert_eq!(stopped.len(), PROPOSERS, "every proposer gets an error: {stopped:?}");
    assert!(lines.iter().any(|line| line.starts_with("halted ")), "and the server hears of it");

    let catalog = open(dir.path()).await;
    let acknowledged: Vec<(String, u64)> = lines.iter().filter_map(|line| acknowledged(line)).collect();
    assert!(acknowledged.len() > 20, "{}", acknowledged.len());
    for (name, _) in &acknowledged {
        assert!(catalog.state().user(name).is_some(), "{name} was acknowledged");
    }
    catalog.propose(create_user("after")).await.unwrap();
    catalog.shutdown().await;
}
