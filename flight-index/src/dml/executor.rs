//! Runs one statement in a transaction.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, new_null_array},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use datafusion::sql::{parser::Statement as PlannerStatement, sqlparser::ast};
use drsdb_core::{
    Column, Error, ErrorCode, Result, Table, TableKind, TableName, Ulid, WireError,
    edge::edge_schema,
    net::ChannelPool,
    query_session::QueryOptions,
    security::{Login, token},
    transit::transit_type,
};
use futures::{
    Stream, StreamExt, TryStreamExt,
    future::{BoxFuture, try_join_all},
    stream,
    stream::BoxStream,
};

use super::{
    effects::Effects,
    pull::{look_up, pull},
    returning::Returning,
    select::{TargetName, delete_target, question},
    target::Target,
};
use crate::{
    catalog::TableState,
    load::{
        Loader, cast_column, check_assignable, convert_column,
        insert::{Insert, has_subquery, placeholder, plain_values, target_columns},
        transit_schema,
    },
    planner::{Lookup, PlannedQuery, Planner, QueryContext, Source, View},
    raft::Catalog,
    statement::{Statement, parse_query, table_name},
    transaction::{Stager, Transaction},
};

/// How long the token lives with which the index server pulls rows.
const TOKEN_LIFETIME: std::time::Duration = std::time::Duration::from_secs(3600);

/// What statements need of the index server.
#[derive(Debug, Clone)]
pub struct Services {
    /// The catalog.
    pub catalog: Arc<Catalog>,
    /// Plans the questions.
    pub planner: Arc<Planner>,
    /// Connections to storage servers.
    pub channels: Arc<ChannelPool>,
}

/// What a statement did.
#[derive(Debug, Default)]
pub struct Written {
    /// Rows of its table that it changed.
    pub rows: u64,
    /// What RETURNING gives.
    pub returned: Option<(SchemaRef, Vec<RecordBatch>)>,
}

impl Written {
    /// Adds what another run of the statement did.
    fn add(&mut self, other: Written) {
        self.rows += other.rows;
        match (&mut self.returned, other.returned) {
            (Some((_, batches)), Some((_, more))) => batches.extend(more),
            (mine, other) => *mine = mine.take().or(other),
        }
    }
}

/// The schemas of a statement's rows and of its parameters.
#[derive(Debug, Clone)]
pub struct Described {
    /// Empty when it returns none.
    pub rows: SchemaRef,
    /// `$1`, `$2`, ...
    pub parameters: SchemaRef,
}

/// Runs a statement. After an error, the transaction must be rolled back to where it was.
pub struct Executor<'a> {
    pub(super) services: &'a Services,
    pub(super) login: &'a Login,
    pub(super) options: &'a QueryOptions,
    pub(super) transaction: &'a mut Transaction,
    /// Values of `$1`, `$2`, ..., one row.
    pub(super) parameters: Option<RecordBatch>,
}

impl<'a> Executor<'a> {
    /// An executor in the transaction, for who has logged in.
    pub fn new(
        services: &'a Services,
        login: &'a Login,
        options: &'a QueryOptions,
        transaction: &'a mut Transaction,
    ) -> Self {
        Self { services, login, options, transaction, parameters: None }
    }

    /// Runs the statement, once for each row of `parameters`. Until it is over, its foreign keys included, it counts as one of
    /// which nothing may stay: whoever drops it has it undone.
    pub async fn run(&mut self, statement: &Statement, parameters: Option<RecordBatch>) -> Result<Written> {
        let written = self.run_all(statement, parameters).await?;
        self.transaction.statement_done();
        Ok(written)
    }

    async fn run_all(&mut self, statement: &Statement, parameters: Option<RecordBatch>) -> Result<Written> {
        // VALUES takes all parameters at once, but for subqueries, which are asked for each row.
        if let Statement::Insert(insert) = statement
            && plain_values(insert).is_some_and(|rows| !has_subquery(&rows))
            && insert.on.is_none()
        {
            return self.insert_values(insert, parameters).await;
        }
        let Some(parameters) = parameters else { return self.run_once(statement).await };
        let mut written = Written::default();
        for row in 0..parameters.num_rows() {
            self.parameters = Some(parameters.slice(row, 1));
            written.add(self.run_once(statement).await?);
        }
        Ok(written)
    }

