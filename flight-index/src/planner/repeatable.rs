//! Whether a query gives the same rows in the same order whenever it is run at one snapshot. Then a client that has some of
//! them can go on elsewhere with the rest. A pure function of the plan as the analyzer leaves it: the optimizer has put no
//! time in the place of `now()` yet.
//!
//! Two things are asked:
//!
//! 1. *Which* rows there are depends on nothing but the tables: no clock, no chance, no order in which rows are met. What a
//!    node is not known to fulfil here, it does not: a LIMIT below the top, windows, sums of floats, recursion.
//! 2. *Where* a row is depends on the row. The top sorts, and two rows that its keys do not tell apart are equal in all that
//!    the client sees of them, so that nobody can tell which of the two came first.
//!
//! The second is asked of [`Dependency`]s, which are followed from the tables' primary keys through the plan (Armstrong's
//! rules: Ullman, *Principles of Database Systems*, chapter 7). DataFusion's own forget most of them at a join, and tell of
//! keys what holds no more above it.
//!
//! ```text
//! Sort: o.id                                  o.id determines o.customer, that is c.id, and that c.name
//!   Projection: o.id, c.name                  {o.id} → {c.name}
//!     Join: o.customer = c.id                 {o.id} → {o.customer}, {o.customer} ↔ {c.id}, {c.id} → {c.name}
//! ```

use std::collections::BTreeSet;

use arrow::datatypes::DataType;
use datafusion::{
    common::{Column, Constraint, DFSchema, JoinType, tree_node::TreeNode},
    logical_expr::{
        Aggregate, BinaryExpr, Distinct, Expr, ExprSchemable, Join, LogicalPlan, Operator, Sort, TableScan, Volatility,
        expr::{AggregateFunction, AggregateFunctionParams, Exists, InSubquery, SetComparison},
        utils::split_conjunction,
    },
};

use super::sharded_table::scanned_table;

/// Columns of a node, by position.
type Columns = BTreeSet<usize>;

/// Rows that agree on the columns `from` agree on the columns `to`. NULLs agree.
#[derive(Debug, Clone)]
struct Dependency {
    from: Columns,
    to: Columns,
}

/// What is known of the rows of a node that has the same ones whenever it is run, in whatever order.
#[derive(Debug)]
struct Rows {
    dependencies: Vec<Dependency>,
    /// By column, whether its values are a table's, as they are stored. Of these floats, equal ones have equal bytes.
    stored: Vec<bool>,
}

/// Whether the rows come in one order only, each time the plan is run at the same snapshot.
pub fn is_repeatable(plan: &LogicalPlan) -> bool {
    let mut plan = plan;
    // The columns that the client sees something of.
    let mut seen: Columns = (0..plan.schema().fields().len()).collect();
    loop {
        match plan {
            LogicalPlan::Projection(projection) => {
                let schema = projection.input.schema();
                // A subquery becomes a join above the sort, and joins keep no order.
                let exprs = seen.iter().map(|&at| &projection.expr[at]);
                let read = exprs.map(|expr| is_deterministic(expr).then(|| columns_of(expr, schema)).flatten());
                let Some(read) = read.collect::<Option<Vec<Columns>>>() else { return false };
                if projection.expr.iter().any(has_subquery) {
                    return false;
                }
                seen = read.into_iter().flatten().collect();
                plan = &projection.input;
            }
            LogicalPlan::Limit(limit) => {
                let counts = limit.skip.iter().chain(&limit.fetch);
                if !counts.into_iter().all(|count| is_deterministic(count) && !has_subquery(count)) {
                    return false;
                }
                plan = &limit.input;
            }
            LogicalPlan::Sort(sort) => return tells_apart(sort, &seen),
            _ => return false,
        }
    }
}

/// Whether rows that agree on all keys of the sort agree on the columns `seen`.
fn tells_apart(sort: &Sort, seen: &Columns) -> bool {
    let Some(rows) = rows_of(&sort.input) else { return false };
    let schema = sort.input.schema();
    let keys = || sort.expr.iter().map(|key| &key.expr);
    let sound = |key: &Expr| is_deterministic(key) && !has_subquery(key) && has_one_form(key, schema, &rows);
    keys().all(sound) && seen.is_subset(&rows.determined_by(&keys().filter_map(|key| column_of(key, schema)).collect()))
}

