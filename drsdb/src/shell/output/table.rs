//! Aligned tables. Rows are printed in blocks, so that memory is bounded however long a result is; later blocks keep the
//! first one's widths. On a terminal a table that is too wide is wrapped, and one with too many columns is turned:
//! a record a block, a column a line.

use std::io::{self, IsTerminal, Write};

use arrow::{array::RecordBatch, datatypes::Schema};
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};

use super::{
    super::text::{TextBatch, is_number},
    PrintError,
};

/// Rows of a block.
const BLOCK_ROWS: usize = 1000;

/// A cell shows at most so many characters.
const CELL_CHARACTERS: usize = 1000;

/// A table whose columns would get fewer characters than this each is turned.
const NARROWEST_COLUMN: usize = 12;

/// What NULL looks like.
const NULL: &str = "NULL";

/// Prints one table.
pub struct TablePrinter {
    names: Vec<String>,
    numbers: Vec<bool>,
    rows: Vec<Vec<String>>,
    /// Of the terminal; none: nothing is cut.
    width: Option<u16>,
    /// Of the first block's columns.
    widths: Option<Vec<u16>>,
    turned: bool,
    printed: usize,
}

impl TablePrinter {
    /// A table of these columns, as wide as the terminal at most.
    pub fn new(schema: &Schema) -> Self {
        let width = if io::stdout().is_terminal() { Table::new().width() } else { None };
        let names = schema.fields().iter().map(|field| printable(field.name())).collect();
        let numbers = schema.fields().iter().map(|field| is_number(field)).collect();
        Self::with_width(names, numbers, width)
    }

    /// A table of texts.
    pub fn of_texts(names: &[&str]) -> Self {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let numbers = vec![false; names.len()];
        Self::with_width(names, numbers, None)
    }

    fn with_width(names: Vec<String>, numbers: Vec<bool>, width: Option<u16>) -> Self {
        TablePrinter { names, numbers, rows: Vec::new(), width, widths: None, turned: false, printed: 0 }
    }

    /// Adds a row of texts.
    pub fn add_texts(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }

    /// Adds a batch; prints what makes full blocks.
    pub fn add(&mut self, batch: &RecordBatch, out: &mut impl Write) -> Result<(), PrintError> {
        let texts = TextBatch::new(batch)?;
        for row in 0..batch.num_rows() {
            let mut cells = Vec::with_capacity(batch.num_columns());
            for column in 0..batch.num_columns() {
                let mut text = String::new();
                let valid = texts.write(row, column, &mut text)?;
                cells.push(if valid { printable(&text) } else { NULL.to_owned() });
            }
            self.rows.push(cells);
            if self.rows.len() == BLOCK_ROWS {
                self.print_block(out).map_err(PrintError::Terminal)?;
            }
        }
        Ok(())
    }

    /// Prints the rest; a table without rows is its header.
    pub fn finish(&mut self, out: &mut impl Write) -> io::Result<()> {
        if !self.rows.is_empty() || self.widths.is_none() {
            self.print_block(out)?;
        }
        Ok(())
    }

    fn print_block(&mut self, out: &mut impl Write) -> io::Result<()> {
        let rows = std::mem::take(&mut self.rows);
        if self.widths.is_none() {
            let mut widths: Vec<u16> = self.names.iter().map(|name| display_width(name)).collect();
            for row in &rows {
                for (width, cell) in widths.iter_mut().zip(row) {
                    *width = (*width).max(display_width(cell));
                }
            }
            let natural: usize = widths.iter().map(|&width| usize::from(width) + 3).sum::<usize>() + 1;
            self.turned = self.width.is_some_and(|width| {
                let width = usize::from(width);
                natural > width && width / self.names.len().max(1) < NARROWEST_COLUMN
            });
            self.widths = Some(widths);
        }
        if self.turned {
            return self.print_turned(rows, out);
        }
        let first = self.printed == 0;
        self.printed += rows.len();
        let mut table = self.table();
        if first {
            table.set_header(&self.names);
        }
        table.add_rows(rows);
        self.align(&mut table);
        for line in table.lines() {
            writeln!(out, "{line}")?;
        }
        Ok(())
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN);
        match self.width {
            Some(width) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width),
            None => table.set_content_arrangement(ContentArrangement::Disabled),
        };
        table
    }

    fn align(&self, table: &mut Table) {
        let Some(widths) = &self.widths else { return };
        for ((column, &number), &width) in table.column_iter_mut().zip(&self.numbers).zip(widths) {
            if number {
                column.set_cell_alignment(CellAlignment::Right);
            }
            // Without a terminal's width, later blocks are at least as wide as the first; with one, wrapping decides.
            if self.width.is_none() {
                let padded = width.saturating_add(column.padding_width());
                column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(padded)));
            }
        }
    }

    fn print_turned(&mut self, rows: Vec<Vec<String>>, out: &mut impl Write) -> io::Result<()> {
        let widest = self.names.iter().map(|name| display_width(name)).max().unwrap_or(0);
        for row in rows {
            self.printed += 1;
            writeln!(out, "--[ record {} ]--", self.printed)?;
            for (name, cell) in self.names.iter().zip(row) {
                let blanks = " ".repeat(usize::from(widest - display_width(name)));
                let indented = cell.replace('\n', &format!("\n{} | ", " ".repeat(widest.into())));
                writeln!(out, "{name}{blanks} | {indented}")?;
            }
        }
        Ok(())
    }
}

