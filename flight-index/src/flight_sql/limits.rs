//! Statements end in time: when their `statement_timeout` is over, and when nobody waits for them any more.

use std::{future::Future, sync::Arc};

use arrow::array::RecordBatch;
use datafusion::sql::sqlparser::ast;
use drsdb_core::{Error, Result, time_limit::TimeLimit};
use tokio_util::task::AbortOnDropHandle;

use super::{FlightSqlServer, execute::planner_statement, service::Caller};
use crate::planner::{PlannedQuery, QueryContext};

impl Caller {
    /// The time of a statement that is taken up now, or once more.
    pub(super) fn limit(&self) -> TimeLimit {
        TimeLimit::begin(self.session.timeouts().statement, self.spent)
    }
}

impl FlightSqlServer {
    /// Plans a query, as the caller's transaction sees the tables.
    pub(super) async fn plan(
        &self,
        query: Box<ast::Statement>,
        parameters: Option<RecordBatch>,
        caller: &Caller,
    ) -> Result<PlannedQuery> {
        let limit = caller.limit();
        let (state, context) = limit.keep(self.view_of(caller)).await?;
        let context = QueryContext { limit, resume: caller.resume, ..context };
        let planner = Arc::clone(&self.planner);
        apart(&context.clone(), async move {
            planner.plan(state, planner_statement(query), parameters.as_ref(), &context).await
        })
        .await
    }
}

/// Plans or computes in a task of its own, within the statement's time. What keeps a thread busy for long is dropped only
/// when it next waits for something: the caller is told in time nevertheless, and joins look whether it is over.
pub(super) async fn apart<T: Send + 'static>(
    context: &QueryContext,
    run: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let _over = context.over.clone().drop_guard();
    let task = AbortOnDropHandle::new(tokio::spawn(run));
    let ended = async move { task.await.unwrap_or_else(|panic| Err(Error::internal(format!("it failed: {panic}")))) };
    context.limit.keep(ended).await
}
