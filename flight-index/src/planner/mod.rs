//! From SQL to tickets.
//!
//! # Life of a query on the index server
//!
//! 1. [`Planner::plan`] turns the statement into a logical plan over [`catalog_view`]: the tables of one catalog state,
//!    whose version becomes the query's snapshot, and the [`system_tables`] made of it. [`expand_views`] plans the views that
//!    it reads; [`windows`] has window functions say all in names and arguments; [`single_rows`] has a subquery that stands
//!    for a value give one row; [`in_subqueries`] has IN know of NULL, and [`compared_names`] keeps apart what a subquery
//!    compares; [`approximate`] has decimals beside floats become floats. What DataFusion's analyzer makes of that, where
//!    [`flat_coalesce`] is one of the rewrites, has its types, and so it is known which columns clients see.
//! 2. DataFusion optimizes it; [`filter_pushdown`] keeps it from taking one column for its namesake. [`sharded_table`]
//!    answers its questions about a table; [`prune_shards`] leaves out shards that cannot hold a match; [`batch_rows`] has
//!    batches be small where constants are large.
//! 3. [`choose_replicas`] picks the replica of each shard that is read, and [`stamp_servers`] gives all leaves the same list
//!    of servers: those that read any shard for the query.
//! 4. [`distribute`] tells datafusion-distributed how many tasks a stage has, and it places the exchanges.
//! 5. [`cut_endpoints`] turns the plan into tickets: one for each storage server when nothing has to be exchanged at the
//!    top, else one, redeemed at the server that becomes the query's head.
//!
//! An answer whose order is [`repeatable`] says where it can go on ([`resume`]), should it break off.
//!
//! All of it happens [`mod@apart`] from the service.
//!
//! Invariant: no row of a table comes here. The only rows an index server computes are about the catalog itself
//! ([`Planner::answer`]), or constants of a statement.

