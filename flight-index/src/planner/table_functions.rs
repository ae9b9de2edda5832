//! Table functions whose plans can travel.
//!
//! A generator of rows loses its projection on the way to a storage server; so it always gives all of its columns, and a
//! projection above it, which does travel, picks some.

use std::{collections::HashMap, sync::Arc};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableFunction, TableFunctionArgs, TableFunctionImpl, TableProvider},
    common::Result as DfResult,
    execution::session_state::SessionStateBuilder,
    logical_expr::{Expr, TableType},
    physical_expr::expressions::Column,
    physical_plan::{ExecutionPlan, projection::ProjectionExec},
};

/// DataFusion's table functions, wrapped.
pub fn table_functions() -> HashMap<String, Arc<TableFunction>> {
    let defaults = SessionStateBuilder::new_with_default_features().build();
    let wrap = |(name, function): (&String, &Arc<TableFunction>)| {
        let wrapped = AllColumns { inner: Arc::clone(function) };
        (name.clone(), Arc::new(TableFunction::new(name.clone(), Arc::new(wrapped))))
    };
    defaults.table_functions().iter().map(wrap).collect()
}

#[derive(Debug)]
struct AllColumns {
    inner: Arc<TableFunction>,
}

impl TableFunctionImpl for AllColumns {
    fn call_with_args(&self, arguments: TableFunctionArgs) -> DfResult<Arc<dyn TableProvider>> {
        Ok(Arc::new(AllColumnsTable { inner: self.inner.create_table_provider_with_args(arguments)? }))
    }
}

#[derive(Debug)]
struct AllColumnsTable {
    inner: Arc<dyn TableProvider>,
}

#[async_trait]
impl TableProvider for AllColumnsTable {
    fn schema(&self) -> SchemaRef {
        self.inner.schema()
    }

    fn table_type(&self) -> TableType {
        self.inner.table_type()
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let plan = self.inner.scan(session, None, filters, limit).await?;
        let Some(projection) = projection else { return Ok(plan) };
        let schema = plan.schema();
        let columns = projection.iter().map(|&position| {
            let name = schema.field(position).name();
            (Arc::new(Column::new(name, position)) as _, name.clone())
        });
        Ok(Arc::new(ProjectionExec::try_new(columns.collect::<Vec<_>>(), plan)?))
    }
}
