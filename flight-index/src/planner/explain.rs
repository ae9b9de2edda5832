//! EXPLAIN: the plans as text, and where the query's endpoints are.

use std::{sync::Arc, time::Duration};

use arrow::{
    array::{RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use datafusion::{
    logical_expr::LogicalPlan,
    physical_plan::{ExecutionPlan, display::DisplayableExecutionPlan},
    sql::{parser::Statement, sqlparser::ast},
};
use datafusion_distributed::display_plan_ascii;
use drsdb_core::{Result, edge::edge_schema};

use super::{PlannedQuery, Source, cut_endpoints::Cutter};

/// What an EXPLAIN asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Explain {
    /// The plan.
    Plan {
        /// With the plan before optimization, and each server's shards.
        verbose: bool,
    },
    /// The plan, run, with what each part of it did.
    Analyze,
}

/// Takes EXPLAIN off a statement.
pub fn unwrap(statement: Statement) -> Result<(Statement, Option<Explain>)> {
    match statement {
        Statement::Explain(explain) => {
            let kind = if explain.options.analyze {
                Explain::Analyze
            } else {
                Explain::Plan { verbose: explain.options.verbose }
            };
            Ok((*explain.statement, Some(kind)))
        }
        Statement::Statement(inner) => match *inner {
            ast::Statement::Explain { analyze, verbose, statement, .. } => {
                let kind = if analyze { Explain::Analyze } else { Explain::Plan { verbose } };
                Ok((Statement::Statement(statement), Some(kind)))
            }
            other => Ok((Statement::Statement(Box::new(other)), None)),
        },
        other => Ok((other, None)),
    }
}

/// The columns of every EXPLAIN.
pub fn report_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("plan_type", DataType::Utf8, false),
        Field::new("plan", DataType::Utf8, false),
    ]))
}

/// An EXPLAIN whose report is made here.
pub fn planned_report() -> PlannedQuery {
    PlannedQuery { schema: report_schema(), source: Source::Catalog, ordered: true, rows_estimate: None, resume: None }
}

/// The rows of EXPLAIN ANALYZE for a query that an index server answered itself.
pub fn analyzed(plan: &Arc<dyn ExecutionPlan>, rows: usize, elapsed: Duration) -> Result<Vec<RecordBatch>> {
    let text = DisplayableExecutionPlan::with_metrics(plan.as_ref()).indent(false).to_string();
    table_of(vec![
        ("Plan with Metrics", text),
        ("Servers", "an index server: it reads no rows of tables".to_owned()),
        ("Output Rows", rows.to_string()),
        ("Duration", format!("{elapsed:?}")),
    ])
}

fn table_of(rows: Vec<(&str, String)>) -> Result<Vec<RecordBatch>> {
    let (kinds, texts): (Vec<&str>, Vec<String>) = rows.into_iter().unzip();
    Ok(vec![RecordBatch::try_new(
        report_schema(),
        vec![Arc::new(StringArray::from(kinds)), Arc::new(StringArray::from(texts))],
    )?])
}

/// The rows of EXPLAIN without ANALYZE.
pub fn report(
    logical: &LogicalPlan,
    physical: Arc<dyn ExecutionPlan>,
    cutter: &Cutter<'_>,
    verbose: bool,
) -> Result<Vec<RecordBatch>> {
    let mut rows: Vec<(&str, String)> = Vec::new();
    if verbose {
        rows.push(("initial_logical_plan", logical.display_indent_schema().to_string()));
    }
    let optimized = cutter.session.state.optimize(logical)?;
    rows.push(("logical_plan", optimized.display_indent().to_string()));
    rows.push(("physical_plan", display_plan_ascii(physical.as_ref(), false)));
    let edge = edge_schema(logical.schema().as_arrow());
    let planned = cutter.cut(physical, edge)?;
    let endpoints = match &planned.source {
        Source::Catalog | Source::Rows(_) => "1 endpoint: the catalog, on an index server".to_owned(),
        Source::Endpoints(endpoints) => {
            let mut text = format!("{} endpoint{}", endpoints.len(), if endpoints.len() == 1 { "" } else { "s" });
            for (number, endpoint) in endpoints.iter().enumerate() {
                let locations = if verbose {
                    endpoint.locations.join(", ")
                } else {
                    format!("{} locations", endpoint.locations.len())
                };
                text += &format!("\n{}: ticket of {} bytes, {locations}", number + 1, endpoint.ticket.len());
            }
            text
        }
    };
    rows.push(("endpoints", endpoints));
    table_of(rows)
}