mod apart;
mod approximate;
mod batch_rows;
mod catalog_view;
mod choose_replicas;
mod compared_names;
mod cut_endpoints;
mod definitions;
mod distribute;
mod expand_views;
mod explain;
mod filter_pushdown;
mod flat_coalesce;
mod id_text;
mod in_lists;
mod in_subqueries;
mod lookup;
mod name_errors;
mod placeholders;
mod prune_shards;
mod query_planner;
mod repeatable;
mod resume;
mod sharded_table;
mod single_rows;
mod stamp_servers;
mod system_tables;
mod table_functions;
mod unique_names;
mod view;
mod windows;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use arrow::{
    array::RecordBatch,
    datatypes::{Field, FieldRef, Schema, SchemaRef},
};
use bytes::Bytes;
use datafusion::{
    catalog::TableFunction,
    common::{ParamValues, ScalarValue, tree_node::TreeNodeRecursion},
    execution::{
        FunctionRegistry, SessionState, SessionStateBuilder, TaskContext,
        memory_pool::MemoryConsumer,
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    logical_expr::LogicalPlan,
    physical_plan::{ExecutionPlan, execute_stream},
    sql::parser::Statement,
};
use datafusion_distributed::{DistributedExt, SessionStateBuilderExt};
use drsdb_core::{
    Error, Result,
    checked_arithmetic::{CheckIntegers, register_functions},
    edge::{EdgeConverter, edge_schema},
    floats::canonical_scalar,
    interval_order::CompareIntervals,
    query_session::{QueryOptions, apply_options, options_of, session_config, session_like},
    security::keys::SigningKey,
    time_limit::TimeLimit,
    wanted::register_wanted,
};
use futures::TryStreamExt;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

pub(crate) use approximate::{exponents_in, stay_approximate_expr};
pub use explain::report_schema as explain_schema;
pub(crate) use id_text::ParseIds;
pub(crate) use in_lists::simplify_apart;
pub use lookup::{Lookup, LookupCall, MAX_LOOKUP_KEYS};
pub use name_errors::explain_column;
pub use resume::Resume;
pub use system_tables::{NoSystem, RaftNode, StorageNode, SystemSource, TransactionsOf};
pub use view::{Holders, View};

use self::{
    apart::{answer_apart, apart},
    sharded_table::scanned_table,
};
use crate::{
    catalog::CatalogState,
    replication::{ResumedSnapshots, Suspects},
};

/// Who asks, and how the query is to run.
#[derive(Debug, Clone)]
pub struct QueryContext {
    /// The user to whom tickets are bound.
    pub user: String,
    /// Session options.
    pub options: QueryOptions,
    /// What a transaction sees, or an answer that goes on; `None`: the catalog's state as it is given.
    pub view: Option<Arc<View>>,
    /// The answer that goes on; `None`: it begins.
    pub resume: Option<Resume>,
    /// How long the statement may take: what is left goes into its tickets.
    pub limit: TimeLimit,
    /// Cancelled when nobody waits for what is computed here any more.
    pub over: CancellationToken,
}

impl QueryContext {
    /// Of a query that belongs to no transaction.
    pub fn new(user: impl Into<String>, options: QueryOptions) -> Self {
        let (limit, over) = (TimeLimit::NONE, CancellationToken::new());
        Self { user: user.into(), options, view: None, resume: None, limit, over }
    }

    /// The version at which rows are read.
    fn snapshot(&self, state: &CatalogState) -> u64 {
        self.view.as_ref().map_or(state.version(), |view| view.snapshot)
    }
}

/// What the index server knows how to do with a statement that returns rows.
#[derive(Debug, Clone)]
pub struct PlannedQuery {
    /// What clients see; every endpoint streams it.
    pub schema: SchemaRef,
    /// Where the rows are.
    pub source: Source,
    /// The endpoints' rows, one after the other, are in the statement's order.
    pub ordered: bool,
    /// Rows, about; `None` when unknown.
    pub rows_estimate: Option<u64>,
    /// Where the answer can go on; `None`: other rows may come the next time, or in another order.
    pub resume: Option<Resume>,
}

/// Where a query's rows are.
#[derive(Debug, Clone)]
pub enum Source {
    /// On storage servers.
    Endpoints(Vec<PlannedEndpoint>),
    /// In the catalog: [`Planner::answer`] computes them when they are pulled.
    Catalog,
    /// Here: the statement names tables, and none of their shards can hold a match. That is so at this snapshot only, so
    /// the statement must not be planned again when its rows are pulled.
    Rows(Vec<RecordBatch>),
}

/// One ticket, and the servers that redeem it.
#[derive(Debug, Clone)]
pub struct PlannedEndpoint {
    /// Sealed.
    pub ticket: Bytes,
    /// `https://host:port` of storage servers, the best first; at most [`MAX_LOCATIONS`] in all endpoints of a query.
    pub locations: Vec<String>,
}

/// Distinct locations in one answer, at most: a widely used driver caches 20 connections and breaks above that.
pub const MAX_LOCATIONS: usize = 16;

/// In a parameter's metadata: nothing in the statement says of which type it is, and its value will.
const ANY_TYPE_KEY: &str = "drsdb.any_type";

/// Memory for all answers that an index server computes itself.
const ANSWER_MEMORY_BYTES: usize = 64 * 1024 * 1024;

/// Turns statements into tickets.
pub struct Planner {
    ticket_lifetime: Duration,
    table_functions: HashMap<String, Arc<TableFunction>>,
    runtime: Arc<RuntimeEnv>,
    /// A session that has what all have, made by the first.
    functions: OnceLock<SessionState>,
    /// What system tables show of this server.
    system: Arc<dyn SystemSource>,
    /// Storage servers that queries go around.
    suspects: Suspects,
    /// What is read of answers that go on.
    resumed: ResumedSnapshots,
    /// The signing key, parsed once; it never changes after the cluster's bootstrap.
    key: Mutex<Option<Arc<SigningKey>>>,
}

impl fmt::Debug for Planner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Planner").field("ticket_lifetime", &self.ticket_lifetime).finish_non_exhaustive()
    }
}

