//! The session settings that planning and execution must share.
//!
//! A plan is made on an index server and runs on storage servers, some parts of it two hops from the ticket. What changes
//! how it runs travels in [`QueryOptions`]: in the ticket to the head, and from there as one registered config extension
//! to every worker.

use std::sync::Arc;

use datafusion::{
    common::extensions_options,
    config::{ConfigExtension, ConfigNonZeroUsize, ConfigOptions},
    execution::{FunctionRegistry, SessionState},
    prelude::SessionConfig,
};
use datafusion_distributed::{DistributedConfig, DistributedExt};
use drsdb_proto::v1;

use crate::{Result, scan::ShardScanCodec};

extensions_options! {
    /// What of a session travels with its queries.
    pub struct QueryOptions {
        /// IANA name or offset, for conversions between TIMESTAMP and TIMESTAMP WITH TIME ZONE.
        pub time_zone: String, default = "+00:00".to_string()
        /// Rows in a batch, at most.
        pub batch_rows: usize, default = 8192
        /// Partitions of each task, which is the parallelism on one server; 0: as many as the storage servers have cores.
        pub target_partitions: usize, default = 0
    }
}

impl ConfigExtension for QueryOptions {
    const PREFIX: &'static str = "drsdb";
}

impl QueryOptions {
    /// The protobuf form.
    pub fn to_proto(&self) -> v1::SessionOptions {
        v1::SessionOptions {
            time_zone: self.time_zone.clone(),
            batch_rows: self.batch_rows as u32,
            target_partitions: self.target_partitions as u32,
            ..v1::SessionOptions::default()
        }
    }

    /// Back from the protobuf form; a value that is not set gets its default.
    pub fn from_proto(proto: &v1::SessionOptions) -> Self {
        let defaults = Self::default();
        let or = |value: u32, default: usize| if value == 0 { default } else { value as usize };
        Self {
            time_zone: if proto.time_zone.is_empty() { defaults.time_zone } else { proto.time_zone.clone() },
            batch_rows: or(proto.batch_rows, defaults.batch_rows),
            target_partitions: or(proto.target_partitions, defaults.target_partitions),
        }
    }
}

/// The session config of a query, the same wherever a part of it is planned or runs.
pub fn session_config(options: &QueryOptions) -> Result<SessionConfig> {
    let mut config = SessionConfig::new()
        .with_default_catalog_and_schema("drsdb", "public")
        .with_create_default_catalog_and_schema(false)
        .with_information_schema(true);
    apply_options(config.options_mut(), options);
    let config = config
        .with_distributed_option_extension(DistributedConfig::default())
        .with_distributed_option_extension(options.clone())
        .with_distributed_user_codec(ShardScanCodec)
        // Loopback and data-centre networks carry more than a core can compress.
        .with_distributed_compression(None)?
        .with_distributed_metrics_collection(true)?
        .with_distributed_broadcast_joins(true)?
        // An isolated child of a union runs in fewer tasks than its scan has servers.
        .with_distributed_children_isolator_unions(false)?;
    Ok(config)
}

/// A session with all that `all` knows, under a config of its own. To fill a new session with DataFusion's hundreds of
/// functions takes longer than to plan a small statement, so it is done once.
pub fn session_like(all: &SessionState, config: SessionConfig) -> Result<SessionState> {
    let mut state = all.clone();
    // Some functions keep what they need of the config, such as the time zone.
    let functions = all.scalar_functions().values();
    let changed: Vec<_> =
        functions.filter_map(|function| function.inner().with_updated_config(config.options())).collect();
    *state.config_mut() = config;
    for function in changed {
        state.register_udf(Arc::new(function))?;
    }
    // The time that now() and its like stand for.
    state.mark_start_execution();
    Ok(state)
}

/// Writes the options that DataFusion has a setting of its own for.
pub fn apply_options(config: &mut ConfigOptions, options: &QueryOptions) {
    if let Ok(batch_rows) = ConfigNonZeroUsize::try_new(options.batch_rows) {
        config.execution.batch_size = batch_rows;
    }
    config.execution.target_partitions = options.target_partitions.max(1);
    config.execution.time_zone = Some(options.time_zone.clone());
    config.execution.collect_statistics = false;
    // A sort that spills needs this much to merge; it must fit into a small query's share of the pool.
    config.execution.sort_spill_reservation_bytes = 10 * 1024 * 1024;
    config.sql_parser.enable_ident_normalization = true;
    config.sql_parser.parse_float_as_decimal = true;
    config.optimizer.prefer_existing_union = false;
    // Of several aggregates it passes over those that have seen only NULLs, and leaves out rows that these need.
    config.optimizer.enable_aggregate_dynamic_filter_pushdown = false;
    // Division by zero and overflow are errors, as SQL says.
    config.execution.enable_ansi_mode = true;
}

/// The options of a session that [`session_config`] made, or that a worker got from its headers.
pub fn options_of(config: &SessionConfig) -> QueryOptions {
    config.options().extensions.get::<QueryOptions>().cloned().unwrap_or_default()
}
