//! INSERT: VALUES, a query's rows, or one row of defaults.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, new_null_array},
    datatypes::{Field, Schema},
};
use datafusion::sql::sqlparser::ast;
use drsdb_core::{ErrorCode, Result, WireError};
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};

use super::{
    effects::Effects,
    executor::{Executor, Written, insert_target, renamed, with_names},
    on_conflict::OnConflict,
    returning::Returning,
    target::Target,
};
use crate::{
    load::{
        Converter, Loader,
        insert::{Insert, are_few_literals, has_subquery, plain_values, take_subqueries},
    },
    offload::offload,
};

type Batches = BoxStream<'static, Result<RecordBatch>>;

impl Executor<'_> {
    /// INSERT ... VALUES without ON CONFLICT and subqueries; `parameters` may have many rows.
    pub(super) async fn insert_values(
        &mut self,
        insert: &ast::Insert,
        parameters: Option<RecordBatch>,
    ) -> Result<Written> {
        let name = insert_target(insert)?;
        let target = self.target(&name.name)?;
        let returning = self.returning(insert.returning.as_ref(), &name, &target)?;
        let rows = self.values(insert, &target, parameters).await?;
        let schema = rows.schema();
        self.insert_rows(&target, schema, stream::iter([Ok(rows)]).boxed(), returning).await
    }

    /// The rows of VALUES, or of DEFAULT VALUES.
    async fn values(
        &self,
        insert: &ast::Insert,
        target: &Target,
        parameters: Option<RecordBatch>,
    ) -> Result<RecordBatch> {
        let (mut insert, table, options) = (insert.clone(), Arc::clone(&target.table), self.options.clone());
        let asks = plain_values(&insert).is_some_and(|rows| has_subquery(&rows));
        let parameters = if asks { Some(self.ask_subqueries(&mut insert, parameters).await?) } else { parameters };
        let small = parameters.is_none() && plain_values(&insert).is_some_and(|rows| are_few_literals(&rows));
        let evaluate = move || Insert::new(&insert, &table)?.evaluate(parameters.as_ref(), &options);
        offload(small, "evaluating VALUES", evaluate).await
    }

    /// The parameters, of one row, and after them the values of the subqueries in VALUES, which become parameters.
    async fn ask_subqueries(&self, insert: &mut ast::Insert, parameters: Option<RecordBatch>) -> Result<RecordBatch> {
        let (mut fields, mut columns) = match &parameters {
            Some(batch) => (batch.schema().fields().to_vec(), batch.columns().to_vec()),
            None => (Vec::new(), Vec::new()),
        };
        for query in take_subqueries(insert, columns.len())? {
            let value = self.single_value(query).await?;
            fields.push(Arc::new(Field::new("", value.data_type().clone(), true)));
            columns.push(value);
        }
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }

    /// The value of a subquery; NULL if it has no row.
    async fn single_value(&self, query: ast::Query) -> Result<ArrayRef> {
        let refused = |what: String, hint: &str| {
            let message = format!("a subquery in VALUES has {what}, and is to be one value");
            WireError::new(ErrorCode::InvalidArgument, message).with_hint(hint)
        };
        let (schema, mut rows) = self.query(Box::new(ast::Statement::Query(Box::new(query))), None).await?;
        if schema.fields().len() != 1 {
            let columns = format!("{} columns", schema.fields().len());
            return Err(refused(columns, "select one column, or write INSERT ... SELECT").into());
        }
        let mut value = None;
        while let Some(batch) = rows.try_next().await? {
            if batch.num_rows() > 1 || batch.num_rows() == 1 && value.is_some() {
                let hint = "choose one with WHERE, max or LIMIT 1, or write INSERT ... SELECT";
                return Err(refused("several rows".to_owned(), hint).into());
            }
            if batch.num_rows() == 1 {
                value = Some(Arc::clone(batch.column(0)));
            }
        }
        Ok(value.unwrap_or_else(|| new_null_array(schema.field(0).data_type(), 1)))
    }

    pub(super) async fn insert(&mut self, insert: &ast::Insert) -> Result<Written> {
        let name = insert_target(insert)?;
        let target = self.target(&name.name)?;
        let returning = self.returning(insert.returning.as_ref(), &name, &target)?;
        let on_conflict = match &insert.on {
            None => None,
            Some(on) => Some(OnConflict::new(on, &name, &target, self.parameters.as_ref(), self.options)?),
        };
        let plain = plain_values(insert).is_some();
        let (schema, rows): (_, Batches) = match &insert.source {
            Some(source) if !plain => {
                let query = Box::new(ast::Statement::Query(source.clone()));
                let (schema, rows) = self.query(query, None).await?;
                let schema = renamed(insert, &target.table, &schema)?;
                let names = Arc::clone(&schema);
                (
                    schema,
                    rows.and_then(move |batch| {
                        let named = with_names(&batch, &names);
                        async move { named }
                    })
                    .boxed(),
                )
            }
            _ => {
                let rows = self.values(insert, &target, self.parameters.clone()).await?;
                (rows.schema(), stream::iter([Ok(rows)]).boxed())
            }
        };
        match on_conflict {
            None => self.insert_rows(&target, schema, rows, returning).await,
            Some(on_conflict) => self.insert_or(&target, schema, rows, on_conflict, returning).await,
        }
    }

    async fn insert_rows(
        &mut self,
        target: &Arc<Target>,
        schema: arrow::datatypes::SchemaRef,
        rows: Batches,
        returning: Option<Returning>,
    ) -> Result<Written> {
        let Some(mut returning) = returning else {
            let loaded = Loader::load_into(self.transaction, Arc::clone(target), schema, self.options, rows).await?;
            let count = loaded.rows;
            self.finish(target, loaded).await?;
            return Ok(Written { rows: count, returned: None });
        };
        let converter = Converter::new(Arc::clone(&target.table), &schema, self.options)?;
        let mut stager = self.transaction.stager();
        let mut effects = Effects::new(target, &mut stager)?;
        let mut rows = rows;
        while let Some(batch) = rows.try_next().await? {
            let converted = converter.convert(&batch, effects.rows + 1)?;
            returning.add(&converted)?;
            effects.change(target, None, Some(converted), &mut stager).await?;
        }
        self.end(target, effects, stager, Some(returning)).await
    }
}
