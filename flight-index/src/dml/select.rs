//! A statement that changes rows -> the SELECT that asks which. Pure.
//!
//! ```text
//! UPDATE t SET a = e FROM u WHERE p   ──▶  SELECT t.k AS old_0, t.b AS old_1, e AS new_2 FROM t, u WHERE p
//! DELETE FROM t USING u WHERE p       ──▶  SELECT t.k AS old_0 FROM t, u WHERE p
//! MERGE INTO t USING u ON c WHEN ...  ──▶  SELECT t.* AS old_*, CASE ... END AS action, ... FROM u LEFT JOIN t ON c
//! ```

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    self, AssignmentTarget, Expr, Ident, ObjectName, SelectItem, SetExpr, TableFactor, TableWithJoins,
    UpdateTableFromKind,
};
use drsdb_core::{ErrorCode, Result, Table, TableName, Ulid, WireError};

use super::by_key::OfOneTable;
use crate::{
    catalog::CatalogState,
    load::{
        insert::{default_expression, is_default},
        unknown_column,
    },
    statement::{Statement, identifier, parse_query, positioned, table_name},
};

/// A SELECT, and which of its columns is what.
#[derive(Debug, Clone)]
pub struct Question {
    /// The SELECT.
    pub query: Box<ast::Statement>,
    /// Positions in the table of the columns of old rows, which come first.
    pub old: Vec<usize>,
    /// Positions in the table of the columns of new values, which come next.
    pub new: Vec<usize>,
    /// Whether one row of the table can come several times.
    pub joins: bool,
    /// The statement itself, where it is about one table alone.
    pub alone: Option<OfOneTable>,
}

/// How a statement names the table that it changes.
#[derive(Debug, Clone)]
pub struct TargetName {
    /// The table.
    pub name: TableName,
    /// By which its columns are named: an alias, or the table's own name.
    pub qualifier: Vec<Ident>,
}

impl TargetName {
    /// The table of a FROM clause, which must be a table and nothing else.
    pub fn of(factor: &TableFactor) -> Result<Self> {
        match factor {
            TableFactor::Table { name, alias, args: None, .. } => {
                if alias.as_ref().is_some_and(|alias| !alias.columns.is_empty()) {
                    return Err(refused("new names for the columns of the table that is changed", "leave them out"));
                }
                Self::new(name, alias.as_ref().map(|alias| &alias.name))
            }
            _ => Err(refused("a change of something that is no table", "name one table")),
        }
    }

    /// A name and an alias.
    pub fn new(name: &ObjectName, alias: Option<&Ident>) -> Result<Self> {
        let qualifier = match alias {
            Some(alias) => vec![alias.clone()],
            None => name.0.iter().filter_map(|part| part.as_ident().cloned()).collect(),
        };
        Ok(Self { name: table_name(name)?, qualifier })
    }

    /// The name of a column.
    pub fn column(&self, name: &str) -> Expr {
        let mut parts = self.qualifier.clone();
        parts.push(Ident::with_quote('"', name));
        Expr::CompoundIdentifier(parts)
    }

    /// By which local expressions name the table.
    pub fn local_name(&self) -> Result<String> {
        self.qualifier.last().map_or(Ok(self.name.table.clone()), identifier)
    }
}

/// What an assignment gives a column: its position, and the value.
pub type Assigned = (usize, Expr);

/// SET: columns looked up, tuples taken apart, DEFAULT put in.
pub fn assignments(list: &[ast::Assignment], table: &Table) -> Result<Vec<Assigned>> {
    let mut assigned: Vec<Assigned> = Vec::with_capacity(list.len());
    for assignment in list {
        let targets: Vec<&ObjectName> = match &assignment.target {
            AssignmentTarget::ColumnName(name) => vec![name],
            AssignmentTarget::Tuple(names) => names.iter().collect(),
        };
        let values = match (&assignment.target, &assignment.value) {
            (AssignmentTarget::ColumnName(_), value) => vec![value.clone()],
            (AssignmentTarget::Tuple(_), Expr::Tuple(values)) => values.clone(),
            (AssignmentTarget::Tuple(names), Expr::Nested(value)) if names.len() == 1 => vec![value.as_ref().clone()],
            (AssignmentTarget::Tuple(names), Expr::Subquery(query)) => columns_of(query, names.len())?,
            (AssignmentTarget::Tuple(names), value) if names.len() == 1 => vec![value.clone()],
            _ => return Err(refused("this form of SET", "write SET (a, b) = (x, y), or SET a = x, b = y")),
        };
        if values.len() != targets.len() {
            let message = format!("{} columns are set to {} values", targets.len(), values.len());
            return Err(WireError::new(ErrorCode::InvalidArgument, message).into());
        }
        for (target, value) in targets.into_iter().zip(values) {
            let position = column_of(target, table)?;
            if assigned.iter().any(|(known, _)| *known == position) {
                let message = format!("column {} is set twice", table.columns[position].name);
                return Err(WireError::new(ErrorCode::InvalidArgument, message).into());
            }
            let value = match is_default(&value) {
                true => default_expression(&table.columns[position])?,
                false => value,
            };
            assigned.push((position, value));
        }
    }
    Ok(assigned)
}

