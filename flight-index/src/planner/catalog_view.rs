//! One catalog state as DataFusion's catalog: the database `drsdb`, its schemas and tables.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::{
    catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider},
    common::{DataFusionError, Result as DfResult, not_impl_err},
    logical_expr::TableType,
};
use drsdb_core::TableName;

use super::sharded_table::ShardedTable;
use crate::catalog::CatalogState;

/// The name of the only database.
pub const DATABASE: &str = "drsdb";

/// A catalog state, read-only.
#[derive(Debug, Clone)]
pub struct CatalogView {
    state: Arc<CatalogState>,
}

impl CatalogView {
    /// A view of `state`.
    pub fn new(state: Arc<CatalogState>) -> Self {
        Self { state }
    }

    /// The state behind the view.
    pub fn state(&self) -> &Arc<CatalogState> {
        &self.state
    }
}

impl CatalogProviderList for CatalogView {
    fn register_catalog(&self, _: String, _: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![DATABASE.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        (name == DATABASE).then(|| Arc::new(self.clone()) as Arc<dyn CatalogProvider>)
    }
}

impl CatalogProvider for CatalogView {
    fn schema_names(&self) -> Vec<String> {
        self.state.schemas().map(str::to_owned).collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        self.state.has_schema(name).then(|| {
            Arc::new(SchemaView { state: Arc::clone(&self.state), name: name.to_owned() }) as Arc<dyn SchemaProvider>
        })
    }
}

#[derive(Debug)]
struct SchemaView {
    state: Arc<CatalogState>,
    name: String,
}

impl SchemaView {
    fn full_name(&self, table: &str) -> TableName {
        TableName::new(&self.name, table)
    }
}

#[async_trait]
impl SchemaProvider for SchemaView {
    fn table_names(&self) -> Vec<String> {
        let tables = self.state.tables().map(|table| &table.table.name);
        tables.filter(|name| name.schema == self.name).map(|name| name.table.clone()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        let table = self.state.table_by_name(&self.full_name(name));
        Ok(table.map(|table| {
            Arc::new(ShardedTable::new(Arc::clone(&self.state), Arc::clone(table))) as Arc<dyn TableProvider>
        }))
    }

    async fn table_type(&self, name: &str) -> DfResult<Option<TableType>> {
        Ok(self.table_exist(name).then_some(TableType::Base))
    }

    fn register_table(&self, _: String, _: Arc<dyn TableProvider>) -> DfResult<Option<Arc<dyn TableProvider>>> {
        not_impl_err!("tables are made with CREATE TABLE")
    }

    fn table_exist(&self, name: &str) -> bool {
        self.state.table_by_name(&self.full_name(name)).is_some()
    }
}