impl Rows {
    /// Nothing is known of the columns.
    fn unknown(columns: usize) -> Self {
        Self { dependencies: Vec::new(), stored: vec![false; columns] }
    }

    fn columns(&self) -> Columns {
        (0..self.stored.len()).collect()
    }

    /// All columns on which rows agree that agree on `columns`.
    fn determined_by(&self, columns: &Columns) -> Columns {
        determined_by(&self.dependencies, columns)
    }

    /// Adds what rows have in common that fulfil a condition.
    fn that_fulfil(mut self, condition: &Expr, schema: &DFSchema) -> Self {
        self.dependencies.extend(equalities(condition, schema));
        self
    }
}

fn determined_by(dependencies: &[Dependency], columns: &Columns) -> Columns {
    let mut known = columns.clone();
    loop {
        let before = known.len();
        for Dependency { from, to } in dependencies {
            if from.is_subset(&known) {
                known.extend(to);
            }
        }
        if known.len() == before {
            return known;
        }
    }
}

/// The rows of a node; `None`: they may be others the next time.
fn rows_of(plan: &LogicalPlan) -> Option<Rows> {
    match plan {
        LogicalPlan::TableScan(scan) => scanned(scan),
        LogicalPlan::SubqueryAlias(alias) => rows_of(&alias.input),
        LogicalPlan::Filter(filter) => {
            let rows = rows_of(&filter.input)?;
            is_deterministic(&filter.predicate).then(|| rows.that_fulfil(&filter.predicate, filter.input.schema()))
        }
        LogicalPlan::Projection(projection) => {
            computed(&projection.expr, projection.input.schema(), &rows_of(&projection.input)?)
        }
        LogicalPlan::Aggregate(aggregate) => aggregated(aggregate),
        LogicalPlan::Join(join) => joined(join),
        LogicalPlan::Distinct(Distinct::All(input)) => {
            let rows = rows_of(input)?;
            let mut columns = input.schema().fields().iter().zip(&rows.stored);
            // Of several forms of one value, any may be the one that stays.
            let one_form = columns.all(|(field, &stored)| stored || !has_forms(field.data_type()));
            one_form.then_some(rows)
        }
        LogicalPlan::Union(union) => {
            let inputs = union.inputs.iter().map(|input| rows_of(input)).collect::<Option<Vec<_>>>()?;
            let mut rows = Rows::unknown(union.schema.fields().len());
            if inputs.iter().any(|input| input.stored.len() != rows.stored.len()) {
                return None;
            }
            for (at, stored) in rows.stored.iter_mut().enumerate() {
                *stored = inputs.iter().all(|input| input.stored[at]);
            }
            Some(rows)
        }
        LogicalPlan::Sort(sort) if sort.fetch.is_none() => {
            let rows = rows_of(&sort.input)?;
            sort.expr.iter().all(|key| is_deterministic(&key.expr)).then_some(rows)
        }
        LogicalPlan::Values(values) => {
            let constant = values.values.iter().flatten().all(is_deterministic);
            constant.then(|| Rows::unknown(values.schema.fields().len()))
        }
        LogicalPlan::EmptyRelation(empty) => Some(Rows::unknown(empty.schema.fields().len())),
        _ => None,
    }
}

/// A users' table. System tables show what changes without a commit.
fn scanned(scan: &TableScan) -> Option<Rows> {
    scanned_table(scan)?;
    if scan.fetch.is_some() || !scan.filters.iter().all(is_deterministic) {
        return None;
    }
    let columns = scan.projected_schema.fields().len();
    let projected = |at: &usize| match &scan.projection {
        None => Some(*at),
        Some(projection) => projection.iter().position(|column| column == at),
    };
    let constraints = scan.source.constraints().into_iter().flat_map(|constraints| constraints.iter());
    let keys = constraints.filter_map(|constraint| match constraint {
        Constraint::PrimaryKey(key) => key.iter().map(projected).collect::<Option<Columns>>(),
        // Any number of rows may have NULL there.
        Constraint::Unique(_) => None,
    });
    let dependencies = keys.map(|from| Dependency { from, to: (0..columns).collect() }).collect();
    Some(Rows { dependencies, stored: vec![true; columns] })
}

