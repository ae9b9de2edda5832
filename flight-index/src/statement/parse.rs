//! Text -> exactly one syntax tree, with every fault placed at a line and a column.

use datafusion::sql::sqlparser::{
    ast::{Expr, Ident, Query},
    dialect::{Dialect, GenericDialect, PostgreSqlDialect},
    parser::{Parser, ParserError},
    tokenizer::{Location, Token, TokenWithSpan, Tokenizer},
};
use drsdb_core::{Error, ErrorCode, Result, SqlType, WireError};

use super::{
    Statement, alter_cluster, classify, distinct_from,
    limits::{self, MAX_NESTING},
    names::{identifier, positioned},
    sql_type::sql_type,
    users,
};

/// Parentheses are limited by [`limits`]; this is for what nests without any, such as NOT NOT NOT. The parser takes a
/// few steps a level, on a stack that grows.
const PARSER_DEPTH: usize = 4 * MAX_NESTING;

const MAX_DEPTH_BESIDE_RENAME: usize = 6;

/// Parses a text that holds one statement; a semicolon after it is fine.
pub fn parse(sql: &str) -> Result<Statement> {
    limits::check_text(sql)?;
    let dialect = GenericDialect {};
    let tokens = Tokenizer::new(&dialect, sql)
        .tokenize_with_location()
        .map_err(|error| syntax_error(&error.message, (error.location.line > 0).then_some(error.location)))
        .map_err(|error| placed(error, sql))?;
    let mut tokens: Vec<TokenWithSpan> =
        tokens.into_iter().filter(|token| !matches!(token.token, Token::Whitespace(_))).collect();
    limits::check_tokens(&tokens)?;
    number_placeholders(&mut tokens)?;
    if let Some(statement) = users::parse(&tokens)? {
        return Ok(statement);
    }
    let with_data = take_with_data(&mut tokens);
    let names = take_column_names(&mut tokens)?;
    if let Some(statement) = alter_cluster::parse(&tokens)? {
        return Ok(statement);
    }
    let may_compare = tokens.iter().any(|token| is_keyword(token, "distinct"));
    // Only this dialect knows RENAME CONSTRAINT. Calls in each other take it a time that doubles with each.
    let rename = tokens.windows(2).find(|two| is_keyword(&two[0], "rename") && is_keyword(&two[1], "constraint"));
    if let Some([rename, _]) = rename
        && depth(&tokens) > MAX_DEPTH_BESIDE_RENAME
    {
        let message =
            format!("RENAME CONSTRAINT beside parentheses that nest more than {MAX_DEPTH_BESIDE_RENAME} deep");
        let error = WireError::new(ErrorCode::Unsupported, message).with_hint("write a statement for each");
        return Err(positioned(error, rename.span.start).into());
    }
    let dialect: &dyn Dialect = if rename.is_some() { &PostgreSqlDialect {} } else { &dialect };
    let mut parser = Parser::new(dialect).with_recursion_limit(PARSER_DEPTH).with_tokens_with_locations(tokens);
    while parser.consume_token(&Token::SemiColon) {}
    if parser.peek_token().token == Token::EOF {
        return Err(WireError::new(ErrorCode::Syntax, "the SQL text holds no statement")
            .with_field("line", 1)
            .with_field("column", 1)
            .into());
    }
    let mut tree = parser.parse_statement().map_err(parser_error).map_err(|error| placed(error, sql))?;
    let ended = parser.consume_token(&Token::SemiColon);
    while parser.consume_token(&Token::SemiColon) {}
    let next = parser.peek_token();
    if next.token != Token::EOF {
        let error = if ended {
            WireError::new(ErrorCode::Syntax, "the SQL text holds more than one statement")
                .with_hint("send one statement at a time")
        } else {
            WireError::new(ErrorCode::Syntax, format!("expected the end of the statement, found {}", next.token))
        };
        return Err(positioned(error, next.span.start).into());
    }
    if may_compare {
        distinct_from::correct(&mut tree)?;
    }
    let mut statement = classify::classify(tree)?;
    if let Statement::CreateTable(table) = &mut statement
        && let Some(query) = &mut table.query
    {
        query.names.extend(names);
    }
    if let Some((with_data, place)) = with_data {
        match &mut statement {
            Statement::CreateTable(table) if table.query.is_some() => {
                table.query.iter_mut().for_each(|query| query.with_data = with_data);
            }
            _ => {
                let error = WireError::new(ErrorCode::Syntax, "WITH DATA belongs to CREATE TABLE ... AS");
                return Err(positioned(error, place).into());
            }
        }
    }
    Ok(statement)
}

