//! MERGE: one question that joins both sides and says for each pair what is to be done.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, BooleanArray, RecordBatch},
    compute::{cast, filter, filter_record_batch},
    datatypes::{DataType, Field, Int64Type, Schema},
};
use datafusion::sql::sqlparser::ast::{
    self, CaseWhen, Expr, MergeAction, MergeClauseKind, MergeInsertKind, SelectItem, Value,
};
use drsdb_core::{ErrorCode, Result, Table, WireError};
use futures::StreamExt;

use super::{
    effects::Effects,
    executor::{Executor, Written, full_width, nullable_schema, to_transit},
    select::{Question, TargetName, assignments, of_merge, refused},
    target::describe,
    update::Seen,
};
use crate::{
    load::{
        Converter,
        insert::{default_expression, is_default},
        unknown_column,
    },
    statement::simple_name,
};

/// What each WHEN does, and the question that says where.
pub(super) struct Plan {
    pub question: Question,
    actions: Vec<Action>,
}

/// Of one WHEN. Columns are given with the number of their value.
enum Action {
    Update(Vec<(usize, usize)>),
    Delete,
    Insert(Vec<(usize, usize)>),
}

/// The items of MERGE ... RETURNING.
pub fn returning(merge: &ast::Merge) -> Result<Option<&Vec<SelectItem>>> {
    match &merge.output {
        None => Ok(None),
        Some(ast::OutputClause::Returning { select_items, .. }) => Ok(Some(select_items)),
        Some(ast::OutputClause::Output { .. }) => Err(refused("OUTPUT", "write RETURNING")),
    }
}

