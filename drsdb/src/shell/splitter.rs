//! Where a statement ends: at a semicolon outside of literals, quoted names and comments.
//!
//! Fed line by line, it looks at every character once, so that a statement of many megabytes is no slower than its size.

/// Splits text into statements.
#[derive(Debug, Default)]
pub struct Splitter {
    text: String,
    /// How far `text` was looked at.
    scanned: usize,
    state: State,
    /// Whether the statement under way has more than blanks and comments.
    has_content: bool,
}

/// What the scanner is in the middle of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum State {
    /// Between tokens.
    #[default]
    Plain,
    /// `'...'`; with backslash escapes if it is `E'...'`.
    Literal { escapes: bool },
    /// `"..."`.
    Name,
    /// `-- ...`
    LineComment,
    /// `/* ... */`, which nest.
    BlockComment { depth: usize },
    /// `$tag$ ... $tag$`; the whole delimiter.
    Dollar { delimiter: String },
}

impl Splitter {
    /// Adds text.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Whether nothing but blanks and comments is under way.
    pub fn is_blank(&self) -> bool {
        !self.has_content && self.state == State::Plain
    }

    /// What the text so far ends in the middle of.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Forgets what is under way.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The next complete statement, without its semicolon. Empty statements are passed over.
    pub fn next_statement(&mut self) -> Option<String> {
        loop {
            let end = self.scan()?;
            let rest = self.text.split_off(end + 1);
            let mut statement = std::mem::replace(&mut self.text, rest);
            statement.truncate(end);
            self.scanned = 0;
            if std::mem::take(&mut self.has_content) {
                return Some(statement.trim().to_owned());
            }
        }
    }

    /// What is left at the end of all text: a statement without a semicolon, or nothing.
    pub fn finish(&mut self) -> Option<String> {
        let unclosed = !matches!(self.state, State::Plain | State::LineComment);
        let rest = std::mem::take(self);
        let undecided = !rest.text[rest.scanned..].trim().is_empty();
        // A literal that was never closed is left to the parser, which says where it began.
        (rest.has_content || unclosed || undecided).then(|| rest.text.trim().to_owned())
    }

    /// The position of the next semicolon that ends a statement.
    fn scan(&mut self) -> Option<usize> {
        loop {
            let rest = &self.text[self.scanned..];
            let first = rest.chars().next()?;
            let second = rest[first.len_utf8()..].chars().next();
            // What two characters decide waits for the second one.
            let decided_by_two = matches!(
                (&self.state, first),
                (State::Plain, '-' | '/')
                    | (State::Literal { escapes: true }, '\\' | '\'')
                    | (State::BlockComment { .. }, '*' | '/')
            );
            if decided_by_two && second.is_none() {
                return None;
            }
            let (next, length) = match (&self.state, first, second) {
                (State::Plain, ';', _) => {
                    let end = self.scanned;
                    return Some(end);
                }
                (State::Plain, '\'', _) => (State::Literal { escapes: self.after_escape_prefix() }, 1),
                (State::Plain, '"', _) => (State::Name, 1),
                (State::Plain, '-', Some('-')) => (State::LineComment, 2),
                (State::Plain, '/', Some('*')) => (State::BlockComment { depth: 1 }, 2),
                (State::Plain, '$', _) if !self.inside_word() => match dollar_delimiter(rest) {
                    Delimiter::Whole(delimiter) => {
                        let length = delimiter.len();
                        (State::Dollar { delimiter }, length)
                    }
                    Delimiter::Cut => return None,
                    Delimiter::None => (State::Plain, 1),
                },
                (State::Literal { escapes: true }, '\\', Some(escaped)) => (self.state.clone(), 1 + escaped.len_utf8()),
                (State::Literal { escapes: true }, '\'', Some('\'')) => (self.state.clone(), 2),
                // A doubled quote closes and opens again.
                (State::Literal { .. }, '\'', _) | (State::Name, '"', _) | (State::LineComment, '\n', _) => {
                    (State::Plain, 1)
                }
                (State::BlockComment { depth }, '/', Some('*')) => (State::BlockComment { depth: depth + 1 }, 2),
                (State::BlockComment { depth: 1 }, '*', Some('/')) => (State::Plain, 2),
                (State::BlockComment { depth }, '*', Some('/')) => (State::BlockComment { depth: depth - 1 }, 2),
                (State::Dollar { delimiter }, '$', _) => {
                    if rest.starts_with(delimiter.as_str()) {
                        (State::Plain, delimiter.len())
                    } else if delimiter.starts_with(rest) {
                        return None;
                    } else {
                        (self.state.clone(), 1)
                    }
                }
                _ => {
                    let length = self.run_length(rest, first);
                    self.has_content |= self.state == State::Plain && !first.is_whitespace();
                    self.scanned += length;
                    continue;
                }
            };
            self.has_content |= matches!(next, State::Literal { .. } | State::Name | State::Dollar { .. });
            self.has_content |= self.state == State::Plain && next == State::Plain;
            self.state = next;
            self.scanned += length;
        }
    }

