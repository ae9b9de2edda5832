//! INSERT: VALUES, a query's rows, or one row of defaults.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::sql::sqlparser::ast;
use drsdb_core::Result;
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
        insert::{Insert, are_few_literals, plain_values},
    },
    offload::offload,
};

type Batches = BoxStream<'static, Result<RecordBatch>>;

impl Executor<'_> {
    /// INSERT ... VALUES without ON CONFLICT; `parameters` may have many rows.
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
        let (insert, table, options) = (insert.clone(), Arc::clone(&target.table), self.options.clone());
        let small = parameters.is_none() && plain_values(&insert).is_some_and(|rows| are_few_literals(&rows));
        let evaluate = move || Insert::new(&insert, &table)?.evaluate(parameters.as_ref(), &options);
        offload(small, "evaluating VALUES", evaluate).await
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
