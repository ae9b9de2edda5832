//! How large and how deep a statement may be, so that no text can exhaust a server's memory or stack.
//!
//! Two checks, because they protect different things. [`check_text`] runs before the tokenizer and bounds its memory: a
//! token takes a hundred times the bytes of its text. [`check_tokens`] runs before the parser and is exact: nesting bounds
//! the parser's recursion and its backtracking, and the length of an operator chain bounds the height of the tree that
//! `a + a + a ...` becomes, which every later pass (and the tree's destructor) walks recursively.

use datafusion::sql::sqlparser::{
    keywords::Keyword,
    tokenizer::{Location, Token, TokenWithSpan},
};
use drsdb_core::{Error, ErrorCode, Result, WireError};

use super::names::positioned;

/// The longest SQL text, in bytes.
pub const MAX_SQL_BYTES: usize = 16 << 20;
/// The most tokens of a text; a run of white space counts as its length.
pub const MAX_TOKENS: usize = 1_000_000;
/// The deepest nesting of parentheses, brackets, braces and CASE.
pub const MAX_NESTING: usize = 100;
/// The most tokens between two commas of the same nesting. `a = 1 OR a = 2 OR ...` takes four a term.
pub const MAX_CHAIN: usize = 4_000;

const LOAD_HINT: &str = "send values as parameters of a prepared statement, and rows as a bulk load";

/// Refuses a text that is too long, or that would become too many tokens.
pub fn check_text(sql: &str) -> Result<()> {
    if sql.len() > MAX_SQL_BYTES {
        return Err(too_large(format!("the SQL text has {} bytes; at most {MAX_SQL_BYTES} are accepted", sql.len())));
    }
    let tokens = count_tokens(sql.as_bytes());
    if tokens > MAX_TOKENS {
        return Err(too_large(format!(
            "the SQL text has about {tokens} words and signs; at most {MAX_TOKENS} are accepted"
        )));
    }
    Ok(())
}

fn too_large(message: String) -> Error {
    WireError::new(ErrorCode::ResourceExhausted, message).with_hint(LOAD_HINT).into()
}

/// About how many tokens the tokenizer would make: words, numbers, quoted texts and comments count once, every other
/// byte for itself.
fn count_tokens(sql: &[u8]) -> usize {
    let (mut at, mut tokens) = (0, 0);
    while at < sql.len() {
        tokens += 1;
        at = match sql[at] {
            quote @ (b'\'' | b'"' | b'`') => end_of_quoted(sql, at, quote),
            b'-' if sql.get(at + 1) == Some(&b'-') => find(sql, at, b"\n"),
            b'/' if sql.get(at + 1) == Some(&b'*') => find(sql, at + 2, b"*/"),
            byte if is_word(byte) => at + sql[at..].iter().take_while(|byte| is_word(**byte)).count(),
            _ => at + 1,
        };
    }
    tokens
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn end_of_quoted(sql: &[u8], start: usize, quote: u8) -> usize {
    // A backslash escapes only after E; a doubled quote simply counts as two texts, which is near enough.
    let escapes = quote == b'\'' && start > 0 && matches!(sql[start - 1], b'e' | b'E');
    let mut at = start + 1;
    while at < sql.len() && sql[at] != quote {
        at += if escapes && sql[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

fn find(sql: &[u8], from: usize, end: &[u8]) -> usize {
    let rest = sql.get(from..).unwrap_or_default();
    rest.windows(end.len()).position(|window| window == end).map_or(sql.len(), |found| from + found + end.len())
}

/// Refuses nesting and chains that would become too high a tree. White space must have been removed.
pub fn check_tokens(tokens: &[TokenWithSpan]) -> Result<()> {
    // How many tokens were seen since the last comma, for each open level.
    let mut chains = vec![0usize];
    for TokenWithSpan { token, span } in tokens {
        match token {
            Token::LParen | Token::LBracket | Token::LBrace => open(&mut chains, span.start)?,
            Token::Word(word) if word.keyword == Keyword::CASE && word.quote_style.is_none() => {
                open(&mut chains, span.start)?;
            }
            Token::RParen | Token::RBracket | Token::RBrace => close(&mut chains),
            Token::Word(word) if word.keyword == Keyword::END && word.quote_style.is_none() => close(&mut chains),
            _ => {}
        }
        let chain = chains.last_mut().expect("the outermost level is never closed");
        *chain = if matches!(token, Token::Comma | Token::SemiColon) { 0 } else { *chain + 1 };
        if *chain > MAX_CHAIN {
            let error = WireError::new(
                ErrorCode::ResourceExhausted,
                format!("an expression of more than {MAX_CHAIN} words and signs without a comma"),
            )
            .with_hint(
                "write a long chain of OR as IN (...), a long chain of UNION ALL as VALUES, or split the statement",
            );
            return Err(positioned(error, span.start).into());
        }
    }
    Ok(())
}

fn open(chains: &mut Vec<usize>, location: Location) -> Result<()> {
    if chains.len() > MAX_NESTING {
        let error = WireError::new(
            ErrorCode::ResourceExhausted,
            format!("the statement is nested more than {MAX_NESTING} levels deep"),
        )
        .with_hint("remove parentheses that are not needed, or name parts of the query with WITH");
        return Err(positioned(error, location).into());
    }
    chains.push(0);
    Ok(())
}

fn close(chains: &mut Vec<usize>) {
    // More closing than opening is the parser's to report.
    if chains.len() > 1 {
        chains.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_and_comments_are_one_token() {
        assert_eq!(count_tokens(b"SELECT"), 1);
        assert_eq!(count_tokens(b"a + 'x y z'"), 5);
        assert_eq!(count_tokens(b"E'it\\'s one'"), 2);
        assert_eq!(count_tokens(b"/* a b c */x"), 2);
        assert_eq!(count_tokens(b"-- a b c\nx"), 2);
        assert_eq!(count_tokens(b"'never closed"), 1);
        assert_eq!(count_tokens("ä_1".as_bytes()), 1);
    }

    #[test]
    fn a_text_over_the_limit_is_refused_before_it_is_read() {
        assert_eq!(check_text(&" ".repeat(MAX_SQL_BYTES + 1)).unwrap_err().code(), ErrorCode::ResourceExhausted);
        assert_eq!(check_text(&"(".repeat(MAX_TOKENS + 1)).unwrap_err().code(), ErrorCode::ResourceExhausted);
        check_text(&format!("SELECT '{}'", "x".repeat(MAX_SQL_BYTES - 20))).unwrap();
    }
}
