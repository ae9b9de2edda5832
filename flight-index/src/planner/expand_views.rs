//! Views: the text of a view becomes the plan that stands for it in a query. Views are planned before the statement that
//! reads them, those that they read themselves first.

use std::{collections::BTreeMap, sync::Arc};

use datafusion::{
    catalog::TableProvider,
    common::{Column as PlanColumn, TableReference, tree_node::TreeNodeRecursion},
    datasource::ViewTable,
    logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, TableScan},
    sql::parser::Statement,
};
use drsdb_core::{Column, Error, ErrorCode, Result, SQL_TYPE_KEY, SqlType, TableName, Ulid, WireError};
use futures::future::BoxFuture;

use super::{PlanSession, Planner, QueryContext, apart::apart, sharded_table::scanned_table};
use crate::{
    catalog::{CatalogState, View, ViewUse},
    statement::{self, Statement as Classified},
};

/// The schema of a table that is named without one.
const DEFAULT_SCHEMA: &str = "public";

impl Planner {
    /// The view that the query `sql` makes, with an id and without a comment. `names` are for its first columns, or for all.
    pub async fn describe_view(
        self: &Arc<Self>,
        state: Arc<CatalogState>,
        (id, name): (Ulid, &TableName),
        sql: String,
        names: &[String],
        context: &QueryContext,
    ) -> Result<View> {
        let (planner, context) = (Arc::clone(self), context.clone());
        let (name, names) = (name.clone(), names.to_vec());
        apart(async move {
            let session = planner.session(&state, &context)?;
            let statement = parse_query(&sql)?;
            let references = referenced(&session, &statement)?;
            let Statement::Statement(text) = &statement else {
                return Err(Error::internal("a view's query is no statement"));
            };
            let named = statement::column_names(&**text)?;
            let plan = plan(&session, statement).await?;
            if !plan.get_parameter_fields()?.is_empty() {
                let error = WireError::new(ErrorCode::InvalidArgument, "a view has no parameters");
                return Err(error.with_hint("write the values into the query").into());
            }
            let (query_columns, columns) = columns_of(&plan, &names)?;
            let uses = uses_of(&session, &state, (&references, &named), plan)?;
            Ok(View { id, name, sql, columns, query_columns, uses, comment: None })
        })
        .await
    }

    /// The columns that a table made of a query has.
    pub async fn describe_columns(
        self: &Arc<Self>,
        state: Arc<CatalogState>,
        sql: &str,
        names: &[String],
        context: &QueryContext,
    ) -> Result<Vec<Column>> {
        let (planner, context) = (Arc::clone(self), context.clone());
        let (sql, names) = (sql.to_owned(), names.to_vec());
        apart(async move {
            let session = planner.session(&state, &context)?;
            let plan = plan(&session, parse_query(&sql)?).await?;
            Ok(columns_of(&plan, &names)?.1)
        })
        .await
    }
}

async fn plan(session: &PlanSession, statement: Statement) -> Result<LogicalPlan> {
    expand_views(session, &statement).await?;
    session.with_types(session.logical_plan(statement).await?)
}

/// Plans the views that a statement reads, so that the catalog has them when the statement is planned.
pub fn expand_views<'a>(session: &'a PlanSession, statement: &'a Statement) -> BoxFuture<'a, Result<()>> {
    Box::pin(async move {
        let state = session.catalog.state();
        for name in referenced(session, statement)? {
            let Some(view) = state.view(&name) else { continue };
            if session.catalog.has_planned(&name) {
                continue;
            }
            let at = |error: Error| in_view(error, &name);
            let text = parse_query(&view.sql).map_err(at)?;
            let planned = plan(session, text).await.map_err(at)?;
            let planned = as_columns(planned, view).map_err(at)?;
            let table: Arc<dyn TableProvider> = Arc::new(ViewTable::new(planned, Some(view.sql.clone())));
            session.catalog.add_planned(name, table);
        }
        Ok(())
    })
}

fn in_view(error: Error, name: &TableName) -> Error {
    let wire = error.to_wire();
    WireError { message: format!("view {name}: {}", wire.message), ..wire }.with_field("view", name).into()
}

