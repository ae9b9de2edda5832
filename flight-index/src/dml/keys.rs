//! Sets of keys, in bounded memory.

use std::collections::HashMap;

use arrow::{
    array::{Array, ArrayRef, BooleanArray},
    compute::{and, filter, is_not_null, kernels::cmp::not_distinct, not},
    datatypes::DataType,
    row::{OwnedRow, RowConverter, Rows, SortField},
};
use drsdb_core::Result;

/// Keys that are remembered one by one. Beyond, a whole table is looked at instead.
pub const MAX_KEYS: usize = 16 * 1024;

/// Different keys, each with the key that it became, if it became one.
#[derive(Debug)]
pub struct KeySet {
    converter: RowConverter,
    width: usize,
    keys: HashMap<OwnedRow, Option<OwnedRow>>,
    /// There were more than are remembered.
    pub overflowed: bool,
}

impl KeySet {
    /// An empty set of keys of these types.
    pub fn new(types: impl IntoIterator<Item = DataType>) -> Result<Self> {
        let fields: Vec<SortField> = types.into_iter().map(SortField::new).collect();
        let width = fields.len();
        Ok(Self { converter: RowConverter::new(fields)?, width, keys: HashMap::new(), overflowed: false })
    }

    /// Columns of a key.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows that compare like the keys.
    pub fn rows(&self, columns: &[ArrayRef]) -> Result<Rows> {
        Ok(self.converter.convert_columns(columns)?)
    }

    /// Adds keys; `became` are the keys that they turn into.
    pub fn add(&mut self, columns: &[ArrayRef], became: Option<&[ArrayRef]>) -> Result<()> {
        if self.overflowed {
            return Ok(());
        }
        let rows = self.rows(columns)?;
        let became = became.map(|columns| self.rows(columns)).transpose()?;
        for at in 0..rows.num_rows() {
            let next = became.as_ref().map(|became| became.row(at).owned());
            self.keys.insert(rows.row(at).owned(), next);
            if self.keys.len() > MAX_KEYS {
                self.overflowed = true;
                self.keys = HashMap::new();
                return Ok(());
            }
        }
        Ok(())
    }

    /// Takes keys out.
    pub fn remove(&mut self, columns: &[ArrayRef]) -> Result<()> {
        let rows = self.rows(columns)?;
        for row in &rows {
            self.keys.remove(&row.owned());
        }
        Ok(())
    }

    /// Whether there is nothing in it, and was not.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && !self.overflowed
    }

    /// The keys as columns, in groups of at most `size`.
    pub fn groups(&self, size: usize) -> Result<Vec<Vec<ArrayRef>>> {
        let keys: Vec<&OwnedRow> = self.keys.keys().collect();
        keys.chunks(size).map(|group| self.columns(group.iter().map(|key| key.row()))).collect()
    }

    /// What a key became: `None` when it is not in the set, `Some(None)` when it is gone.
    pub fn became(&self, key: &OwnedRow) -> Option<Option<&OwnedRow>> {
        self.keys.get(key).map(Option::as_ref)
    }

    /// Keys back as columns.
    pub fn columns<'a>(&self, keys: impl IntoIterator<Item = arrow::row::Row<'a>>) -> Result<Vec<ArrayRef>> {
        Ok(self.converter.convert_rows(keys)?)
    }
}

/// Rows in which no column is NULL; `None`: all are.
pub fn without_nulls(columns: &[ArrayRef]) -> Result<Option<BooleanArray>> {
    let mut mask: Option<BooleanArray> = None;
    for column in columns.iter().filter(|column| column.null_count() > 0) {
        let valid = is_not_null(column)?;
        mask = Some(match mask {
            Some(mask) => and(&mask, &valid)?,
            None => valid,
        });
    }
    Ok(mask)
}

/// Rows in which some column differs.
pub fn differing(old: &[ArrayRef], new: &[ArrayRef]) -> Result<BooleanArray> {
    let mut same: Option<BooleanArray> = None;
    for (old, new) in old.iter().zip(new) {
        let equal = not_distinct(old, new)?;
        same = Some(match same {
            Some(same) => and(&same, &equal)?,
            None => equal,
        });
    }
    Ok(match same {
        Some(same) => not(&same)?,
        None => BooleanArray::from(Vec::<bool>::new()),
    })
}

/// The columns' rows for which `mask` is true; `None`: all of them.
pub fn filtered(columns: &[ArrayRef], mask: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
    match mask {
        None => Ok(columns.to_vec()),
        Some(mask) => Ok(columns.iter().map(|column| filter(column, mask)).collect::<Result<_, _>>()?),
    }
}

/// Both masks together; `None` is a mask that is true everywhere.
pub fn both(one: Option<BooleanArray>, other: Option<BooleanArray>) -> Result<Option<BooleanArray>> {
    Ok(match (one, other) {
        (Some(one), Some(other)) => Some(and(&one, &other)?),
        (one, other) => one.or(other),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};

    use super::*;

    fn column(values: &[Option<i64>]) -> ArrayRef {
        Arc::new(Int64Array::from(values.to_vec()))
    }

    #[test]
    fn keys_are_counted_once_and_come_back() {
        let mut keys = KeySet::new([DataType::Int64, DataType::Utf8]).unwrap();
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["a", "b", "a"]));
        keys.add(&[column(&[Some(1), Some(2), Some(1)]), Arc::clone(&texts)], None).unwrap();
        let groups = keys.groups(10).unwrap();
        assert_eq!((groups.len(), groups[0][0].len()), (1, 2));
        keys.remove(&[column(&[Some(1)]), Arc::new(StringArray::from(vec!["a"]))]).unwrap();
        assert_eq!(keys.groups(10).unwrap()[0][0].len(), 1);
        let many: Vec<Option<i64>> = (0..=MAX_KEYS as i64).map(Some).collect();
        let text: ArrayRef = Arc::new(StringArray::from(vec!["x"; many.len()]));
        keys.add(&[column(&many), text], None).unwrap();
        assert!(keys.overflowed && !keys.is_empty());
    }

    #[test]
    fn rows_differ_also_in_nulls() {
        let (old, new) = (column(&[Some(1), None, None, Some(4)]), column(&[Some(1), None, Some(3), None]));
        let mask = differing(&[old], &[new]).unwrap();
        assert_eq!(mask.iter().collect::<Vec<_>>(), [Some(false), Some(false), Some(true), Some(true)]);
    }
}