    async fn run_once(&mut self, statement: &Statement) -> Result<Written> {
        match statement {
            Statement::Insert(insert) => self.insert(insert).await,
            Statement::Update(update) => self.update(update).await,
            Statement::Delete(delete) => self.delete(delete).await,
            Statement::Merge(merge) => self.merge(merge).await,
            Statement::Truncate { names, if_exists, cascade } => self.truncate(names, *if_exists, *cascade).await,
            _ => Err(Error::internal("a statement that changes no rows was to change some")),
        }
    }

    /// Loads batches of `schema` into a table.
    pub async fn load(
        &mut self,
        name: &TableName,
        schema: SchemaRef,
        batches: impl Stream<Item = Result<RecordBatch>> + Send,
    ) -> Result<u64> {
        let target = self.target(name)?;
        let loaded = Loader::load_into(self.transaction, Arc::clone(&target), schema, self.options, batches).await?;
        let rows = loaded.rows;
        self.finish(&target, loaded).await?;
        self.transaction.statement_done();
        Ok(rows)
    }

    /// The table that a statement changes: the one that the transaction makes, or one that all see.
    pub(super) fn target(&self, name: &TableName) -> Result<Arc<Target>> {
        let state = self.services.catalog.state();
        match self.transaction.made().filter(|made| made.table.name == *name) {
            // Younger than the transaction's snapshot, which is no conflict: nobody else has it.
            Some(made) => Target::new(&state, made, self.options).map(Arc::new),
            None => self.target_of(state.find_table(name)?),
        }
    }

    pub(super) fn target_of(&self, table: &Arc<TableState>) -> Result<Arc<Target>> {
        self.new_target(table).map(Arc::new)
    }

    pub(super) fn new_target(&self, table: &Arc<TableState>) -> Result<Target> {
        self.view(None).check(table)?;
        if table.table.kind != TableKind::Base || table.table.primary_key.is_empty() && !table.table.uniques.is_empty()
        {
            return Err(Error::internal(format!("{} is no table to write to", table.table.name)));
        }
        Target::new(&self.services.catalog.state(), table, self.options)
    }

    fn view(&self, with_hidden: Option<Ulid>) -> View {
        View {
            own: self.transaction.own_writes(),
            holders: Arc::new(self.transaction.holders()),
            with_hidden,
            ..View::begin(Arc::clone(self.transaction.begun()))
        }
    }

    pub(super) fn context(&self, with_hidden: Option<Ulid>) -> QueryContext {
        // Its time is that of the whole statement, which drops what it pulls.
        let context = QueryContext::new(&self.login.user, self.options.clone());
        QueryContext { view: Some(Arc::new(self.view(with_hidden))), ..context }
    }

    /// The rows of a query, as the transaction sees them, in edge types.
    pub(super) async fn query(
        &self,
        query: Box<ast::Statement>,
        with_hidden: Option<Ulid>,
    ) -> Result<(SchemaRef, BoxStream<'static, Result<RecordBatch>>)> {
        let context = self.context(with_hidden);
        let state = self.services.catalog.state();
        let statement = PlannerStatement::Statement(query);
        let parameters = self.parameters.as_ref();
        let planned = self.services.planner.plan(Arc::clone(&state), statement.clone(), parameters, &context).await?;
        let schema = Arc::clone(&planned.schema);
        let rows = match planned.source {
            Source::Endpoints(_) => self.pull(planned)?,
            Source::Catalog => {
                let answered = self.services.planner.answer(state, statement, parameters, &context).await?;
                stream::iter(answered.into_iter().map(Ok)).boxed()
            }
            Source::Rows(rows) => stream::iter(rows.into_iter().map(Ok)).boxed(),
        };
        Ok((schema, rows))
    }

    /// The first row of a query that the server has written itself.
    pub async fn first_row(&self, sql: &str) -> Result<Option<RecordBatch>> {
        let query = ast::Statement::Query(Box::new(parse_query(sql)?));
        let (_, mut rows) = self.query(Box::new(query), None).await?;
        while let Some(batch) = rows.try_next().await? {
            if batch.num_rows() > 0 {
                return Ok(Some(batch.slice(0, 1)));
            }
        }
        Ok(None)
    }