/// The column that an assignment names, perhaps with the table's name before it.
fn column_of(target: &ObjectName, table: &Table) -> Result<usize> {
    let ident = target.0.last().and_then(|part| part.as_ident());
    let ident =
        ident.ok_or_else(|| WireError::new(ErrorCode::Syntax, format!("{target} is not the name of a column")))?;
    let name = identifier(ident)?;
    table.column_position(&name).ok_or_else(|| positioned(unknown_column(table, &name), ident.span.start).into())
}

/// (a, b) = (SELECT x, y ...) -> a = (SELECT x ...), b = (SELECT y ...).
fn columns_of(query: &ast::Query, count: usize) -> Result<Vec<Expr>> {
    let SetExpr::Select(select) = query.body.as_ref() else {
        return Err(refused("a tuple set to something but a SELECT", "set each column by itself"));
    };
    if select.projection.len() != count {
        let message = format!("{count} columns are set to {} values", select.projection.len());
        return Err(WireError::new(ErrorCode::InvalidArgument, message).into());
    }
    if select.selection.is_none() {
        // Each column of the whole, so that an aggregate beside a constant stays one row.
        let names: Vec<String> = (0..count).map(|at| format!("c{at}")).collect();
        return names.iter().map(|name| column_of_query(query, name, &names)).collect();
    }
    let one = |item: &SelectItem| {
        let mut select = select.clone();
        select.projection = vec![item.clone()];
        let query = ast::Query { body: Box::new(SetExpr::Select(select)), ..query.clone() };
        Expr::Subquery(Box::new(query))
    };
    Ok(select.projection.iter().map(one).collect())
}

/// (SELECT name FROM (query) s (names)).
fn column_of_query(query: &ast::Query, name: &str, names: &[String]) -> Result<Expr> {
    let mut outer = Box::new(parse_query(&format!("SELECT {name} FROM (SELECT 1) AS s ({})", names.join(", ")))?);
    if let SetExpr::Select(select) = outer.body.as_mut() {
        for table in &mut select.from {
            if let TableFactor::Derived { subquery, .. } = &mut table.relation {
                **subquery = query.clone();
            }
        }
    }
    Ok(Expr::Subquery(outer))
}

fn item(expr: Expr, name: String) -> SelectItem {
    SelectItem::ExprWithAlias { expr, alias: Ident::with_quote('"', name) }
}

/// A SELECT of these parts.
fn select(
    projection: Vec<SelectItem>,
    from: Vec<TableWithJoins>,
    selection: Option<Expr>,
) -> Result<Box<ast::Statement>> {
    let mut query = Box::new(parse_query("SELECT 1 FROM t")?);
    if let SetExpr::Select(select) = query.body.as_mut() {
        select.projection = projection;
        select.from = from;
        select.selection = selection;
    }
    Ok(Box::new(ast::Statement::Query(query)))
}

/// UPDATE's question. `needed` are the columns of old rows that are wanted in any case.
pub fn of_update(update: &ast::Update, target: &TargetName, table: &Table, needed: &[usize]) -> Result<Question> {
    let assigned = assignments(&update.assignments, table)?;
    let is_assigned = |position: usize| assigned.iter().any(|(known, _)| *known == position);
    let old: Vec<usize> = (0..table.columns.len())
        .filter(|&at| !table.columns[at].dropped && (needed.contains(&at) || !is_assigned(at)))
        .collect();
    let mut projection = old_columns(&old, target, table);
    let mut from = vec![update.table.clone()];
    match &update.from {
        None => {}
        Some(UpdateTableFromKind::AfterSet(tables) | UpdateTableFromKind::BeforeSet(tables)) => {
            from.extend(tables.iter().cloned());
        }
    }
    let joins = from.len() > 1 || !update.table.joins.is_empty();
    let new = assigned.iter().map(|(position, _)| *position).collect();
    let alone = if joins { None } else { OfOneTable::new(update.selection.as_ref(), &assigned) };
    projection.extend(assigned.into_iter().map(|(position, value)| item(value, format!("new_{position}"))));
    Ok(Question { query: select(projection, from, update.selection.clone())?, old, new, joins, alone })
}

/// Asks for the constants that an UPDATE assigns: they are right or wrong whatever rows there are. With the positions in the
/// table of the columns that they are for; `None`: there are none.
pub fn of_constants(update: &ast::Update, table: &Table) -> Result<Option<(Box<ast::Statement>, Vec<usize>)>> {
    let constants = assignments(&update.assignments, table)?.into_iter().filter(|(_, value)| is_constant(value));
    let (positions, items): (Vec<usize>, Vec<SelectItem>) =
        constants.map(|(position, value)| (position, item(value, format!("new_{position}")))).unzip();
    if positions.is_empty() {
        return Ok(None);
    }
    Ok(Some((select(items, Vec::new(), None)?, positions)))
}

