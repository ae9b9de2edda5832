//! How many rows a batch may have, where each repeats a large constant.
//!
//! `SELECT range(100000) FROM t` is folded to a constant of a megabyte, which is copied for each row of a batch. No memory
//! pool sees that; so batches have fewer rows where constants are large.

use datafusion::{
    common::{
        Result as DfResult,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    logical_expr::{Expr, LogicalPlan},
};

/// What the constants of one batch may take.
const MAX_BYTES: usize = 64 << 20;

/// The rows of a batch, at most `batch_rows`, with which no node of an optimized plan makes too much of its constants.
pub(super) fn batch_rows_for(plan: &LogicalPlan, batch_rows: usize) -> DfResult<usize> {
    // A full batch of those that are smaller takes no more than is allowed.
    let large = MAX_BYTES / batch_rows.max(1);
    let mut most = 0;
    plan.apply_with_subqueries(|node| {
        // They are rows by themselves.
        if matches!(node, LogicalPlan::Values(_)) {
            return Ok(TreeNodeRecursion::Continue);
        }
        let mut bytes = 0_usize;
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::Literal(value, _) = expr
                    && value.size() > large
                {
                    bytes = bytes.saturating_add(value.size());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })?;
        most = most.max(bytes);
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok((MAX_BYTES / most.max(1)).clamp(1, batch_rows))
}
