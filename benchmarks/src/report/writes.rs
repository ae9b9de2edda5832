//! What was measured about writes.

use serde::Serialize;

use super::new_table;

/// Durable single-row commits.
#[derive(Debug, Serialize)]
pub struct Commits {
    /// Median time of an fsync of 4 KiB on the disk of the cluster's data, before and after.
    pub fsync_ms: f64,
    /// Each number of clients.
    pub points: Vec<CommitPoint>,
}

/// One number of clients.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct CommitPoint {
    pub clients: usize,
    pub commits: u64,
    pub commits_per_second: f64,
    pub median_ms: f64,
    pub p99_ms: f64,
}

/// Bulk inserts, medians.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Inserts {
    /// Rows a second of a bulk insert into a column table with one replica.
    pub insert_rows_per_second: f64,
    /// Rows a second of the parquet crate in one process, of the same batches, to the same disk.
    pub parquet_rows_per_second: f64,
}

/// Bulk inserts, updates and deletes.
#[derive(Debug, Serialize)]
pub struct Dml {
    /// Bulk inserts.
    pub inserts: Inserts,
    /// Statements on lineitem, and scans of the columns that they touch.
    pub statements: Vec<StatementCost>,
    /// Geometric mean of the 22 queries' hot medians: before, after the changes, and after compaction.
    pub queries_ms: [f64; 3],
    /// The same of DataFusion on the files that were loaded, which do not change: the queries of both ran in turn.
    pub control_ms: [f64; 3],
    /// Median of an INSERT of one row into a row table.
    pub point_insert_ms: f64,
    /// Median of an UPDATE of one row by its key in the same table.
    pub point_update_ms: f64,
}

/// A statement that changes rows, against scans.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct StatementCost {
    pub sql: String,
    pub rows: u64,
    pub seconds: f64,
    /// Of the columns that it reads or writes.
    pub touched: ScanCost,
    /// Of the columns that it names, and of the key.
    pub named: ScanCost,
}

/// A scan, and how much longer the statement took.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct ScanCost {
    pub sql: String,
    pub seconds: f64,
    pub ratio: f64,
}

/// What the first index server keeps on its disk.
#[derive(Debug, Serialize)]
pub struct CatalogSize {
    /// Transactions of one row each.
    pub transactions: u64,
    /// The entry in the log of each.
    pub log_bytes_per_transaction: f64,
    /// What each adds to a snapshot of the catalog, which keeps the outcomes of the last ones.
    pub catalog_bytes_per_transaction: f64,
    /// Segments that were made, as files on the storage servers.
    pub segments: u64,
    /// What each adds to its load's entry in the log.
    pub log_bytes_per_segment: f64,
    /// What each adds to a snapshot of the catalog.
    pub catalog_bytes_per_segment: f64,
}

impl Commits {
    pub(super) fn print(&self) {
        let mut table = new_table(&["clients", "commits", "commits/s", "against one", "median ms", "p99 ms"]);
        let one = self.points.first().map_or(f64::NAN, |point| point.commits_per_second);
        for point in &self.points {
            table.add_row([
                point.clients.to_string(),
                point.commits.to_string(),
                format!("{:.0}", point.commits_per_second),
                format!("{:.1} x", point.commits_per_second / one),
                format!("{:.2}", point.median_ms),
                format!("{:.2}", point.p99_ms),
            ]);
        }
        println!("\ndurable commits of one row; an fsync of this disk takes {:.2} ms", self.fsync_ms);
        println!("{table}");
    }
}

impl Inserts {
    pub(super) fn print(&self) {
        println!(
            "\nbulk insert: {:.0} rows/s, the parquet crate alone {:.0} rows/s",
            self.insert_rows_per_second, self.parquet_rows_per_second
        );
    }
}

impl Dml {
    pub(super) fn print(&self) {
        self.inserts.print();
        let scans = ["seconds", "of what it touches", "ratio", "of what it names", "ratio"];
        let mut table = new_table(&[&["statement", "rows"][..], &scans].concat());
        for cost in &self.statements {
            table.add_row([
                cost.sql.clone(),
                cost.rows.to_string(),
                format!("{:.3}", cost.seconds),
                format!("{:.3}", cost.touched.seconds),
                format!("{:.2}", cost.touched.ratio),
                format!("{:.3}", cost.named.seconds),
                format!("{:.2}", cost.named.ratio),
            ]);
        }
        println!("{table}");
        let [before, after, compacted] = self.queries_ms;
        println!(
            "22 queries, geometric mean: {before:.1} ms before, {after:.1} ms after, {compacted:.1} ms after compaction"
        );
        let [before, after, compacted] = self.control_ms;
        println!("DataFusion on the loaded files, in turn: {before:.1} ms, {after:.1} ms, {compacted:.1} ms");
        println!("one row: INSERT {:.2} ms, UPDATE {:.2} ms (medians)", self.point_insert_ms, self.point_update_ms);
    }
}

impl CatalogSize {
    pub(super) fn print(&self) {
        let mut table = new_table(&["index server, bytes", "in the log", "in the catalog"]);
        for (what, log, catalog) in [
            ("a transaction of one row", self.log_bytes_per_transaction, self.catalog_bytes_per_transaction),
            ("a segment", self.log_bytes_per_segment, self.catalog_bytes_per_segment),
        ] {
            table.add_row([what.to_owned(), format!("{log:.1}"), format!("{catalog:.1}")]);
        }
        println!("\n{table}");
        // Bytes of one are megabytes of a million.
        println!(
            "{} transactions, {} segments; a million segments: {:.1} MB in the catalog",
            self.transactions, self.segments, self.catalog_bytes_per_segment
        );
    }
}
