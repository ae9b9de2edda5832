//! Expressions that are part of definitions: CHECK and DEFAULT. They are kept as text, and what must never be in them is
//! refused here. Whether names and types fit is the planner's to say.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::{
    ast::{self, Expr, Ident, ObjectName, Spanned, Value},
    tokenizer::Location,
};
use drsdb_core::{ErrorCode, Result, WireError};

use super::{
    names::{identifier, positioned},
    parse::parse_expression,
};

/// Where an expression begins.
pub fn location(expr: &Expr) -> Location {
    expr.span().start
}

/// Refuses what needs more than the row itself: subqueries and parameters. `what` is CHECK or DEFAULT.
pub fn refuse_beyond_row(expr: &Expr, what: &str) -> Result<()> {
    let refused = ast::visit_expressions(expr, |part: &Expr| {
        let found = match part {
            Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. } => "a subquery",
            Expr::Value(value) if matches!(value.value, Value::Placeholder(_)) => "a parameter",
            _ => return ControlFlow::Continue(()),
        };
        ControlFlow::Break((found, location(part)))
    });
    match refused {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break((found, place)) => {
            let error = WireError::new(ErrorCode::Unsupported, format!("{what} with {found} is not done"))
                .with_hint("use the row's own columns, literals and functions");
            Err(positioned(error, place).into())
        }
    }
}

/// The columns that an expression, or all of a query, names, each once.
pub fn column_names(of: &impl ast::Visit) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let visited = ast::visit_expressions(of, |part: &Expr| {
        let ident = match part {
            Expr::Identifier(ident) => Some(ident),
            Expr::CompoundIdentifier(parts) => parts.last(),
            _ => None,
        };
        match ident.map(identifier).transpose() {
            Err(error) => return ControlFlow::Break(error),
            Ok(Some(name)) if !names.contains(&name) => names.push(name),
            Ok(_) => {}
        }
        ControlFlow::Continue(())
    });
    match visited {
        ControlFlow::Continue(()) => Ok(names),
        ControlFlow::Break(error) => Err(error),
    }
}

/// The same expression, where columns are named without their table: it can be renamed.
pub fn without_table(mut expr: Expr, table: &str) -> Expr {
    let _ = ast::visit_expressions_mut(&mut expr, |part: &mut Expr| {
        if let Expr::CompoundIdentifier(parts) = part
            && let [.., of, column] = parts.as_slice()
            && identifier(of).is_ok_and(|name| name == table)
        {
            *part = Expr::Identifier(column.clone());
        }
        ControlFlow::<()>::Continue(())
    });
    expr
}

/// The text of an expression after one of its columns was renamed.
pub fn rename_column(text: &str, from: &str, to: &str) -> Result<String> {
    let mut expr = parse_expression(text)?;
    let _ = ast::visit_expressions_mut(&mut expr, |part: &mut Expr| {
        if let Expr::Identifier(ident) = part
            && identifier(ident).is_ok_and(|name| name == from)
        {
            *ident = quoted(to);
        }
        ControlFlow::<()>::Continue(())
    });
    Ok(expr.to_string())
}

/// A name as an identifier: quoted where it must be.
pub fn quoted(name: &str) -> Ident {
    let plain = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !is_keyword(name);
    if plain { Ident::new(name) } else { Ident::with_quote('"', name) }
}

fn is_keyword(name: &str) -> bool {
    use datafusion::sql::sqlparser::keywords::ALL_KEYWORDS;
    ALL_KEYWORDS.binary_search(&name.to_uppercase().as_str()).is_ok()
}

/// The last part of a dotted name, and what is before it.
pub fn split_last(name: &ObjectName) -> Result<(ObjectName, String)> {
    let mut parts = name.0.clone();
    let last = parts.pop().and_then(|part| part.as_ident().cloned());
    match last {
        Some(last) if !parts.is_empty() => Ok((ObjectName(parts), identifier(&last)?)),
        _ => Err(WireError::new(ErrorCode::Syntax, format!("{name} is not the name of a table's column"))
            .with_hint("write table.column or schema.table.column")
            .into()),
    }
}
