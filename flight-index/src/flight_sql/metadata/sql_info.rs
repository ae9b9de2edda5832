//! GetSqlInfo: what drivers ask before they write SQL. Nothing is claimed here that a test or the parser would refuse.

use std::sync::LazyLock;

use arrow::array::RecordBatch;
use arrow_flight::sql::{
    CommandGetSqlInfo, SqlInfo, SqlNullOrdering, SqlOuterJoinsSupportLevel, SqlSupportedCaseSensitivity,
    SqlSupportedGroupBy, SqlSupportedSubqueries, SqlSupportedTransaction, SqlSupportedUnions,
    SqlTransactionIsolationLevel, SupportedSqlGrammar,
    metadata::{SqlInfoData, SqlInfoDataBuilder},
};
use drsdb_core::Result;

use super::build_error;
use crate::statement::MAX_SQL_BYTES;

/// Snapshot isolation: all that the standard asks of this level, and no phantoms.
const SNAPSHOT: SqlTransactionIsolationLevel = SqlTransactionIsolationLevel::SqlTransactionRepeatableRead;

static INFO: LazyLock<SqlInfoData> = LazyLock::new(|| build().build().expect("the list is fixed"));

/// The infos that were asked for; all of them when none was.
pub fn sql_info(command: &CommandGetSqlInfo) -> Result<RecordBatch> {
    INFO.record_batch(command.info.iter().copied()).map_err(build_error)
}

fn bits(values: &[i32]) -> i32 {
    values.iter().fold(0, |bits, value| bits | 1 << value)
}

fn build() -> SqlInfoDataBuilder {
    let mut info = SqlInfoDataBuilder::new();
    info.append(SqlInfo::FlightSqlServerName, "drsdb");
    info.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    info.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
    info.append(SqlInfo::FlightSqlServerReadOnly, false);
    info.append(SqlInfo::FlightSqlServerSql, true);
    info.append(SqlInfo::FlightSqlServerSubstrait, false);
    info.append(SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::Savepoint as i32);
    info.append(SqlInfo::FlightSqlServerCancel, true);
    info.append(SqlInfo::FlightSqlServerBulkIngestion, true);
    info.append(SqlInfo::FlightSqlServerIngestTransactionsSupported, true);
    info.append(SqlInfo::FlightSqlServerStatementTimeout, 0);
    info.append(SqlInfo::FlightSqlServerTransactionTimeout, 0);
    info.append(SqlInfo::SqlDdlCatalog, false);
    info.append(SqlInfo::SqlDdlSchema, true);
    info.append(SqlInfo::SqlDdlTable, true);
    info.append(SqlInfo::SqlIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityLowercase as i64);
    info.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    info.append(SqlInfo::SqlQuotedIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityUnknown as i64);
    info.append(SqlInfo::SqlAllTablesAreSelectable, true);
    info.append(SqlInfo::SqlNullOrdering, SqlNullOrdering::SqlNullsSortedHigh as i64);
    info.append(SqlInfo::SqlKeywords, &["ilike", "qualify", "ulid"][..]);
    info.append(
        SqlInfo::SqlNumericFunctions,
        &["abs", "ceil", "exp", "floor", "ln", "log10", "power", "round", "sqrt"][..],
    );
    info.append(
        SqlInfo::SqlStringFunctions,
        &[
            "ascii",
            "concat",
            "left",
            "length",
            "lower",
            "ltrim",
            "replace",
            "right",
            "rtrim",
            "substring",
            "trim",
            "upper",
        ][..],
    );
    info.append(SqlInfo::SqlSystemFunctions, &["gen_random_uuid", "snowflake_id", "ulid"][..]);
    info.append(SqlInfo::SqlDatetimeFunctions, &["current_date", "current_time", "date_part", "date_trunc", "now"][..]);
    info.append(SqlInfo::SqlSearchStringEscape, "\\");
    info.append(SqlInfo::SqlExtraNameCharacters, "");
    info.append(SqlInfo::SqlSupportsColumnAliasing, true);
    info.append(SqlInfo::SqlNullPlusNullIsNull, true);
    info.append(SqlInfo::SqlSupportsTableCorrelationNames, true);
    info.append(SqlInfo::SqlSupportsDifferentTableCorrelationNames, false);
    info.append(SqlInfo::SqlSupportsExpressionsInOrderBy, true);
    info.append(SqlInfo::SqlSupportsOrderByUnrelated, true);
    info.append(SqlInfo::SqlSupportedGroupBy, bits(&[SqlSupportedGroupBy::SqlGroupByUnrelated as i32]));
    info.append(SqlInfo::SqlSupportsLikeEscapeClause, true);
    info.append(SqlInfo::SqlSupportsNonNullableColumns, true);
    info.append(
        SqlInfo::SqlSupportedGrammar,
        bits(&[SupportedSqlGrammar::SqlMinimumGrammar as i32, SupportedSqlGrammar::SqlCoreGrammar as i32]),
    );
    info.append(SqlInfo::SqlAnsi92SupportedLevel, bits(&[]));
    info.append(SqlInfo::SqlSupportsIntegrityEnhancementFacility, true);
    info.append(SqlInfo::SqlOuterJoinsSupportLevel, bits(&[SqlOuterJoinsSupportLevel::SqlFullOuterJoins as i32]));
    info.append(SqlInfo::SqlSchemaTerm, "schema");
    info.append(SqlInfo::SqlCatalogTerm, "catalog");
    info.append(SqlInfo::SqlProcedureTerm, "procedure");
    info.append(SqlInfo::SqlCatalogAtStart, true);
    info.append(SqlInfo::SqlSelectForUpdateSupported, false);
    info.append(SqlInfo::SqlStoredProceduresSupported, false);
    let subqueries = [
        SqlSupportedSubqueries::SqlSubqueriesInComparisons as i32,
        SqlSupportedSubqueries::SqlSubqueriesInExists as i32,
        SqlSupportedSubqueries::SqlSubqueriesInIns as i32,
    ];
    info.append(SqlInfo::SqlSupportedSubqueries, bits(&subqueries));
    info.append(SqlInfo::SqlCorrelatedSubqueriesSupported, true);
    let unions = [SqlSupportedUnions::SqlUnion as i32, SqlSupportedUnions::SqlUnionAll as i32];
    info.append(SqlInfo::SqlSupportedUnions, bits(&unions));
    info.append(SqlInfo::SqlMaxStatementLength, MAX_SQL_BYTES as i64);
    info.append(SqlInfo::SqlMaxColumnNameLength, 255i64);
    info.append(SqlInfo::SqlMaxTableNameLength, 255i64);
    info.append(SqlInfo::SqlDbSchemaNameLength, 255i64);
    info.append(SqlInfo::SqlDefaultTransactionIsolation, SNAPSHOT as i64);
    info.append(SqlInfo::SqlTransactionsSupported, true);
    info.append(
        SqlInfo::SqlSupportedTransactionsIsolationLevels,
        bits(&[SqlTransactionIsolationLevel::SqlTransactionReadCommitted as i32, SNAPSHOT as i32]),
    );
    info.append(SqlInfo::SqlBatchUpdatesSupported, true);
    info.append(SqlInfo::SqlSavepointsSupported, true);
    info.append(SqlInfo::SqlNamedParametersSupported, false);
    info
}
