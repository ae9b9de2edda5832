//! Lines that begin with a backslash: the shell's own commands.

use std::path::PathBuf;

use crate::import::{FileOptions, Format, Header, parse_delimiter};

/// A command.
#[derive(Debug, Clone)]
pub enum Command {
    /// `\d [TABLE]`
    Describe(Option<String>),
    /// `\dv`
    Views,
    /// `\timing [on|off]`
    Timing(Option<bool>),
    /// `\o [FILE]`
    Output(Option<PathBuf>),
    /// `\copy TABLE from 'FILE' ...`
    Copy(Box<CopyFrom>),
    /// `\i FILE`
    Include(PathBuf),
    /// `\?`
    Help,
    /// `\q`
    Quit,
}

/// A load.
#[derive(Debug, Clone)]
pub struct CopyFrom {
    pub table: String,
    pub file: PathBuf,
    pub options: FileOptions,
}

/// What `\?` prints.
pub const HELP: &str = "\
Statements end at a semicolon and may span lines. Ctrl-C cancels the running one, Ctrl-D ends the shell.
A star in the prompt says that BEGIN has opened a transaction.

  \\d              the tables and views
  \\d TABLE        a table's columns, keys, constraints and shards, or a view's columns and definition
  \\dv             the views
  \\timing         show how long each statement takes, or stop showing it
  \\o FILE         write the next result to FILE (.csv, .parquet or .arrow) instead of the terminal
  \\copy TABLE [(COLUMN, ...)] from 'FILE' [with (header yes|no|auto, delimiter 'C', null 'TEXT', format csv)]
                  load a CSV, Parquet or Arrow file as one transaction
  \\i FILE         run the statements of FILE
  \\?              this
  \\q              end the shell
";