impl Planner {
    /// A planner whose tickets live that long.
    pub fn new(ticket_lifetime: Duration) -> Self {
        let runtime = RuntimeEnvBuilder::new().with_memory_limit(ANSWER_MEMORY_BYTES, 1.0).build_arc();
        let runtime = runtime.expect("a memory limit alone is always a valid runtime");
        Self {
            ticket_lifetime,
            table_functions: table_functions::table_functions(),
            runtime,
            functions: OnceLock::new(),
            system: Arc::new(NoSystem),
            suspects: Suspects::default(),
            resumed: ResumedSnapshots::default(),
            key: Mutex::new(None),
        }
    }

    /// The same planner, whose system tables show what `system` knows.
    pub fn with_system(mut self, system: Arc<dyn SystemSource>) -> Self {
        self.system = system;
        self
    }

    /// The same planner, which goes around servers that do not answer.
    pub fn avoiding(mut self, suspects: Suspects) -> Self {
        self.suspects = suspects;
        self
    }

    /// The same planner, which tells `resumed` what is read of answers that go on.
    pub fn keeping(mut self, resumed: ResumedSnapshots) -> Self {
        self.resumed = resumed;
        self
    }

    /// Plans a statement that returns rows. `parameters` has one row: the values of `$1`, `$2`, ...
    pub async fn plan(
        self: &Arc<Self>,
        state: Arc<CatalogState>,
        statement: Statement,
        parameters: Option<&RecordBatch>,
        context: &QueryContext,
    ) -> Result<PlannedQuery> {
        let (planner, parameters, context) = (Arc::clone(self), parameters.cloned(), context.clone());
        apart(async move { planner.plan_here(state, statement, parameters.as_ref(), &context).await }).await
    }

    async fn plan_here(
        &self,
        state: Arc<CatalogState>,
        statement: Statement,
        parameters: Option<&RecordBatch>,
        context: &QueryContext,
    ) -> Result<PlannedQuery> {
        let (statement, explain) = explain::unwrap(statement)?;
        let mut session = self.session(&state, context)?;
        let logical = self.logical_plan(&session, statement, parameters).await?;
        let resume = match explain {
            None => Resume::of(&logical, &state, &session, context)?,
            Some(_) => None,
        };
        if let Some(asked) = context.resume {
            if resume != Some(asked) {
                return Err(resume::something_changed());
            }
            self.resumed.note(asked.snapshot, Instant::now());
        }
        match explain {
            None => {
                let schema = edge_schema(logical.schema().as_arrow());
                let physical = session.physical_plan(logical.clone()).await?;
                if names_tables(&logical)? && cut_endpoints::is_constant_only(&physical)? {
                    let rows = edge_rows(physical, Arc::clone(&schema), &session).await?;
                    let rows_estimate = Some(rows.iter().map(|batch| batch.num_rows() as u64).sum());
                    let source = Source::Rows(rows);
                    return Ok(PlannedQuery { schema, source, ordered: true, rows_estimate, resume });
                }
                let key = self.signing_key(&state)?;
                let cut = self.cutter(&state, &session, context, &key);
                let planned = cut.cut(physical, schema)?;
                // Rows of several endpoints come in no order.
                let in_one = matches!(&planned.source, Source::Endpoints(endpoints) if endpoints.len() == 1);
                Ok(PlannedQuery { resume: resume.filter(|_| in_one), ..planned })
            }
            Some(explain::Explain::Plan { .. }) => Ok(explain::planned_report()),
            Some(explain::Explain::Analyze) => {
                let physical = session.physical_plan(logical).await?;
                if cut_endpoints::is_catalog_only(&physical)? {
                    return Ok(explain::planned_report());
                }
                let key = self.signing_key(&state)?;
                let cut = self.cutter(&state, &session, context, &key);
                cut.analyze(physical, explain::report_schema())
            }
        }
    }

    /// Computes the rows of a statement whose [`Source`] is the catalog.
    pub async fn answer(
        self: &Arc<Self>,
        state: Arc<CatalogState>,
        statement: Statement,
        parameters: Option<&RecordBatch>,
        context: &QueryContext,
    ) -> Result<Vec<RecordBatch>> {
        let (planner, parameters, context) = (Arc::clone(self), parameters.cloned(), context.clone());
        answer_apart(async move { planner.answer_here(state, statement, parameters.as_ref(), &context).await }).await
    }