    /// The rows of a lookup, in edge types.
    pub(super) async fn lookup(&self, lookup: Lookup<'_>) -> Result<Vec<RecordBatch>> {
        let context = self.context(None);
        let calls = self.services.planner.plan_lookup(&self.services.catalog.state(), &lookup, &context)?;
        let answers = calls.into_iter().map(|call| look_up(&self.services.channels, call));
        Ok(try_join_all(answers).await?.into_iter().flatten().collect())
    }

    fn pull(&self, planned: PlannedQuery) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let Source::Endpoints(endpoints) = planned.source else {
            return Err(Error::internal("rows of the catalog are not pulled"));
        };
        let key = self.services.planner.signing_key(&self.services.catalog.state())?;
        let token = token::issue(&key, self.login, TOKEN_LIFETIME);
        let writes = Arc::clone(self.transaction.writes());
        let rows = pull(Arc::clone(&self.services.channels), token, endpoints);
        Ok(rows.inspect_err(move |error| writes.query_failed(error)).boxed())
    }

    pub(super) fn returning(
        &self,
        items: Option<&Vec<ast::SelectItem>>,
        name: &TargetName,
        target: &Target,
    ) -> Result<Option<Returning>> {
        let of = |items: &Vec<ast::SelectItem>| {
            Returning::new(items, name, &target.table, self.parameters.as_ref(), self.options)
        };
        items.map(of).transpose()
    }

    /// Ends a statement: everything is staged, foreign keys are looked at.
    pub(super) async fn end(
        &mut self,
        target: &Arc<Target>,
        effects: Effects,
        stager: Stager,
        returning: Option<Returning>,
    ) -> Result<Written> {
        self.transaction.absorb(stager.finish().await?);
        let rows = effects.rows;
        self.finish(target, effects).await?;
        Ok(Written { rows, returned: returning.map(Returning::finish) })
    }

    /// Boxed: CASCADE of very many keys comes back here.
    pub(super) fn finish<'b>(&'b mut self, target: &'b Arc<Target>, effects: Effects) -> BoxFuture<'b, Result<()>> {
        Box::pin(self.foreign_keys(target, effects))
    }
}

/// What a client is told about a statement that it prepares.
pub async fn describe(services: &Services, statement: &Statement, context: &QueryContext) -> Result<Described> {
    let state = services.catalog.state();
    let empty = || Arc::new(Schema::empty());
    let (name, items) = match statement {
        Statement::Insert(insert) => (insert_target(insert)?, insert.returning.as_ref()),
        Statement::Update(update) => (TargetName::of(&update.table.relation)?, update.returning.as_ref()),
        Statement::Delete(delete) => (delete_target(delete)?, delete.returning.as_ref()),
        Statement::Merge(merge) => (TargetName::of(&merge.table)?, super::merge::returning(merge)?),
        _ => return Ok(Described { rows: empty(), parameters: empty() }),
    };
    let table = Arc::clone(&state.find_table(&name.name)?.table);
    let mut parameters = match statement {
        Statement::Insert(insert) if plain_values(insert).is_some() || insert.source.is_none() => {
            Insert::new(insert, &table)?.parameters()
        }
        _ => match question(statement, &state)? {
            None => empty(),
            Some((query, with_hidden)) => {
                let view = View { with_hidden, ..View::begin(Arc::clone(&state)) };
                let context = QueryContext { view: Some(Arc::new(view)), ..context.clone() };
                let statement = PlannerStatement::Statement(query);
                services.planner.describe(Arc::clone(&state), statement, &context).await?.1
            }
        },
    };
    if let Statement::Update(update) = statement {
        parameters = with_column_types(&parameters, &super::select::assignments(&update.assignments, &table)?, &table);
    }
    let rows = match items {
        None => empty(),
        Some(items) => {
            // The types of parameters do not matter for the names and types of columns.
            let values = parameters.fields().iter().map(|field| new_null_array(field.data_type(), 1)).collect();
            let options = RecordBatchOptions::new().with_row_count(Some(1));
            let batch = RecordBatch::try_new_with_options(Arc::clone(&parameters), values, &options)?;
            let batch = (batch.num_columns() > 0).then_some(batch);
            let returning = Returning::new(items, &name, &table, batch.as_ref(), &context.options)?;
            Arc::clone(returning.schema())
        }
    };
    Ok(Described { rows, parameters })
}

