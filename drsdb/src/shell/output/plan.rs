//! What EXPLAIN reports: texts with lines and indentation of their own, which no cell of a table would hold.

use std::io::{self, IsTerminal, Write};

use arrow::{
    array::{AsArray, RecordBatch},
    datatypes::Schema,
};
use comfy_table::Table;
use unicode_width::UnicodeWidthChar;

use super::table::visible;

/// How far the rest of a line that is too long goes in.
const HANGING: usize = 4;

/// A line keeps at least so many characters, however narrow the terminal.
const NARROWEST: usize = 40;

/// Whether a result is a report of EXPLAIN.
pub fn is_plan(schema: &Schema) -> bool {
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    names == ["plan_type", "plan"]
}

/// The terminal's width; none: lines are as long as they are.
pub fn terminal_width() -> Option<usize> {
    if io::stdout().is_terminal() { Table::new().width().map(usize::from) } else { None }
}

/// Prints a batch of a report.
pub fn print(batch: &RecordBatch, width: Option<usize>, out: &mut impl Write) -> io::Result<()> {
    let column = |at: usize| batch.column(at).as_string_opt::<i32>();
    let (Some(kinds), Some(plans)) = (column(0), column(1)) else { return Ok(()) };
    for (kind, plan) in kinds.iter().zip(plans) {
        writeln!(out, "{}:", visible(kind.unwrap_or_default()))?;
        for line in visible(plan.unwrap_or_default()).lines() {
            for part in wrap(&format!("  {line}"), width.unwrap_or(usize::MAX).max(NARROWEST)) {
                writeln!(out, "{part}")?;
            }
        }
    }
    Ok(())
}

/// A line in parts of at most `width` columns, broken at blanks where there are any. What draws the tree at its beginning
/// goes on.
fn wrap(line: &str, width: usize) -> Vec<String> {
    let tree: String = line.chars().take_while(|&c| c == ' ' || c == '│').collect();
    let hanging = format!("{tree}{}", " ".repeat(HANGING));
    // A tree that is deeper than the terminal is wide cannot be shown: then its lines are as long as they are.
    if columns(&hanging) * 2 > width {
        return vec![line.to_owned()];
    }
    let mut parts = Vec::new();
    let mut rest = line.to_owned();
    while columns(&rest) > width {
        let mut taken = 0;
        let fits = rest.char_indices().find(|(_, c)| {
            taken += c.width().unwrap_or(0);
            taken > width
        });
        let most = fits.map_or(rest.len(), |(at, _)| at);
        let begin = hanging.len().min(most);
        let blank = rest[..most].rfind(' ').filter(|&at| at > begin && rest.is_char_boundary(at));
        let after = rest.split_off(blank.unwrap_or(most));
        parts.push(rest);
        rest = format!("{hanging}{}", after.trim_start());
    }
    parts.push(rest);
    parts
}

fn columns(text: &str) -> usize {
    unicode_width::UnicodeWidthStr::width(text)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, StringArray};

    use super::*;

    fn printed(plan: &str, width: Option<usize>) -> String {
        let columns: [(&str, ArrayRef); 2] = [
            ("plan_type", Arc::new(StringArray::from(vec!["plan"]))),
            ("plan", Arc::new(StringArray::from(vec![plan]))),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        assert!(is_plan(batch.schema_ref()));
        let mut out = Vec::new();
        print(&batch, width, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_plan_keeps_its_lines_and_long_ones_are_wrapped() {
        let plan = "SortExec: a\n  │ ScanExec: metrics=[rows=100, elapsed=12ms, bytes_scanned=123456]\n";
        assert_eq!(
            printed(plan, None),
            "plan:\n  SortExec: a\n    │ ScanExec: metrics=[rows=100, elapsed=12ms, bytes_scanned=123456]\n"
        );
        let expected = "\
plan:
  SortExec: a
    │ ScanExec: metrics=[rows=100,
    │     elapsed=12ms,
    │     bytes_scanned=123456]
";
        assert_eq!(printed(plan, Some(40)), expected);
    }

    #[test]
    fn a_line_without_blanks_is_cut() {
        let text = printed(&"ä".repeat(100), Some(40));
        assert!(text.lines().all(|line| columns(line) <= 40), "{text}");
        assert_eq!(text.matches('ä').count(), 100);
    }
}
