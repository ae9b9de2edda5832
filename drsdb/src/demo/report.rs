//! The demo's table: query, rows, milliseconds, endpoints pulled, bytes, ok.
#![allow(clippy::print_stdout, reason = "prints the demo's result on standard output")]

use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use drsdb_benchmarks::front_door::Loaded;

/// A query of the table.
#[derive(Debug)]
pub struct Line {
    /// 1 to 22.
    pub query: u8,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a query.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Outcome {
    /// It has a result.
    Answered {
        rows: usize,
        elapsed: Duration,
        endpoints: usize,
        bytes: u64,
        /// How the result differs from the reference; `None`: it does not.
        difference: Option<String>,
    },
    /// It has none, and this is why.
    Failed(String),
}

impl Line {
    /// Whether there is a result that equals the reference.
    pub fn is_ok(&self) -> bool {
        matches!(self.outcome, Outcome::Answered { difference: None, .. })
    }

    fn problem(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Answered { difference, .. } => difference.as_deref(),
            Outcome::Failed(error) => Some(error),
        }
    }

    fn cells(&self) -> [String; 6] {
        let name = format!("Q{}", self.query);
        match &self.outcome {
            Outcome::Answered { rows, elapsed, endpoints, bytes, difference } => [
                name,
                rows.to_string(),
                format!("{:.1}", elapsed.as_secs_f64() * 1e3),
                endpoints.to_string(),
                bytes.to_string(),
                if difference.is_none() { "yes" } else { "DIFFERS" }.to_owned(),
            ],
            Outcome::Failed(_) => {
                [name, String::new(), String::new(), String::new(), String::new(), "FAILED".to_owned()]
            }
        }
    }
}

/// Prints what was loaded, the table, and what went wrong.
pub fn print(lines: &[Line], loaded: &[Loaded], pids: &[u32], elapsed: Duration) {
    let rows = loaded.iter().map(|table| table.rows).sum::<u64>();
    println!("{rows} rows in {} tables, {} server processes", loaded.len(), pids.len());
    println!("{}", table(lines));
    for line in lines {
        if let Some(problem) = line.problem() {
            println!("Q{}: {problem}", line.query);
        }
    }
    let good = lines.iter().filter(|line| line.is_ok()).count();
    println!("{good} of {} results equal the reference; {:.1} s in all", lines.len(), elapsed.as_secs_f64());
}

fn table(lines: &[Line]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["query", "rows", "ms", "endpoints", "bytes", "ok"]);
    for line in lines {
        table.add_row(line.cells());
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(difference: Option<&str>) -> Line {
        let outcome = Outcome::Answered {
            rows: 4,
            elapsed: Duration::from_micros(12_300),
            endpoints: 1,
            bytes: 2_000,
            difference: difference.map(str::to_owned),
        };
        Line { query: 1, outcome }
    }

    #[test]
    fn only_an_answer_without_a_difference_is_ok() {
        assert!(answered(None).is_ok());
        assert!(!answered(Some("3 rows, expected 4")).is_ok());
        assert!(!Line { query: 2, outcome: Outcome::Failed("no".to_owned()) }.is_ok());
    }

    #[test]
    fn the_table_shows_every_line() {
        let failed = Line { query: 2, outcome: Outcome::Failed("no".to_owned()) };
        let text = table(&[answered(None), answered(Some("x")), failed]).to_string();
        for part in ["Q1", "12.3", "2000", "yes", "DIFFERS", "Q2", "FAILED"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