/// Whether nothing but the statement's text and its parameters says what the value is.
pub(super) fn is_constant(value: &Expr) -> bool {
    let varies = ast::visit_expressions(value, |part| match part {
        Expr::Identifier(_)
        | Expr::CompoundIdentifier(_)
        | Expr::Function(_)
        | Expr::Subquery(_)
        | Expr::Exists { .. }
        | Expr::InSubquery { .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    varies.is_continue()
}

/// DELETE's question.
pub fn of_delete(delete: &ast::Delete, target: &TargetName, table: &Table, old: Vec<usize>) -> Result<Question> {
    let mut from = match &delete.from {
        ast::FromTable::WithFromKeyword(from) | ast::FromTable::WithoutKeyword(from) => from.clone(),
    };
    let joins = delete.using.is_some() || from.iter().any(|table| !table.joins.is_empty());
    from.extend(delete.using.iter().flatten().cloned());
    let projection = old_columns(&old, target, table);
    let alone = if joins { None } else { OfOneTable::new(delete.selection.as_ref(), &[]) };
    Ok(Question { query: select(projection, from, delete.selection.clone())?, old, new: Vec::new(), joins, alone })
}

fn old_columns(old: &[usize], target: &TargetName, table: &Table) -> Vec<SelectItem> {
    old.iter().map(|&at| item(target.column(&table.columns[at].name), format!("old_{at}"))).collect()
}

/// MERGE's question: old columns, then `action`, then a value for each of `values`.
pub fn of_merge(
    merge: &ast::Merge,
    target: &TargetName,
    table: &Table,
    action: Expr,
    values: Vec<Expr>,
    inserts: bool,
) -> Result<Question> {
    let old: Vec<usize> = (0..table.columns.len()).filter(|&at| !table.columns[at].dropped).collect();
    let mut projection = old_columns(&old, target, table);
    projection.push(item(action, "action".to_owned()));
    projection.extend(values.into_iter().enumerate().map(|(number, value)| item(value, format!("value_{number}"))));
    let on = ast::JoinConstraint::On(merge.on.as_ref().clone());
    let join = ast::Join {
        relation: merge.table.clone(),
        global: false,
        join_operator: if inserts { ast::JoinOperator::Left(on) } else { ast::JoinOperator::Inner(on) },
    };
    let from = vec![TableWithJoins { relation: merge.source.clone(), joins: vec![join] }];
    Ok(Question { query: select(projection, from, None)?, old, new: Vec::new(), joins: true, alone: None })
}

/// The table that a DELETE changes.
pub fn delete_target(delete: &ast::Delete) -> Result<TargetName> {
    let ast::FromTable::WithFromKeyword(from) = &delete.from else {
        return Err(refused("DELETE without FROM", "write DELETE FROM table WHERE ..."));
    };
    match from.as_slice() {
        [one] if one.joins.is_empty() && delete.tables.is_empty() => TargetName::of(&one.relation),
        _ => Err(refused("DELETE from several tables", "write DELETE FROM table USING others WHERE ...")),
    }
}

/// The SELECT behind a statement, for EXPLAIN and for the types of its parameters, and the table whose hidden columns it
/// names. `None`: there is none.
pub fn question(statement: &Statement, state: &CatalogState) -> Result<Option<(Box<ast::Statement>, Option<Ulid>)>> {
    let found = |name: &TableName| state.find_table(name).map(|table| table.table.clone());
    match statement {
        Statement::Insert(insert) => match (&insert.source, crate::load::insert::plain_values(insert)) {
            (Some(source), None) => Ok(Some((Box::new(ast::Statement::Query(source.clone())), None))),
            _ => Ok(None),
        },
        Statement::Update(update) => {
            let target = TargetName::of(&update.table.relation)?;
            let table = found(&target.name)?;
            let asked = of_update(update, &target, &table, &table.primary_key)?;
            Ok(Some((asked.query, Some(table.id))))
        }
        Statement::Delete(delete) => {
            let target = delete_target(delete)?;
            let table = found(&target.name)?;
            let asked = of_delete(delete, &target, &table, table.primary_key.clone())?;
            Ok(Some((asked.query, Some(table.id))))
        }
        Statement::Merge(merge) => {
            let target = TargetName::of(&merge.table)?;
            let table = found(&target.name)?;
            let asked = super::merge::Plan::new(merge, &target, &table)?.question;
            Ok(Some((asked.query, Some(table.id))))
        }
        _ => Ok(None),
    }
}

/// The error of what no statement here does.
pub fn refused(what: &str, hint: &str) -> drsdb_core::Error {
    WireError::new(ErrorCode::Unsupported, format!("{what} is not done")).with_hint(hint).into()
}