    async fn answer_here(
        &self,
        state: Arc<CatalogState>,
        statement: Statement,
        parameters: Option<&RecordBatch>,
        context: &QueryContext,
    ) -> Result<Vec<RecordBatch>> {
        let (statement, explain) = explain::unwrap(statement)?;
        let mut session = self.session(&state, context)?;
        let logical = self.logical_plan(&session, statement, parameters).await?;
        let physical = session.physical_plan(logical.clone()).await?;
        if let Some(explain::Explain::Plan { verbose }) = explain {
            let key = self.signing_key(&state)?;
            let cut = self.cutter(&state, &session, context, &key);
            return explain::report(&logical, physical, &cut, verbose);
        }
        if !cut_endpoints::is_catalog_only(&physical)? {
            return Err(Error::internal("rows of tables are computed on storage servers only"));
        }
        if explain == Some(explain::Explain::Analyze) {
            let started = Instant::now();
            let batches = collect_bounded(Arc::clone(&physical), session.state.task_ctx()).await?;
            let rows = batches.iter().map(RecordBatch::num_rows).sum();
            return explain::analyzed(&physical, rows, started.elapsed());
        }
        edge_rows(physical, edge_schema(logical.schema().as_arrow()), &session).await
    }

    /// The edge schema of a statement's rows, and the schema of its parameters.
    pub async fn describe(
        self: &Arc<Self>,
        state: Arc<CatalogState>,
        statement: Statement,
        context: &QueryContext,
    ) -> Result<(SchemaRef, SchemaRef)> {
        let (planner, context) = (Arc::clone(self), context.clone());
        apart(async move { planner.describe_here(state, statement, &context).await }).await
    }

    async fn describe_here(
        &self,
        state: Arc<CatalogState>,
        statement: Statement,
        context: &QueryContext,
    ) -> Result<(SchemaRef, SchemaRef)> {
        let (statement, explain) = explain::unwrap(statement)?;
        let session = self.session(&state, context)?;
        let counts = placeholders::counts(&statement);
        let logical = self.logical_plan(&session, statement, None).await?;
        let mut parameters: Vec<(String, _)> = logical.get_parameter_fields()?.into_iter().collect();
        parameters.sort_by_key(|(name, _)| name.trim_start_matches('$').parse::<u32>().unwrap_or(u32::MAX));
        let typed = match parameters.iter().any(|(_, field)| field.is_none()) {
            true => session.with_nulls(logical.clone(), &parameters).unwrap_or(logical),
            false => logical,
        };
        let fields = parameters.into_iter().map(|(name, field)| match field {
            Some(field) => field.as_ref().clone().with_name(name).with_nullable(true),
            None if counts.contains(&name) => Field::new(name, arrow::datatypes::DataType::Int64, true),
            None => Field::new(name, arrow::datatypes::DataType::Utf8, true)
                .with_metadata([(ANY_TYPE_KEY.to_owned(), "true".to_owned())].into()),
        });
        let parameters = edge_schema(&Schema::new(fields.collect::<Vec<_>>()));
        let rows = if explain.is_some() { explain::report_schema() } else { edge_schema(typed.schema().as_arrow()) };
        Ok((rows, parameters))
    }

    async fn logical_plan(
        &self,
        session: &PlanSession,
        statement: Statement,
        parameters: Option<&RecordBatch>,
    ) -> Result<LogicalPlan> {
        expand_views::expand_views(session, &statement).await?;
        let plan = session.logical_plan(unique_names::tell_apart(statement)).await?;
        let plan = match parameters {
            None => plan,
            Some(batch) => {
                let mut values = parameter_values(batch)?;
                id_text::parse_parameters(&mut values, &plan.get_parameter_fields()?)?;
                // Some parameters have a type only now.
                approximate::stay_approximate(plan.with_param_values(ParamValues::from(values))?)?
            }
        };
        session.with_types(plan)
    }