impl Plan {
    pub fn new(merge: &ast::Merge, target: &TargetName, table: &Table) -> Result<Self> {
        let identity = table.primary_key.first().map(|&at| target.column(&table.columns[at].name));
        let identity = identity.ok_or_else(|| drsdb_core::Error::internal("a table whose rows have no identity"))?;
        let (mut actions, mut conditions, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let mut inserts = false;
        for clause in &merge.clauses {
            let matched = match clause.clause_kind {
                MergeClauseKind::Matched => Expr::IsNotNull(Box::new(identity.clone())),
                MergeClauseKind::NotMatched | MergeClauseKind::NotMatchedByTarget => {
                    inserts = true;
                    Expr::IsNull(Box::new(identity.clone()))
                }
                MergeClauseKind::NotMatchedBySource => {
                    return Err(refused(
                        "MERGE ... WHEN NOT MATCHED BY SOURCE",
                        "follow the MERGE with UPDATE or DELETE ... WHERE NOT EXISTS",
                    ));
                }
            };
            let condition = match &clause.predicate {
                Some(predicate) => and(matched, predicate.clone()),
                None => matched,
            };
            let mut value = |value: Expr| {
                values.push((actions.len(), value));
                values.len() - 1
            };
            let is_matched = clause.clause_kind == MergeClauseKind::Matched;
            let action = match &clause.action {
                MergeAction::Update(update) if is_matched => {
                    if update.update_predicate.is_some() || update.delete_predicate.is_some() {
                        return Err(refused("MERGE ... UPDATE ... WHERE", "write WHEN MATCHED AND condition THEN"));
                    }
                    let assigned = assignments(&update.assignments, table)?;
                    Action::Update(assigned.into_iter().map(|(at, expr)| (at, value(expr))).collect())
                }
                MergeAction::Delete { .. } if is_matched => Action::Delete,
                MergeAction::Insert(insert) if !is_matched => {
                    let columns = insert_columns(insert, table)?;
                    let mut given = Vec::with_capacity(columns.len());
                    for (position, expr) in columns {
                        given.push((position, value(expr)));
                    }
                    Action::Insert(given)
                }
                _ => {
                    let message = format!("WHEN {} THEN {} makes no sense", clause.clause_kind, clause.action);
                    return Err(WireError::new(ErrorCode::InvalidArgument, message)
                        .with_hint("rows that match can be updated or deleted; others can be inserted")
                        .into());
                }
            };
            actions.push(action);
            conditions.push(condition);
        }
        let number = |at: usize| Expr::value(Value::Number(at.to_string(), false));
        let case = |whens: Vec<CaseWhen>| Expr::Case {
            case_token: ast::helpers::attached_token::AttachedToken::empty(),
            end_token: ast::helpers::attached_token::AttachedToken::empty(),
            operand: None,
            conditions: whens,
            else_result: None,
        };
        let whens = conditions.iter().enumerate();
        let action = case(whens.map(|(at, condition)| when(condition.clone(), number(at))).collect());
        // A value is computed only where its WHEN is the one that counts: those before it do not hold.
        let guarded = values.into_iter().map(|(of, value)| {
            let mut whens: Vec<CaseWhen> =
                conditions[..of].iter().map(|earlier| when(earlier.clone(), Expr::value(Value::Null))).collect();
            whens.push(when(conditions[of].clone(), value));
            case(whens)
        });
        let question = of_merge(merge, target, table, action, guarded.collect(), inserts)?;
        Ok(Self { question, actions })
    }
}

fn when(condition: Expr, result: Expr) -> CaseWhen {
    CaseWhen { condition, result }
}

fn and(left: Expr, right: Expr) -> Expr {
    Expr::BinaryOp {
        left: Box::new(Expr::Nested(Box::new(left))),
        op: ast::BinaryOperator::And,
        right: Box::new(Expr::Nested(Box::new(right))),
    }
}

fn insert_columns(insert: &ast::MergeInsertExpr, table: &Table) -> Result<Vec<(usize, Expr)>> {
    let positions: Vec<usize> = match insert.columns.is_empty() {
        true => table.visible_columns().map(|(position, _)| position).collect(),
        false => {
            let find = |name| {
                let name = simple_name(name)?;
                table.column_position(&name).ok_or_else(|| unknown_column(table, &name).into())
            };
            insert.columns.iter().map(find).collect::<Result<_>>()?
        }
    };
    let MergeInsertKind::Values(values) = &insert.kind else {
        return Err(refused("MERGE ... INSERT ROW", "write INSERT (column, ...) VALUES (...)"));
    };
    let [row] = values.rows.as_slice() else {
        return Err(refused("MERGE ... INSERT of several rows", "write one row of VALUES"));
    };
    if row.content.len() != positions.len() || insert.insert_predicate.is_some() {
        let message = format!("INSERT has {} values for {} columns", row.content.len(), positions.len());
        return Err(WireError::new(ErrorCode::InvalidArgument, message).into());
    }
    let given = positions.into_iter().zip(&row.content).map(|(position, value)| {
        let value = match is_default(value) {
            true => default_expression(&table.columns[position])?,
            false => value.clone(),
        };
        Ok((position, value))
    });
    given.collect()
}

impl Executor<'_> {
    pub(super) async fn merge(&mut self, merge: &ast::Merge) -> Result<Written> {
        let name = TargetName::of(&merge.table)?;
        let target = self.target(&name.name)?;
        let table = Arc::clone(&target.table);
        let mut returning = self.returning(returning_of(merge)?, &name, &target)?;
        let Plan { question, actions } = Plan::new(merge, &name, &table)?;
        let mut converters = Vec::with_capacity(actions.len());
        let (schema, mut rows) = self.query(question.query, Some(table.id)).await?;
        let value_at = question.old.len() + 1;
        for action in &actions {
            converters.push(match action {
                Action::Insert(given) => {
                    let fields = given.iter().map(|(position, value)| {
                        let data_type = schema.field(value_at + value).data_type().clone();
                        Field::new(&table.columns[*position].name, data_type, true)
                    });
                    let source = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
                    Some((Converter::new(Arc::clone(&table), &source, self.options)?, source))
                }
                _ => None,
            });
        }
        let mut stager = self.transaction.stager();
        let mut effects = Effects::new(&target, &mut stager)?;
        let mut seen = Seen::new(&target)?;
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            let chosen = cast(batch.column(question.old.len()), &DataType::Int64)?;
            for (number, action) in actions.iter().enumerate() {
                let chosen = chosen.as_primitive::<Int64Type>();
                let mask: BooleanArray = chosen.iter().map(|chosen| Some(chosen == Some(number as i64))).collect();
                if mask.true_count() == 0 {
                    continue;
                }
                let values = |given: &[(usize, usize)]| -> Result<Vec<ArrayRef>> {
                    given.iter().map(|(_, value)| Ok(filter(batch.column(value_at + value), &mask)?)).collect()
                };
                let first_row = effects.rows + 1;
                if let Action::Insert(given) = action {
                    let (converter, source) = converters[number].as_ref().expect("each INSERT has a converter");
                    let new = RecordBatch::try_new(Arc::clone(source), values(given)?)?;
                    let new = converter.convert(&new, first_row)?;
                    if let Some(returning) = &mut returning {
                        returning.add(&new)?;
                    }
                    effects.change(&target, None, Some(new), &mut stager).await?;
                    continue;
                }
                let old = filter_record_batch(&batch, &mask)?;
                let old =
                    full_width(&table, &question.old, &old.columns()[..question.old.len()], old.num_rows(), first_row)?;
                let first = seen.first_time(&target, &old)?;
                if first.true_count() < first.len() {
                    return Err(several_matches(&table, &old, &first));
                }
                let new = match action {
                    Action::Update(given) => {
                        let mut columns = old.columns().to_vec();
                        for ((position, _), values) in given.iter().zip(values(given)?) {
                            columns[*position] = to_transit(&table, *position, &values, first_row)?;
                        }
                        Some(RecordBatch::try_new(nullable_schema(&table), columns)?)
                    }
                    _ => None,
                };
                if let Some(returning) = &mut returning {
                    returning.add(new.as_ref().unwrap_or(&old))?;
                }
                effects.change(&target, Some(old), new, &mut stager).await?;
            }
        }
        self.end(&target, effects, stager, returning).await
    }
}

fn returning_of(merge: &ast::Merge) -> Result<Option<&Vec<SelectItem>>> {
    returning(merge)
}

/// SQL's rule: MERGE changes a row once.
fn several_matches(table: &Table, old: &RecordBatch, first: &BooleanArray) -> drsdb_core::Error {
    let row = (0..first.len()).find(|&row| !first.value(row)).unwrap_or(0);
    let (columns, key) = describe(table, &table.primary_key, old.columns(), row);
    let which = if table.has_user_key() { format!(" ({columns}) = ({key})") } else { String::new() };
    let message = format!("MERGE would change the row{which} of table {} more than once", table.name);
    WireError::new(ErrorCode::InvalidArgument, message)
        .with_hint("let each row of the table match at most one row of the source")
        .with_field("key", key)
        .into()
}
