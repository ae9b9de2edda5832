//! Reads of one table by keys that the index server has in its hands: of rows that are in the way of an INSERT, that a
//! foreign key refers to, or that an UPDATE names by their primary key. They are asked for without a plan: where the rows may
//! be is all that there is to find out.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch},
    datatypes::{Schema, SchemaRef},
    ipc::writer::StreamWriter,
};
use drsdb_core::{Result, TableName, Ulid, ids, shard::shards_of, transit::stored_column, v1::LookupRequest};
use url::Url;

use super::{Planner, QueryContext, choose_replicas::choose, sharded_table::ShardedTable};
use crate::catalog::{CatalogState, TableState};

/// Keys of any size in one lookup, at most: what is looked for must fit into one message.
pub const MAX_LOOKUP_KEYS: usize = 512;

/// Which rows of which table.
#[derive(Debug, Clone)]
pub struct Lookup<'a> {
    /// The table.
    pub table: &'a TableName,
    /// Columns that are answered, by position.
    pub positions: Vec<usize>,
    /// Columns that are compared, by position.
    pub key: Vec<usize>,
    /// Their values, one array a column, in transit types and without NULL; more than [`MAX_LOOKUP_KEYS`] only if they are small.
    pub values: Vec<ArrayRef>,
    /// Rows that are enough; `None`: all.
    pub limit: Option<usize>,
}

/// A lookup's part for one storage server.
#[derive(Debug, Clone)]
pub struct LookupCall {
    /// Servers that can answer, the best first.
    pub servers: Vec<(Ulid, Url)>,
    /// What they are asked; `server_id` is still to be set.
    pub request: LookupRequest,
    /// The columns of the answer, as they are stored.
    pub schema: SchemaRef,
}

impl Planner {
    /// Whom to ask for the rows, and what. Empty when there cannot be any.
    ///
    /// Errors: `not_found` for the table, `conflict` when it is not what it was when the transaction began, `unavailable`
    /// when nobody has a shard of it.
    pub fn plan_lookup(
        &self,
        state: &Arc<CatalogState>,
        lookup: &Lookup<'_>,
        context: &QueryContext,
    ) -> Result<Vec<LookupCall>> {
        let known = state.find_table(lookup.table)?;
        if let Some(view) = &context.view {
            view.check(known)?;
        }
        let table = &known.table;
        let values = lookup.values.iter().zip(&lookup.key);
        let values = values.map(|(values, &at)| Ok(stored_column(values, table.columns[at].sql_type)?));
        let values = values.collect::<Result<Vec<ArrayRef>>>()?;
        let shards = shards_of_keys(known, &lookup.key, &values)?;
        let sharded = ShardedTable::new(Arc::clone(state), Arc::clone(known), context.view.clone());
        let leaf = sharded.to_read(shards)?;
        if leaf.is_empty() {
            return Ok(Vec::new());
        }

        let stored = table.arrow_schema();
        let schema = Arc::new(stored.project(&lookup.positions)?);
        let values = RecordBatch::try_new(Arc::new(nullable(&stored.project(&lookup.key)?)), values)?;
        let mut writer = StreamWriter::try_new(Vec::new(), &values.schema())?;
        writer.write(&values)?;
        let own = context.view.as_ref().and_then(|view| view.own);
        let positions = |list: &[usize]| list.iter().map(|&at| at as u32).collect();
        let request = LookupRequest {
            server_id: String::new(),
            table: Some(table.to_proto()),
            shards: Vec::new(),
            snapshot: context.snapshot(state),
            transaction_id: own.map(|own| own.transaction.to_string()).unwrap_or_default(),
            sequence: own.map_or(0, |own| own.sequence),
            key: positions(&lookup.key),
            values: writer.into_inner()?.into(),
            positions: positions(&lookup.positions),
            limit: lookup.limit.unwrap_or(0) as u64,
        };
        // Little is read: where one server has all of it, one is asked.
        let choice = choose(&[leaf], 0, |server| self.suspects.contains(server), ids::new_ulid().0 as usize);
        let calls = choice.servers.into_iter().map(|chosen| {
            let servers = std::iter::once(chosen.id).chain(chosen.also);
            let servers = servers.map(|id| Ok((id, state.address_of(id)?))).collect::<Result<_>>()?;
            let shards = chosen.shards.into_iter().flatten().collect();
            let request = LookupRequest { shards, ..request.clone() };
            Ok(LookupCall { servers, request, schema: Arc::clone(&schema) })
        });
        calls.collect()
    }
}

/// The shards that can have the keys.
fn shards_of_keys(known: &TableState, key: &[usize], values: &[ArrayRef]) -> Result<Vec<u32>> {
    let table = &known.table;
    let by = if table.shard_key.is_empty() { &table.primary_key } else { &table.shard_key };
    let of_key = by.iter().map(|at| key.iter().position(|compared| compared == at).map(|at| Arc::clone(&values[at])));
    match of_key.collect::<Option<Vec<ArrayRef>>>() {
        Some(columns) if !columns.is_empty() && table.shards > 1 => {
            let shards: BTreeSet<u32> = shards_of(&columns, table.shards)?.into_iter().collect();
            Ok(shards.into_iter().collect())
        }
        _ => Ok((0..table.shards).collect()),
    }
}

fn nullable(schema: &Schema) -> Schema {
    Schema::new(schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect::<Vec<_>>())
}