/// How deep parentheses nest.
fn depth(tokens: &[TokenWithSpan]) -> usize {
    let (mut deepest, mut now) = (0, 0_usize);
    for token in tokens {
        match token.token {
            Token::LParen => now += 1,
            Token::RParen => now = now.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(now);
    }
    deepest
}

fn is_keyword(token: &TokenWithSpan, text: &str) -> bool {
    matches!(&token.token, Token::Word(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case(text))
}

/// The names in CREATE TABLE t (a, b) AS: the parser wants types.
fn take_column_names(tokens: &mut Vec<TokenWithSpan>) -> Result<Vec<String>> {
    let keyword = |token: Option<&TokenWithSpan>, text: &str| token.is_some_and(|token| is_keyword(token, text));
    if !keyword(tokens.first(), "create") || !keyword(tokens.get(1), "table") {
        return Ok(Vec::new());
    }
    let Some(open) = tokens.iter().position(|token| token.token == Token::LParen) else { return Ok(Vec::new()) };
    let mut idents = Vec::new();
    for pair in tokens[open + 1..].chunks(2) {
        let [TokenWithSpan { token: Token::Word(word), span }, next] = pair else { return Ok(Vec::new()) };
        idents.push(Ident { value: word.value.clone(), quote_style: word.quote_style, span: *span });
        match next.token {
            Token::Comma => {}
            Token::RParen => break,
            _ => return Ok(Vec::new()),
        }
    }
    let close = open + 2 * idents.len();
    if !keyword(tokens.get(close + 1), "as") {
        return Ok(Vec::new());
    }
    tokens.drain(open..=close);
    idents.iter().map(identifier).collect()
}

/// `WITH [NO] DATA` at the end of CREATE TABLE ... AS: the parser does not know it, and takes it for a broken query. What it
/// says, and where it is.
fn take_with_data(tokens: &mut Vec<TokenWithSpan>) -> Option<(bool, Location)> {
    let word = |token: Option<&TokenWithSpan>, text: &str| token.is_some_and(|token| is_keyword(token, text));
    let creates = word(tokens.first(), "create") && word(tokens.get(1), "table");
    let ends = tokens.iter().rposition(|token| !matches!(token.token, Token::SemiColon | Token::EOF))?;
    if !creates || ends < 3 || !word(tokens.get(ends), "data") {
        return None;
    }
    let no = word(tokens.get(ends - 1), "no");
    let start = if no { ends - 2 } else { ends - 1 };
    if !word(tokens.get(start), "with") {
        return None;
    }
    let place = tokens[start].span.start;
    tokens.drain(start..=ends);
    Some((!no, place))
}

/// An expression alone, such as a DEFAULT or a CHECK.
pub fn parse_expression(text: &str) -> Result<Expr> {
    let mut parser = parser_of(text)?;
    let mut expr = parser.parse_expr().map_err(parser_error)?;
    parser.expect_token(&Token::EOF).map_err(parser_error)?;
    distinct_from::correct(&mut expr)?;
    Ok(expr)
}

/// A query that the server has written itself.
pub fn parse_query(text: &str) -> Result<Query> {
    let mut query = *parser_of(text)?.parse_query().map_err(parser_error)?;
    distinct_from::correct(&mut query)?;
    Ok(query)
}

fn parser_of(text: &str) -> Result<Parser<'static>> {
    limits::check_text(text)?;
    let parser = Parser::new(&GenericDialect {}).with_recursion_limit(PARSER_DEPTH);
    parser.try_with_sql(text).map_err(parser_error)
}

/// A column type alone, such as `VARCHAR(10)`.
pub fn parse_type(text: &str) -> Result<SqlType> {
    limits::check_text(text)?;
    let dialect = GenericDialect {};
    let mut parser = Parser::new(&dialect).try_with_sql(text).map_err(parser_error)?;
    let data_type = parser.parse_data_type().map_err(parser_error)?;
    if parser.peek_token().token != Token::EOF {
        return Err(Error::new(ErrorCode::Syntax, format!("{text:?} is not a column type")));
    }
    Ok(sql_type(&data_type)?)
}

/// `?` -> `$1`, `$2`, ... in order, so that plans know one kind of placeholder.
fn number_placeholders(tokens: &mut [TokenWithSpan]) -> Result<()> {
    let mut count = 0;
    let mut numbered = None;
    for TokenWithSpan { token, span } in tokens {
        let Token::Placeholder(name) = token else { continue };
        if name == "?" {
            count += 1;
            *name = format!("${count}");
        } else {
            if let Some(number) = name.strip_prefix('?') {
                *name = format!("${number}");
            }
            let number = name.strip_prefix('$').and_then(|number| number.parse::<u16>().ok());
            if number.is_none_or(|number| number == 0) {
                let error = WireError::new(ErrorCode::Syntax, format!("{name} is not a placeholder"))
                    .with_hint("write ? or $1, $2, ...");
                return Err(positioned(error, span.start).into());
            }
            numbered = Some(span.start);
        }
    }
    match numbered {
        Some(location) if count > 0 => {
            let error = WireError::new(ErrorCode::Syntax, "the statement has both ? and numbered placeholders")
                .with_hint("use one of the two kinds");
            Err(positioned(error, location).into())
        }
        _ => Ok(()),
    }
}

fn parser_error(error: ParserError) -> Error {
    match error {
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => {
            let (message, location) = split_location(&message);
            syntax_error(message, location)
        }
        ParserError::RecursionLimitExceeded => {
            WireError::new(ErrorCode::ResourceExhausted, "the statement is nested too deeply")
                .with_hint("name parts of the query with WITH, or split the statement")
                .into()
        }
    }
}

/// A fault that the parser does not place was found at the end of the text.
fn placed(error: Error, sql: &str) -> Error {
    let mut wire = error.to_wire();
    if wire.code == ErrorCode::Syntax && !wire.fields.contains_key("line") {
        let text = sql.trim_end();
        let last = text.lines().last().unwrap_or_default();
        let end = Location { line: text.lines().count().max(1) as u64, column: last.chars().count() as u64 + 1 };
        wire.message = format!("{} (line {}, column {})", wire.message, end.line, end.column);
        wire = positioned(wire, end);
    }
    wire.into()
}

/// The parser appends ` at Line: 1, Column: 8` to its messages; it has no other way to say where.
fn split_location(message: &str) -> (&str, Option<Location>) {
    let Some((text, place)) = message.rsplit_once(" at Line: ") else { return (message, None) };
    let location = place
        .split_once(", Column: ")
        .and_then(|(line, column)| Some(Location { line: line.parse().ok()?, column: column.parse().ok()? }));
    match location {
        Some(location) => (text, Some(location)),
        None => (message, None),
    }
}

fn syntax_error(message: &str, location: Option<Location>) -> Error {
    let mut text = message.to_owned();
    if let Some(first) = text.get(..1).map(str::to_lowercase) {
        text.replace_range(..1, &first);
    }
    match location {
        Some(location) => {
            let text = format!("{text} (line {}, column {})", location.line, location.column);
            positioned(WireError::new(ErrorCode::Syntax, text), location).into()
        }
        None => Error::new(ErrorCode::Syntax, text),
    }
}
