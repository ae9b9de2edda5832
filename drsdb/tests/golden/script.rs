//! A script's text: statements and expected answers. No I/O.

use std::fmt::Write;

/// What a statement answered, or should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It did something that is about no rows.
    Done,
    /// So many rows were written.
    Written(u64),
    /// Rows, with the names of their columns.
    Rows { columns: Vec<String>, rows: Vec<Vec<String>> },
    /// An error: its code, and texts that are in it. Of an answer that was given, one text has everything.
    Error { code: String, texts: Vec<String> },
}

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Where it is in the file, from 1.
    pub line: usize,
    /// Who runs it.
    pub session: String,
    pub sql: String,
    pub expected: Answer,
    /// Comments and blank lines above it, kept as they are.
    above: String,
}

/// A whole file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    pub steps: Vec<Step>,
    /// What follows the last answer.
    below: String,
}

impl Script {
    /// Reads a script; the error says at which line it is none.
    pub fn parse(text: &str) -> Result<Script, String> {
        let mut steps = Vec::new();
        let (mut above, mut session) = (String::new(), "main".to_owned());
        let mut lines = text.lines().zip(1..).peekable();
        while let Some((line, number)) = lines.next() {
            if line.trim().is_empty() || line.starts_with("--") {
                if line.starts_with("-->") {
                    return Err(format!("line {number}: an answer without a statement"));
                }
                if let Some(name) = line.strip_prefix("--@") {
                    session = name.trim().to_owned();
                }
                writeln!(above, "{line}").expect("text grows");
                continue;
            }
            let mut sql = line.to_owned();
            while !sql.trim_end().ends_with(';') {
                let Some((more, _)) = lines.next() else {
                    return Err(format!("line {number}: the statement has no semicolon"));
                };
                sql += "\n";
                sql += more;
            }
            let mut answer = Vec::new();
            while let Some((line, _)) = lines.next_if(|(line, _)| line.starts_with("-->")) {
                answer.push(line.trim_start_matches("-->").trim());
            }
            let expected = Answer::parse(&answer).map_err(|error| format!("line {number}: {error}"))?;
            let above = std::mem::take(&mut above);
            steps.push(Step { line: number, session: session.clone(), sql, expected, above });
        }
        Ok(Script { steps, below: above })
    }

    /// The same script with other answers.
    pub fn with_answers(&self, answers: &[Answer]) -> String {
        let mut text = String::new();
        for (step, answer) in self.steps.iter().zip(answers) {
            // An error's texts are chosen by hand, and stay where they hold.
            let answer = if step.difference(answer).is_none() { &step.expected } else { answer };
            write!(text, "{}{}\n{answer}", step.above, step.sql).expect("text grows");
        }
        text + &self.below
    }
}

impl Step {
    /// What is wrong with `found`, if anything is.
    pub fn difference(&self, found: &Answer) -> Option<String> {
        let same = match (&self.expected, found) {
            (Answer::Rows { columns, rows }, Answer::Rows { columns: found_columns, rows: found_rows }) => {
                columns == found_columns && self.in_order(rows) == self.in_order(found_rows)
            }
            (Answer::Error { code, texts }, Answer::Error { code: found_code, texts: found_texts }) => {
                let all = found_texts.concat().to_lowercase();
                (code.is_empty() || code == found_code) && texts.iter().all(|text| all.contains(&text.to_lowercase()))
            }
            (expected, found) => expected == found,
        };
        (!same).then(|| format!("{}\nexpected:\n{}found:\n{found}", self.sql, self.expected))
    }

    fn in_order(&self, rows: &[Vec<String>]) -> Vec<Vec<String>> {
        let mut rows = rows.to_vec();
        if !self.sql.to_uppercase().contains("ORDER BY") {
            rows.sort_unstable();
        }
        rows
    }
}

impl Answer {
    fn parse(lines: &[&str]) -> Result<Answer, String> {
        match lines {
            [] => Err("the statement has no answer".to_owned()),
            ["ok"] => Ok(Answer::Done),
            [line] if line.ends_with(" rows") || *line == "1 row" => {
                let count = line.split(' ').next().and_then(|count| count.parse().ok());
                count.map(Answer::Written).ok_or(format!("{line:?} is no number of rows"))
            }
            [line] if line.starts_with("error") => {
                let (code, texts) = line.split_once(':').unwrap_or((line, ""));
                let code = code.trim_start_matches("error").trim().to_owned();
                let texts = texts.split(',').map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
                Ok(Answer::Error { code, texts: texts.collect() })
            }
            [header, rows @ ..] => {
                let cells = |line: &&str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
                let (columns, rows) = (cells(header), rows.iter().map(cells).collect::<Vec<_>>());
                match rows.iter().find(|row| row.len() != columns.len()) {
                    Some(row) => Err(format!("{row:?} has not as many cells as {columns:?}")),
                    None => Ok(Answer::Rows { columns, rows }),
                }
            }
        }
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Answer::Done => writeln!(f, "--> ok"),
            Answer::Written(1) => writeln!(f, "--> 1 row"),
            Answer::Written(rows) => writeln!(f, "--> {rows} rows"),
            Answer::Error { code, texts } if texts.is_empty() => writeln!(f, "--> error {code}"),
            Answer::Error { code, texts } => writeln!(f, "--> error {code}: {}", texts.join(", ")),
            Answer::Rows { columns, rows } => {
                let width = |column: usize| {
                    let cells = rows.iter().map(|row| row[column].chars().count());
                    cells.chain([columns[column].chars().count()]).max().unwrap_or(0)
                };
                let widths: Vec<usize> = (0..columns.len()).map(width).collect();
                for row in std::iter::once(columns).chain(rows) {
                    let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
                    writeln!(f, "--> {}", cells.collect::<Vec<_>>().join(" | ").trim_end())?;
                }
                Ok(())
            }
        }
    }
}

#[test]
fn a_script_reads_back_as_it_was_written() {
    let text = "-- About.\n\nCREATE TABLE t (a INT);\n--> ok\n\n--@ other\nINSERT INTO t\nVALUES (1);\n--> 1 row\n\
                SELECT a, b FROM t;\n--> a | b\n--> 1 | NULL\nSELECT 1 / 0;\n--> error invalid_value: zero, division\n\n-- End.\n";
    let script = Script::parse(text).unwrap();
    assert_eq!(script.steps.iter().map(|step| step.line).collect::<Vec<_>>(), [3, 7, 10, 13]);
    assert_eq!(script.steps[1].session, "other");
    let answers: Vec<Answer> = script.steps.iter().map(|step| step.expected.clone()).collect();
    assert_eq!(script.with_answers(&answers), text);
    let found = Answer::Error { code: "invalid_value".into(), texts: vec!["Division by Zero".into()] };
    assert_eq!(script.steps[3].difference(&found), None);
    assert!(script.steps[3].difference(&Answer::Done).is_some());
}

#[test]
fn what_is_no_script_is_told() {
    for (text, why) in [
        ("SELECT 1;\n", "line 1: the statement has no answer"),
        ("\nSELECT 1\n", "line 2: the statement has no semicolon"),
        ("--> ok\n", "line 1: an answer without a statement"),
        ("SELECT 1;\n--> a | b\n--> 1\n", "line 1: [\"1\"] has not as many cells"),
    ] {
        assert!(Script::parse(text).unwrap_err().contains(why), "{text:?}");
    }
}
