//! A digest of rows that does not depend on their order, nor on the engine that keeps them: the sum, modulo 2^128, of a
//! SHA-256 of each row, cut to 16 bytes. A sum and not an exclusive or, so that a row that is there twice shows.
//!
//! A row is hashed in Arrow's row format, in which equal values are equal bytes and NULL differs from every value. The format
//! belongs to the version of Arrow, so digests compare between servers of the same version of drsdb.

use arrow::{
    array::RecordBatch,
    row::{RowConverter, SortField},
};
use drsdb_core::{Result, Table};
use ring::digest::{SHA256, digest};

/// A digest, and how many rows are in it.
#[derive(Debug)]
pub struct Checksum {
    converter: RowConverter,
    /// Rows that were added.
    pub rows: u64,
    /// The sum of their hashes.
    pub digest: u128,
}

impl Checksum {
    /// Of no rows; batches to come have these columns of the table.
    pub fn new(table: &Table, columns: &[usize]) -> Result<Self> {
        let fields = columns.iter().map(|&column| SortField::new(table.arrow_type(column)));
        Ok(Self { converter: RowConverter::new(fields.collect())?, rows: 0, digest: 0 })
    }

    /// Adds rows.
    pub fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        for row in &self.converter.convert_columns(batch.columns())? {
            let hash = digest(&SHA256, row.as_ref());
            let half = <[u8; 16]>::try_from(&hash.as_ref()[..16]).expect("SHA-256 has 32 bytes");
            self.digest = self.digest.wrapping_add(u128::from_be_bytes(half));
            self.rows += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringViewArray};
    use drsdb_core::{Column, SqlType};

    use super::*;

    fn digest_of(rows: &[(i64, Option<&str>)]) -> (u64, u128) {
        let column = |name, sql_type| Column::new(name, sql_type, false);
        let table =
            Table { columns: vec![column("a", SqlType::BigInt), column("b", SqlType::Text)], ..Table::default() };
        let mut checksum = Checksum::new(&table, &[0, 1]).unwrap();
        for (a, b) in rows {
            let columns =
                vec![Arc::new(Int64Array::from(vec![*a])) as _, Arc::new(StringViewArray::from(vec![*b])) as _];
            checksum.add(&RecordBatch::try_new(table.arrow_schema(), columns).unwrap()).unwrap();
        }
        (checksum.rows, checksum.digest)
    }

    #[test]
    fn order_is_of_no_account_and_everything_else_is() {
        let rows = [(1, Some("x")), (2, None), (3, Some(""))];
        let whole = digest_of(&rows);
        assert_eq!(whole, digest_of(&[rows[2], rows[0], rows[1]]));
        for other in [
            vec![rows[0], rows[1]],
            vec![rows[0], rows[1], rows[1]],
            vec![rows[0], rows[1], (3, None)],
            vec![rows[0], (3, None), (2, Some(""))],
        ] {
            assert_ne!(whole, digest_of(&other));
        }
        assert_eq!(digest_of(&[]), (0, 0));
    }
}
