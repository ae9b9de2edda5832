//! EXPLAIN ANALYZE: a plan that has run, and what each server did for it.

use std::{collections::BTreeMap, fmt::Write, sync::Arc, time::Duration};

use datafusion::{
    common::Result as DfResult,
    physical_plan::{
        ExecutionPlan,
        metrics::{Metric, MetricValue},
    },
};
use datafusion_distributed::{
    DISTRIBUTED_DATAFUSION_TASK_ID_LABEL, DistributedMetricsFormat, NetworkBoundaryExt, display_plan_ascii,
    rewrite_distributed_plan_with_metrics,
};
use drsdb_core::scan::ShardScanExec;
use url::Url;

use super::session::servers_of_stage;

/// The plan with what each of its nodes counted, and then what each server did. Waits for the reports of all of them.
pub async fn report(plan: Arc<dyn ExecutionPlan>, head: &Url, workers: &[Url]) -> DfResult<(String, String)> {
    let plan = rewrite_distributed_plan_with_metrics(plan, DistributedMetricsFormat::PerTask).await?;
    let mut servers = Servers { head, workers, work: BTreeMap::new() };
    servers.note_stage(&plan, std::slice::from_ref(head))?;
    Ok((display_plan_ascii(plan.as_ref(), true), servers.text()))
}

/// What one server did.
#[derive(Debug, Default)]
struct Work {
    /// Rows that its scans read.
    rows: usize,
    /// Bytes that they read from files: none of what was in memory.
    bytes: usize,
    /// What all its nodes computed for, on all threads together.
    time: Duration,
}

struct Servers<'a> {
    head: &'a Url,
    workers: &'a [Url],
    work: BTreeMap<Url, Work>,
}

impl Servers<'_> {
    /// Adds up a stage, whose tasks ran on `servers`, and the stages that it takes its rows from.
    fn note_stage(&mut self, node: &Arc<dyn ExecutionPlan>, servers: &[Url]) -> DfResult<()> {
        let is_scan = node.downcast_ref::<ShardScanExec>().is_some();
        // A scan may leave out what the filters above it would drop, and counts it then.
        let counts_read =
            node.metrics().is_some_and(|metrics| metrics.iter().any(|metric| metric.value().name() == "rows_read"));
        for metric in node.metrics().iter().flat_map(|metrics| metrics.iter()) {
            let Some(server) = servers.get(task_of(metric)) else { continue };
            let work = self.work.entry(server.clone()).or_default();
            match metric.value() {
                MetricValue::OutputRows(rows) if is_scan && !counts_read => work.rows += rows.value(),
                MetricValue::Count { name, count } if is_scan && name == "rows_read" => work.rows += count.value(),
                MetricValue::Count { name, count } if is_scan && name == "bytes_read" => work.bytes += count.value(),
                MetricValue::ElapsedCompute(time) => work.time += Duration::from_nanos(time.value() as u64),
                _ => {}
            }
        }
        if let Some(boundary) = node.as_network_boundary() {
            let stage = boundary.input_stage();
            let Some(plan) = stage.local_plan() else { return Ok(()) };
            let servers = servers_of_stage(plan, stage.task_count(), self.head, self.workers)?;
            return self.note_stage(plan, &servers);
        }
        node.children().into_iter().try_for_each(|child| self.note_stage(child, servers))
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (url, Work { rows, bytes, time }) in &self.work {
            let url = url.as_str().trim_end_matches('/');
            let line = format!("{url}: {rows} rows scanned, {bytes} bytes read from files, {time:.1?} computed\n");
            text.write_str(&line).expect("text grows");
        }
        text.trim_end().to_owned()
    }
}

/// The task that counted; the only one where none is named.
fn task_of(metric: &Metric) -> usize {
    let label = metric.labels().iter().find(|label| label.name() == DISTRIBUTED_DATAFUSION_TASK_ID_LABEL);
    label.and_then(|label| label.value().parse().ok()).unwrap_or(0)
}
