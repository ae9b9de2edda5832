//! Tokens, one after the other: for the statements that the SQL parser does not have.

use datafusion::sql::sqlparser::{
    ast::Ident,
    tokenizer::{Span, Token, TokenWithSpan},
};
use drsdb_core::{Error, ErrorCode, Result, WireError};

use super::names;

/// A place in a statement.
pub struct Cursor<'a> {
    tokens: &'a [TokenWithSpan],
    at: usize,
    /// How the statement is written, for errors.
    hint: &'static str,
}

impl<'a> Cursor<'a> {
    /// At the beginning of `tokens`.
    pub fn new(tokens: &'a [TokenWithSpan], hint: &'static str) -> Self {
        Self { tokens, at: 0, hint }
    }

    fn peek(&self) -> Option<&TokenWithSpan> {
        self.tokens.get(self.at).filter(|token| token.token != Token::EOF)
    }

    /// Steps over the keyword, if it is next.
    pub fn word(&mut self, expected: &str) -> bool {
        let found = self.peek().is_some_and(|token| match &token.token {
            Token::Word(word) => word.quote_style.is_none() && word.value.eq_ignore_ascii_case(expected),
            _ => false,
        });
        self.at += usize::from(found);
        found
    }

    /// Steps over the keyword, which must be next.
    pub fn expect_word(&mut self, expected: &str) -> Result<()> {
        if self.word(expected) { Ok(()) } else { Err(self.expected(expected)) }
    }

    /// An identifier, folded as SQL folds it.
    pub fn name(&mut self, what: &str) -> Result<String> {
        let ident = match self.peek() {
            Some(TokenWithSpan { token: Token::Word(word), span }) => {
                Ident { value: word.value.clone(), quote_style: word.quote_style, span: *span }
            }
            _ => return Err(self.expected(what)),
        };
        self.at += 1;
        names::identifier(&ident)
    }

    /// A text in single quotes, and where it is.
    pub fn text(&mut self, what: &str) -> Result<(String, Span)> {
        let found = match self.peek() {
            Some(TokenWithSpan { token: Token::SingleQuotedString(text), span }) => (text.clone(), *span),
            _ => return Err(self.expected(what)),
        };
        self.at += 1;
        Ok(found)
    }

    /// A whole number that is not negative.
    pub fn number(&mut self, what: &str) -> Result<u64> {
        let number = self.peek().and_then(|token| match &token.token {
            Token::Number(digits, _) => digits.parse().ok(),
            _ => None,
        });
        let number = number.ok_or_else(|| self.expected(what))?;
        self.at += 1;
        Ok(number)
    }

    /// Nothing but semicolons may follow.
    pub fn end(&mut self) -> Result<()> {
        while self.peek().is_some_and(|token| token.token == Token::SemiColon) {
            self.at += 1;
        }
        if self.peek().is_none() { Ok(()) } else { Err(self.expected("the end of the statement")) }
    }

    /// The error of what is not next. What was found is not quoted: it may be a password.
    pub fn expected(&self, what: &str) -> Error {
        let found = self.peek().or_else(|| self.tokens.iter().rev().find(|token| token.span != Span::empty()));
        let location = found.map(|token| if self.peek().is_some() { token.span.start } else { token.span.end });
        let error = WireError::new(ErrorCode::Syntax, format!("expected {what}")).with_hint(self.hint);
        match location {
            Some(location) => names::positioned(error, location).into(),
            None => error.into(),
        }
    }
}
