//! DDL that looks at more than its own text: ALTER TABLE, CREATE TABLE AS, views, comments. What is to be is worked out
//! here from one state of the catalog, and proposed together with what it relies on; when the catalog has moved on
//! meanwhile, it is worked out again.

use std::sync::Arc;

use drsdb_core::{ErrorCode, Result, Table, TableName, Ulid, WireError, ids::new_ulid, time_limit::TimeLimit};

use super::{
    FlightSqlServer,
    service::Caller,
    write::{self, pause},
};
use crate::{
    catalog::{CatalogState, Command},
    dml::{Executor, key_text},
    load::LoadOutcome,
    statement::{
        self, AlterTable, Altered, ColumnClause, CommentOn, CreateTable, CreateView, Need, Statement, column_names,
        parse_expression, quoted,
    },
    transaction::Transaction,
};

/// How often a change is worked out anew.
const ATTEMPTS: u32 = 5;

impl FlightSqlServer {
    /// ALTER TABLE; the version at which it took effect.
    pub(super) async fn alter_table(&self, alter: &AlterTable, caller: &Caller) -> Result<u64> {
        // Of all attempts together.
        let limit = caller.limit();
        let mut attempt = 1;
        loop {
            match self.try_alter(alter, caller, limit).await {
                Err(error) if error.code() == ErrorCode::Conflict && attempt < ATTEMPTS => {
                    limit.keep(pause(attempt, &error)).await?;
                    attempt += 1;
                }
                done => return done,
            }
        }
    }

    async fn try_alter(&self, alter: &AlterTable, caller: &Caller, limit: TimeLimit) -> Result<u64> {
        let context = &caller.context();
        let state = self.current_state().await?;
        if alter.if_exists && state.table_by_name(&alter.name).is_none() && state.view(&alter.name).is_none() {
            return Ok(state.version());
        }
        let known = state.find_table(&alter.name)?.clone();
        let parents = |name: &TableName| Ok(state.find_table(name)?.table.clone());
        let Altered { mut table, added, mut needs, cascade } = alter.alter(&known.table, &parents)?;
        self.planner.check_definition(&state, &table, context)?;
        for position in added {
            let default = self.planner.default_now(&state, &table.columns[position], context)?;
            if default.differs {
                let name = &table.columns[position].name;
                needs.push(Need::Empty(format!("the DEFAULT of column {name} is another one for each row")));
            }
            table.columns[position].initial = default.literal;
        }
        // The rows that are there, and those of commits until this one is applied, must be as they were checked.
        let unchanged_since = (!needs.is_empty()).then_some(state.version());
        if known.rows() > 0 {
            for need in &needs {
                self.check_rows(&state, (&known.table, &table), need, caller, limit).await?;
            }
        }
        let seen = known.table.version;
        let command = Command::AlterTable { table, seen, unchanged_since, cascade, exact_keys: true };
        self.propose(command, caller.statement).await
    }

