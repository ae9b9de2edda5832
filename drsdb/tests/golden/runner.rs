//! Runs a script's statements on a cluster.

use std::collections::HashMap;

use arrow::util::display::{ArrayFormatter, FormatOptions};
use drsdb_client::{Client, Error, Executed, QueryResult};

use super::script::{Answer, Script};

/// Sessions of one script.
pub struct Runner<'a> {
    client: &'a Client,
    engine: &'a str,
    sessions: HashMap<String, Client>,
}

impl<'a> Runner<'a> {
    pub fn new(client: &'a Client, engine: &'a str) -> Self {
        Self { client, engine, sessions: HashMap::new() }
    }

    /// Runs all statements, whatever they answer.
    pub async fn run(&mut self, script: &Script) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(script.steps.len());
        for step in &script.steps {
            let session = self.sessions.entry(step.session.clone()).or_insert_with(|| self.client.new_session());
            let sql = step.sql.trim_end().trim_end_matches(';').replace("$ENGINE", self.engine);
            answers.push(answer(session, &sql).await.unwrap_or_else(|error| Answer::Error {
                code: error.code().to_string(),
                texts: vec![error.to_string(), format!(" {:?}", error.wire().fields)],
            }));
        }
        answers
    }

    /// Removes what a script left behind, so that the next one finds nothing.
    pub async fn clean_up(self) {
        for session in self.sessions.values() {
            // Most have no transaction.
            let _ = session.execute("ROLLBACK").await;
        }
        let system = ["information_schema", "drsdb"];
        for _ in 0..3 {
            let mut left = false;
            for table in self.client.tables().await.unwrap() {
                if system.contains(&table.schema.as_str()) || table.kind.to_uppercase().contains("SYSTEM") {
                    continue;
                }
                left = true;
                let kind = if table.kind.to_uppercase().contains("VIEW") { "VIEW" } else { "TABLE" };
                let drop = format!("DROP {kind} IF EXISTS \"{}\".\"{}\"", table.schema, table.name);
                if self.client.execute(&format!("{drop} CASCADE")).await.is_err() {
                    let _ = self.client.execute(&drop).await;
                }
            }
            if !left {
                return;
            }
        }
    }
}

async fn answer(session: &Client, sql: &str) -> Result<Answer, Error> {
    let first = sql.split_whitespace().next().unwrap_or_default().to_uppercase();
    match session.execute(sql).await? {
        Executed::Rows(rows) => rows.read_all().await.map(|result| table(&result)),
        Executed::Write(written) => {
            let about_rows = ["INSERT", "UPDATE", "DELETE", "MERGE", "WITH"].contains(&first.as_str());
            Ok(if about_rows || written.rows > 0 { Answer::Written(written.rows) } else { Answer::Done })
        }
    }
}

fn table(result: &QueryResult) -> Answer {
    let columns = result.schema.fields().iter().map(|field| field.name().clone()).collect();
    let format = FormatOptions::new()
        .with_null("NULL")
        .with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"))
        .with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.f%:z"));
    let mut rows = Vec::new();
    for batch in &result.batches {
        let cells: Vec<ArrayFormatter> =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &format).unwrap()).collect();
        rows.extend((0..batch.num_rows()).map(|row| {
            let cells = cells.iter().map(|cell| cell.value(row).to_string().trim().to_owned());
            cells.collect::<Vec<String>>()
        }));
    }
    Answer::Rows { columns, rows }
}