    fn cutter<'a>(
        &'a self,
        state: &'a CatalogState,
        session: &'a PlanSession,
        context: &'a QueryContext,
        key: &'a SigningKey,
    ) -> cut_endpoints::Cutter<'a> {
        cut_endpoints::Cutter { state, session, context, key, lifetime: self.ticket_lifetime, suspects: &self.suspects }
    }

    fn session(&self, state: &Arc<CatalogState>, context: &QueryContext) -> Result<PlanSession> {
        let catalog = Arc::new(catalog_view::CatalogView::new(
            Arc::clone(state),
            context.view.clone(),
            Arc::clone(&self.system),
            context.options.clone(),
        ));
        let workers = stamp_servers::Workers::default();
        let stamper = stamp_servers::Stamper {
            state: Arc::clone(state),
            suspects: self.suspects.clone(),
            workers: workers.clone(),
        };
        let mut options = context.options.clone();
        if options.target_partitions == 0 {
            options.target_partitions = state.servers().map(|server| server.cores as usize).min().unwrap_or(1);
        }
        // With one partition, datafusion-distributed sees nothing to bring together, and makes no exchange.
        options.target_partitions = options.target_partitions.max(2);
        let config = session_config(&options)?
            // The catalog has its own, which knows of constraints and of what is hidden.
            .with_information_schema(false)
            // It compares fields down to what they say of SQL types, of which a set operation keeps the first input's.
            .set_bool("datafusion.execution.skip_physical_aggregate_schema_check", true)
            .with_extension(Arc::new(stamper))
            .with_distributed_worker_resolver(workers.clone())
            .with_distributed_desired_task_count_handler(distribute::desired_task_count)
            .with_distributed_scale_up_leaf_node_handler(distribute::scale_up_leaf);
        // What the library's planner wants of a config.
        let mut config = SessionStateBuilder::new().with_config(config).with_distributed_planner();
        let config = std::mem::take(config.config()).unwrap_or_default();
        let mut state = session_like(self.all_functions()?, config)?;
        state.register_catalog_list(Arc::clone(&catalog) as _);
        register_wanted(&mut state, context.over.clone())?;
        Ok(PlanSession { state, catalog, workers })
    }

    /// What all sessions have in common.
    fn all_functions(&self) -> Result<&SessionState> {
        if let Some(all) = self.functions.get() {
            return Ok(all);
        }
        let mut state = SessionStateBuilder::new()
            .with_default_features()
            .with_runtime_env(Arc::clone(&self.runtime))
            .with_table_functions(self.table_functions.clone())
            .with_optimizer_rules(in_lists::optimizer_rules())
            .with_physical_optimizer_rules(filter_pushdown::physical_optimizer_rules())
            .with_query_planner(Arc::new(query_planner::StampingPlanner))
            .with_distributed_planner()
            .build();
        register_functions(&mut state)?;
        state.register_function_rewrite(Arc::new(CheckIntegers::default()))?;
        state.register_function_rewrite(Arc::new(CompareIntervals::default()))?;
        state.register_function_rewrite(Arc::new(flat_coalesce::FlatCoalesce))?;
        state.register_function_rewrite(Arc::new(ParseIds))?;
        state.register_expr_planner(Arc::new(ParseIds))?;
        Ok(self.functions.get_or_init(|| state))
    }

    /// The cluster's key, which signs tickets and tokens.
    pub fn signing_key(&self, state: &CatalogState) -> Result<Arc<SigningKey>> {
        let mut key = self.key.lock();
        if let Some(key) = key.as_ref() {
            return Ok(Arc::clone(key));
        }
        let cluster = state.require_cluster()?;
        let parsed = Arc::new(SigningKey::from_pkcs8(&cluster.signing_key_pkcs8)?);
        *key = Some(Arc::clone(&parsed));
        Ok(parsed)
    }
}

