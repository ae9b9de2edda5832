//! The parser's tree -> [`Statement`], and the refusals of what drsdb does not do, each with what to do instead.

use datafusion::sql::sqlparser::ast::{
    self, CommentObject, ContextModifier, Expr, ObjectType, Query, Reset, SchemaName, Set, SetExpr,
    ShowStatementOptions, TableObject, TransactionAccessMode, TransactionIsolationLevel, TransactionMode, Value,
};
use drsdb_core::{ErrorCode, Result, WireError};

use super::{
    AlterTable, CommentOn, CreateTable, CreateView, Show, Statement, TransactionStatement,
    expression::split_last,
    names::{identifier, schema_name, simple_name, table_name},
    wrong_answers::refuse_wrong_answers,
};
use crate::transaction::Modes;

/// What a tree asks for.
pub fn classify(tree: ast::Statement) -> Result<Statement> {
    refuse_wrong_answers(&tree)?;
    match tree {
        ast::Statement::Query(query) => {
            refuse_writing_query(&query)?;
            Ok(Statement::Query(Box::new(ast::Statement::Query(query))))
        }
        ast::Statement::Explain { ref statement, .. } => match statement.as_ref() {
            ast::Statement::Query(query) => {
                refuse_writing_query(query)?;
                Ok(Statement::Explain(Box::new(tree)))
            }
            _ => explain_write(tree),
        },
        ast::Statement::ExplainTable { table_name: name, .. } => Ok(Statement::Show(Show::Columns(table_name(&name)?))),
        ast::Statement::Insert(insert) => insert_statement(insert),
        ast::Statement::Update(update) => Ok(Statement::Update(Box::new(update))),
        ast::Statement::Delete(delete) => Ok(Statement::Delete(Box::new(delete))),
        ast::Statement::Merge(merge) => Ok(Statement::Merge(Box::new(merge))),
        ast::Statement::Truncate(truncate) => truncate_statement(truncate),
        ast::Statement::StartTransaction { .. }
        | ast::Statement::Commit { .. }
        | ast::Statement::Rollback { .. }
        | ast::Statement::Savepoint { .. }
        | ast::Statement::ReleaseSavepoint { .. } => transaction_statement(tree),
        ast::Statement::CreateTable(table) => Ok(Statement::CreateTable(Box::new(CreateTable::from_ast(table)?))),
        ast::Statement::AlterTable(table) => Ok(Statement::AlterTable(Box::new(AlterTable::from_ast(table)?))),
        ast::Statement::CreateView(view) => Ok(Statement::CreateView(Box::new(CreateView::from_ast(view)?))),
        ast::Statement::Comment { object_type, object_name, comment, if_exists } => {
            let on = match object_type {
                CommentObject::Table => CommentOn::Table(table_name(&object_name)?),
                CommentObject::View => CommentOn::View(table_name(&object_name)?),
                CommentObject::Column => {
                    let (table, column) = split_last(&object_name)?;
                    CommentOn::Column(table_name(&table)?, column)
                }
                other => {
                    return Err(refused(&format!("COMMENT ON {other}"), "tables, views and columns have comments"));
                }
            };
            // An empty comment is none, as in other databases.
            Ok(Statement::Comment { on, if_exists, text: comment.filter(|text| !text.is_empty()) })
        }
        ast::Statement::CreateSchema {
            schema_name: name,
            if_not_exists,
            with,
            options,
            default_collate_spec,
            clone,
        } => {
            if with.is_some() || options.is_some() || default_collate_spec.is_some() || clone.is_some() {
                return Err(refused("CREATE SCHEMA with options", "write CREATE SCHEMA name"));
            }
            match name {
                SchemaName::Simple(name) => Ok(Statement::CreateSchema { name: schema_name(&name)?, if_not_exists }),
                _ => Err(refused("CREATE SCHEMA ... AUTHORIZATION", "write CREATE SCHEMA name")),
            }
        }
        ast::Statement::Drop { object_type, if_exists, names, cascade, purge, temporary, table, .. } => {
            if purge || temporary || table.is_some() {
                return Err(refused("DROP with PURGE, TEMPORARY or ON", "leave that out"));
            }
            match object_type {
                ObjectType::Table => {
                    let names = names.iter().map(table_name).collect::<Result<_>>()?;
                    Ok(Statement::DropTable { names, if_exists, cascade })
                }
                ObjectType::Schema => {
                    let names = names.iter().map(schema_name).collect::<Result<_>>()?;
                    Ok(Statement::DropSchema { names, if_exists, cascade })
                }
                ObjectType::View => {
                    let names = names.iter().map(table_name).collect::<Result<_>>()?;
                    Ok(Statement::DropView { names, if_exists, cascade })
                }
                other => Err(refused(&format!("DROP {other}"), "tables, views, schemas and users can be dropped")),
            }
        }
        ast::Statement::Set(set) => set_statement(set),
        ast::Statement::Reset(reset) => match reset.reset {
            Reset::ALL => Ok(Statement::Set { name: None, value: None }),
            Reset::ConfigurationParameter(name) => Ok(Statement::Set { name: Some(simple_name(&name)?), value: None }),
        },
        ast::Statement::ShowTables { show_options, .. } => {
            Ok(Statement::Show(Show::Tables(show_parent(show_options)?)))
        }
        ast::Statement::ShowSchemas { show_options, .. } | ast::Statement::ShowDatabases { show_options, .. } => {
            show_parent(show_options)?;
            Ok(Statement::Show(Show::Schemas))
        }
        ast::Statement::ShowColumns { show_options, .. } => {
            let parent = show_options.show_in.as_ref().and_then(|show_in| show_in.parent_name.clone());
            refuse_show_filter(&show_options)?;
            match parent {
                Some(name) => Ok(Statement::Show(Show::Columns(table_name(&name)?))),
                None => Err(refused("SHOW COLUMNS without a table", "write SHOW COLUMNS FROM table")),
            }
        }
        ast::Statement::ShowVariable { variable } => {
            let words: Vec<String> = variable.iter().map(|word| word.value.to_lowercase()).collect();
            let name = words.join("_");
            Ok(Statement::Show(match name.as_str() {
                "all" => Show::AllSettings,
                // SHOW TIME ZONE is the standard's way to say it.
                _ => Show::Setting(name),
            }))
        }
        other => Err(refuse(&other)),
    }
}

