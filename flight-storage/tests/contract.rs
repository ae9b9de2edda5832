//! The contract of a storage engine, held by every engine: each test is written once, over a [`Factory`], and run for the
//! row engine and for the column engine. What is special to one engine is tested beside that engine.

#![allow(clippy::unwrap_used)]

mod contract {
    pub mod added_columns;
    pub mod changes;
    pub mod column;
    pub mod column_changes;
    pub mod column_speed;
    pub mod comparisons;
    pub mod concurrency;
    pub mod conflicts;
    pub mod crash;
    pub mod crash_changes;
    pub mod extremes;
    pub mod keys;
    pub mod model;
    pub mod outcomes;
    pub mod random;
    pub mod replicas;
    pub mod row_speed;
    pub mod scans;
    pub mod support;
    pub mod values;
}

use std::{path::Path, sync::Arc};

use drsdb_storage::{
    column::{ColumnEngine, ColumnOptions},
    engine::StorageEngine,
    row::RowEngine,
};

use contract::support::Factory;

fn open_row(dir: &Path) -> Arc<dyn StorageEngine> {
    Arc::new(RowEngine::open(dir).unwrap())
}

fn open_column(dir: &Path) -> Arc<dyn StorageEngine> {
    Arc::new(ColumnEngine::open(dir, ColumnOptions::default()).unwrap())
}

/// Without a buffer: every row goes to a segment, of small units.
fn open_segments(dir: &Path) -> Arc<dyn StorageEngine> {
    Arc::new(ColumnEngine::open(dir, contract::column::small()).unwrap())
}

/// One module an engine and test list; a test's name tells both.
macro_rules! contract {
    ($engine:ident, $open:expr, $($module:ident { $($test:ident),+ $(,)? })+) => {
        mod $engine {
            $(mod $module {
                $(#[test] fn $test() { super::super::contract::$module::$test($open) })+
            })+
        }
    };
}

/// What holds for both engines.
macro_rules! contract_of_both {
    ($($list:tt)+) => {
        contract!(row, super::super::open_row, $($list)+);
        contract!(column, super::super::open_column, $($list)+);
        contract!(segments, super::super::open_segments, $($list)+);
    };
}

contract_of_both! {
    scans {
        an_unknown_shard_is_empty,
        a_snapshot_sees_commits_up_to_its_version,
        the_projection_decides_columns_and_their_order,
        an_empty_projection_counts_rows,
        only_the_shards_asked_for_are_read,
        tables_do_not_mix,
        batches_are_no_larger_than_asked,
        a_limit_ends_the_scan_early,
        a_dropped_stream_stops_the_work,
        a_dropped_table_stays_whole_for_running_scans,
    }
    values {
        every_type_keeps_null_and_extremes,
        empty_text_is_not_null,
        texts_of_a_megabyte,
        sliced_views_are_stored_alone,
    }
    extremes {
        a_thousand_columns,
        names_that_are_words_or_hold_quotes,
        a_load_without_rows,
        loads_far_larger_than_a_chunk,
    }
    comparisons {
        every_comparison_with_every_value_of_every_type,
        null_tests_and_lists,
    }
    keys {
        a_key_twice_in_a_batch_is_refused,
        a_key_twice_in_a_load_is_refused,
        a_key_twice_in_a_transaction_is_refused,
        a_committed_key_is_refused,
        a_large_committed_load_guards_its_keys,
        a_staged_key_is_a_conflict,
        keys_of_every_type,
        compound_keys_compare_by_part,
        without_a_key_rows_may_repeat,
        a_key_may_come_back_in_another_shard,
    }
    outcomes {
        staged_rows_are_invisible_until_commit,
        an_abort_leaves_nothing,
        an_abort_of_a_large_load_frees_its_keys,
        an_abort_after_the_commit_does_nothing,
        a_commit_can_be_replayed,
        a_transaction_commits_all_its_shards_and_tables,
        a_writer_that_is_dropped_leaves_nothing,
        staged_rows_survive_a_restart,
        committed_rows_survive_a_restart,
        a_dropped_table_does_not_come_back,
    }
    concurrency {
        two_loads_write_in_turns,
        many_loads_at_once,
        a_reader_sees_a_load_whole_or_not_at_all,
        loads_of_the_same_keys_let_one_through,
    }
    crash {
        a_killed_process_loses_nothing_it_acknowledged,
        loads_until_killed,
    }
    random {
        random_tables_and_filters_agree_with_memory,
    }
    changes {
        a_deleted_row_stays_for_older_snapshots,
        an_update_replaces_a_row,
        a_key_may_come_and_go_in_one_transaction,
        a_transaction_sees_its_own_changes,
        a_statement_that_is_rolled_back_never_was,
        a_rollback_survives_a_restart,
        large_changes_are_committed_and_undone_alike,
        changes_survive_a_restart,
        a_table_without_a_key_deletes_nothing,
        keys_of_every_type_can_be_deleted,
    }
    conflicts {
        a_row_that_changed_after_the_snapshot,
        a_row_that_is_not_there,
        a_row_that_another_transaction_deletes,
        a_key_that_another_transaction_has_freed,
        a_failed_statement_leaves_nothing,
        followers_take_what_the_first_let_through,
        followers_refuse_what_is_in_the_way,
    }
    replicas {
        an_import_replaces_a_shard,
        what_is_staged_in_a_shard_can_be_forgotten,
        what_changed_between_snapshots_can_be_read,
        an_import_that_is_dropped_changes_nothing,
        an_import_without_rows_empties_the_shard,
        a_dropped_shard_is_empty_and_may_come_back,
        compaction_forgets_what_nobody_sees,
        a_snapshot_that_was_compacted_away_is_refused,
    }
    added_columns {
        rows_from_before_read_as_the_initial_value,
        initial_values_of_every_type,
        filters_on_an_added_column,
        a_dropped_column_takes_null,
        statements_from_before_the_change_fill_in_the_initial_value,
    }
    model {
        random_transactions_agree_with_a_model,
        large_random_transactions_agree_with_a_model,
    }
    crash_changes {
        a_killed_process_keeps_each_transaction_whole,
        changes_until_killed,
    }
}

#[test]
fn engines_agree_on_random_tables_and_filters() {
    let engines: [Factory; 2] = [open_row, open_column];
    contract::random::engines_agree(&engines);
}
