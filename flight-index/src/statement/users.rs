//! CREATE, ALTER and DROP USER, which the SQL parser has only in other databases' forms:
//!
//! ```text
//! CREATE USER [IF NOT EXISTS] name [WITH] PASSWORD 'text'
//! ALTER USER name [WITH] PASSWORD 'text'
//! DROP USER [IF EXISTS] name
//! ```

use datafusion::sql::sqlparser::tokenizer::TokenWithSpan;
use drsdb_core::{ErrorCode, Result, WireError};

use super::{Password, Statement, cursor::Cursor, names};

const HINT: &str = "CREATE USER name WITH PASSWORD '...', ALTER USER name WITH PASSWORD '...', DROP USER name";

/// The statement, if the tokens begin like one about users.
pub fn parse(tokens: &[TokenWithSpan]) -> Result<Option<Statement>> {
    let mut cursor = Cursor::new(tokens, HINT);
    let verb = ["CREATE", "ALTER", "DROP"].into_iter().find(|verb| cursor.word(verb));
    let Some(verb) = verb.filter(|_| cursor.word("USER")) else { return Ok(None) };
    let statement = match verb {
        "CREATE" => {
            let if_not_exists = cursor.word("IF");
            if if_not_exists {
                cursor.expect_word("NOT")?;
                cursor.expect_word("EXISTS")?;
            }
            let name = cursor.name("a user name")?;
            Statement::CreateUser { name, password: password(&mut cursor)?, if_not_exists }
        }
        "ALTER" => {
            let name = cursor.name("a user name")?;
            Statement::AlterUser { name, password: password(&mut cursor)? }
        }
        _ => {
            let if_exists = cursor.word("IF");
            if if_exists {
                cursor.expect_word("EXISTS")?;
            }
            Statement::DropUser { name: cursor.name("a user name")?, if_exists }
        }
    };
    cursor.end()?;
    Ok(Some(statement))
}

fn password(cursor: &mut Cursor<'_>) -> Result<Password> {
    cursor.word("WITH");
    cursor.expect_word("PASSWORD")?;
    let (password, span) = cursor.text("a password in single quotes")?;
    if password.is_empty() {
        let error = WireError::new(ErrorCode::InvalidArgument, "a password may not be empty");
        return Err(names::positioned(error, span.start).into());
    }
    Ok(Password(password))
}