/// The rows of expressions over rows of `schema`.
fn computed(exprs: &[Expr], schema: &DFSchema, input: &Rows) -> Option<Rows> {
    if !exprs.iter().all(is_deterministic) {
        return None;
    }
    let plain: Vec<Option<usize>> = exprs.iter().map(|expr| column_of(expr, schema)).collect();
    // What a subquery depends on does not show in its columns.
    let read: Vec<Option<Columns>> =
        exprs.iter().map(|expr| if has_subquery(expr) { None } else { columns_of(expr, schema) }).collect();
    let above = |columns: &Columns| {
        columns.iter().map(|&column| plain.iter().position(|&of| of == Some(column))).collect::<Option<Columns>>()
    };
    let computed_from =
        read.iter().zip(&plain).filter(|(_, plain)| plain.is_none()).filter_map(|(read, _)| read.as_ref());
    let mut dependencies = Vec::new();
    // Nobody has to see them.
    let constants = input.determined_by(&Columns::new());
    for below in input.dependencies.iter().map(|dependency| &dependency.from).chain(computed_from) {
        let below: Columns = below.difference(&constants).copied().collect();
        let Some(from) = above(&below) else { continue };
        let known = input.determined_by(&below);
        let is_known = |at: &usize| read[*at].as_ref().is_some_and(|read| read.is_subset(&known));
        let to = (0..exprs.len()).filter(is_known).collect();
        dependencies.push(Dependency { from, to });
    }
    let stored = plain.iter().map(|column| column.is_some_and(|column| input.stored[column])).collect();
    Some(Rows { dependencies, stored })
}

fn aggregated(aggregate: &Aggregate) -> Option<Rows> {
    let input = rows_of(&aggregate.input)?;
    let schema = aggregate.input.schema();
    if !aggregate.aggr_expr.iter().all(|expr| is_exact(expr, schema, &input)) {
        return None;
    }
    let groups = aggregate.group_expr.iter().flat_map(|expr| match expr {
        Expr::GroupingSet(set) => set.distinct_expr(),
        other => vec![other],
    });
    if !groups.into_iter().all(|expr| is_deterministic(expr) && has_one_form(expr, schema, &input)) {
        return None;
    }
    let columns = aggregate.schema.fields().len();
    if aggregate.group_expr.iter().any(|expr| matches!(expr, Expr::GroupingSet(_))) {
        return Some(Rows::unknown(columns));
    }
    let mut rows = computed(&aggregate.group_expr, schema, &input)?;
    let from = rows.columns();
    rows.stored.resize(columns, false);
    rows.dependencies.push(Dependency { from, to: rows.columns() });
    Some(rows)
}

/// Whether an aggregate of rows is the same in whatever order they come.
fn is_exact(expr: &Expr, schema: &DFSchema, input: &Rows) -> bool {
    let Expr::AggregateFunction(AggregateFunction { func, params }) = without_aliases(expr) else { return false };
    let AggregateFunctionParams { args, distinct: _, filter, order_by, null_treatment } = params;
    if !order_by.is_empty() || null_treatment.is_some() {
        return false;
    }
    let is_of = |fits: fn(&DataType) -> bool| args.iter().all(|arg| arg.get_type(schema).is_ok_and(|of| fits(&of)));
    let exact = match func.name() {
        "count" | "min" | "max" | "single_value" => args.iter().all(|arg| has_one_form(arg, schema, input)),
        "sum" => is_of(|of| of.is_integer() || of.is_decimal()),
        // Of integers it is a sum of floats.
        "avg" => is_of(DataType::is_decimal),
        "bit_and" | "bit_or" | "bit_xor" => is_of(DataType::is_integer),
        "bool_and" | "bool_or" => is_of(|of| *of == DataType::Boolean),
        _ => false,
    };
    exact && args.iter().all(is_deterministic) && filter.iter().all(|filter| is_deterministic(filter))
}

