//! One catalog state as DataFusion's catalog: the database `drsdb`, its schemas and tables, users' and the system's.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use async_trait::async_trait;
use datafusion::{
    catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider},
    common::{DataFusionError, Result as DfResult, not_impl_err},
    logical_expr::TableType,
};
use drsdb_core::{Error, TableName, query_session::QueryOptions};
use parking_lot::Mutex;

use super::{
    sharded_table::ShardedTable,
    system_tables::{self, SystemSource},
    view::View,
};
use crate::catalog::CatalogState;

/// The name of the only database.
pub const DATABASE: &str = "drsdb";

/// A catalog state, read-only.
#[derive(Debug, Clone)]
pub struct CatalogView {
    state: Arc<CatalogState>,
    view: Option<Arc<View>>,
    /// Views, as soon as they are planned.
    planned: Arc<Mutex<HashMap<TableName, Arc<dyn TableProvider>>>>,
    system: Arc<dyn SystemSource>,
    options: QueryOptions,
}

impl CatalogView {
    /// A view of `state`, as a transaction sees it if `view` is of one.
    pub fn new(
        state: Arc<CatalogState>,
        view: Option<Arc<View>>,
        system: Arc<dyn SystemSource>,
        options: QueryOptions,
    ) -> Self {
        Self { state, view, planned: Arc::default(), system, options }
    }

    /// Whether the view called `name` is planned.
    pub fn has_planned(&self, name: &TableName) -> bool {
        self.planned.lock().contains_key(name)
    }

    /// What the view called `name` stands for.
    pub fn add_planned(&self, name: TableName, table: Arc<dyn TableProvider>) {
        self.planned.lock().insert(name, table);
    }

    /// The views that are planned, by name.
    pub fn planned_views(&self) -> BTreeSet<TableName> {
        self.planned.lock().keys().cloned().collect()
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
        self.state.schemas().chain(system_tables::SCHEMAS).map(str::to_owned).collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        let there = self.state.has_schema(name) || system_tables::SCHEMAS.contains(&name);
        there.then(|| Arc::new(SchemaView { catalog: self.clone(), name: name.to_owned() }) as Arc<dyn SchemaProvider>)
    }
}

#[derive(Debug)]
struct SchemaView {
    catalog: CatalogView,
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
        let state = &self.catalog.state;
        let tables = state.user_tables().map(|table| &table.table.name).chain(state.views().map(|view| &view.name));
        let tables = tables.filter(|name| name.schema == self.name).map(|name| name.table.clone());
        tables.chain(system_tables::names(&self.name).map(str::to_owned)).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        let CatalogView { state, view, planned, system, options } = &self.catalog;
        let full_name = self.full_name(name);
        if let Some(table) = system_tables::table(&self.name, name, state, system.as_ref(), options).await {
            return Ok(Some(table.map_err(Error::into_datafusion)?));
        }
        let Some(table) = state.table_by_name(&full_name) else { return Ok(planned.lock().get(&full_name).cloned()) };
        if let Some(view) = view {
            view.check(table).map_err(Error::into_datafusion)?;
        }
        let table = ShardedTable::new(Arc::clone(state), Arc::clone(table), view.clone());
        Ok(Some(Arc::new(table) as Arc<dyn TableProvider>))
    }

    async fn table_type(&self, name: &str) -> DfResult<Option<TableType>> {
        let view = self.catalog.state.view(&self.full_name(name)).is_some();
        let table_type = if view { TableType::View } else { TableType::Base };
        Ok(self.table_exist(name).then_some(table_type))
    }

    fn register_table(&self, _: String, _: Arc<dyn TableProvider>) -> DfResult<Option<Arc<dyn TableProvider>>> {
        not_impl_err!("tables are made with CREATE TABLE")
    }

    fn table_exist(&self, name: &str) -> bool {
        let (state, full_name) = (&self.catalog.state, self.full_name(name));
        state.table_by_name(&full_name).is_some()
            || state.view(&full_name).is_some()
            || system_tables::names(&self.name).any(|table| table == name)
    }
}
