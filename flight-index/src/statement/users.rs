//! CREATE, ALTER and DROP USER, which the SQL parser has only in other databases' forms:
//!
//! ```text
//! CREATE USER [IF NOT EXISTS] name [WITH] PASSWORD 'text'
//! ALTER USER name [WITH] PASSWORD 'text'
//! DROP USER [IF EXISTS] name
//! ```

use datafusion::sql::sqlparser::{
    ast::Ident,
    tokenizer::{Span, Token, TokenWithSpan},
};
use drsdb_core::{Error, ErrorCode, Result, WireError};

use super::{Password, Statement, names};

/// The statement, if the tokens begin like one about users.
pub fn parse(tokens: &[TokenWithSpan]) -> Result<Option<Statement>> {
    let mut cursor = Cursor { tokens, at: 0 };
    let verb = ["CREATE", "ALTER", "DROP"].into_iter().find(|verb| cursor.word(verb));
    let Some(verb) = verb.filter(|_| cursor.word("USER")) else { return Ok(None) };
    let statement = match verb {
        "CREATE" => {
            let if_not_exists = cursor.word("IF");
            if if_not_exists {
                cursor.expect_word("NOT")?;
                cursor.expect_word("EXISTS")?;
            }
            let name = cursor.name()?;
            Statement::CreateUser { name, password: cursor.password()?, if_not_exists }
        }
        "ALTER" => {
            let name = cursor.name()?;
            Statement::AlterUser { name, password: cursor.password()? }
        }
        _ => {
            let if_exists = cursor.word("IF");
            if if_exists {
                cursor.expect_word("EXISTS")?;
            }
            Statement::DropUser { name: cursor.name()?, if_exists }
        }
    };
    cursor.end()?;
    Ok(Some(statement))
}

struct Cursor<'a> {
    tokens: &'a [TokenWithSpan],
    at: usize,
}

impl Cursor<'_> {
    fn peek(&self) -> Option<&TokenWithSpan> {
        self.tokens.get(self.at).filter(|token| token.token != Token::EOF)
    }

    fn word(&mut self, expected: &str) -> bool {
        let found = self.peek().is_some_and(|token| match &token.token {
            Token::Word(word) => word.quote_style.is_none() && word.value.eq_ignore_ascii_case(expected),
            _ => false,
        });
        self.at += usize::from(found);
        found
    }

    fn expect_word(&mut self, expected: &str) -> Result<()> {
        if self.word(expected) { Ok(()) } else { Err(self.expected(expected)) }
    }

    fn name(&mut self) -> Result<String> {
        let ident = match self.peek() {
            Some(TokenWithSpan { token: Token::Word(word), span }) => {
                Ident { value: word.value.clone(), quote_style: word.quote_style, span: *span }
            }
            _ => return Err(self.expected("a user name")),
        };
        self.at += 1;
        names::identifier(&ident)
    }

    fn password(&mut self) -> Result<Password> {
        self.word("WITH");
        self.expect_word("PASSWORD")?;
        let (password, span) = match self.peek() {
            Some(TokenWithSpan { token: Token::SingleQuotedString(text), span }) => (text.clone(), *span),
            _ => return Err(self.expected("a password in single quotes")),
        };
        if password.is_empty() {
            let error = WireError::new(ErrorCode::InvalidArgument, "a password may not be empty");
            return Err(names::positioned(error, span.start).into());
        }
        self.at += 1;
        Ok(Password(password))
    }

    fn end(&mut self) -> Result<()> {
        while self.peek().is_some_and(|token| token.token == Token::SemiColon) {
            self.at += 1;
        }
        if self.peek().is_none() { Ok(()) } else { Err(self.expected("the end of the statement")) }
    }

    /// What was found is not quoted: it may be a password.
    fn expected(&self, what: &str) -> Error {
        let found = self.peek().or_else(|| self.tokens.iter().rev().find(|token| token.span != Span::empty()));
        let location = found.map(|token| if self.peek().is_some() { token.span.start } else { token.span.end });
        let error = WireError::new(ErrorCode::Syntax, format!("expected {what}"))
            .with_hint("CREATE USER name WITH PASSWORD '...', ALTER USER name WITH PASSWORD '...', DROP USER name");
        match location {
            Some(location) => names::positioned(error, location).into(),
            None => error.into(),
        }
    }
}
