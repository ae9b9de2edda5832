//! The program as people run it: the demo, the embedded default, the shell, import.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use drsdb_client::{Client, ClientOptions};
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::{TestCluster, eventually};

const PROGRAM: &str = env!("CARGO_BIN_EXE_drsdb");

async fn run(arguments: &[&str]) -> Output {
    run_with_input(arguments, Stdio::null()).await
}

async fn run_with_input(arguments: &[&str], input: Stdio) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).stdin(input).kill_on_drop(true);
    tokio::time::timeout(Duration::from_secs(150), command.output()).await.expect("the program ends").unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Processes whose command line names `folder`.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        // Processes come and go while this looks.
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = text(&line).replace('\0', " ");
        if line.contains(folder) {
            found.push(line);
        }
    }
    found
}

async fn demo(storage: &str) {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().to_str().unwrap();
    let done = run(&["demo", "--scale", "0.01", "--storage", storage, "--folder", place]).await;
    let output = text(&done.stdout);
    assert!(done.status.success(), "{output}\n{}", text(&done.stderr));
    let queries = output.lines().filter(|line| line.contains(" yes")).count();
    assert_eq!(queries, 22, "{output}");
    assert_eq!(processes_of(folder.path()), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "it leaves nothing behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn tpch_is_right_on_three_storage_servers() {
    demo("3").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tpch_is_right_on_one_storage_server() {
    demo("1").await;
}

/// `drsdb local`, until it is dropped.
struct Local {
    child: tokio::process::Child,
    errors: PathBuf,
}

impl Local {
    async fn start(folder: &TempDir, log: &str, arguments: &[&str]) -> Self {
        let (ready, errors) = (folder.path().join(format!("{log}.ready")), folder.path().join(log));
        let child = Command::new(PROGRAM)
            .args(["local", "--port", "0", "--exit-with-stdin", "--data"])
            .arg(folder.path().join("data"))
            .arg("--ready-file")
            .arg(&ready)
            .args(arguments)
            .stdin(Stdio::piped())
            .stderr(std::fs::File::create(&errors).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        eventually("the local cluster is ready", || async { ready.exists() }).await;
        Self { child, errors }
    }

    /// Ends it in order; what it told people.
    async fn stop(mut self) -> String {
        drop(self.child.stdin.take());
        let ended = tokio::time::timeout(Duration::from_secs(30), self.child.wait()).await;
        assert!(ended.expect("it ends with its input").unwrap().success());
        std::fs::read_to_string(&self.errors).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_default_makes_what_it_needs_and_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let first = Local::start(&folder, "first", &[]).await;
    let client_file = folder.path().join("data/client.toml");
    let client = Client::connect(ClientOptions::from_file(&client_file).unwrap()).await.unwrap();
    client.execute("CREATE TABLE t (id BIGINT PRIMARY KEY)").await.unwrap();
    client.execute("INSERT INTO t VALUES (1), (2)").await.unwrap();
    drop(client);
    let said = first.stop().await;
    let password = std::fs::read_to_string(folder.path().join("data/admin.password")).unwrap();
    assert!(said.contains(password.trim()), "the password is printed: {said}");

    let second = Local::start(&folder, "second", &[]).await;
    let file = client_file.to_str().unwrap();
    let rows = run(&["sql", "--config", file, "--csv", "-c", "SELECT id FROM t ORDER BY id"]).await;
    assert_eq!(text(&rows.stdout), "id\n1\n2\n", "{}", text(&rows.stderr));
    assert!(!second.stop().await.contains(password.trim()), "it is printed once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_processes_says_when_one_of_them_dies_and_starts_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let local = Local::start(&folder, "log", &["--processes", "--storage", "2"]).await;
    let cluster: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("log.ready")).unwrap()).unwrap();
    let victim = cluster["storage"][1]["pid"].to_string();
    assert!(std::process::Command::new("kill").args(["-9", &victim]).status().unwrap().success());
    let told = format!("process {victim}");
    eventually("it is said", || async { std::fs::read_to_string(&local.errors).unwrap().contains(&told) }).await;
    // The others go on, until the cluster is told to stop.
    let options = ClientOptions::from_file(folder.path().join("data/client.toml")).unwrap();
    Client::connect(options).await.unwrap().collect("SELECT 1").await.unwrap();
    let again = format!("the server at {} runs again", cluster["storage"][1]["url"].as_str().unwrap());
    eventually("it runs again", || async { std::fs::read_to_string(&local.errors).unwrap().contains(&again) }).await;
    local.stop().await;
    assert_eq!(processes_of(folder.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_server_that_is_removed_from_a_local_cluster_is_left_out() {
    for processes in [&["--processes"][..], &[]] {
        let folder = tempfile::tempdir().unwrap();
        let local = Local::start(&folder, "log", &[&["--index", "3"], processes].concat()).await;
        let file = folder.path().join("data/client.toml");
        let config = file.to_str().unwrap();
        let removed = run(&["admin", "index", "remove", "--id", "2", "--config", config]).await;
        assert!(removed.status.success(), "{}", text(&removed.stderr));
        let known = || ClientOptions::from_file(&file).unwrap().index_servers.len();
        eventually("clients are not sent to it", || async { known() == 2 }).await;
        let client = Client::connect(ClientOptions::from_file(&file).unwrap()).await.unwrap();
        client.execute("CREATE TABLE t (id BIGINT PRIMARY KEY)").await.unwrap();
        assert!(local.stop().await.contains("it was removed from the cluster"));
    }
}

/// The shell of a cluster with a table `city` of two rows.
struct Shell {
    cluster: TestCluster,
    config: String,
    folder: TempDir,
}

impl Shell {
    async fn start() -> Self {
        let cluster = TestCluster::start(2).await;
        let create =
            "CREATE TABLE city (id BIGINT PRIMARY KEY, name VARCHAR(8) NOT NULL, area DECIMAL(9,2), founded DATE)";
        cluster
            .run(&[create, "INSERT INTO city VALUES (1, 'Bonn', 141.06, NULL), (2, 'Ulm', 118.68, '0854-07-22')"])
            .await;
        let config = cluster.cluster.client_file().to_str().unwrap().to_owned();
        Self { cluster, config, folder: tempfile::tempdir().unwrap() }
    }

    async fn sql(&self, arguments: &[&str]) -> (bool, String, String) {
        let done = run(&[&["sql", "--config", &self.config], arguments].concat()).await;
        (done.status.success(), text(&done.stdout), text(&done.stderr))
    }

    fn file(&self, name: &str, contents: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, contents).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shell_runs_statements_and_commands() {
    let shell = Shell::start().await;
    let (ok, output, _) = shell.sql(&["-c", "SELECT name, area FROM city ORDER BY id"]).await;
    assert!(ok && output.contains("Bonn") && output.contains("141.06") && output.contains("name"), "{output}");

    // The exit code is the last statement's, wherever it comes from.
    let script =
        shell.file("script.sql", "SELECT 1;\nSELECT name\n  FROM city\n  WHERE id = 2;\nSELECT nothing FROM city;\n");
    let (ok, output, errors) = shell.sql(&["-f", &script]).await;
    assert!(!ok && output.contains("Ulm") && errors.contains("nothing"), "{output}\n{errors}");
    let (ok, _, errors) = shell.sql(&["-c", "SELEC 1", "-c", "SELECT 1"]).await;
    assert!(ok && !errors.is_empty(), "{errors}");
    let (ok, _, errors) = shell.sql(&["-c", "SELECT 1; SELECT 1 FROM"]).await;
    assert!(!ok && errors.contains("line 1"), "{errors}");
    let (ok, _, errors) = shell.sql(&["-f", "/nonexistent.sql"]).await;
    assert!(!ok && errors.contains("/nonexistent.sql"), "{errors}");

    let (_, output, _) = shell.sql(&["-c", "\\d"]).await;
    assert!(output.contains("city"), "{output}");
    let (_, output, _) = shell.sql(&["-c", "\\d city"]).await;
    for part in ["id", "BIGINT", "VARCHAR(8)", "DECIMAL(9,2)", "DATE"] {
        assert!(output.contains(part), "{part} is missing in {output}");
    }
    let (ok, _, errors) = shell.sql(&["-c", "\\d citty"]).await;
    assert!(!ok && errors.contains("city"), "{errors}");
    let (_, output, errors) = shell.sql(&["-c", "\\timing", "-c", "SELECT 1"]).await;
    assert!(format!("{output}{errors}").contains("ms"), "{output}{errors}");
    shell.cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shell_shows_plans_and_numbers_that_json_has_not() {
    let shell = Shell::start().await;
    let (ok, output, errors) =
        shell.sql(&["-c", "EXPLAIN ANALYZE SELECT name, count(*) FROM city GROUP BY name"]).await;
    assert!(ok && output.contains("\n  ") && output.contains("metrics="), "{output}{errors}");
    assert!(!output.contains("characters)") && !output.contains("| "), "a plan is whole, and no table: {output}");
    let numbers = "SELECT CAST('NaN' AS DOUBLE) AS a, CAST('-Infinity' AS DOUBLE) AS b, 1.5::DOUBLE AS c, NULL AS d";
    let (_, output, errors) = shell.sql(&["--json", "-c", numbers]).await;
    assert_eq!(output, "{\"a\":\"NaN\",\"b\":\"-Infinity\",\"c\":1.5,\"d\":null}\n", "{errors}");
    let (ok, output, errors) = shell.sql(&["-c", "\\dv"]).await;
    assert!(ok && output.contains("no views"), "{output}{errors}");

    let piped = std::fs::File::open(shell.file("piped.csv", "id,name\n3,Trier\n4,Mainz\n")).unwrap();
    let arguments = ["import", "-", "--table", "city", "--config", &shell.config];
    let imported = run_with_input(&arguments, piped.into()).await;
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    assert_eq!(shell.cluster.value("SELECT count(*) FROM city WHERE id > 2 AND area IS NULL").await, "2");
    let broken = std::fs::File::open(shell.file("broken.csv", "id,name\n5,much too long\n")).unwrap();
    let refused = text(&run_with_input(&arguments, broken.into()).await.stderr);
    assert!(refused.contains("standard input") && refused.contains("line 2"), "{refused}");
    let refused = text(&run(&[&arguments[..], &["--format", "parquet"]].concat()).await.stderr);
    assert!(refused.contains("only CSV"), "{refused}");
    shell.cluster.cluster.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn results_go_to_files_and_files_to_tables() {
    let shell = Shell::start().await;
    for (number, format) in ["csv", "parquet", "arrow"].into_iter().enumerate() {
        let path = shell.folder.path().join(format!("out.{format}"));
        let path = path.to_str().unwrap();
        let (ok, output, errors) =
            shell.sql(&["-c", &format!("\\o {path}"), "-c", "SELECT id, name, area, founded FROM city"]).await;
        assert!(ok && !output.contains("Bonn"), "{format}: {output}{errors}");
        let table = format!("copy{number}");
        let create =
            format!("CREATE TABLE {table} (id BIGINT PRIMARY KEY, name TEXT, area DECIMAL(9,2), founded DATE)");
        let copy = format!("\\copy {table} FROM '{path}'");
        let (ok, _, errors) = shell.sql(&["-c", &create, "-c", &copy]).await;
        assert!(ok, "{format}: {errors}");
        let left = format!(
            "SELECT count(*) FROM city c JOIN {table} t ON c.id = t.id AND c.name = t.name AND c.area = t.area"
        );
        assert_eq!(shell.cluster.value(&left).await, "2", "{format}");
    }

    let good = shell.file("good.csv", "id,name,area,founded\n3,Trier,117.06,\n4,Köln,405.01,0050-07-08\n");
    let imported = run(&["import", &good, "--table", "city", "--config", &shell.config]).await;
    assert!(imported.status.success(), "{}", text(&imported.stderr));

    // A broken line: file, line, column and rule are named, and nothing of the load is there.
    let mut lines = String::from("id,name,area,founded\n");
    for id in 100..5100 {
        lines += &format!("{id},n{id},1.00,\n");
    }
    lines += "5100,much too long,1.00,\n";
    let broken = shell.file("broken.csv", &lines);
    for (ok, errors) in [
        {
            let done = run(&["import", &broken, "--table", "city", "--config", &shell.config]).await;
            (done.status.success(), text(&done.stderr))
        },
        {
            let (ok, _, errors) = shell.sql(&["-c", &format!("\\copy city FROM '{broken}'")]).await;
            (ok, errors)
        },
    ] {
        assert!(!ok);
        for part in ["broken.csv", "5002", "name", "VARCHAR(8)"] {
            assert!(errors.contains(part), "{part} is missing in {errors}");
        }
    }
    // Rows, and not a count that the catalog could answer: all shards are read, since all may have got rows.
    let ids = shell.cluster.client.collect("SELECT id FROM city WHERE area > 0").await.unwrap();
    assert_eq!(ids.rows(), 4);
    shell.cluster.cluster.shutdown().await.unwrap();
}