/// The text without what would disturb a terminal, and cut if it is very long.
fn printable(text: &str) -> String {
    match text.char_indices().nth(CELL_CHARACTERS) {
        Some((end, _)) => format!("{}... ({} characters)", visible(&text[..end]), text.chars().count()),
        None => visible(text),
    }
}

/// The text without what would disturb a terminal.
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => shown.push('\n'),
            '\t' => shown.push_str("    "),
            control if control.is_control() => shown.extend(control.escape_default()),
            other => shown.push(other),
        }
    }
    shown
}

/// Columns that the widest line of a text takes on a terminal.
fn display_width(text: &str) -> u16 {
    let widest = text.lines().map(unicode_width::UnicodeWidthStr::width).max().unwrap_or(0);
    u16::try_from(widest).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};

    use super::*;

    fn batch(rows: std::ops::Range<i64>) -> RecordBatch {
        let id: ArrayRef = Arc::new(Int64Array::from_iter(rows.clone().map(|id| (id % 3 != 2).then_some(id))));
        let name: ArrayRef = Arc::new(StringArray::from_iter_values(rows.map(|id| format!("name {id}"))));
        RecordBatch::try_from_iter([("id", id), ("name", name)]).unwrap()
    }

    fn print(batches: &[RecordBatch], width: Option<u16>) -> String {
        let mut printer = TablePrinter::new(batches[0].schema_ref());
        printer.width = width;
        let mut out = Vec::new();
        for batch in batches {
            printer.add(batch, &mut out).unwrap();
        }
        printer.finish(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_stand_to_the_right_and_null_is_shown() {
        let expected = "\
|   id | name   |
|------|--------|
|    0 | name 0 |
|    1 | name 1 |
| NULL | name 2 |
";
        assert_eq!(print(&[batch(0..3)], None), expected);
        assert_eq!(print(&[batch(0..0)], None), "| id | name |\n|----|------|\n");
    }

    #[test]
    fn a_long_result_is_one_table() {
        let text = print(&[batch(0..1500), batch(1500..2500)], None);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2502);
        assert_eq!(lines.iter().filter(|line| line.contains("---")).count(), 1);
        // Widths come from the rows that are printed together first.
        assert_eq!(lines[2].len(), lines[900].len());
    }

    #[test]
    fn a_table_that_is_too_wide_is_wrapped_or_turned() {
        let long: ArrayRef = Arc::new(StringArray::from(vec!["word ".repeat(30)]));
        let few = RecordBatch::try_from_iter([("a", long.clone()), ("b", long.clone())]).unwrap();
        let text = print(&[few], Some(60));
        assert!(text.lines().all(|line| line.len() <= 60) && text.lines().count() > 4, "{text}");
        let many: Vec<(String, ArrayRef)> = (0..20).map(|at| (format!("column {at}"), long.clone())).collect();
        let text = print(&[RecordBatch::try_from_iter(many).unwrap()], Some(60));
        assert!(text.starts_with("--[ record 1 ]--\ncolumn 0  | word"), "{text}");
        assert_eq!(text.lines().count(), 21);
    }

    #[test]
    fn what_disturbs_a_terminal_is_not_printed() {
        assert_eq!(printable("a\x1b[2Jb\tc\nd"), "a\\u{1b}[2Jb    c\nd");
        let cut = printable(&"ä".repeat(5000));
        assert!(cut.ends_with("... (5000 characters)") && cut.chars().count() < 1100);
    }
}