/// Reads a line that begins with a backslash; the error says what is wrong with it.
pub fn parse(line: &str) -> Result<Command, String> {
    let line = line.trim().trim_end_matches(';').trim_end();
    let name_end = line.find(|c: char| c.is_whitespace()).unwrap_or(line.len());
    let (name, rest) = line.split_at(name_end);
    let words = words(rest)?;
    let texts: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
    match (name, texts.as_slice()) {
        ("\\d", []) => Ok(Command::Describe(None)),
        ("\\d", [table]) => Ok(Command::Describe(Some((*table).to_owned()))),
        ("\\dv", []) => Ok(Command::Views),
        ("\\timing", []) => Ok(Command::Timing(None)),
        ("\\timing", ["on"]) => Ok(Command::Timing(Some(true))),
        ("\\timing", ["off"]) => Ok(Command::Timing(Some(false))),
        ("\\o", []) => Ok(Command::Output(None)),
        ("\\o", [file]) => Ok(Command::Output(Some(file.into()))),
        ("\\i", [file]) => Ok(Command::Include(file.into())),
        ("\\?" | "\\h" | "\\help", []) => Ok(Command::Help),
        ("\\q" | "\\quit", []) => Ok(Command::Quit),
        ("\\copy", _) => parse_copy(&words).map(|copy| Command::Copy(Box::new(copy))),
        ("\\d" | "\\dv" | "\\timing" | "\\o" | "\\i" | "\\?" | "\\h" | "\\help" | "\\q" | "\\quit", _) => {
            Err(format!("{line}: {name} is used otherwise; \\? shows how"))
        }
        _ => Err(format!("there is no command {name}; \\? lists them")),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Word {
    text: String,
    quoted: bool,
}

/// Words between blanks; quoted ones may contain anything; parentheses and commas stand alone.
fn words(text: &str) -> Result<Vec<Word>, String> {
    let mut words: Vec<Word> = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        if first == '\'' || first == '"' {
            let mut word = String::new();
            let mut inside = &rest[1..];
            loop {
                let Some((before, after)) = inside.split_once(first) else {
                    return Err(format!("{rest} has no closing quote"));
                };
                word.push_str(before);
                match after.strip_prefix(first) {
                    Some(more) => {
                        word.push(first);
                        inside = more;
                    }
                    None => {
                        rest = after;
                        break;
                    }
                }
            }
            words.push(Word { text: word, quoted: true });
        } else if "(),".contains(first) {
            words.push(Word { text: first.to_string(), quoted: false });
            rest = &rest[1..];
        } else {
            let end = rest.find(|c: char| c.is_whitespace() || "(),'\"".contains(c)).unwrap_or(rest.len());
            words.push(Word { text: rest[..end].to_owned(), quoted: false });
            rest = &rest[end..];
        }
        rest = rest.trim_start();
    }
    Ok(words)
}

/// `TABLE [(a, b)] from 'FILE' [with (...)]`
fn parse_copy(words: &[Word]) -> Result<CopyFrom, String> {
    const USAGE: &str = "write \\copy TABLE [(COLUMN, ...)] from 'FILE' [with (OPTION VALUE, ...)]";
    let usage = || USAGE.to_owned();
    let keyword =
        |word: Option<&Word>, text: &str| word.is_some_and(|word| !word.quoted && word.text.eq_ignore_ascii_case(text));
    let (table, mut rest) = words.split_first().ok_or_else(usage)?;
    // Unquoted names are in lower case, as in SQL.
    let name = |word: &Word| if word.quoted { word.text.clone() } else { word.text.to_lowercase() };
    let mut options = FileOptions::default();
    if keyword(rest.first(), "(") {
        let end = rest.iter().position(|word| !word.quoted && word.text == ")").ok_or_else(usage)?;
        options.columns = Some(rest[1..end].iter().filter(|word| word.quoted || word.text != ",").map(name).collect());
        rest = &rest[end + 1..];
    }
    if keyword(rest.first(), "to") {
        return Err("\\copy loads files; to write a result to one, use \\o FILE before the query".to_owned());
    }
    if !keyword(rest.first(), "from") || rest.len() < 2 {
        return Err(usage());
    }
    let file = PathBuf::from(&rest[1].text);
    rest = &rest[2..];
    if keyword(rest.first(), "with") {
        rest = &rest[1..];
    }
    if let (Some((open, inner)), true) = (rest.split_first(), !rest.is_empty()) {
        let closed = keyword(Some(open), "(") && keyword(inner.last(), ")");
        let inner = if closed { &inner[..inner.len() - 1] } else { return Err(usage()) };
        for option in inner.split(|word| !word.quoted && word.text == ",") {
            copy_option(option, &mut options)?;
        }
    }
    Ok(CopyFrom { table: name(table), file, options })
}

fn copy_option(words: &[Word], options: &mut FileOptions) -> Result<(), String> {
    let (key, value) = match words {
        [key] => (key, None),
        [key, value] => (key, Some(value.text.as_str())),
        _ => return Err("an option is a name and a value, as in: with (header yes, delimiter ';')".to_owned()),
    };
    match (key.text.to_lowercase().as_str(), value) {
        ("header", None | Some("yes" | "true" | "on")) => options.header = Header::Yes,
        ("header", Some("no" | "false" | "off")) => options.header = Header::No,
        ("header", Some("auto")) => options.header = Header::Auto,
        ("delimiter", Some(text)) => options.delimiter = Some(parse_delimiter(text)?),
        ("null", Some(text)) => options.null = Some(text.to_owned()),
        ("format", Some("csv")) => options.format = Some(Format::Csv),
        ("format", Some("parquet")) => options.format = Some(Format::Parquet),
        ("format", Some("arrow")) => options.format = Some(Format::Arrow),
        (name @ ("header" | "delimiter" | "null" | "format"), value) => {
            return Err(format!("{} is no value for the option {name}", value.unwrap_or("nothing")));
        }
        (name, _) => return Err(format!("there is no option {name}: header, delimiter, null and format are")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read() {
        assert!(matches!(parse("\\d"), Ok(Command::Describe(None))));
        assert!(matches!(parse("\\d public.t;"), Ok(Command::Describe(Some(table))) if table == "public.t"));
        assert!(matches!(parse("\\dv"), Ok(Command::Views)));
        assert!(matches!(parse(" \\timing "), Ok(Command::Timing(None))));
        assert!(matches!(parse("\\timing off"), Ok(Command::Timing(Some(false)))));
        assert!(matches!(parse("\\o 'my file.csv'"), Ok(Command::Output(Some(file))) if file.ends_with("my file.csv")));
        assert!(matches!(parse("\\q"), Ok(Command::Quit)));
        assert!(parse("\\timing maybe").unwrap_err().contains("\\?"));
        assert!(parse("\\x").unwrap_err().contains("\\x"));
    }

    #[test]
    fn copy_is_read() {
        let copy = |line: &str| match parse(line).unwrap() {
            Command::Copy(copy) => *copy,
            other => panic!("{other:?}"),
        };
        let plain = copy("\\copy LineItem FROM 'a b.csv'");
        assert_eq!((plain.table.as_str(), plain.file.to_str()), ("lineitem", Some("a b.csv")));
        assert_eq!(plain.options.header, Header::Auto);
        let full =
            copy("\\copy \"T\"(a, \"B\") from 'it''s.tbl' with (header no, delimiter '|', null '\\N', format csv);");
        assert_eq!((full.table.as_str(), full.file.to_str()), ("T", Some("it's.tbl")));
        let options = full.options;
        assert_eq!(options.columns.unwrap(), ["a", "B"]);
        assert_eq!((options.header, options.delimiter, options.format), (Header::No, Some(b'|'), Some(Format::Csv)));
        assert_eq!(options.null.as_deref(), Some("\\N"));
        assert_eq!(copy("\\copy t from f.csv (header)").options.header, Header::Yes);
    }

    #[test]
    fn a_copy_that_is_wrong_says_how() {
        for (line, part) in [
            ("\\copy", "\\copy TABLE"),
            ("\\copy t to 'x'", "\\o FILE"),
            ("\\copy t from", "\\copy TABLE"),
            ("\\copy t from 'x", "closing quote"),
            ("\\copy t from x with header", "\\copy TABLE"),
            ("\\copy t from x with (headr yes)", "no option headr"),
            ("\\copy t from x with (header maybe)", "maybe"),
            ("\\copy t from x with (delimiter '||')", "one ASCII character"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