fn joined(join: &Join) -> Option<Rows> {
    let (mut left, mut right) = (rows_of(&join.left)?, rows_of(&join.right)?);
    let (left_schema, right_schema) = (join.left.schema(), join.right.schema());
    let conditions = || join.on.iter().flat_map(|(one, other)| [one, other]).chain(&join.filter);
    if !conditions().all(is_deterministic) {
        return None;
    }
    match join.join_type {
        JoinType::LeftSemi | JoinType::LeftAnti => return Some(left),
        JoinType::RightSemi | JoinType::RightAnti => return Some(right),
        JoinType::LeftMark => {
            left.stored.push(false);
            return Some(left);
        }
        JoinType::RightMark => {
            right.stored.push(false);
            return Some(right);
        }
        JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => {}
    }
    let (of_left, of_right) = (left.stored.len(), right.stored.len());
    let schema = &join.schema;
    if schema.fields().len() != of_left + of_right {
        return None;
    }
    let shifted = |columns: &Columns| columns.iter().map(|column| column + of_left).collect::<Columns>();
    let (left_columns, right_columns) = (left.columns(), shifted(&right.columns()));
    let left_dependencies = left.dependencies;
    let right_dependencies: Vec<Dependency> = right
        .dependencies
        .iter()
        .map(|Dependency { from, to }| Dependency { from: shifted(from), to: shifted(to) })
        .collect();

    // What holds of pairs that match.
    let mut matched = left_dependencies.clone();
    matched.extend(right_dependencies.iter().cloned());
    for (one, other) in &join.on {
        if let (Some(one), Some(other)) = (column_of(one, left_schema), column_of(other, right_schema)) {
            matched.extend(equality(one, other + of_left, schema));
        }
    }
    if let Some(filter) = &join.filter {
        matched.extend(equalities(filter, schema));
    }

    let asked = match conditions().any(has_subquery) {
        true => None,
        false => conditions().map(|expr| columns_of(expr, schema)).collect::<Option<Vec<Columns>>>(),
    };
    let asked: Option<Columns> = asked.map(|of_each| of_each.into_iter().flatten().collect());
    let never_null = |column: usize| match column.checked_sub(of_left) {
        None => !left_schema.field(column).is_nullable(),
        Some(column) => !right_schema.field(column).is_nullable(),
    };
    // A side that is filled up with NULLs: rows of NULLs alone agree with each other, and must not with a row that matches.
    let filled = |mut dependencies: Vec<Dependency>| {
        dependencies.retain(|Dependency { from, .. }| from.iter().any(|&column| never_null(column)));
        dependencies
    };
    // What the other side is asked for decides whether there is a match, and which, where it can be only one.
    let only_match = |kept: &Columns, filled: &Columns| {
        let from: Columns = asked.as_ref()?.intersection(kept).copied().collect();
        filled.is_subset(&determined_by(&matched, &from)).then(|| Dependency { from, to: filled.clone() })
    };
    let dependencies = match join.join_type {
        JoinType::Inner => matched,
        JoinType::Left => {
            let only = only_match(&left_columns, &right_columns);
            left_dependencies.into_iter().chain(filled(right_dependencies)).chain(only).collect()
        }
        JoinType::Right => {
            let only = only_match(&right_columns, &left_columns);
            right_dependencies.into_iter().chain(filled(left_dependencies)).chain(only).collect()
        }
        _ => filled(left_dependencies).into_iter().chain(filled(right_dependencies)).collect(),
    };
    left.stored.append(&mut right.stored);
    Some(Rows { dependencies, stored: left.stored })
}

/// Which columns are equal, or constant, in rows that fulfil a condition.
fn equalities(condition: &Expr, schema: &DFSchema) -> Vec<Dependency> {
    let mut found = Vec::new();
    for part in split_conjunction(condition) {
        let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) = part else { continue };
        match (column_of(left, schema), column_of(right, schema)) {
            (Some(one), Some(other)) => found.extend(equality(one, other, schema)),
            (Some(column), None) if is_constant(right) => found.extend(constant(column, schema)),
            (None, Some(column)) if is_constant(left) => found.extend(constant(column, schema)),
            _ => {}
        }
    }
    found
}