    /// Checks that the rows that are there are as the new definition wants them. They are read with the old one.
    async fn check_rows(
        &self,
        state: &Arc<CatalogState>,
        (before, after): (&Table, &Table),
        need: &Need,
        caller: &Caller,
        limit: TimeLimit,
    ) -> Result<()> {
        let refused = |why: String, hint: &str| {
            let message = format!("table {} has rows, and {why}", before.name);
            WireError::new(ErrorCode::Unsupported, message).with_hint(hint).with_field("table", &before.name)
        };
        let copy = "create a table as it is to be, and copy the rows with INSERT ... SELECT";
        let name = |position: usize| quoted(&before.columns[position].name).to_string();
        // The rows that are refused, and how the first one is told.
        let (condition, violation) = match need {
            Need::Empty(why) => {
                let hint =
                    "give it a DEFAULT that is the same for all rows, or add it without NOT NULL and UPDATE the rows";
                return Err(refused(why.clone(), hint).into());
            }
            // Of rows that are there, an added column has its one initial value.
            Need::NotNull(position) if *position >= before.columns.len() => match after.columns[*position].initial {
                Some(_) => return Ok(()),
                None => ("true".to_owned(), Violation::not_null(after, *position)),
            },
            Need::NotNull(position) => (format!("{} IS NULL", name(*position)), Violation::not_null(before, *position)),
            Need::Constraint(constraint) => {
                let on_old = |columns: &[usize]| columns.iter().all(|&column| column < before.columns.len());
                if let Some(check) = after.checks.iter().find(|check| check.name == *constraint) {
                    let columns = column_names(&parse_expression(&check.sql)?)?;
                    let is_same = |column: &String| {
                        let position = before.column_position(column);
                        position.is_some() && position == after.column_position(column)
                    };
                    if !columns.iter().all(is_same) {
                        let why = format!("constraint {constraint} is about a column that is added or renamed with it");
                        return Err(refused(why, "add the column first, and the constraint afterwards").into());
                    }
                    let what = format!("does not have {}", check.sql);
                    (format!("NOT ({})", check.sql), Violation::of(before, constraint, what))
                } else if let Some(key) = after.foreign_keys.iter().find(|key| key.name == *constraint) {
                    let parent = state.table(key.parent).map(|parent| &parent.table);
                    let (true, Some(parent)) = (on_old(&key.columns), parent) else {
                        // A column that is added without a default refers to nothing.
                        let default = key.columns.iter().any(|&column| after.columns[column].initial.is_some());
                        let why = format!("constraint {constraint} is about a column that is added with a DEFAULT");
                        return if default { Err(refused(why, copy).into()) } else { Ok(()) };
                    };
                    let mut known = Vec::new();
                    let mut equal = Vec::new();
                    for (&column, &referenced) in key.columns.iter().zip(&key.parent_columns) {
                        let referenced = quoted(&parent.columns[referenced].name);
                        known.push(format!("child.{} IS NOT NULL", name(column)));
                        equal.push(format!("parent.{referenced} = child.{}", name(column)));
                    }
                    let from = table_text(&parent.name);
                    let (known, equal) = (known.join(" AND "), equal.join(" AND "));
                    let what = format!("refers to a row that is not in table {}", parent.name);
                    (
                        format!("{known} AND NOT EXISTS (SELECT 1 FROM {from} AS parent WHERE {equal})"),
                        Violation::of(before, constraint, what),
                    )
                } else {
                    let unique = after.uniques.iter().find(|key| key.name == *constraint);
                    let nulls =
                        |&column: &usize| column >= before.columns.len() && after.columns[column].initial.is_none();
                    if unique.is_some_and(|key| key.columns.iter().any(nulls)) {
                        // Keys with a NULL in them are not kept.
                        return Ok(());
                    }
                    let why = format!("the keys of constraint {constraint} would have to be gathered");
                    return Err(refused(why, copy).into());
                }
            }
        };
        let key = if before.has_user_key() { before.primary_key.as_slice() } else { &[] };
        let shown = match key {
            [] => "1".to_owned(),
            key => key.iter().map(|&at| format!("child.{}", name(at))).collect::<Vec<_>>().join(", "),
        };
        let sql = format!("SELECT {shown} FROM {} AS child WHERE {condition} LIMIT 1", table_text(&before.name));
        let mut transaction = self.writes.begin(Arc::clone(state));
        let mut attempt = 1;
        let found = loop {
            let options = caller.session.options();
            let executor = Executor::new(&self.services, &caller.login, options, &mut transaction);
            match limit.keep(executor.first_row(&sql)).await {
                Err(error) if error.code() == ErrorCode::Unavailable && attempt < write::ATTEMPTS => {
                    tracing::debug!(%error, attempt, "rows are looked at again");
                    limit.keep(pause(attempt, &error)).await?;
                    attempt += 1;
                }
                found => break found,
            }
        };
        transaction.abort().await;
        let Some(row) = found? else { return Ok(()) };
        let key_of_row = (!key.is_empty()).then(|| {
            let names: Vec<&str> = key.iter().map(|&at| before.columns[at].name.as_str()).collect();
            (names.join(", "), key_text(row.columns(), 0))
        });
        Err(violation.error(key_of_row).into())
    }

    /// CREATE TABLE AS: with its rows it is a statement that writes, and without them a plain CREATE TABLE.
    pub(super) async fn create_table_as(&self, create: Box<CreateTable>, caller: &Caller) -> Result<LoadOutcome> {
        if create.query.as_ref().is_some_and(|source| source.with_data) {
            return Ok(self.write(&Statement::CreateTable(create), None, caller).await?.1);
        }
        let state = self.current_state().await?;
        if create.if_not_exists && state.table_by_name(&create.name).is_some() {
            return Ok(LoadOutcome { rows: 0, version: state.version() });
        }
        let create = self.with_columns_of_query(&state, &create, caller).await?;
        let version = self.create_table(&create, caller.statement).await?;
        Ok(LoadOutcome { rows: 0, version })
    }

    /// Makes the table of a CREATE TABLE AS, and gives the INSERT that fills it; `None`: IF NOT EXISTS, and one is there.
    pub(super) async fn make_table_of_query(
        &self,
        create: &CreateTable,
        caller: &Caller,
        transaction: &mut Transaction,
    ) -> Result<Option<Statement>> {
        let state = Arc::clone(transaction.begun());
        if create.if_not_exists && state.table_by_name(&create.name).is_some() {
            return Ok(None);
        }
        let plain = self.with_columns_of_query(&state, create, caller).await?;
        if !self.make_table(&plain, caller, transaction).await? {
            return Ok(None);
        }
        let query = create.query.as_ref().map(|source| source.query.to_string()).unwrap_or_default();
        statement::parse(&format!("INSERT INTO {} {query}", table_text(&create.name))).map(Some)
    }