/// SET column = $1: the parameter has the column's type, which the SELECT does not say.
fn with_column_types(parameters: &SchemaRef, assigned: &[(usize, ast::Expr)], table: &Table) -> SchemaRef {
    let stored = table.arrow_schema();
    let fields = parameters.fields().iter().enumerate().map(|(index, field)| {
        let alone = assigned.iter().find(|(_, value)| placeholder(value) == Some(index + 1));
        match alone {
            Some((position, _)) => stored.field(*position).clone().with_name(field.name()).with_nullable(true),
            None => field.as_ref().clone(),
        }
    });
    edge_schema(&Schema::new(fields.collect::<Vec<Field>>()))
}

/// The table of an INSERT.
pub(super) fn insert_target(insert: &ast::Insert) -> Result<TargetName> {
    let ast::TableObject::TableName(name) = &insert.table else {
        return Err(Error::internal("an INSERT into something that is no table passed the classification"));
    };
    table_name(name)?;
    TargetName::new(name, insert.table_alias.as_ref().map(|alias| &alias.alias))
}

/// Rows of a table, of some of its columns, in whatever types -> rows of the transit schema with NULL in the other columns.
pub(super) fn full_width(
    table: &Table,
    positions: &[usize],
    columns: &[ArrayRef],
    rows: usize,
    first_row: u64,
) -> Result<RecordBatch> {
    let mut full: Vec<Option<ArrayRef>> = vec![None; table.columns.len()];
    for (&position, values) in positions.iter().zip(columns) {
        full[position] = Some(cast_column(values, &nullable(table, position), first_row)?);
    }
    let columns = full.into_iter().zip(&table.columns);
    let columns = columns
        .map(|(values, column)| values.unwrap_or_else(|| new_null_array(&transit_type(column.sql_type), rows)))
        .collect();
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(nullable_schema(table), columns, &options)?)
}

/// Values for a column, in its transit type, checked but for NOT NULL.
pub(super) fn to_transit(table: &Table, position: usize, values: &ArrayRef, first_row: u64) -> Result<ArrayRef> {
    let column = nullable(table, position);
    check_assignable(values.data_type(), &column)?;
    convert_column(values, &column, first_row)
}

/// Checks that a column can have values of a type, before there are any.
pub(super) fn check_type(table: &Table, position: usize, values: &DataType) -> Result<()> {
    check_assignable(values, &nullable(table, position))
}

fn nullable(table: &Table, position: usize) -> Column {
    Column { not_null: false, ..table.columns[position].clone() }
}

/// The transit schema without NOT NULL: old rows have only what is needed of them, and new ones are checked later.
pub(super) fn nullable_schema(table: &Table) -> SchemaRef {
    let transit = transit_schema(table);
    let fields = transit.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Positions of the columns that INSERT ... SELECT fills, with the query's columns under their names.
pub(super) fn renamed(insert: &ast::Insert, table: &Table, schema: &Schema) -> Result<SchemaRef> {
    let positions = target_columns(insert, table)?;
    let given = schema.fields().len();
    let named = !insert.columns.is_empty();
    if given > positions.len() || (named && given < positions.len()) {
        let message = format!("the query has {given} columns for {} columns of table {}", positions.len(), table.name);
        return Err(WireError::new(ErrorCode::InvalidArgument, message)
            .with_hint("name the columns: INSERT INTO table (column, ...) SELECT ...")
            .into());
    }
    let fields = schema.fields().iter().zip(positions).map(|(field, position)| {
        let data_type: &DataType = field.data_type();
        Field::new(&table.columns[position].name, data_type.clone(), true)
    });
    Ok(Arc::new(Schema::new(fields.collect::<Vec<_>>())))
}

/// The batch's columns under other names.
pub(super) fn with_names(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let fields = schema.fields().iter().zip(batch.columns());
    let fields = fields.map(|(field, column)| Field::new(field.name(), column.data_type().clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    Ok(RecordBatch::try_new_with_options(schema, batch.columns().to_vec(), &options)?)
}