fn equality(one: usize, other: usize, schema: &DFSchema) -> Vec<Dependency> {
    if has_forms(schema.field(one).data_type()) || has_forms(schema.field(other).data_type()) {
        return Vec::new();
    }
    let (one, other) = (Columns::from([one]), Columns::from([other]));
    vec![Dependency { from: one.clone(), to: other.clone() }, Dependency { from: other, to: one }]
}

fn constant(column: usize, schema: &DFSchema) -> Option<Dependency> {
    let one_form = !has_forms(schema.field(column).data_type());
    one_form.then(|| Dependency { from: Columns::new(), to: Columns::from([column]) })
}

fn is_constant(expr: &Expr) -> bool {
    matches!(expr, Expr::Literal(..))
}

/// Whether values of a type may be equal and not have the same bytes, such as 0.0 and -0.0.
fn has_forms(of: &DataType) -> bool {
    of.is_floating() || of.is_nested()
}

/// Whether equal values of an expression have the same bytes.
fn has_one_form(expr: &Expr, schema: &DFSchema, rows: &Rows) -> bool {
    column_of(expr, schema).is_some_and(|column| rows.stored[column])
        || expr.get_type(schema).is_ok_and(|of| !has_forms(&of))
}

/// Whether an expression has the same value for the same row whenever and wherever it is computed. Aggregates are
/// [`is_exact`]'s matter.
fn is_deterministic(expr: &Expr) -> bool {
    let varies = |part: &Expr| match part {
        Expr::Alias(_)
        | Expr::Column(_)
        | Expr::OuterReferenceColumn(..)
        | Expr::Literal(..)
        | Expr::BinaryExpr(_)
        | Expr::Like(_)
        | Expr::SimilarTo(_)
        | Expr::Not(_)
        | Expr::IsNull(_)
        | Expr::IsNotNull(_)
        | Expr::IsTrue(_)
        | Expr::IsFalse(_)
        | Expr::IsUnknown(_)
        | Expr::IsNotTrue(_)
        | Expr::IsNotFalse(_)
        | Expr::IsNotUnknown(_)
        | Expr::Negative(_)
        | Expr::Between(_)
        | Expr::Case(_)
        | Expr::Cast(_)
        | Expr::TryCast(_)
        | Expr::InList(_) => false,
        Expr::ScalarFunction(call) => call.func.signature().volatility != Volatility::Immutable,
        Expr::Exists(Exists { subquery, .. })
        | Expr::InSubquery(InSubquery { subquery, .. })
        | Expr::SetComparison(SetComparison { subquery, .. })
        | Expr::ScalarSubquery(subquery) => rows_of(&subquery.subquery).is_none(),
        _ => true,
    };
    !expr.exists(|part| Ok(varies(part))).unwrap_or(true)
}

fn has_subquery(expr: &Expr) -> bool {
    let is_one = |part: &Expr| {
        matches!(part, Expr::Exists(_) | Expr::InSubquery(_) | Expr::SetComparison(_) | Expr::ScalarSubquery(_))
    };
    expr.exists(|part| Ok(is_one(part))).unwrap_or(true)
}

/// The columns that an expression is computed from; `None` if one is not of `schema`.
fn columns_of(expr: &Expr, schema: &DFSchema) -> Option<Columns> {
    expr.column_refs().into_iter().map(|column| position(column, schema)).collect()
}

/// The column that an expression is, under whatever name.
fn column_of(expr: &Expr, schema: &DFSchema) -> Option<usize> {
    match without_aliases(expr) {
        Expr::Column(column) => position(column, schema),
        _ => None,
    }
}

/// Where a column is; `None` where its name alone does not tell.
fn position(column: &Column, schema: &DFSchema) -> Option<usize> {
    let namesakes = || schema.fields().iter().filter(|field| field.name() == &column.name).count();
    if column.relation.is_none() && namesakes() > 1 { None } else { schema.maybe_index_of_column(column) }
}

fn without_aliases(mut expr: &Expr) -> &Expr {
    while let Expr::Alias(alias) = expr {
        expr = &alias.expr;
    }
    expr
}

#[cfg(test)]
mod tests;
