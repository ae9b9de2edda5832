//! What becomes of the rows of an INSERT ... ON CONFLICT, which are decided in their order: each meets the rows that are there
//! and those that the statement has inserted before it. A row that was left out is in nobody's way. Pure.
//!
//! | the row's key is | DO NOTHING | DO UPDATE |
//! |---|---|---|
//! | nowhere, or has a NULL in it | inserted | inserted |
//! | that of a row that was there | left out | that row changes, if it meets the condition |
//! | that of a row that the statement inserted | left out | an error: a row changes once |
//! | that of a row that the statement changed | | an error, unless that one has another key now: then inserted |

use std::collections::{HashMap, HashSet};

use arrow::row::OwnedRow;

/// What becomes of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Inserted,
    LeftOut,
    /// The row of this number, of those that were there, is to change instead.
    Changes(u32),
    /// A row that the statement has inserted or changed would have to change again: the constraint's key is there twice.
    Twice,
}

/// What a statement has done with its rows so far.
#[derive(Debug)]
pub struct Fates {
    updates: bool,
    /// For each constraint, keys of rows that were inserted.
    inserted: Vec<HashSet<OwnedRow>>,
    /// Keys of rows that were there and have been changed, and whether they have them still. DO UPDATE has one constraint.
    changed: HashMap<OwnedRow, bool>,
}

impl Fates {
    /// For a statement about so many constraints; `updates`: with DO UPDATE.
    pub fn new(constraints: usize, updates: bool) -> Self {
        Self { updates, inserted: vec![HashSet::new(); constraints], changed: HashMap::new() }
    }

    /// Decides about the next row. For each constraint it has a key, or `None` if there is a NULL in it; `there` are the rows
    /// that were there before the statement.
    pub fn decide(&mut self, keys: &[Option<&OwnedRow>], there: &[&HashMap<OwnedRow, u32>]) -> Fate {
        for (at, key) in keys.iter().enumerate() {
            let Some(key) = key else { continue };
            if self.inserted[at].contains(*key) {
                return if self.updates { Fate::Twice } else { Fate::LeftOut };
            }
            let Some(&row) = there[at].get(*key) else { continue };
            match self.changed.get(*key) {
                _ if !self.updates => return Fate::LeftOut,
                None => return Fate::Changes(row),
                Some(true) => return Fate::Twice,
                // The key is free again.
                Some(false) => {}
            }
        }
        for (inserted, key) in self.inserted.iter_mut().zip(keys) {
            inserted.extend(key.cloned());
        }
        Fate::Inserted
    }

    /// The row that had `key` was changed.
    pub fn changed(&mut self, key: OwnedRow, still_has_it: bool) {
        self.changed.insert(key, still_has_it);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{ArrayRef, Int64Array},
        datatypes::DataType,
    };

    use super::*;
    use crate::dml::keys::KeySet;

    fn key(value: i64) -> OwnedRow {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![value]));
        KeySet::new([DataType::Int64]).unwrap().rows(&[column]).unwrap().row(0).owned()
    }

    fn there(keys: &[i64]) -> HashMap<OwnedRow, u32> {
        keys.iter().enumerate().map(|(at, value)| (key(*value), at as u32)).collect()
    }

    fn decide(fates: &mut Fates, row: &[Option<i64>], there: &[&HashMap<OwnedRow, u32>]) -> Fate {
        let keys: Vec<Option<OwnedRow>> = row.iter().map(|value| value.map(key)).collect();
        fates.decide(&keys.iter().map(Option::as_ref).collect::<Vec<_>>(), there)
    }

    #[test]
    fn a_row_that_was_left_out_is_in_nobodys_way() {
        let (ids, codes) = (there(&[6]), there(&[6]));
        let mut fates = Fates::new(2, false);
        let mut next = |row: [Option<i64>; 2]| decide(&mut fates, &row, &[&ids, &codes]);
        assert_eq!(next([Some(7), Some(6)]), Fate::LeftOut);
        assert_eq!(next([Some(7), None]), Fate::Inserted);
        assert_eq!(next([Some(7), Some(8)]), Fate::LeftOut);
        assert_eq!(next([Some(8), Some(8)]), Fate::Inserted);
        assert_eq!(next([Some(9), Some(8)]), Fate::LeftOut);
        assert_eq!(next([None, None]), Fate::Inserted);
        assert_eq!(next([None, None]), Fate::Inserted);
    }

    #[test]
    fn a_row_changes_once() {
        let ids = there(&[1, 2, 3]);
        let mut fates = Fates::new(1, true);
        assert_eq!(decide(&mut fates, &[Some(1)], &[&ids]), Fate::Changes(0));
        // It did not meet the condition.
        assert_eq!(decide(&mut fates, &[Some(1)], &[&ids]), Fate::Changes(0));
        fates.changed(key(1), true);
        assert_eq!(decide(&mut fates, &[Some(1)], &[&ids]), Fate::Twice);
        fates.changed(key(2), false);
        assert_eq!(decide(&mut fates, &[Some(2)], &[&ids]), Fate::Inserted);
        assert_eq!(decide(&mut fates, &[Some(2)], &[&ids]), Fate::Twice);
        assert_eq!(decide(&mut fates, &[Some(9)], &[&ids]), Fate::Inserted);
        assert_eq!(decide(&mut fates, &[Some(9)], &[&ids]), Fate::Twice);
        assert_eq!(decide(&mut fates, &[None], &[&ids]), Fate::Inserted);
    }
}