/// Whether a statement reads tables of users, as it is written.
fn names_tables(plan: &LogicalPlan) -> Result<bool> {
    let mut names = false;
    plan.apply_with_subqueries(|node| {
        names |= matches!(node, LogicalPlan::TableScan(scan) if scanned_table(scan).is_some());
        Ok(if names { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(names)
}

/// The rows of a plan that the index server answers itself, as clients see them.
async fn edge_rows(plan: Arc<dyn ExecutionPlan>, edge: SchemaRef, session: &PlanSession) -> Result<Vec<RecordBatch>> {
    let converter = EdgeConverter::new(&plan.schema(), edge)?;
    let batches = collect_bounded(plan, session.state.task_ctx()).await?;
    batches.iter().map(|batch| converter.convert(batch)).collect()
}

/// All rows of a plan that the index server answers itself, within the memory that it has for answers.
async fn collect_bounded(plan: Arc<dyn ExecutionPlan>, context: Arc<TaskContext>) -> Result<Vec<RecordBatch>> {
    let held = MemoryConsumer::new("rows of the answer").register(context.memory_pool());
    let mut stream = execute_stream(plan, context)?;
    let mut batches = Vec::new();
    while let Some(batch) = stream.try_next().await? {
        held.try_grow(batch.get_array_memory_size())?;
        batches.push(batch);
    }
    Ok(batches)
}

/// What one statement is planned in.
struct PlanSession {
    state: SessionState,
    catalog: Arc<catalog_view::CatalogView>,
    workers: stamp_servers::Workers,
}

impl PlanSession {
    /// The plan of a statement as it is written, all of whose views are known.
    async fn logical_plan(&self, statement: Statement) -> Result<LogicalPlan> {
        let plan = self.state.statement_to_plan(approximate::exponents(statement)).await;
        let plan = plan.map_err(|error| name_errors::explain(error, &self.catalog))?;
        let plan = windows::spell_out_windows(plan)?;
        let plan = single_rows::check_single_rows(plan)?;
        let plan = in_subqueries::three_valued(plan)?;
        let plan = compared_names::tell_compared_apart(plan)?;
        Ok(approximate::stay_approximate(plan)?)
    }

    /// The plan as the analyzer leaves it: only then have CASE and set operations the type that all their branches have, and
    /// not the first one's. A plan whose parameters have no values yet, nor types, stays as it is.
    fn with_types(&self, plan: LogicalPlan) -> Result<LogicalPlan> {
        let parameters = plan.get_parameter_fields()?;
        if parameters.values().any(Option::is_none) {
            return Ok(plan);
        }
        let checked = self.state.analyzer().execute_and_check(plan, self.state.config_options(), |_, _| {});
        checked.map_err(in_subqueries::explain)
    }

    /// A plan with types whose parameters are NULLs, those of any type too.
    fn with_nulls(&self, plan: LogicalPlan, parameters: &[(String, Option<FieldRef>)]) -> Result<LogicalPlan> {
        let null = |field: &Option<FieldRef>| match field {
            Some(field) => ScalarValue::try_new_null(field.data_type()),
            None => Ok(ScalarValue::Utf8(None)),
        };
        let nulls = parameters.iter().map(|(_, field)| null(field)).collect::<Result<Vec<_>, _>>()?;
        self.with_types(plan.with_param_values(ParamValues::from(nulls))?)
    }

    /// The optimized plan of one that has types.
    fn optimized(&self, plan: LogicalPlan) -> Result<LogicalPlan> {
        Ok(self.state.optimizer().optimize(plan, &self.state, |_, _| {})?)
    }

    /// The physical plan of one that has types. What runs it must take the batches' size from the session's config.
    async fn physical_plan(&mut self, plan: LogicalPlan) -> Result<Arc<dyn ExecutionPlan>> {
        let optimized = self.optimized(plan)?;
        let mut options = options_of(self.state.config());
        let rows = batch_rows::batch_rows_for(&optimized, options.batch_rows)?;
        if rows < options.batch_rows {
            options.batch_rows = rows;
            let config = self.state.config_mut();
            apply_options(config.options_mut(), &options);
            config.options_mut().extensions.insert(options);
        }
        let physical = self.state.query_planner().create_physical_plan(&optimized, &self.state).await;
        physical.map_err(in_subqueries::explain)
    }
}

fn parameter_values(batch: &RecordBatch) -> Result<Vec<ScalarValue>> {
    if batch.num_rows() != 1 {
        return Err(Error::new(
            drsdb_core::ErrorCode::InvalidArgument,
            format!("a query takes one row of parameters, not {}: execute it once for each row", batch.num_rows()),
        ));
    }
    // As a column would have them: they are compared with some.
    let values = batch.columns().iter().map(|column| ScalarValue::try_from_array(column, 0).map(canonical_scalar));
    Ok(values.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests;