/// The error of what is not done, with what to do instead.
pub(super) fn refused(what: &str, hint: &str) -> drsdb_core::Error {
    WireError::new(ErrorCode::Unsupported, format!("{what} is not done")).with_hint(hint).into()
}

/// The words that a statement begins with, and what to do instead of it.
fn refuse(statement: &ast::Statement) -> drsdb_core::Error {
    let (what, hint) = match statement {
        ast::Statement::Copy { .. } => (
            "COPY",
            "a server does not read files: use \\copy in the shell, `drsdb import`, or the bulk load of a client library",
        ),
        ast::Statement::CreateIndex(_) => ("CREATE INDEX", "the primary key is indexed; cluster_key orders segments"),
        ast::Statement::Grant(_) | ast::Statement::Revoke(_) => ("granting rights", "every user may read and write"),
        ast::Statement::Prepare { .. } | ast::Statement::Execute { .. } | ast::Statement::Deallocate { .. } => {
            ("PREPARE in SQL", "use prepared statements of the client library or driver")
        }
        ast::Statement::Analyze(_) => ("ANALYZE", "statistics are kept with every load"),
        _ => ("this statement", "see the list of statements in the documentation"),
    };
    refused(what, hint)
}

/// A query may hide a write: WITH x AS (INSERT ...).
fn refuse_writing_query(query: &Query) -> Result<()> {
    match query.body.as_ref() {
        SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
            Err(refused("a query that writes", "write the statement without WITH"))
        }
        _ => Ok(()),
    }
}

fn insert_statement(insert: ast::Insert) -> Result<Statement> {
    let plain = insert.or.is_none()
        && !insert.ignore
        && !insert.overwrite
        && !insert.replace_into
        && insert.partitioned.is_none()
        && insert.after_columns.is_empty()
        && insert.assignments.is_empty()
        && insert.priority.is_none()
        && insert.settings.is_none()
        && insert.format_clause.is_none()
        && insert.insert_alias.is_none()
        && insert.output.is_none()
        && insert.multi_table_insert_type.is_none();
    if !plain || !matches!(insert.table, TableObject::TableName(_)) {
        return Err(refused("this form of INSERT", "write INSERT INTO table (column, ...) VALUES (...), (...)"));
    }
    Ok(Statement::Insert(Box::new(insert)))
}

/// EXPLAIN of what changes rows: the plan of the query that says which.
fn explain_write(tree: ast::Statement) -> Result<Statement> {
    let ast::Statement::Explain { analyze, verbose, statement, .. } = tree else { return Err(refuse(&tree)) };
    let inner = classify(*statement)?;
    if !inner.writes_rows() || matches!(inner, Statement::Truncate { .. }) {
        return Err(refused("EXPLAIN of this statement", "explain a query, or a statement that changes rows"));
    }
    if analyze {
        return Err(refused("EXPLAIN ANALYZE of a statement that changes rows", "leave ANALYZE out"));
    }
    Ok(Statement::ExplainWrite { statement: Box::new(inner), verbose })
}