    /// How much of `rest` is certain to change nothing: at least its first character.
    fn run_length(&self, rest: &str, first: char) -> usize {
        let more = |stop: &[char]| rest.find(stop).unwrap_or(rest.len()).max(first.len_utf8());
        match self.state {
            State::Literal { escapes: false } => more(&['\'']),
            State::Name => more(&['"']),
            State::LineComment => more(&['\n']),
            State::Dollar { .. } => more(&['$']),
            _ => first.len_utf8(),
        }
    }

    /// Whether the quote that comes next follows an `E` that stands alone.
    fn after_escape_prefix(&self) -> bool {
        let mut before = self.text[..self.scanned].chars().rev();
        matches!(before.next(), Some('e' | 'E')) && !before.next().is_some_and(|c| c.is_alphanumeric() || c == '_')
    }

    /// Whether the next character continues a word, as in `a$b`.
    fn inside_word(&self) -> bool {
        self.text[..self.scanned].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_')
    }
}

enum Delimiter {
    Whole(String),
    /// The text ends before it can be told.
    Cut,
    None,
}

/// `$$` or `$tag$` at the start of `text`.
fn dollar_delimiter(text: &str) -> Delimiter {
    for (at, character) in text.char_indices().skip(1) {
        match character {
            '$' => return Delimiter::Whole(text[..=at].to_owned()),
            // `$1` is a parameter.
            c if c.is_alphabetic() || c == '_' || (at > 1 && c.is_numeric()) => {}
            _ => return Delimiter::None,
        }
    }
    Delimiter::Cut
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(pieces: &[&str]) -> Vec<String> {
        let mut splitter = Splitter::default();
        let mut statements = Vec::new();
        for piece in pieces {
            splitter.push(piece);
            while let Some(statement) = splitter.next_statement() {
                statements.push(statement);
            }
        }
        statements.extend(splitter.finish());
        statements
    }

    #[test]
    fn semicolons_in_literals_names_and_comments_end_nothing() {
        let cases: &[(&str, &[&str])] = &[
            ("SELECT 1; SELECT 2;", &["SELECT 1", "SELECT 2"]),
            ("SELECT ';''; ' ; SELECT \"a;\"\"\";", &["SELECT ';''; '", "SELECT \"a;\"\"\""]),
            ("-- one; two\nSELECT 1; -- three;\n", &["-- one; two\nSELECT 1"]),
            ("SELECT /* a /* b; */ c; */ 1;", &["SELECT /* a /* b; */ c; */ 1"]),
            ("SELECT E'\\';' , 'x\\'; SELECT 2", &["SELECT E'\\';' , 'x\\'", "SELECT 2"]),
            ("SELECT $$a;$$, $t$ $$; $t$; SELECT $1;", &["SELECT $$a;$$, $t$ $$; $t$", "SELECT $1"]),
            ("SELECT a$b, c$d; SELECT 2", &["SELECT a$b, c$d", "SELECT 2"]),
            (" ;; -- nothing\n /* nothing */ ; ", &[]),
            ("SELECT 1 - 2 / 3; x", &["SELECT 1 - 2 / 3", "x"]),
            ("SELECT E'a''\\';'; b", &["SELECT E'a''\\';'", "b"]),
            ("SELECT 'open; ", &["SELECT 'open;"]),
            ("SELECT 'ä;'; SELECT 'ö", &["SELECT 'ä;'", "SELECT 'ö"]),
        ];
        for (text, expected) in cases {
            assert_eq!(split(&[text]), *expected, "{text}");
        }
    }

    #[test]
    fn the_prompt_can_tell_what_is_open() {
        let mut splitter = Splitter::default();
        assert!(splitter.is_blank());
        splitter.push("-- a comment\n");
        assert_eq!(splitter.next_statement(), None);
        assert!(splitter.is_blank());
        splitter.push("SELECT 'a\n");
        assert_eq!(splitter.next_statement(), None);
        assert_eq!(*splitter.state(), State::Literal { escapes: false });
        assert!(!splitter.is_blank());
        splitter.clear();
        assert!(splitter.is_blank());
    }

    proptest! {
        #[test]
        fn it_does_not_matter_where_the_text_is_cut(
            tokens in proptest::collection::vec(
                proptest::sample::select(vec![
                    ";", "'", "''", "\"", "--", "\n", "/*", "*/", "$$", "$t$", "$1", "E'", "\\", "a", " ", "ä", "-", "/", "*", "$",
                ]),
                0..40,
            ),
            step in 1usize..5,
        ) {
            let text = tokens.concat();
            let characters: Vec<String> = text.chars().map(String::from).collect();
            let pieces: Vec<String> = characters.chunks(step).map(|piece| piece.concat()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(split(&pieces), split(&[&text]));
        }
    }
}