    /// Makes a table that the transaction is to fill; false: IF NOT EXISTS, and one is there.
    pub(super) async fn make_table(
        &self,
        create: &CreateTable,
        caller: &Caller,
        transaction: &mut Transaction,
    ) -> Result<bool> {
        let definition = self.definition(transaction.begun(), create)?;
        match transaction.make_table(definition, caller.statement).await {
            Ok(()) => Ok(true),
            Err(error) => {
                let exists = create.if_not_exists && self.catalog.state().table_by_name(&create.name).is_some();
                // An earlier run of the statement may have made it, which whoever gets the error finds out.
                if exists && self.done_before(caller)?.is_none() { Ok(false) } else { Err(error) }
            }
        }
    }

    /// CREATE TABLE with the columns of its query.
    async fn with_columns_of_query(
        &self,
        state: &Arc<CatalogState>,
        create: &CreateTable,
        caller: &Caller,
    ) -> Result<CreateTable> {
        let Some(source) = &create.query else {
            return Err(drsdb_core::Error::internal("CREATE TABLE AS without a query"));
        };
        let (state, sql) = (Arc::clone(state), source.query.to_string());
        let columns = self.planner.describe_columns(state, &sql, &source.names, &caller.context()).await?;
        let columns =
            columns.into_iter().map(|column| ColumnClause::new(column.name, column.sql_type, false)).collect();
        Ok(CreateTable { columns, query: None, ..create.clone() })
    }

    /// CREATE VIEW.
    pub(super) async fn create_view(&self, create: &CreateView, caller: &Caller) -> Result<u64> {
        let context = &caller.context();
        let mut attempt = 1;
        loop {
            let state = self.current_state().await?;
            if create.if_not_exists && state.view(&create.name).is_some() {
                return Ok(state.version());
            }
            let named = (new_ulid(), &create.name);
            let view = self.planner.describe_view(state, named, create.query.to_string(), &create.columns, context);
            let (or_replace, if_not_exists) = (create.or_replace, create.if_not_exists);
            let command = Command::CreateView { view: view.await?, or_replace, if_not_exists };
            match self.propose(command, caller.statement).await {
                Err(error) if error.code() == ErrorCode::Conflict && attempt < ATTEMPTS => attempt += 1,
                done => return done,
            }
        }
    }

    /// COMMENT ON.
    pub(super) async fn comment(
        &self,
        on: CommentOn,
        if_exists: bool,
        text: Option<String>,
        statement: Option<Ulid>,
    ) -> Result<u64> {
        let state = self.current_state().await?;
        let (name, column) = match on {
            CommentOn::Table(name) => {
                if !if_exists {
                    state.find_table(&name)?;
                }
                (name, None)
            }
            CommentOn::View(name) => {
                if !if_exists {
                    state.find_view(&name)?;
                }
                (name, None)
            }
            CommentOn::Column(name, column) => (name, Some(column)),
        };
        if if_exists && state.table_by_name(&name).is_none() && state.view(&name).is_none() {
            return Ok(state.version());
        }
        self.propose(Command::Comment { name, column, text }, statement).await
    }
}

/// What rows that are there are not, as an error tells it.
struct Violation {
    error: WireError,
    /// What the first row that is found is or does.
    what: String,
}

impl Violation {
    fn of(table: &Table, constraint: &str, what: String) -> Self {
        let message = format!("{constraint} of table {} does not hold", table.name);
        let error = WireError::new(ErrorCode::ConstraintViolation, message)
            .with_hint("UPDATE or DELETE such rows first")
            .with_field("constraint", constraint)
            .with_field("table", &table.name);
        Self { error, what }
    }

    fn not_null(table: &Table, position: usize) -> Self {
        let column = &table.columns[position].name;
        let Self { error, .. } = Self::of(table, &table.not_null_name(position), String::new());
        let message = format!("column {column} of table {} cannot be NOT NULL", table.name);
        let what = format!("has NULL in {column}");
        Self { error: WireError { message, ..error }.with_field("column", column), what }
    }

    /// `key`: the names and values of the row's key, if it has one.
    fn error(self, key: Option<(String, String)>) -> WireError {
        let Self { error, what } = self;
        let (which, error) = match key {
            Some((names, values)) => (format!("the row ({names}) = ({values})"), error.with_field("key", values)),
            None => ("a row".to_owned(), error),
        };
        WireError { message: format!("{}: {which} {what}", error.message), ..error }
    }
}

/// A table's name in SQL.
fn table_text(name: &TableName) -> String {
    format!("{}.{}", quoted(&name.schema), quoted(&name.table))
}