fn truncate_statement(truncate: ast::Truncate) -> Result<Statement> {
    let plain = truncate.partitions.is_none() && truncate.on_cluster.is_none() && truncate.identity.is_none();
    let tables = truncate.table_names.iter().all(|target| !target.only && !target.has_asterisk);
    if !plain || !tables {
        return Err(refused("this form of TRUNCATE", "write TRUNCATE TABLE table, ..."));
    }
    Ok(Statement::Truncate {
        names: truncate.table_names.iter().map(|target| table_name(&target.name)).collect::<Result<_>>()?,
        if_exists: truncate.if_exists,
        cascade: truncate.cascade == Some(ast::CascadeOption::Cascade),
    })
}

fn transaction_statement(tree: ast::Statement) -> Result<Statement> {
    let no_chain = |chain: bool| match chain {
        true => Err(refused("AND CHAIN", "begin the next transaction with BEGIN")),
        false => Ok(()),
    };
    Ok(Statement::Transaction(match tree {
        ast::Statement::StartTransaction { modes, modifier, statements, exception, .. } => {
            if modifier.is_some() || !statements.is_empty() || exception.is_some() {
                return Err(refused("this form of BEGIN", "write BEGIN, then one statement at a time"));
            }
            TransactionStatement::Begin(transaction_modes(&modes)?)
        }
        ast::Statement::Commit { chain, .. } => {
            no_chain(chain)?;
            TransactionStatement::Commit
        }
        ast::Statement::Rollback { chain, savepoint } => {
            no_chain(chain)?;
            match savepoint {
                Some(name) => TransactionStatement::RollbackTo(identifier(&name)?),
                None => TransactionStatement::Rollback,
            }
        }
        ast::Statement::Savepoint { name } => TransactionStatement::Savepoint(identifier(&name)?),
        ast::Statement::ReleaseSavepoint { name } => TransactionStatement::Release(identifier(&name)?),
        other => return Err(refuse(&other)),
    }))
}

/// Every transaction sees one snapshot, and the first of two that change the same row commits. READ COMMITTED and
/// REPEATABLE READ promise no more than that; SERIALIZABLE does.
fn transaction_modes(list: &[TransactionMode]) -> Result<Modes> {
    let mut modes = Modes::default();
    for mode in list {
        match mode {
            TransactionMode::AccessMode(access) => {
                modes.read_only = Some(*access == TransactionAccessMode::ReadOnly);
            }
            TransactionMode::IsolationLevel(TransactionIsolationLevel::Serializable) => {
                return Err(refused(
                    "ISOLATION LEVEL SERIALIZABLE",
                    "use REPEATABLE READ, which is snapshot isolation; update a row that both of two transactions must not miss",
                ));
            }
            TransactionMode::IsolationLevel(_) => {}
        }
    }
    Ok(modes)
}

fn set_statement(set: Set) -> Result<Statement> {
    match set {
        Set::SingleAssignment { scope, hivevar, variable, values } => {
            if hivevar || !matches!(scope, None | Some(ContextModifier::Session)) {
                return Err(refused("SET LOCAL or GLOBAL", "write SET name = value"));
            }
            let [value] = values.as_slice() else {
                return Err(refused("SET with several values", "write SET name = value"));
            };
            Ok(Statement::Set { name: Some(simple_name(&variable)?), value: setting_text(value)? })
        }
        Set::SetTransaction { modes, snapshot: None, session: false } => {
            Ok(Statement::Transaction(TransactionStatement::SetModes(transaction_modes(&modes)?)))
        }
        Set::SetTimeZone { local: false, value } => {
            Ok(Statement::Set { name: Some("time_zone".to_owned()), value: setting_text(&value)? })
        }
        _ => Err(refused("this form of SET", "write SET name = value")),
    }
}

/// The text of a setting's value; `None` for DEFAULT.
fn setting_text(value: &Expr) -> Result<Option<String>> {
    match value {
        Expr::Value(literal) => match &literal.value {
            Value::SingleQuotedString(text) | Value::Number(text, _) => return Ok(Some(text.clone())),
            Value::Boolean(flag) => return Ok(Some(flag.to_string())),
            _ => {}
        },
        Expr::Identifier(ident) if ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case("default") => {
            return Ok(None);
        }
        Expr::Identifier(ident) => return Ok(Some(ident.value.clone())),
        _ => {}
    }
    let error = WireError::new(ErrorCode::InvalidArgument, format!("{value} is no value for a setting"));
    Err(error.with_hint("write a text in single quotes or a number").into())
}

fn refuse_show_filter(options: &ShowStatementOptions) -> Result<()> {
    let plain = options.filter_position.is_none()
        && options.starts_with.is_none()
        && options.limit.is_none()
        && options.limit_from.is_none();
    if plain { Ok(()) } else { Err(refused("SHOW with a filter", "query information_schema instead")) }
}

/// SHOW ... FROM schema.
fn show_parent(options: ShowStatementOptions) -> Result<Option<String>> {
    refuse_show_filter(&options)?;
    options.show_in.and_then(|show_in| show_in.parent_name).map(|name| schema_name(&name)).transpose()
}
