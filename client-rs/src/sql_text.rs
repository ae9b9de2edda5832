//! Just enough of SQL's surface to know whether a statement may be sent twice, and whether it opens or ends a transaction.

/// Whether the statement only reads, as far as its words tell: safe to send again when a connection broke before the
/// answer. When in doubt the answer is no, and the caller is told that the outcome is unknown.
pub fn is_read_only(sql: &str) -> bool {
    const READS: [&str; 7] = ["select", "with", "values", "table", "show", "explain", "describe"];
    const WRITES: [&str; 8] = ["insert", "update", "delete", "merge", "into", "create", "drop", "copy"];
    let mut words = words(sql);
    match words.next() {
        Some(first) => READS.contains(&first.as_str()) && !words.any(|word| WRITES.contains(&word.as_str())),
        None => false,
    }
}

/// What a statement does to the session's transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Begin,
    Commit,
    Rollback,
}

/// Whether the statement opens or ends a transaction; going back to a savepoint does neither.
pub(crate) fn transaction_step(sql: &str) -> Option<Step> {
    let mut words = words(sql);
    let (first, second) = (words.next()?, words.next());
    match (first.as_str(), second.as_deref()) {
        ("begin", _) | ("start", Some("transaction")) => Some(Step::Begin),
        ("commit" | "end", _) => Some(Step::Commit),
        ("rollback", Some("to")) => None,
        ("rollback", Some("work" | "transaction")) if words.next().as_deref() == Some("to") => None,
        ("rollback" | "abort", _) => Some(Step::Rollback),
        _ => None,
    }
}

/// The statement's bare words in lower case: without literals, quoted identifiers and comments.
fn words(sql: &str) -> impl Iterator<Item = String> + '_ {
    let mut rest = sql;
    std::iter::from_fn(move || {
        loop {
            let first = rest.chars().next()?;
            if first == '\'' || first == '"' {
                rest = rest[1..].split_once(first).map_or("", |(_, after)| after);
            } else if rest.starts_with("--") {
                rest = rest.split_once('\n').map_or("", |(_, after)| after);
            } else if rest.starts_with("/*") {
                rest = rest[2..].split_once("*/").map_or("", |(_, after)| after);
            } else if first.is_alphabetic() || first == '_' {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                let (word, after) = rest.split_at(end);
                rest = after;
                return Some(word.to_lowercase());
            } else {
                rest = &rest[first.len_utf8()..];
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_surely_reads_is_read_only() {
        for sql in [
            "SELECT 1",
            "  -- a comment\n/* and one */ select 'insert into t', \"delete\" from t",
            "(SELECT 1) UNION (SELECT 2)",
            "WITH a AS (SELECT 1) SELECT * FROM a",
            "EXPLAIN SELECT 1",
        ] {
            assert!(is_read_only(sql), "{sql}");
        }
        for sql in [
            "",
            ";",
            "INSERT INTO t VALUES (1)",
            "WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a",
            "EXPLAIN ANALYZE DELETE FROM t",
            "SELECT 1; DROP TABLE t",
            "SELECT * INTO t FROM s",
            "SET x = 1",
        ] {
            assert!(!is_read_only(sql), "{sql}");
        }
    }

    #[test]
    fn what_opens_and_ends_a_transaction_is_seen() {
        for (sql, step) in [
            ("BEGIN", Some(Step::Begin)),
            ("/* now */ start transaction read only", Some(Step::Begin)),
            ("COMMIT", Some(Step::Commit)),
            ("end work", Some(Step::Commit)),
            ("Rollback", Some(Step::Rollback)),
            ("ROLLBACK TO a", None),
            ("ROLLBACK WORK TO SAVEPOINT a", None),
            ("SAVEPOINT begin", None),
            ("SELECT 'begin'", None),
            ("", None),
        ] {
            assert_eq!(transaction_step(sql), step, "{sql}");
        }
    }
}
