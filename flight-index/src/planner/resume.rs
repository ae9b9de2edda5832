//! Where an answer goes on that broke off: the snapshot at which it was planned, and what its plan depended on beside the
//! statement. Clients get both with a repeatable answer, as a text that only index servers read, and send them back.
//!
//! It needs no signature: one that a client made up reads another snapshot for that client alone, and fails where versions are
//! gone. It may hold back compaction, which a true one may as well, sent over and over, and so may an open transaction.

use std::{
    collections::BTreeSet,
    fmt::{self, Write},
    str::FromStr,
};

use datafusion::{common::tree_node::TreeNodeRecursion, logical_expr::LogicalPlan};
use drsdb_core::{Error, ErrorCode, Result, Ulid, WireError, security::digest::sha256};

use super::{PlanSession, QueryContext, repeatable::is_repeatable, sharded_table::scanned_table};
use crate::catalog::CatalogState;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// The version at which rows are read.
    pub snapshot: u64,
    /// Tells apart plans of one statement that differ in the definitions of what it reads, or in the session's settings.
    basis: u64,
}

impl Resume {
    /// Of an analyzed plan; `None`: its rows, or their order, may be others the next time.
    pub(super) fn of(
        plan: &LogicalPlan,
        state: &CatalogState,
        session: &PlanSession,
        context: &QueryContext,
    ) -> Result<Option<Self>> {
        // What a transaction has written it can take back, and then its number tells nothing.
        let changes = context.view.as_ref().is_some_and(|view| view.own.is_some());
        if changes || !is_repeatable(plan) {
            return Ok(None);
        }
        Ok(Some(Self { snapshot: context.snapshot(state), basis: basis(plan, state, session, context)? }))
    }
}

/// The error of an answer that cannot go on.
pub(super) fn something_changed() -> Error {
    WireError::new(ErrorCode::Conflict, "the rest of the answer cannot be had: what it is made of was altered")
        .with_hint("run the query again")
        .into()
}

fn basis(plan: &LogicalPlan, state: &CatalogState, session: &PlanSession, context: &QueryContext) -> Result<u64> {
    let mut tables: BTreeSet<(Ulid, u64)> = BTreeSet::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            tables.extend(scanned_table(scan).map(|table| (table.id(), table.definition_version())));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    let mut text = format!("{:?}", (&context.options.time_zone, tables));
    for view in session.catalog.planned_views().iter().filter_map(|name| state.view(name)) {
        let names = view.columns.iter().map(|column| &column.name).collect::<Vec<_>>();
        // Writing to a text cannot fail.
        let _ = write!(text, "{:?}", (&view.name, &view.sql, &view.query_columns, names));
    }
    let digest = sha256(text.as_bytes());
    Ok(u64::from_be_bytes(*digest.first_chunk().expect("SHA-256 has more than 8 bytes")))
}

impl fmt::Display for Resume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.snapshot, self.basis)
    }
}

impl FromStr for Resume {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (snapshot, basis) = text.split_once('-')?;
            Some(Self { snapshot: snapshot.parse().ok()?, basis: u64::from_str_radix(basis, 16).ok()? })
        };
        parse().ok_or_else(|| Error::new(ErrorCode::InvalidArgument, "this is not where an answer goes on"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_text_stands_for_it() {
        let resume = Resume { snapshot: 17, basis: u64::MAX - 1 };
        assert_eq!(resume.to_string(), "17-fffffffffffffffe");
        assert_eq!(resume.to_string().parse::<Resume>().unwrap(), resume);
        for text in ["", "17", "-3", "17-", "17-xyz", "x-0"] {
            assert_eq!(text.parse::<Resume>().unwrap_err().code(), ErrorCode::InvalidArgument, "{text}");
        }
    }
}