fn parse_query(sql: &str) -> Result<Statement> {
    match statement::parse(sql)? {
        Classified::Query(query) => Ok(Statement::Statement(query)),
        _ => Err(Error::new(ErrorCode::InvalidArgument, "this must be a query")),
    }
}

/// The tables and views that a statement names.
fn referenced(session: &PlanSession, statement: &Statement) -> Result<Vec<TableName>> {
    let references = session.state.resolve_table_references(statement)?;
    let name =
        |reference: &TableReference| TableName::new(reference.schema().unwrap_or(DEFAULT_SCHEMA), reference.table());
    Ok(references.iter().map(name).collect())
}

/// The plan with the view's own columns: `*` in its text may stand for more columns than when the view was made.
fn as_columns(plan: LogicalPlan, view: &View) -> Result<LogicalPlan> {
    let schema = Arc::clone(plan.schema());
    let mut fields = schema.iter();
    let mut columns = Vec::with_capacity(view.columns.len());
    for (from, column) in view.query_columns.iter().zip(&view.columns) {
        let found = fields.find(|(_, field)| field.name() == from);
        let (qualifier, field) = found.ok_or_else(|| {
            WireError::new(ErrorCode::NotFound, format!("column {from} does not exist any more"))
                .with_hint("create the view again")
        })?;
        columns.push(Expr::Column(PlanColumn::new(qualifier.cloned(), field.name())).alias(&column.name));
    }
    Ok(LogicalPlanBuilder::from(plan).project(columns)?.build()?)
}

/// What a query calls its columns, and the columns that these are in a view or a table.
fn columns_of(plan: &LogicalPlan, names: &[String]) -> Result<(Vec<String>, Vec<Column>)> {
    let fields = plan.schema().fields();
    if names.len() > fields.len() {
        let message = format!("{} names for the {} columns of the query", names.len(), fields.len());
        return Err(WireError::new(ErrorCode::InvalidArgument, message).into());
    }
    let mut columns: Vec<Column> = Vec::with_capacity(fields.len());
    for (at, field) in fields.iter().enumerate() {
        let name = names.get(at).unwrap_or_else(|| field.name());
        if columns.iter().any(|column| &column.name == name) {
            let error = WireError::new(ErrorCode::InvalidArgument, format!("column {name} is there twice"));
            return Err(error.with_hint("name the columns: (a, b) AS SELECT ..., or SELECT x AS a").into());
        }
        let named = field.metadata().get(SQL_TYPE_KEY).map(|text| statement::parse_type(text)).transpose()?;
        // A set operation keeps what its first part says, and may have another type.
        let sql_type = match named.filter(|named| named.to_arrow() == *field.data_type()) {
            Some(named) => named,
            None => SqlType::from_arrow(field.data_type())?,
        };
        columns.push(Column::new(name, sql_type, false));
    }
    Ok((fields.iter().map(|field| field.name().clone()).collect(), columns))
}

/// The tables and views that a query names, with the columns that its optimized plan reads or that are called like one that
/// it names: what the optimizer leaves out must be there all the same.
fn uses_of(
    session: &PlanSession,
    state: &CatalogState,
    (references, named): (&[TableName], &[String]),
    plan: LogicalPlan,
) -> Result<Vec<ViewUse>> {
    let mut read: BTreeMap<Ulid, Vec<usize>> = BTreeMap::new();
    session.optimized(plan)?.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Some((id, columns)) = columns_read(scan)
        {
            read.entry(id).or_default().extend(columns);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    for name in references {
        if let Some(table) = state.table_by_name(name) {
            let is_read = read.contains_key(&table.table.id);
            let used = table.table.visible_columns().filter(|(_, column)| !is_read || named.contains(&column.name));
            read.entry(table.table.id).or_default().extend(used.map(|(position, _)| position));
        } else if let Some(view) = state.view(name) {
            read.insert(view.id, (0..view.columns.len()).collect());
        }
    }
    let uses = read.into_iter().map(|(id, mut columns)| {
        columns.sort_unstable();
        columns.dedup();
        ViewUse { id, columns }
    });
    Ok(uses.collect())
}

fn columns_read(scan: &TableScan) -> Option<(Ulid, Vec<usize>)> {
    let table = scanned_table(scan)?;
    Some((table.id(), table.stored_positions(scan.projection.as_deref())))
}
