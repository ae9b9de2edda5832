//! Sums of DECIMAL that fail when they are none: DataFusion's wrap around at 128 bits, and let totals through that have more
//! digits than their type.
//!
//! Values between two totals may be as large as 128 bits allow, which is more than 38 digits.

use std::{mem::size_of, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, Decimal128Array},
    datatypes::Decimal128Type,
};
use datafusion::{
    common::{Result as DfResult, ScalarValue, internal_err},
    logical_expr::{Accumulator, EmitTo, GroupsAccumulator},
};
use drsdb_proto::{ErrorCode, WireError};

use crate::Error;

/// The type of the total.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SumType {
    pub(crate) precision: u8,
    pub(crate) scale: i8,
}

impl SumType {
    fn add(self, sum: i128, value: i128) -> DfResult<i128> {
        sum.checked_add(value).ok_or_else(|| self.out_of_range())
    }

    /// The total, if it is one of the type.
    fn total(self, sum: i128) -> DfResult<i128> {
        match 10_u128.checked_pow(u32::from(self.precision)) {
            Some(end) if sum.unsigned_abs() >= end => Err(self.out_of_range()),
            _ => Ok(sum),
        }
    }

    fn out_of_range(self) -> datafusion::error::DataFusionError {
        let Self { precision, scale } = self;
        let error =
            WireError::new(ErrorCode::InvalidValue, format!("a sum is out of range for DECIMAL({precision}, {scale})"));
        Error::from(error.with_hint("write sum(CAST(... AS DOUBLE)), or a DECIMAL with fewer digits")).into_datafusion()
    }

    fn scalar(self, sum: Option<i128>) -> ScalarValue {
        ScalarValue::Decimal128(sum, self.precision, self.scale)
    }

    fn array(self, sums: impl IntoIterator<Item = Option<i128>>) -> DfResult<ArrayRef> {
        let sums: Decimal128Array = sums.into_iter().collect();
        Ok(Arc::new(sums.with_precision_and_scale(self.precision, self.scale)?))
    }
}

fn only(values: &[ArrayRef]) -> DfResult<&Decimal128Array> {
    match values {
        [values] => Ok(values.as_primitive::<Decimal128Type>()),
        _ => internal_err!("sum takes one argument"),
    }
}

/// One sum, of rows that may leave again.
#[derive(Debug)]
pub(crate) struct DecimalSum {
    sum_type: SumType,
    sum: i128,
    /// How many values are in it.
    count: u64,
}

impl DecimalSum {
    pub(crate) fn new(sum_type: SumType) -> Self {
        Self { sum_type, sum: 0, count: 0 }
    }

    fn value(&self) -> Option<i128> {
        (self.count > 0).then_some(self.sum)
    }
}

impl Accumulator for DecimalSum {
    fn update_batch(&mut self, values: &[ArrayRef]) -> DfResult<()> {
        for value in only(values)?.iter().flatten() {
            self.sum = self.sum_type.add(self.sum, value)?;
            self.count += 1;
        }
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> DfResult<()> {
        for value in only(values)?.iter().flatten() {
            self.sum = self.sum.checked_sub(value).ok_or_else(|| self.sum_type.out_of_range())?;
            self.count = self.count.saturating_sub(1);
        }
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn evaluate(&mut self) -> DfResult<ScalarValue> {
        let total = self.value().map(|sum| self.sum_type.total(sum)).transpose()?;
        Ok(self.sum_type.scalar(total))
    }

    fn size(&self) -> usize {
        size_of::<Self>()
    }

    fn state(&mut self) -> DfResult<Vec<ScalarValue>> {
        Ok(vec![self.sum_type.scalar(self.value())])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> DfResult<()> {
        self.update_batch(states)
    }
}

/// A sum for each group.
#[derive(Debug)]
pub(crate) struct DecimalSums {
    sum_type: SumType,
    sums: Vec<i128>,
    /// Whether there is a value in each.
    seen: Vec<bool>,
}

impl DecimalSums {
    pub(crate) fn new(sum_type: SumType) -> Self {
        Self { sum_type, sums: Vec::new(), seen: Vec::new() }
    }

    fn take(&mut self, emit: EmitTo) -> impl Iterator<Item = Option<i128>> {
        let (sums, seen) = (emit.take_needed(&mut self.sums), emit.take_needed(&mut self.seen));
        sums.into_iter().zip(seen).map(|(sum, seen)| seen.then_some(sum))
    }
}

impl GroupsAccumulator for DecimalSums {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total_groups: usize,
    ) -> DfResult<()> {
        self.sums.resize(total_groups, 0);
        self.seen.resize(total_groups, false);
        let values = only(values)?;
        for (row, (&group, &value)) in groups.iter().zip(values.values().iter()).enumerate() {
            let taken = filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
            if taken && values.is_valid(row) {
                self.sums[group] = self.sum_type.add(self.sums[group], value)?;
                self.seen[group] = true;
            }
        }
        Ok(())
    }

    fn evaluate(&mut self, emit: EmitTo) -> DfResult<ArrayRef> {
        let sum_type = self.sum_type;
        let totals = self.take(emit).map(|sum| sum.map(|sum| sum_type.total(sum)).transpose());
        sum_type.array(totals.collect::<DfResult<Vec<_>>>()?)
    }

    fn state(&mut self, emit: EmitTo) -> DfResult<Vec<ArrayRef>> {
        let sum_type = self.sum_type;
        Ok(vec![sum_type.array(self.take(emit))?])
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], total_groups: usize) -> DfResult<()> {
        self.update_batch(states, groups, None, total_groups)
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> DfResult<Vec<ArrayRef>> {
        let taken = |row: usize| filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
        let values = only(values)?.iter().enumerate().map(|(row, value)| value.filter(|_| taken(row)));
        Ok(vec![self.sum_type.array(values)?])
    }

    fn size(&self) -> usize {
        self.sums.capacity() * size_of::<i128>() + self.seen.capacity()
    }
}
