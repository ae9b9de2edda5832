//! SQL scripts and what they must answer, on row and on column tables, on one and on three storage servers.
//!
//! A script in `scripts/` is SQL with the answer below each statement, to be read from top to bottom:
//!
//! ```sql
//! INSERT INTO city VALUES (1, 'Rome'), (2, 'Oslo');
//! --> 2 rows
//!
//! SELECT * FROM city ORDER BY id;
//! --> id | name
//! --> 1  | Rome
//! --> 2  | Oslo
//!
//! INSERT INTO city VALUES (1, 'Bern');
//! --> error constraint_violation: city_key, 1
//! ```
//!
//! - `$ENGINE` stands for `row` or `column`.
//! - Rows of a query without ORDER BY are compared without their order.
//! - An error has its code, then texts that its message, its hint or its fields must have.
//! - `--@ name` changes to another session; each keeps its transaction.
//!
//! The answers are SQL's, as PostgreSQL gives them, and were written by hand: they say what is right, and not what drsdb did.
//! `DRSDB_GOLDEN=write` writes what it does into the scripts, to be read before it is kept; `DRSDB_GOLDEN_ONLY=merge` runs one.

mod runner;
mod script;

use std::{env, fs, path::Path};

use self::{runner::Runner, script::Script};
use crate::support::TestCluster;

async fn run_all(storage: usize) {
    let cluster = TestCluster::start(storage).await;
    let only = env::var("DRSDB_GOLDEN_ONLY").ok();
    let write = env::var("DRSDB_GOLDEN").is_ok_and(|text| text == "write");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/scripts");
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut wrong = Vec::new();
    let mut scripts = 0;
    for file in files {
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        if only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        scripts += 1;
        let script =
            Script::parse(&fs::read_to_string(&file).unwrap()).unwrap_or_else(|error| panic!("{name}: {error}"));
        for engine in ["row", "column"] {
            let mut runner = Runner::new(&cluster.client, engine);
            let answers = runner.run(&script).await;
            for (step, answer) in script.steps.iter().zip(&answers) {
                if let Some(difference) = step.difference(answer) {
                    wrong.push(format!("{name}.sql:{} on {engine} tables: {difference}", step.line));
                }
            }
            runner.clean_up().await;
            if write && storage == 1 && engine == "column" {
                fs::write(&file, script.with_answers(&answers)).unwrap();
            }
        }
    }
    assert!(scripts > 0, "there is no script");
    assert!(wrong.is_empty(), "{} answers differ on {storage} storage servers:\n\n{}", wrong.len(), wrong.join("\n\n"));
    cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_on_one_storage_server() {
    run_all(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_on_three_storage_servers() {
    run_all(3).await;
}
